"""Two PostgreSQL servers on one data directory, as in two containers that share a volume."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import psycopg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workload.errors import LabError
from workload.nodes.embedded import (
    ROOT_ESCAPE,
    EmbeddedServer,
    fatal_line,
    find_bin_dir,
    last_line,
    run_as,
    server_version,
)
from workload.sql import Login, connect, describe

#: The names of the source document's containers.
NAMES = ("eu_db", "eu_db_2")

# In a user namespace root, and an ordinary user too, may make the other namespaces.
OWN_PID = (*ROOT_ESCAPE, "--pid", "--fork", "--kill-child")
OWN_PID_AND_IPC = (*OWN_PID, "--ipc")

# A table that has been in use: with a new one, both servers would make its free-space map at once.
SHOP = (
    "CREATE EXTENSION amcheck",
    "CREATE TABLE customer (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), email TEXT NOT NULL)"
    " WITH (vacuum_truncate = off)",
    "INSERT INTO customer (email) SELECT n || '@old.example' FROM generate_series(1, 1000) AS n",
    "VACUUM customer",
)
INSERT = "INSERT INTO customer (id, email) VALUES (%s, %s)"

READ_THE_TABLE = "SET enable_indexscan = off; SET enable_bitmapscan = off"
READ_THE_INDEX = "RESET ALL; SET enable_seqscan = off; SET statement_timeout = '5s'"
# A LATERAL with LIMIT reads the index once for each id. It reads email, so that the row itself is
# fetched: an index scan trusts the index, and may return the row of another id.
BY_ID = """
SELECT asked.id, customer.id FROM unnest(%s::uuid[]) AS asked (id),
LATERAL (SELECT id, email FROM customer WHERE id = asked.id LIMIT 1) AS customer
"""
BATCH = 1000

ALARMS = re.compile(r"^.*\b(?:WARNING|ERROR|FATAL|PANIC): .*$", re.MULTILINE)


@dataclass
class Container:
    """A server in namespaces of its own, its client, and where the client's rows are."""

    login: Login
    name: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    errors: list[str] = field(default_factory=list)
    #: Rows of the other server's client that this server showed while both ran.
    seen_of_other: int | None = None
    acknowledged: list[uuid.UUID] = field(default_factory=list)
    in_table: int = 0
    by_id: int = 0
    #: Look-ups by id for which the index returned the row of another customer.
    mistaken: int = 0
    failed_lookups: int = 0

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / f"{self.name}.log"

    @property
    def ledger(self) -> Path:
        """The file, outside any database, in which the client notes each acknowledged id."""
        return self.folder / f"{self.name}.acknowledged"

    @property
    def lost(self) -> int:
        """How many acknowledged rows are not in the table."""
        return len(self.acknowledged) - self.in_table


def show(seconds: int, bin_dir: str, console: Console) -> None:
    """Play the exhibit and print its story; that rows are lost is no error.

    Raises LabError where this machine cannot show it.
    """
    started = time.monotonic()
    programs = find_bin_dir(bin_dir)
    for name in ("initdb", "pg_checksums", "pg_amcheck"):
        if not (programs / name).exists():
            raise LabError(f"{programs} has no {name}: name the folder of a whole PostgreSQL")
    _check_namespaces()
    version = ".".join(map(str, server_version(programs)))
    console.print(f"Two servers on one data directory (PostgreSQL {version}, throw-away data)\n")
    try:
        with _sandbox(programs, seconds) as (server, password):
            _play(server, password, seconds, console)
    except (psycopg.Error, OSError) as error:
        why = describe(error) if isinstance(error, psycopg.Error) else str(error)
        raise LabError(f"the exhibit cannot be shown: {why}") from None
    console.print(f"\nAll of it is removed again. It took {time.monotonic() - started:.0f} s.")


