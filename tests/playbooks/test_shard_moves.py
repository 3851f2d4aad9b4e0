"""The move into partitions: what it refuses, what it takes along, and runs that are cut short."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import yaml

from tests.fixtures.kills import kill_all, kill_the_playbook_alone
from tests.fixtures.labs import CHECKOUT, LabUnderTest, eventually, refused
from tests.fixtures.traffic import acknowledged, experience, lost, traffic
from workload import schemas
from workload.errors import LabError
from workload.sharding import replicas
from workload.sharding.partition import Partitioned, partition
from workload.topology import Topology

SEED = int(os.environ.get("LAB_TEST_SEED") or 20261124)
COUNTRIES = ("uk", "de", "us", "mx", "jp", "sg")
REGIONS: dict[str, list[str]] = {
    name: entry["countries"]
    for name, entry in yaml.safe_load(
        (CHECKOUT / "inventory/lab/group_vars/all/regions.yml").read_text()
    )["lab_regions"].items()
}
STATE = """
SELECT (SELECT relkind::text FROM pg_class WHERE oid = 'public.customer'::regclass),
  (SELECT relkind::text FROM pg_class WHERE oid = 'public.purchase'::regclass),
  (SELECT count(*) FROM pg_trigger WHERE tgname = 'lab_note_change'),
  to_regclass('lab.changed')::text, to_regclass('eu.customer')::text
