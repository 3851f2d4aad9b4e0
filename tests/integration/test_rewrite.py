"""Leaves that are rewritten while customers write: what is gone, and what is still there."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.integration.conftest import PASSWORD, REGIONS
from workload.errors import LabError
from workload.lab import CHECKOUT
from workload.nodes.embedded import EmbeddedServer
from workload.sharding import bulk
from workload.sharding import rewrite as rewriting
from workload.sharding.rewrite import rewrite
from workload.sql import Login

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

SEED = int(os.environ.get("LAB_TEST_SEED") or 20261124)
MARKER = b"qzxwvkjyhgpmurtlsonqzxwvkjyhgpmu"
ROWS = """
SELECT (SELECT jsonb_object_agg(id, email || country) FROM us.customer),
       (SELECT jsonb_object_agg(id, customer_id || amount::text || country) FROM us.purchase)
"""
LEFT = """
SELECT to_regnamespace('rewritten_us'), to_regnamespace('retired_us'),
  to_regclass('lab.changed'), to_regproc('lab.note_change'),
  (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid::regclass::text ~ '^us')
"""
NOTHING = (None, None, None, None, 0)


def seed(connection: psycopg.Connection[Any], customers: int) -> None:
    connection.execute(
        "WITH made AS (INSERT INTO us.customer (email, country)"
        " SELECT i || '@example.com', 'us' FROM generate_series(1, %s) i RETURNING id)"
        " INSERT INTO us.purchase (customer_id, amount, country)"
        " SELECT id, 7, 'us' FROM made, generate_series(1, 3)",
        (customers,),
    )


def one(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...]:
    row: Any = connection.execute(statement.encode()).fetchone()
    return tuple(row)


def has_marker(connection: psycopg.Connection[Any], server: EmbeddedServer) -> bool:
    """Tell whether any file of the server's tables has the marker."""
    connection.execute("CHECKPOINT")
    files = (path for path in (server.data / "base").rglob("*") if path.is_file())
    return any(MARKER in path.read_bytes() for path in files)


def delete_marked(connection: psycopg.Connection[Any], server: EmbeddedServer) -> None:
    """Have the bytes of a row that was deleted in the files, in spite of a VACUUM."""
    seed(connection, 200)
    # The last of its page, so that no other row is moved to its place.
    connection.execute(
        "INSERT INTO us.customer (email, country) VALUES (%s, 'mx')", (MARKER.decode(),)
    )
    connection.execute("DELETE FROM us.customer WHERE email = %s", (MARKER.decode(),))
    connection.execute("VACUUM us.customer")
    assert has_marker(connection, server)