def _play(server: EmbeddedServer, password: str, seconds: int, console: Console) -> None:
    with server.locked() as lock:
        server.initialise(password, lock)
    ports = _free_ports(2)
    first, second = (
        Container(Login("127.0.0.1", port, "postgres", password), name, server.base)
        for name, port in zip(NAMES, ports, strict=True)
    )
    server.configure()
    refusals = _refusals(server)
    if not _start(server, first):
        raise LabError(f"{first.name} does not start: {fatal_line(_text(first.log))}")
    with connect(first.login, 10) as connection:
        connection.autocommit = True
        for statement in SHOP:
            connection.execute(statement)
    starts = _start(server, second)
    _show_starts(refusals, second, starts, console)
    if not starts:
        console.print("This PostgreSQL guards its data across namespaces too: no row is lost here.")
        return
    nodes = (first, second)
    console.print(
        f"So both run. For {seconds} s a client of each inserts customers, and notes outside the"
        " database every id that is acknowledged. Two settings are not PostgreSQL's defaults:"
        f" autovacuum_naptime is {_naptime_s(seconds)} s, not 60 s, so that autovacuum runs in a"
        " short test too; vacuum_truncate is off, since with it one server cuts off the other's"
        " pages, and in some runs a client gets an error.\n"
    )
    _let_write(nodes, seconds)
    for node, other in ((first, second), (second, first)):
        node.seen_of_other = _count_rows_of(other, node)
    alarms = [alarm for node in nodes for alarm in ALARMS.findall(_text(node.log))]
    for node in nodes:
        _stop(node)
    checksums = _pg_checksums(server)
    console.print(
        f"Both are stopped, {first.name} before {second.name}. Then one server starts alone, and"
        " is asked for every row.\n"
    )
    try:
        server.start(timeout_s=15)
        trouble = _count(replace(first.login, port=server.port), nodes)
        amcheck = _pg_amcheck(server, password)
        server.stop(timeout_s=15)
    except LabError as error:
        trouble, amcheck = str(error), "could not be run"
    _show_rows(nodes, console)
    for line in (trouble, *_verdict(nodes, alarms)):
        if line:
            console.print(line, markup=False)
    console.print(f"\npg_checksums: {checksums}", markup=False)
    console.print(f"pg_amcheck --heapallindexed: {amcheck}", markup=False)
    console.print(
        "\nInstead: make the second node a streaming standby with a volume of its own"
        " (pg_basebackup -R); the lab refuses a volume that another container uses."
    )


# -- the servers ---------------------------------------------------------------------------------