"""
UNCHANGED = [("r", "r", 0, None, None)]


def no_matter(line: str) -> None:
    """Hear how far a move is."""


@pytest.fixture(scope="module")
def world(all_at_expand_world: LabUnderTest) -> LabUnderTest:
    """Return a lab in expand_world."""
    return all_at_expand_world


@pytest.fixture(scope="module")
def begun(world: LabUnderTest) -> LabUnderTest:
    """Return the lab after a run of shard that came as far as partitioning, and gave that up."""
    with psycopg.connect(world.login().conninfo()) as long:
        long.execute("INSERT INTO customer (email) VALUES ('long@example.com')")
        play = world.play("shard", "-e", "partition_timeout_s=1")
        long.rollback()
    refused(play, "partitioning was given up, nothing is changed: ")
    return world


def assert_unchanged(lab: LabUnderTest) -> None:
    assert lab.query(STATE) == UNCHANGED
    assert Topology.load(lab.lab).phase == "expand_world"


# -- what it refuses, in the order of the road -------------------------------------------------


def test_dry_run_before_the_phase_changes_nothing(world: LabUnderTest) -> None:
    assert world.play_ok("shard", "--check").changed > 0
    assert_unchanged(world)
    assert not (world.lab.home / "nodes" / "us").exists()


def test_customers_in_an_unknown_country_are_named(world: LabUnderTest) -> None:
    world.query("INSERT INTO customer (email, country) SELECT 'x', 'xx' FROM generate_series(1, 3)")
    world.query("INSERT INTO customer (email, country) VALUES ('x', '')")
    refused(world.play("shard"), "3 in 'xx'", "1 in ''", "lab_regions")
    assert_unchanged(world)
    world.query("DELETE FROM customer WHERE country IN ('xx', '')")


@pytest.mark.parametrize(
    ("make", "drop", "name"),
    [
        (
            "CREATE VIEW spent AS SELECT sum(amount) FROM purchase",
            "DROP VIEW spent",
            "view public.spent",
        ),
        (
            "CREATE TABLE note (customer_id uuid REFERENCES customer (id))",
            "DROP TABLE note",
            "note_customer_id_fkey",
        ),
    ],
)
def test_what_would_be_left_behind_is_named(
    begun: LabUnderTest, make: str, drop: str, name: str
) -> None:
    begun.query(make)
    with pytest.raises(LabError, match=name):
        partition(begun.login(), REGIONS, no_matter)
    assert_unchanged(begun)
    begun.query(drop)


def test_a_long_transaction_is_given_in_to(begun: LabUnderTest) -> None:
    with traffic(begun, 60):
        with psycopg.connect(begun.login().conninfo()) as long:
            long.execute(
                "INSERT INTO purchase (customer_id, amount) SELECT id, 1 FROM customer LIMIT 1"
            )
            play = begun.play("shard", "-e", "partition_timeout_s=1")
            refused(play, "partitioning was given up, nothing is changed: ")
            assert_unchanged(begun)
        for statement in (
            "INSERT INTO customer (email) VALUES ('long@example.com')",
            "SELECT FROM customer LIMIT 1 FOR SHARE",
        ):
            with psycopg.connect(begun.login().conninfo()) as long:
                long.execute(statement.encode())
                with pytest.raises(LabError, match="given up, nothing is changed: "):
                    partition(begun.login(), REGIONS, no_matter, 1)
            assert_unchanged(begun)
        already = acknowledged(begun)
        eventually(lambda: acknowledged(begun) > already + 20)
    failed = [row for row in experience(begun).values() if row["failures"]]
    assert not failed
    assert lost(begun) == 0


def test_a_lock_on_the_whole_table_is_given_in_to(world: LabUnderTest) -> None:
    with psycopg.connect(world.login().conninfo()) as long:
        long.execute("LOCK TABLE customer")
        refused(
            world.play("shard", "-e", "partition_timeout_s=1"),
            "a session on eu has locked a table for more than 10 s",
        )
    assert_unchanged(world)


def test_a_long_transaction_that_begins_meanwhile_is_given_in_to(begun: LabUnderTest) -> None:
    """It holds the triggers too, so that they stay, and do nothing, until the next run."""
    long = psycopg.connect(begun.login().conninfo())

    def say(line: str) -> None:
        if line.startswith("eu.customer"):
            long.execute("INSERT INTO customer (email) VALUES ('long@example.com')")

    with long, pytest.raises(LabError, match="given up, nothing is changed but for trigger"):
        partition(begun.login(), REGIONS, say, 1)
    with psycopg.connect(begun.login().conninfo(), autocommit=True) as one:
        one.execute("SET lock_timeout = '2s'")
        one.execute("INSERT INTO customer (email) VALUES ('after@example.com')")
        one.execute("UPDATE customer SET email = 'later' WHERE email = 'after@example.com'")
        assert one.execute("SELECT count(*) FROM lab.changed").fetchone() == (1,)
    assert begun.query("SELECT to_regclass('eu.customer')") == [(None,)]
    assert begun.query("SELECT count(*) FROM customer WHERE email = 'long@example.com'") != [(0,)]
    begun.query("DELETE FROM customer WHERE email = 'long@example.com'")


def test_a_stranger_who_comes_meanwhile_ends_it(begun: LabUnderTest) -> None:
    def say(line: str) -> None:
        if line.startswith("eu.customer"):
            begun.query("INSERT INTO customer (email, country) VALUES ('x', 'xx')")

    with pytest.raises(LabError, match=r"given up, nothing is changed: .*country 'xx'"):
        partition(begun.login(), REGIONS, say, 5)
    assert_unchanged(begun)
    begun.query("DELETE FROM customer WHERE country = 'xx'")


# -- what it takes along -----------------------------------------------------------------------


class Changer:
    """Changes rows at random, in transactions of some statements, and knows what is there."""

    def __init__(self, lab: LabUnderTest) -> None:
        self.random = random.Random(SEED)
        self.customers = {row[0]: row[1:] for row in lab.query("SELECT * FROM customer")}
        self.purchases = {row[0]: row[1:] for row in lab.query("SELECT * FROM purchase")}
        self.ended = threading.Event()
        self.done = 0
        self.error: BaseException | None = None
        self.connection = psycopg.connect(lab.login().conninfo(), prepare_threshold=1)
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                with self.connection.transaction():
                    for _ in range(self.random.randint(1, 4)):
                        self.change()
                self.done += 1
        except BaseException as error:
            self.error = error

    def any_of(self, found: dict[Any, Any]) -> Any:
        # A few again and again, so that most changes meet rows that were changed before.
        return self.random.choice(list(found)[-200:])

    def say(self, statement: str, *values: Any) -> Any:
        cursor = self.connection.execute(statement.encode(), values)
        assert cursor.rowcount == 1, statement
        return cursor.fetchone() if cursor.description else None

    def change(self) -> None:
        customer, purchase = self.any_of(self.customers), self.any_of(self.purchases)
        country, amount = self.random.choice(COUNTRIES), self.random.randint(1, 99)
        what = self.random.randrange(8)
        if what == 0:
            row = self.say(
                "INSERT INTO customer (email, country) VALUES ('new', %s) RETURNING id", country
            )
            self.customers[row[0]] = ("new", country)
        elif what <= 2:
            row = self.say(
                "INSERT INTO purchase (customer_id, amount) VALUES (%s, %s) RETURNING id",
                customer, amount,
            )  # fmt: skip
            self.purchases[row[0]] = (customer, amount)
        elif what == 3:
            self.say("UPDATE customer SET email = %s WHERE id = %s", str(amount), customer)
            self.customers[customer] = (str(amount), self.customers[customer][1])
        elif what == 4:
            self.say("UPDATE customer SET country = %s WHERE id = %s", country, customer)
            self.customers[customer] = (self.customers[customer][0], country)
        elif what == 5:
            self.say("UPDATE purchase SET amount = %s WHERE id = %s", amount, purchase)
            self.purchases[purchase] = (self.purchases[purchase][0], amount)
        elif what == 6:
            self.say("UPDATE purchase SET customer_id = %s WHERE id = %s", customer, purchase)
            self.purchases[purchase] = (customer, self.purchases[purchase][1])
        else:
            self.say("DELETE FROM purchase WHERE id = %s", purchase)
            del self.purchases[purchase]
            owners = {owner for owner, _ in self.purchases.values()}
            if customer not in owners:
                self.say("DELETE FROM customer WHERE id = %s", customer)
                del self.customers[customer]


@contextmanager
def changing(lab: LabUnderTest) -> Iterator[Changer]:
    changer = Changer(lab)
    changer.thread.start()
    try:
        yield changer
    finally:
        changer.ended.set()
        changer.thread.join(30)
        changer.connection.close()


def test_all_that_is_changed_meanwhile_arrives(begun: LabUnderTest) -> None:
    with changing(begun) as changer:

        def say(line: str) -> None:
            # Each step takes long enough for a hundred changes.
            target = changer.done + 100
            eventually(lambda: changer.done > target or changer.error)
            # No more once it swaps: the new views take the old inserts, which is all they promise.
            if line.startswith("loaded"):
                changer.ended.set()

        moved = partition(begun.login(), REGIONS, say, 30)
    assert changer.error is None, changer.error
    assert isinstance(moved, Partitioned)
    customers = {row[0]: row[1:] for row in begun.query("SELECT * FROM customer")}
    purchases = {row[0]: row[1:] for row in begun.query("SELECT * FROM purchase")}
    assert customers == changer.customers
    assert purchases == changer.purchases
    # Where they belong too, and once.
    assert begun.query(
        "SELECT count(*) FROM global.purchase p JOIN global.customer c ON c.id = p.customer_id"
        " WHERE c.country = p.country"
    ) == [(len(purchases),)]
    assert partition(begun.login(), REGIONS, no_matter) is None


def test_what_is_in_the_partitions_stays_there_whatever_fails(begun: LabUnderTest) -> None:
    """A move that is done is not undone, not even where it cannot remove the old tables."""
    begun.query(schemas.create(schemas.OLD).as_string(None))
    begun.query("CREATE TABLE retired.customer (id uuid)")
    begun.query("CREATE VIEW retired.kept AS SELECT id FROM retired.customer")
    rows = begun.query("SELECT count(*) FROM customer")
    with pytest.raises(LabError, match=r"the rows are in their partitions.*retired\.kept"):
        partition(begun.login(), REGIONS, no_matter, 1)
    assert begun.query("SELECT count(*) FROM customer") == rows
    begun.query("DROP VIEW retired.kept")
    assert partition(begun.login(), REGIONS, no_matter) is None
    begun.play_ok("shard")
    # The ledger's rows are not all there: some were deleted above.
    assert "AGREES" in begun.workload("verify").stdout


def test_a_long_transaction_keeps_no_copy_waiting_for_ever(
    begun: LabUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its origin's slot begins when it has ended."""
    begun.play_ok("shard")
    monkeypatch.setattr(replicas, "CATCH_UP_S", 1)
    topology = Topology.load(begun.lab)
    wanted = {"us": list(REGIONS)}
    with psycopg.connect(begun.login(2).conninfo(), autocommit=True) as connection:
        replicas.unsubscribe(connection)
    with psycopg.connect(begun.login().conninfo()) as long:
        long.execute("INSERT INTO global.test (email, country) VALUES ('long@example.com', 'uk')")
        with pytest.raises(LabError, match="transaction that writes is open there for more than 1"):
            replicas.replicate(topology, "password", REGIONS, wanted, no_matter)
    monkeypatch.undo()
    (copied,) = replicas.replicate(topology, "password", REGIONS, wanted, no_matter)
    assert copied.node == "us"
    assert "AGREES" in begun.workload("verify").stdout