@dataclass
class Writer:
    """A customers' session that adds, changes and deletes, and knows what there should be."""

    login: Login
    #: By the parents' names, or the leaves' own.
    schema: str
    customers: dict[UUID, str] = field(default_factory=dict)
    purchases: dict[UUID, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        chance = random.Random(f"{SEED}/{self.schema}")
        with psycopg.connect(
            self.login.conninfo(), autocommit=True, prepare_threshold=0
        ) as connection:
            while not self.stop.is_set():
                try:
                    self.trade(connection, chance)
                except psycopg.Error as error:
                    self.errors.append(str(error))
                    return

    def trade(self, connection: psycopg.Connection[Any], chance: random.Random) -> None:
        customer, email = uuid4(), f"{chance.random()}@example.com"
        country = chance.choice(("us", "mx"))

        def say(statement: str, *values: Any) -> None:
            connection.execute(statement.format(self.schema).encode(), values)

        say("INSERT INTO {}.customer (id, email, country) VALUES (%s, %s, %s)",
            customer, email, country)  # fmt: skip
        self.customers[customer] = email
        bought = [uuid4() for _ in range(2)]
        with connection.transaction():
            for key in bought:
                say("INSERT INTO {}.purchase (id, customer_id, amount, country)"
                    " VALUES (%s, %s, 1, %s)", key, customer, country)  # fmt: skip
        self.purchases |= dict.fromkeys(bought, 1)
        say("UPDATE {}.purchase SET amount = 2 WHERE id = %s AND country = %s", bought[0], country)
        self.purchases[bought[0]] = 2
        if chance.random() < 0.3:
            say("UPDATE {}.customer SET email = 'new' WHERE id = %s AND country = %s",
                customer, country)  # fmt: skip
            self.customers[customer] = "new"
        if chance.random() < 0.3:
            with connection.transaction():
                say("DELETE FROM {}.purchase WHERE customer_id = %s AND country = %s",
                    customer, country)  # fmt: skip
                say("DELETE FROM {}.customer WHERE id = %s AND country = %s", customer, country)
            del self.customers[customer]
            for key in bought:
                del self.purchases[key]


@contextmanager
def writers(login: Login) -> Iterator[list[Writer]]:
    found = [Writer(login, schema) for schema in ("global", "us")]
    threads = [threading.Thread(target=writer.run) for writer in found]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        for writer in found:
            writer.stop.set()
        for thread in threads:
            thread.join(30)


def assert_as_written(connection: psycopg.Connection[Any], found: list[Writer]) -> None:
    customers = dict(connection.execute("SELECT id, email FROM us.customer").fetchall())
    purchases = dict(connection.execute("SELECT id, amount::int FROM us.purchase").fetchall())
    for writer in found:
        assert writer.errors == []
        assert len(writer.customers) > 5
        for key, email in writer.customers.items():
            assert customers.pop(key) == email
        for key, amount in writer.purchases.items():
            assert purchases.pop(key) == amount
    # What is left was there before.
    assert set(customers.values()) <= {f"{number}@example.com" for number in range(1, 20_001)}
    assert set(purchases.values()) <= {7}


def test_bytes_of_deleted_rows_are_gone_and_the_others_are_there(
    connection: psycopg.Connection[Any], login: Login, server: EmbeddedServer
) -> None:
    delete_marked(connection, server)
    before = one(connection, ROWS)
    done = rewrite(login, REGIONS, "us")
    assert done.because == ""
    assert done.pause_ms > 0
    assert not has_marker(connection, server)
    assert one(connection, ROWS) == before
    assert one(connection, LEFT) == NOTHING
    # It is the parent's leaf as it was, with its keys, its references and its bound.
    rows = "SELECT count(*) FROM global.purchase WHERE country = 'us'"
    assert one(connection, rows) == (600,)
    assert one(connection, "SELECT count(*) FROM pg_constraint WHERE conname = 'home'") == (0,)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        connection.execute(
            "INSERT INTO us.purchase (customer_id, amount, country)"
            " VALUES (gen_random_uuid(), 1, 'us')"
        )
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO us.customer SELECT * FROM us.customer")
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("INSERT INTO us.customer (email, country) VALUES ('a', 'uk')")


def test_writers_go_on_and_nothing_of_theirs_is_lost(
    connection: psycopg.Connection[Any], login: Login
) -> None:
    seed(connection, 20_000)
    with writers(login) as found:
        for _ in range(3):
            rewrite(login, REGIONS, "us")
    assert_as_written(connection, found)
    rows = "SELECT count(*) FROM us.customer WHERE email ~ '^[0-9]+@'"
    assert one(connection, rows) == (20_000,)


@pytest.mark.soak
def test_killed_at_any_moment_the_next_one_does_it(
    connection: psycopg.Connection[Any], login: Login
) -> None:
    seed(connection, 20_000)
    moments = random.Random(SEED)
    program = (
        "from workload.sharding.rewrite import rewrite; from workload.sql import Login;"
        f"rewrite(Login('127.0.0.1', {login.port}, 'postgres', {login.password!r}),"
        f" {REGIONS!r}, 'us')"
    )
    cut_short = 0
    with writers(login) as found:
        for _ in range(6):
            process = subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT)
            # It has begun, and how far it comes is chance.
            deadline = time.monotonic() + 20
            while one(connection, LEFT) == NOTHING and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            cut_short += process.wait() == -signal.SIGKILL
        rewrite(login, REGIONS, "us")
    assert cut_short > 0
    assert one(connection, LEFT) == NOTHING
    assert_as_written(connection, found)


@pytest.mark.parametrize("begins", ["before", "meanwhile"])
def test_long_transaction_keeps_it_from_nothing_but_being_done(
    connection: psycopg.Connection[Any],
    login: Login,
    monkeypatch: pytest.MonkeyPatch,
    begins: str,
) -> None:
    seed(connection, 100)
    before = one(connection, ROWS)
    monkeypatch.setattr(rewriting, "LOCKS_S", 1)
    with psycopg.connect(login.conninfo()) as other:

        def begin() -> None:
            other.execute("INSERT INTO us.customer (email, country) VALUES ('long', 'us')")

        if begins == "before":
            begin()
        else:
            monkeypatch.setattr(rewriting, "run_all", _after(begin, bulk.run_all))
        with pytest.raises(LabError, match=r"could not be rewritten.*long transaction.*after"):
            rewrite(login, REGIONS, "us")
        # Nobody else is held up.
        with psycopg.connect(login.conninfo(), options="-c lock_timeout=1s") as customer:
            customer.execute("INSERT INTO global.customer (email, country) VALUES ('a', 'us')")
            customer.rollback()
        other.rollback()
    assert one(connection, ROWS) == before
    monkeypatch.undo()
    rewrite(login, REGIONS, "us")
    assert one(connection, ROWS) == before
    assert one(connection, LEFT) == NOTHING