def _refusals(server: EmbeddedServer) -> list[tuple[str, str]]:
    """Return (namespaces, FATAL line) of second servers that refuse to start while one runs."""
    server.start(timeout_s=15)
    refusals = []
    prefixes: dict[str, Sequence[str]] = {"none: embedded runtime": run_as(), "PID": OWN_PID}
    for namespaces, prefix in prefixes.items():
        try:
            second = subprocess.run(
                _command(server, prefix, _free_ports(1)[0]),
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(
                f"a second server ran on {server.data} with own namespaces: {namespaces};"
                " PostgreSQL's guard should have refused it"
            ) from None
        refusals.append((namespaces, " ".join(fatal_line(second.stderr).split())))
    server.stop(timeout_s=15)
    return refusals


def _command(server: EmbeddedServer, prefix: Sequence[str], port: int | str) -> list[str]:
    return [
        *prefix,
        str(server.bin_dir / "postgres"),
        "-c",
        f"config_file={server.base / 'postgresql.conf'}",
        "-c",
        f"port={port}",
    ]


def _start(server: EmbeddedServer, node: Container) -> bool:
    """Start a node in namespaces of its own; return whether it runs, False where it refuses.

    Its log tells when it is ready: both servers write the one postmaster.pid.
    """
    with node.log.open("wb") as log:
        node.process = subprocess.Popen(
            _command(server, OWN_PID_AND_IPC, node.login.port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 15
    while "ready to accept connections" not in _text(node.log):
        if node.process.poll() is not None:
            reason = fatal_line(_text(node.log))
            if "lock file" in reason or "shared memory block" in reason:
                return False
            raise LabError(f"{node.name} does not start: {reason}")
        if time.monotonic() > deadline:
            raise LabError(f"{node.name} is not ready in 15 s: {last_line(_text(node.log))}")
        time.sleep(0.02)
    return True


def _stop(node: Container) -> None:
    """Stop a node as docker stop would: SIGINT to its process 1, which is the postmaster."""
    if node.process is None or node.process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        for postmaster in psutil.Process(node.process.pid).children():
            postmaster.send_signal(signal.SIGINT)
    try:
        node.process.wait(15)
    except subprocess.TimeoutExpired:
        raise LabError(f"{node.name} does not stop within 15 s") from None


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


# -- the clients ---------------------------------------------------------------------------------


def _let_write(nodes: Sequence[Container], seconds: int) -> None:
    is_over = threading.Event()
    clients = [
        # Daemons: a client that waits for a killed server must not keep this process running.
        threading.Thread(target=_write, args=(node, is_over), daemon=True)
        for node in nodes
    ]
    for client in clients:
        client.start()
    try:
        is_over.wait(seconds)
    finally:
        is_over.set()
    for client in clients:
        client.join(10)
    for node in nodes:
        node.acknowledged = [uuid.UUID(line) for line in _text(node.ledger).split()]


def _write(node: Container, is_over: threading.Event) -> None:
    try:
        with node.ledger.open("w", buffering=1) as ledger, connect(node.login, 10) as connection:
            connection.autocommit = True
            number = 0
            while not (is_over.is_set() or connection.closed):
                number += 1
                customer = uuid.uuid4()
                try:
                    connection.execute(INSERT, (customer, f"{number}@{node.name}.example"))
                    ledger.write(f"{customer}\n")
                except psycopg.Error as error:
                    node.errors.append(describe(error))
    except (LabError, psycopg.Error) as error:
        node.errors.append(str(error))


def _count_rows_of(other: Container, node: Container) -> int | None:
    """Count on one node the rows of the other's client; None where the node does not answer."""
    try:
        with connect(node.login, 5) as connection:
            row = connection.execute(
                "SELECT count(*) FROM customer WHERE email LIKE %s", (f"%@{other.name}.example",)
            ).fetchone()
    except (LabError, psycopg.Error):
        return None
    return int(str(row[0])) if row else None


# -- what is left --------------------------------------------------------------------------------


def _count(login: Login, nodes: Sequence[Container]) -> str:
    """Read each acknowledged row, from the table and by its id; return what prevents that."""
    trouble = ""
    with connect(login, 10) as connection:
        connection.autocommit = True
        connection.execute(READ_THE_TABLE)
        try:
            table = {row[0] for row in connection.execute("SELECT id FROM customer")}
        except psycopg.Error as error:
            table = set()
            trouble = f"The table cannot be read, so all rows count as lost: {describe(error)}"
        connection.execute(READ_THE_INDEX)
        for node in nodes:
            node.in_table = sum(customer in table for customer in node.acknowledged)
            for start in range(0, len(node.acknowledged), BATCH):
                _look_up(connection, node, node.acknowledged[start : start + BATCH])
    return trouble


def _look_up(
    connection: psycopg.Connection[tuple[object, ...]], node: Container, customers: list[uuid.UUID]
) -> None:
    try:
        for asked, returned in connection.execute(BY_ID, (customers,)):
            node.by_id += asked == returned
            node.mistaken += asked != returned
    except psycopg.Error:
        if len(customers) == 1:
            node.failed_lookups += 1
            return
        for customer in customers:
            _look_up(connection, node, [customer])


def _pg_checksums(server: EmbeddedServer) -> str:
    checked = subprocess.run(
        [*run_as(), server.bin_dir / "pg_checksums", "--check", f"--pgdata={server.data}"],
        capture_output=True,
        text=True,
        check=False,
    )
    blocks = re.search(r"Blocks scanned: +(\d+)", checked.stdout)
    bad = re.search(r"Bad checksums: +(\d+)", checked.stdout)
    if not (blocks and bad):
        return last_line(checked.stderr)
    return f"{int(bad[1]):,} bad blocks of {int(blocks[1]):,}"


def _pg_amcheck(server: EmbeddedServer, password: str) -> str:
    checked = subprocess.run(
        [
            server.bin_dir / "pg_amcheck",
            "--heapallindexed",
            "--host=127.0.0.1",
            f"--port={server.port}",
            "--username=postgres",
            "postgres",
        ],
        env={**os.environ, "PGPASSWORD": password},
        capture_output=True,
        text=True,
        check=False,
    )
    if not checked.returncode:
        return "nothing is damaged"
    damaged = re.findall(
        r'^(btree index|heap table) "[^"]*\.([^".]+)"', checked.stdout, re.MULTILINE
    )
    if not damaged:
        return last_line(checked.stderr)
    names = ", ".join(f"{kind} {name}" for kind, name in dict.fromkeys(damaged))
    words = re.search(r"^ +(?:ERROR: +)?(.*)", checked.stdout, re.MULTILINE)
    return f"damaged: {names}. The first finding: {words[1] if words else ''}"


# -- the story -----------------------------------------------------------------------------------


def _show_starts(
    refusals: Sequence[tuple[str, str]], second: Container, starts: bool, console: Console
) -> None:
    table = Table(
        title="A second server, while one runs on the directory",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("its own namespaces", no_wrap=True)
    table.add_column("its answer")
    for namespaces, reason in refusals:
        table.add_row(namespaces, escape(reason))
    log = _text(second.log)
    recovery = re.search(r"database system was not properly shut down.*", log)
    start = f"starts: {recovery[0] if recovery else 'database system is ready'}"
    table.add_row("PID, IPC: containers", escape(start if starts else fatal_line(log)))
    console.print(table)


def _show_rows(nodes: Sequence[Container], console: Console) -> None:
    table = Table(
        title="What became of the rows, by the server that took them",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("")
    for node in nodes:
        table.add_column(node.name, justify="right")
    table.add_column("both", justify="right")
    table.add_column("")

    def add(what: str, figures: Sequence[int | None], unit: str = "rows") -> None:
        known = [figure for figure in figures if figure is not None]
        both = sum(known) if len(known) == len(figures) else None
        table.add_row(
            what, *("?" if each is None else f"{each:,}" for each in (*figures, both)), unit
        )

    acknowledged = [len(node.acknowledged) for node in nodes]
    lost = [node.lost for node in nodes]
    add("errors the client saw", [len(node.errors) for node in nodes], "errors")
    add("acknowledged", acknowledged)
    add("of the other, read while both ran", [node.seen_of_other for node in nodes])
    add("in the table, alone again", [node.in_table for node in nodes])
    add("LOST", lost)
    shares = zip((*lost, sum(lost)), (*acknowledged, sum(acknowledged)), strict=True)
    table.add_row("", *(f"{100 * part / (whole or 1):.1f}" for part, whole in shares), "%")
    add("found by their id", [node.by_id for node in nodes])
    for what, figures in (
        ("another's row, asked by id", [node.mistaken for node in nodes]),
        ("asked by id: an error", [node.failed_lookups for node in nodes]),
    ):
        if any(figures):
            add(what, figures)
    console.print(table)


def _verdict(nodes: Sequence[Container], alarms: Sequence[str]) -> Iterator[str]:
    """Yield the figures' meaning, a sentence for each."""
    errors = [error for node in nodes for error in node.errors]
    lost = sum(node.lost for node in nodes)
    acknowledged = sum(len(node.acknowledged) for node in nodes)
    if errors:
        yield f"This time clients saw errors, the first: {errors[0]}"
    else:
        yield "No client saw an error."
    if alarms:
        yield f"The logs have {len(alarms)} alarms, the first: {alarms[0].strip()}"
    else:
        yield "The servers' logs have no warning and no error from that time."
    if lost:
        yield f"LOST: {lost:,} of {acknowledged:,} acknowledged rows are gone from the table."
    else:
        yield "This time the table lost no row, which is luck."
    if missed := acknowledged - sum(node.by_id for node in nodes):
        yield f"A program that asks by id misses {missed:,} rows."


# -- the sandbox ---------------------------------------------------------------------------------


def _check_namespaces() -> None:
    try:
        attempt = subprocess.run(
            [*OWN_PID_AND_IPC, "true"], capture_output=True, text=True, check=False
        )
        problem = last_line(attempt.stderr) if attempt.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        raise LabError(
            f"no PID and IPC namespaces can be made here ({problem}), so two containers cannot be"
            " imitated: try as root, or where the kernel allows user namespaces"
        )


@contextlib.contextmanager
def _sandbox(bin_dir: Path, seconds: int) -> Iterator[tuple[EmbeddedServer, str]]:
    """Yield a server that is not initialised, and remove all of it in the end."""
    password = secrets.token_hex(16)
    folder = Path(tempfile.gettempdir()) / f"geo-lab-exhibit-{uuid.uuid4().hex}"
    earlier = psutil.Process().children(recursive=True)
    settings = {"autovacuum_naptime": _naptime_s(seconds)}
    server = EmbeddedServer(folder / "node", _free_ports(1)[0], bin_dir, settings)
    try:
        folder.mkdir(mode=0o700)
        yield server, password
    finally:
        # Never restored: the process ends after the clean-up.
        signal.alarm(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _remove(folder, server, earlier)


def _remove(folder: Path, server: EmbeddedServer, earlier: Sequence[psutil.Process]) -> None:
    try:
        # stop() first: a killed server leaves its segments in /dev/shm.
        server.stop(timeout_s=4)
    finally:
        deadline = time.monotonic() + 4
        while leftover := _leftover(folder, server, earlier):
            for process in leftover:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(leftover, timeout=1)
            if time.monotonic() > deadline:
                break
        if folder.exists():
            shutil.rmtree(folder)


def _leftover(
    folder: Path, server: EmbeddedServer, earlier: Sequence[psutil.Process]
) -> list[psutil.Process]:
    """Return the running processes that this one started, and orphans of a killed initdb."""
    started = [p for p in psutil.Process().children(recursive=True) if p not in earlier]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process not in started
                and Path(process.cwd()).is_relative_to(folder.resolve())
                and Path(process.exe()).parent == server.bin_dir.resolve()
            ):
                started.append(process)
    alive = []
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def _naptime_s(seconds: int) -> int:
    """Return an autovacuum_naptime in seconds with which autovacuum runs twice in a run."""
    return max(1, seconds // 2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in held]