# -- runs that are cut short -------------------------------------------------------------------


MOVING = "to_regclass('lab.changed') IS NOT NULL"
SWAPPED = "EXISTS (SELECT FROM pg_class WHERE oid = 'public.customer'::regclass AND relkind = 'v')"
COPYING = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'lab_us')"
#: When to cut a run short: at random within some seconds from when the origin is like that.
KILLS = (("true", 3), (MOVING, 2), (SWAPPED, 0.5), (COPYING, 2))


def holds(lab: LabUnderTest, condition: str) -> bool:
    """Tell whether a condition holds on the origin; not so while it is down."""
    try:
        return bool(lab.query(f"SELECT {condition}")[0][0])
    except psycopg.OperationalError:
        return False


def kill_at(lab: LabUnderTest, rng: random.Random, condition: str, longest_s: float) -> None:
    """Cut a run short at random within some seconds from when a condition holds on the origin."""
    after_s = rng.uniform(0, longest_s)
    kill = rng.choice([kill_all, kill_the_playbook_alone])
    print(f"{lab.runtime}, seed {SEED}: {kill.__name__} {after_s:.2f} s after {condition}")
    run = lab.start("shard")
    eventually(lambda: run.poll() is not None or holds(lab, condition), 60)
    time.sleep(after_s)
    kill(run)


