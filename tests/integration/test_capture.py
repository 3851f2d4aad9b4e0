"""Changes that are captured while rows are copied: whoever makes them, every one arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.fixtures.labs import eventually, free_ports
from tests.integration.conftest import PASSWORD, REGIONS, make_start
from workload.errors import LabError
from workload.nodes import embedded
from workload.nodes.embedded import EmbeddedServer
from workload.sharding import partition as moving
from workload.sharding import rewrite as rewriting
from workload.sharding.partition import partition
from workload.sharding.rewrite import rewrite
from workload.sql import Login

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


def no_matter(line: str) -> None:
    """Hear how far a move is."""


def ids(connection: psycopg.Connection[Any], table: str) -> set[UUID]:
    return {row[0] for row in connection.execute(f"SELECT id FROM {table}".encode())}


class Loader:
    """Sessions as pg_restore and bulk loaders have them: no ordinary trigger fires."""

    def __init__(self, login: Login, table: str) -> None:
        self.login, self.table = login, table
        self.rows: set[UUID] = set()
        self.errors: list[str] = []
        self.stop = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self.login.conninfo(), autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            while not self.stop.is_set():
                try:
                    self.load(connection)
                except psycopg.Error as error:
                    self.errors.append(str(error))
                    return

    def load(self, connection: psycopg.Connection[Any]) -> None:
        batch = [uuid4() for _ in range(5)]
        copy = f"COPY {self.table} (id, email, country) FROM STDIN"
        with connection.cursor() as cursor, cursor.copy(copy.encode()) as stream:
            for key in batch:
                stream.write_row((key, "copied", "us"))
        self.rows |= set(batch)
        key = uuid4()
        connection.execute(
            f"INSERT INTO {self.table} (id, email, country) VALUES (%s, 'one', 'us')".encode(),
            (key,),
        )
        connection.execute(f"DELETE FROM {self.table} WHERE id = %s".encode(), (batch[0],))
        connection.execute(
            f"UPDATE {self.table} SET email = 'changed' WHERE id = %s".encode(), (batch[1],)
        )
        self.rows = self.rows - {batch[0]} | {key}


@contextmanager
def loading(login: Login, table: str) -> Iterator[Loader]:
    loader = Loader(login, table)
    thread = threading.Thread(target=loader.run)
    thread.start()
    try:
        eventually(lambda: len(loader.rows) > 20)
        yield loader
    finally:
        loader.stop.set()
        thread.join()


@pytest.fixture
def start(login: Login, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Return a connection to a node with the tables of the start, and parents without leaves."""
    make_start(connection)
    return connection


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, Callable[[], None]], None]:
    """Have something done at a step of a move."""

    def hold(module: Any, step: str, work: Callable[[], None]) -> None:
        def reached(name: str) -> None:
            if name == step:
                work()

        monkeypatch.setattr(module, "reached", reached)

    return hold


def test_loaders_rows_are_all_in_the_partitions(
    start: psycopg.Connection[Any], login: Login, held: Any
) -> None:
    with loading(login, "public.customer") as loader:
        # For as long as the rows of many take.
        held(moving, "partition.loaded", lambda: eventually(_has_grown(loader)))
        partition(login, REGIONS, no_matter)
        # By the view, from here on.
        eventually(_has_grown(loader))
    assert loader.errors == []
    assert ids(start, "global.customer") == loader.rows


def _has_grown(loader: Loader) -> Callable[[], bool]:
    before = len(loader.rows)
    return lambda: len(loader.rows) > before + 20


def test_loaders_rows_are_all_in_a_leaf_that_was_rewritten(
    connection: psycopg.Connection[Any], login: Login, held: Any
) -> None:
    with loading(login, "us.customer") as loader:
        held(rewriting, "rewrite.loaded", lambda: eventually(_has_grown(loader)))
        assert rewrite(login, REGIONS, "us").because == ""
        eventually(_has_grown(loader))
    assert loader.errors == []
    assert ids(connection, "us.customer") == loader.rows


def test_truncate_is_refused_meanwhile_and_brings_no_row_back(
    start: psycopg.Connection[Any], login: Login, held: Any
) -> None:
    start.execute("INSERT INTO customer (email, country) VALUES ('a', 'us')")
    refused: list[str] = []

    def truncate() -> None:
        with psycopg.connect(login.conninfo(), autocommit=True) as other:
            for role in ("origin", "replica"):
                other.execute(f"SET session_replication_role = {role}".encode())
                with pytest.raises(psycopg.errors.ObjectInUse, match="being copied") as error:
                    other.execute("TRUNCATE customer, purchase")
                refused.append(str(error.value))

    held(moving, "partition.loaded", truncate)
    partition(login, REGIONS, no_matter)
    assert len(refused) == 2
    assert start.execute("SELECT count(*) FROM global.customer").fetchone() == (1,)


