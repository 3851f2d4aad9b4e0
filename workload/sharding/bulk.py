"""Many rows from one server to another, fast: parallel binary COPYs in one snapshot, keys after.

Building the keys last is most of the gain (notes in docs/decisions/005): a primary key on random
uuids costs more while the rows come in than all else together. The rows pass through this process
as they are, whole buffers at a time, and are never looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

from workload.errors import LabError
from workload.processes import Say, in_parallel
from workload.sql import Login, connect, describe

#: Rows that are handed on at a time: few enough that what they are in is used again from the
#: processor's cache, which is worth a third of this process's time.
ROWS = 128
#: Pages of a table that one COPY takes: 64 MB, so that a large one keeps all streams busy.
PAGES = 8192
#: Streams between two servers.
STREAMS = 2
#: Seconds between two lines of progress.
PROGRESS_S = 2.0
#: What makes keys build fast, and a load not wait for each commit's flush.
LOAD_SETTINGS = (
    "SET synchronous_commit = off; SET maintenance_work_mem = '256MB';"
    " SET max_parallel_maintenance_workers = 2"
)


@dataclass(frozen=True)
class Part:
    """Rows to copy: a query at the source, and the table and columns that they go to."""

    name: str
    query: sql.Composable
    into: sql.Composable


@dataclass
class Progress:
    """How far a copy is, told now and then."""

    name: str
    total: int
    say: Say
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, rows: int) -> None:
        """Count rows that have arrived."""
        with self.lock:
            self.done += rows
            now = time.monotonic()
            if now - self.told < PROGRESS_S:
                return
            self.told = now
        self.say(self.line())

    def line(self) -> str:
        """Return how far it is, in rows and rows a second."""
        rate = self.done / max(1e-9, time.monotonic() - self.started)
        total = max(self.total, self.done)
        return f"{self.name}: {self.done:,} of {total:,} rows, {rate:,.0f} rows/s"


def split(
    connection: psycopg.Connection[tuple[object, ...]],
    name: str,
    table: sql.Identifier,
    columns: sql.Composable,
    into: sql.Composable,
) -> Iterator[Part]:
    """Yield a table's rows in parts of PAGES pages, by the connection's snapshot."""
    row = connection.execute(
        sql.SQL("SELECT pg_relation_size({}) / current_setting('block_size')::int").format(
            sql.Literal(table.as_string(connection))
        )
    ).fetchone()
    assert row
    if not row[0]:
        return
    # The last part has no end: pages may have been added since.
    starts = range(0, int(str(row[0])), PAGES)
    for start in starts:
        bounds = sql.SQL("ctid >= {}").format(sql.Literal(f"({start},0)"))
        if start != starts[-1]:
            bounds += sql.SQL(" AND ctid < {}").format(sql.Literal(f"({start + PAGES},0)"))
        query = sql.SQL("SELECT {} FROM {} WHERE {}").format(columns, table, bounds)
        yield Part(name, query, sql.SQL("{} ({})").format(into, columns))


def copy(
    source: Login,
    target: Login,
    snapshot: str,
    parts: Sequence[Part],
    progress: Progress,
    streams: int = STREAMS,
) -> None:
    """Copy parts from a snapshot of the source into tables of the target, several at a time.

    The target's foreign keys and triggers do not fire. Raises LabError with the part's name; what
    was copied until then stays.
    """
    waiting = list(reversed(parts))
    lock = threading.Lock()

    def stream() -> None:
        with connect(source, 10) as reader, connect(target, 10) as writer:
            reader.autocommit = writer.autocommit = True
            reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            writer.execute(f"{LOAD_SETTINGS}; SET session_replication_role = replica")
            while True:
                with lock:
                    if not waiting:
                        return
                    part = waiting.pop()
                pump(reader, writer, part, progress.add)

    in_parallel([stream] * min(streams, len(parts)))


def pump(
    reader: psycopg.Connection[tuple[object, ...]],
    writer: psycopg.Connection[tuple[object, ...]],
    part: Part,
    arrived: Callable[[int], None],
) -> None:
    """Copy one part between two connections; raises LabError with its name."""
    copy_out = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(part.query)
    copy_in = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(part.into)
    source, target = reader.pgconn, writer.pgconn
    # libpq itself: a psycopg Copy would spend more time on each row than both servers do.
    for connection, statement, expected in (
        (source, copy_out.as_bytes(reader), ExecStatus.COPY_OUT),
        (target, copy_in.as_bytes(writer), ExecStatus.COPY_IN),
    ):
        result = connection.exec_(statement)
        if result.status != expected:
            raise LabError(f"{part.name}: {_message(result.error_message)}")
    # Bound once: this is done for each row.
    get, rows, length = source.get_copy_data, range(ROWS), 0
    buffer: list[bytes | memoryview] = []
    try:
        while length >= 0:
            buffer.clear()
            add = buffer.append
            for _ in rows:
                length, row = get(0)
                if length < 0:
                    break
                add(row)
            target.put_copy_data(b"".join(buffer))
            arrived(len(buffer))
        if (ended := source.get_result()) and ended.status != ExecStatus.COMMAND_OK:
            raise LabError(f"{part.name}: {_message(ended.error_message)}")
        target.put_copy_end()
        ended = target.get_result()
    except psycopg.Error as error:
        raise LabError(f"{part.name}: {describe(error)}") from None
    if ended is None or ended.status != ExecStatus.COMMAND_OK:
        raise LabError(f"{part.name}: {_message(ended.error_message if ended else b'')}")
    # Until they have said that they are done, neither takes another command.
    source.get_result()
    target.get_result()


def run_all(login: Login, jobs: Sequence[Sequence[sql.Composed]], workers: int = 2) -> None:
    """Run lists of statements on a server, several lists at a time; raises LabError."""
    waiting = list(reversed(jobs))
    lock = threading.Lock()

    def work() -> None:
        with connect(login, 10) as connection:
            connection.autocommit = True
            connection.execute(LOAD_SETTINGS)
            while True:
                with lock:
                    if not waiting:
                        return
                    statements = waiting.pop()
                for statement in statements:
                    try:
                        connection.execute(statement)
                    except psycopg.Error as error:
                        raise LabError(f"{login.where}: {describe(error)}") from None

    in_parallel([work] * min(workers, len(jobs)))


def _message(text: bytes | str) -> str:
    message = text.decode(errors="replace") if isinstance(text, bytes) else text
    return " ".join(message.split()) or "the connection broke"