def kill_server_when(lab: LabUnderTest, node: str, condition: str) -> None:
    """kill -9 a server once a condition holds on the origin; the run fails, or has just ended."""
    run = lab.start("shard")
    eventually(lambda: run.poll() is not None or holds(lab, condition), 60)
    lab.kill_server(node)
    run.wait(120)


@pytest.mark.soak
def test_cut_short_anywhere_it_converges(embedded_lab: LabUnderTest) -> None:
    """In one runtime: what moves rows is the same, and test_interrupted kills containers."""
    lab = embedded_lab
    rng = random.Random(SEED)
    for phase in ("before", "expand_eu", "expand_world"):
        lab.play_ok(phase)
    seeded = lab.workload("seed", "--customers=20000", "--purchases-each=3")
    assert seeded.returncode == 0, seeded.stdout + seeded.stderr
    with traffic(lab, 200, users=15):
        kill_server_when(lab, "eu", MOVING)
        for condition, longest_s in KILLS:
            kill_at(lab, rng, condition, longest_s)
        kill_server_when(lab, "us", COPYING)
        play = lab.play("shard")
        assert play.status == 0, play.output + play.errors
        already = acknowledged(lab)
        eventually(lambda: acknowledged(lab) > already + 50)
    assert lost(lab) == 0
    done = lab.workload("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AGREES" in done.stdout
    assert lab.query("SELECT count(*) >= 20000 FROM customer") == [(True,)]
    assert lab.play_ok("shard").changed == 0
    left = lab.query(
        "SELECT to_regclass('lab.changed'), to_regnamespace('retired'),"
        " (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical')"
    )
    assert left == [(None, None, 2)]