def _after(first: Callable[[], None], then: Callable[..., None]) -> Callable[..., None]:
    """Return a function that does something the first time that it is called."""
    waiting = [first]

    def work(*arguments: Any) -> None:
        while waiting:
            waiting.pop()()
        then(*arguments)

    return work


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("CREATE VIEW lab.mine AS SELECT id FROM us.purchase", "view lab.mine"),
        ("CREATE PUBLICATION mine FOR TABLE us.purchase", "publication mine"),
        (
            "CREATE TRIGGER mine BEFORE INSERT ON us.customer FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "trigger mine",
        ),
        (
            "CREATE TABLE lab.mine (id uuid REFERENCES us.customer)",
            "foreign key mine_id_fkey",
        ),
        ("ALTER TABLE us.customer ENABLE ROW LEVEL SECURITY", "row security of us.customer"),
    ],
)
def test_what_cannot_come_along_makes_it_a_vacuum(
    connection: psycopg.Connection[Any],
    login: Login,
    server: EmbeddedServer,
    made: str,
    named: str,
) -> None:
    delete_marked(connection, server)
    connection.execute(made.encode())
    leaf = one(connection, "SELECT 'us.customer'::regclass::oid")
    rewritten = rewrite(login, REGIONS, "us")
    assert rewritten.because == named
    assert named in str(rewritten)
    connection.execute("DROP PUBLICATION IF EXISTS mine")
    assert one(connection, "SELECT 'us.customer'::regclass::oid") == leaf
    assert not has_marker(connection, server)


def described(server: EmbeddedServer) -> list[str]:
    """Return the definition of the us leaves as pg_dump has it, in an order of its own."""
    dump = subprocess.run(
        [
            server.bin_dir / "pg_dump", "--schema-only", "--schema=us", f"--port={server.port}",
            "--host=127.0.0.1", "--username=postgres", "postgres",
        ],
        env={"PGPASSWORD": PASSWORD}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sorted(line for line in dump.stdout.splitlines() if not re.match(r"\\|--", line))


def test_all_that_a_person_put_on_a_leaf_comes_along(
    connection: psycopg.Connection[Any], login: Login, server: EmbeddedServer
) -> None:
    connection.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader")
    for statement in (
        "ALTER TABLE global.customer ADD phone text COLLATE \"C\" DEFAULT 'none' NOT NULL",
        "ALTER TABLE global.purchase ADD tax numeric GENERATED ALWAYS AS (amount * 0.2) STORED",
        "ALTER TABLE us.customer ALTER email SET STATISTICS 500, ALTER phone SET STORAGE EXTERNAL,"
        " ALTER email SET (n_distinct = -0.5), ALTER email SET COMPRESSION pglz",
        "ALTER TABLE us.customer SET (fillfactor = 90, toast.autovacuum_enabled = false)",
        'CREATE UNIQUE INDEX "Low USING" ON us.customer (lower(email)) INCLUDE (phone)'
        " WHERE country <> 'mx'",
        "COMMENT ON INDEX us.\"Low USING\" IS 'it''s an index'",
        "ALTER TABLE us.customer CLUSTER ON customer_pkey",
        "ALTER TABLE us.customer ADD CONSTRAINT short CHECK (length(email) < 100) NOT VALID",
        "ALTER TABLE us.customer ADD CONSTRAINT once UNIQUE (phone, id) WITH (fillfactor = 70)"
        " DEFERRABLE INITIALLY DEFERRED",
        "ALTER TABLE us.purchase ADD EXCLUDE USING btree (id WITH =) WHERE (amount > 1000)",
        "COMMENT ON CONSTRAINT once ON us.customer IS 'a constraint'",
        "CREATE STATISTICS us.mine (dependencies) ON email, country FROM us.customer",
        "ALTER STATISTICS us.mine SET STATISTICS 7",
        "COMMENT ON TABLE us.customer IS 'a table'",
        "COMMENT ON COLUMN us.customer.phone IS 'a column'",
        "ALTER TABLE us.purchase REPLICA IDENTITY FULL",
        "GRANT SELECT ON us.customer TO reader WITH GRANT OPTION",
        "GRANT UPDATE (phone) ON us.customer TO reader",
        "GRANT INSERT ON us.purchase TO PUBLIC",
    ):
        connection.execute(statement.encode())
    seed(connection, 20)
    before, rows = described(server), one(connection, ROWS)
    leaf = one(connection, "SELECT 'us.customer'::regclass::oid")
    assert rewrite(login, REGIONS, "us").because == ""
    assert one(connection, "SELECT 'us.customer'::regclass::oid") != leaf
    assert described(server) == before
    assert one(connection, ROWS) == rows
