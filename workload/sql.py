"""Log in to a node and run idempotent SQL scripts; report "changed" only where one wrote."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from workload.errors import LabError, WrongPasswordError

#: A function as pg_get_functiondef prints it.
FUNCTION = re.compile(
    r"^CREATE OR REPLACE FUNCTION .*?^AS \$function\$.*?^\$function\$\n", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Login:
    """Where and as whom to connect; host and port may be lists, as libpq takes them."""

    host: str
    port: int | str
    user: str
    password: str
    dbname: str = "postgres"

    @property
    def where(self) -> str:
        """The address as a person would name it."""
        return f"{self.host}:{self.port}"

    def conninfo(self) -> str:
        """Return a libpq connection string."""
        return psycopg.conninfo.make_conninfo(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=self.dbname,
            connect_timeout=5,
            application_name="geo-sharding-lab",
        )


def connect(login: Login, timeout_s: float = 0) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection, waiting up to timeout_s for the server to take logins.

    Only a login over TCP proves readiness: during a first start a server answers on its socket
    alone, and pg_isready tests neither user nor database. Raises LabError with the address and the
    last error.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return psycopg.connect(login.conninfo())
        except psycopg.OperationalError as error:
            text = " ".join(str(error).split())
            if "password authentication failed" in text:
                # Not "password": that is the default password too, which Ansible masks.
                raise WrongPasswordError(
                    f"user '{login.user}' is refused at {login.where}: LAB_PASSWORD is not what"
                    " this node's data was made with; set it to that, or make teardown"
                ) from None
            if time.monotonic() > deadline:
                raise LabError(f"no login at {login.where} in {timeout_s:.0f} s: {text}") from None
            time.sleep(0.05)


def apply(
    connection: psycopg.Connection[tuple[object, ...]],
    scripts: Sequence[Mapping[str, Any]],
    dry_run: bool = False,
    lock_timeout_ms: int = 0,
    timeout_s: float = 60,
) -> list[str]:
    """Run scripts ({name, text}) in a transaction each; return the names of those that changed.

    A script changed something exactly where its transaction has a transaction id: PostgreSQL
    assigns one on the first write, and CREATE ... IF NOT EXISTS on an object that exists writes
    nothing; functions that the node has are left out. A dry run rolls all scripts back together,
    since a later one may need an earlier one.

    With lock_timeout_ms a script gives up a lock after that time, since all later sessions queue
    behind it, and tries again until timeout_s. Raises LabError with the script's name and the
    server's message.
    """
    changed = []
    connection.autocommit = True
    outer = connection.transaction(force_rollback=True) if dry_run else contextlib.nullcontext()
    with outer:
        take_turns(connection, timeout_s)
        connection.execute(f"SET lock_timeout = {int(lock_timeout_ms)}")
        for script in scripts:
            deadline = time.monotonic() + (timeout_s if lock_timeout_ms and not dry_run else 0)
            while True:
                try:
                    if _run(connection, script):
                        changed.append(script["name"])
                    break
                except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
                    if time.monotonic() > deadline:
                        raise LabError(f"{script['name']}: {describe(error)}") from None
                    # The sessions that queued behind the attempt get the lock first.
                    time.sleep(0.05)
                except psycopg.Error as error:
                    raise LabError(f"{script['name']}: {describe(error)}") from None
    return changed


def take_turns(connection: psycopg.Connection[tuple[object, ...]], timeout_s: float) -> None:
    """Wait for other runs' scripts to end: two CREATE ... IF NOT EXISTS at once may fail.

    A killed playbook's worker is another run too. The lock ends with the connection. Raises
    LabError after timeout_s.
    """
    connection.execute(f"SET lock_timeout = {int(timeout_s * 1e3)}")
    try:
        connection.execute("SELECT pg_advisory_lock(hashtext('geo-sharding-lab'))")
    except errors.LockNotAvailable:
        raise LabError(
            f"another run of this lab is at work on this node for more than {timeout_s:.0f} s"
        ) from None


def together(statements: Iterable[sql.Composable]) -> sql.Composed:
    """Return statements as one message to the server."""
    return sql.SQL("; ").join(statements)


def _run(connection: psycopg.Connection[tuple[object, ...]], script: Mapping[str, Any]) -> bool:
    with connection.transaction():
        connection.execute(_without_existing(connection, script["text"]).encode())
        row = connection.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
        return bool(row and row[0])


def _without_existing(connection: psycopg.Connection[tuple[object, ...]], text: str) -> str:
    """Return a script without the functions that the node has word for word.

    CREATE OR REPLACE writes even where nothing changes. A function that is written otherwise than
    pg_get_functiondef prints it is replaced each time, and counts as a change.
    """
    if not FUNCTION.search(text):
        return text
    rows = connection.execute(
        "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE prokind = 'f'"
        " AND pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
    ).fetchall()
    existing = {str(definition) for (definition,) in rows}
    return FUNCTION.sub(lambda match: "" if match[0] in existing else match[0], text)


def describe(error: psycopg.Error) -> str:
    """Return a server's error as one line with its SQLSTATE and detail."""
    if isinstance(error, errors.OperationalError) and not error.sqlstate:
        return " ".join(str(error).split())
    detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
    return f"{error.diag.severity} {error.sqlstate}: {error.diag.message_primary}{detail}"