def test_capture_is_nobody_elses_to_use(
    start: psycopg.Connection[Any], login: Login, held: Any
) -> None:
    start.execute("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger")
    start.execute("GRANT USAGE ON SCHEMA lab TO stranger")
    refused: list[str] = []

    def misuse() -> None:
        with psycopg.connect(login.conninfo(), autocommit=True) as other:
            other.execute("SET ROLE stranger")
            other.execute("CREATE TEMP TABLE bait (id uuid)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as error:
                other.execute(
                    "CREATE TRIGGER bait AFTER INSERT ON bait FOR EACH ROW"
                    " EXECUTE FUNCTION lab.note_change('customer')"
                )
            refused.append(str(error.value))

    held(moving, "partition.armed", misuse)
    partition(login, REGIONS, no_matter)
    assert len(refused) == 1


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[psycopg.Connection[Any]]:
    """Return a connection to somebody else's server, which publishes a table of customers."""
    made = EmbeddedServer(
        tmp_path / "publisher", free_ports(), embedded.find_bin_dir(), {"wal_level": "logical"}
    )
    with made.locked() as lock:
        made.initialise(PASSWORD, lock)
    made.configure()
    made.start()
    login = Login("127.0.0.1", made.port, "postgres", PASSWORD)
    try:
        with psycopg.connect(login.conninfo(), autocommit=True) as connection:
            yield connection
    finally:
        made.remove()


@contextmanager
def subscribed(
    connection: psycopg.Connection[Any], publisher: psycopg.Connection[Any], table: str
) -> Iterator[Callable[[int], set[UUID]]]:
    """Subscribe to a foreign table of customers; yield what adds rows there and returns all ids."""
    schema = table.partition(".")[0]
    publisher.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}".encode())
    publisher.execute(
        f"CREATE TABLE {table} (id uuid PRIMARY KEY, email text, country text)".encode()
    )
    publisher.execute(f"CREATE PUBLICATION theirs FOR TABLE {table}".encode())
    info = publisher.info
    conninfo = (
        f"host={info.host} port={info.port} user=postgres password={PASSWORD} dbname=postgres"
    )
    connection.execute(
        f"CREATE SUBSCRIPTION theirs CONNECTION '{conninfo}' PUBLICATION theirs".encode()
    )
    known: set[UUID] = set()

    def add(count: int) -> set[UUID]:
        for _ in range(count):
            key = uuid4()
            publisher.execute(f"INSERT INTO {table} VALUES (%s, 'theirs', 'us')".encode(), (key,))
            known.add(key)
        return known

    try:
        yield add
    finally:
        connection.execute("DROP SUBSCRIPTION theirs")


def test_subscription_to_a_leaf_loses_no_row_by_a_rewrite(
    connection: psycopg.Connection[Any],
    login: Login,
    publisher: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A subscription skips in silence what is for a table that it does not know."""
    with subscribed(connection, publisher, "us.customer") as add:
        add(20)
        eventually(lambda: ids(connection, "us.customer") == add(0))
        vacuum = rewriting._full

        def full(*arguments: Any) -> float:
            add(20)
            return vacuum(*arguments)

        monkeypatch.setattr(rewriting, "_full", full)
        assert rewrite(login, REGIONS, "us").because == "subscription theirs"
        add(20)
        eventually(lambda: ids(connection, "us.customer") == add(0))


def test_subscription_to_a_table_of_the_start_is_refused_by_name(
    start: psycopg.Connection[Any], login: Login, publisher: psycopg.Connection[Any]
) -> None:
    """Its worker cannot write to the view, and would stop for good."""
    with subscribed(start, publisher, "public.customer") as add:
        add(20)
        eventually(lambda: ids(start, "customer") == add(0))
        with pytest.raises(LabError, match=r"subscription theirs on public\.customer"):
            partition(login, REGIONS, no_matter)
        add(20)
        eventually(lambda: ids(start, "customer") == add(0))


def test_subscription_that_comes_meanwhile_waits_for_its_table(
    start: psycopg.Connection[Any], login: Login, publisher: psycopg.Connection[Any], held: Any
) -> None:
    """What its worker has written is in the partitions; what it has not, the publisher keeps."""
    subscription = subscribed(start, publisher, "public.customer")

    def subscribe() -> None:
        with psycopg.connect(login.conninfo(), autocommit=True) as other:
            add = subscription.__enter__()
            add(20)
            eventually(lambda: ids(other, "customer") == add(0))
            # No table goes while a subscription's first copy of it is not over.
            eventually(
                lambda: (
                    other.execute(
                        "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
                    ).fetchone()
                    == (True,)
                )
            )

    held(moving, "partition.armed", subscribe)
    try:
        partition(login, REGIONS, no_matter)
        assert len(ids(start, "global.customer")) == 20
    finally:
        subscription.__exit__(None, None, None)
