"""Phase shard, played for real while customers of every region write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.fixtures.labs import DOCKER_IN_SOAK, LabUnderTest, Play, eventually
from tests.fixtures.traffic import (
    customers,
    experience,
)
from tests.fixtures.world import NODES, TABLES
from workload.topology import Topology

pytestmark = DOCKER_IN_SOAK

SEEDED = 5_000
OLD_STATEMENTS = {
    "sign_up": "(uuid, text) AS INSERT INTO customer (id, email) VALUES ($1, $2)",
    "buy": "(uuid, decimal) AS INSERT INTO purchase (customer_id, amount) VALUES ($1, $2)",
    "customers": "(uuid) AS SELECT * FROM customer WHERE id = $1",
    "purchases": "(uuid) AS SELECT * FROM purchase WHERE customer_id = $1",
    "join_them": "(uuid) AS SELECT c.email, sum(p.amount) FROM customer c"
    " JOIN purchase p ON p.customer_id = c.id WHERE c.id = $1 GROUP BY 1",
}


@dataclass
class Sharded:
    """A lab in phase shard, and what playing it said."""

    lab: LabUnderTest
    play: Play
    #: A session from before the phase, with OLD_STATEMENTS prepared and executed.
    session: psycopg.Connection[tuple[object, ...]]
    #: A customer of that session.
    customer: str


@pytest.fixture(scope="module")
def sharded(shared_lab: LabUnderTest) -> Iterator[Sharded]:
    """Return a lab that was sharded while customers of all regions wrote, with no failure."""
    lab = shared_lab
    for phase in ("expand_eu", "expand_world"):
        lab.play_ok(phase)
    seeded = lab.workload("seed", f"--customers={SEEDED}", "--purchases-each=3")
    assert seeded.returncode == 0, seeded.stdout + seeded.stderr
    topology = Topology.load(lab.lab)
    login = topology.customers_login(topology.regions[0])
    customer = "00000000-0000-0000-0000-000000000001"
    with psycopg.connect(
        login.conninfo(), autocommit=True, target_session_attrs="read-write"
    ) as session:
        for name, statement in OLD_STATEMENTS.items():
            session.execute(f"PREPARE {name} {statement}".encode())
        session.execute(f"EXECUTE sign_up ('{customer}', 'old@example.com')".encode())
        # Six times: from then on the server may keep a plan.
        for _ in range(6):
            session.execute(f"EXECUTE buy ('{customer}', 1)".encode())
            for name in ("customers", "purchases", "join_them"):
                session.execute(f"EXECUTE {name} ('{customer}')".encode())
        with customers(lab):
            connected = "SELECT count(*) >= 50 FROM pg_stat_activity WHERE usename = 'customers'"
            eventually(lambda: lab.query(connected)[0][0])
            play = lab.play_ok("shard")
        yield Sharded(lab, play, session, customer)


def counts(lab: LabUnderTest) -> dict[str, list[int]]:
    """Return the number of rows of each table on each node."""
    statement = ", ".join(f"(SELECT count(*) FROM global.{table})" for table in TABLES)
    return {
        name: [int(count) for count in lab.query(f"SELECT {statement}", offset)[0]]
        for name, offset in NODES.items()
    }


def assert_verified(lab: LabUnderTest) -> None:
    done = lab.workload("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout
    assert "AGREES" in done.stdout


def test_rows_moved_while_customers_wrote(sharded: Sharded) -> None:
    lab = sharded.lab
    assert_verified(lab)
    figures = json.loads((lab.lab.home / "reports" / "partition.json").read_text())
    assert figures["write_pause_ms"] > 0
    assert figures["customers"] > SEEDED
    assert figures["purchases"] > 3 * SEEDED
    said = " ".join(sharded.play.output.split())
    assert f"nobody could write for {figures['write_pause_ms']:.0f} ms" in said
    rows = experience(lab, "shard")
    assert sum(row["failures"] for row in rows.values()) == 0
    assert rows["jp", "basket"]["requests"] > 0
    found = counts(lab)
    assert found["us"] == found["jp"] == found["eu_2"] == found["eu"]
    # All that the move needed is gone.
    left = lab.query(
        "SELECT to_regclass('lab.changed'), to_regproc('lab.note_change'),"
        " to_regnamespace('retired')"
    )
    assert left == [(None, None, None)]


def test_each_row_is_in_its_regions_leaf(sharded: Sharded) -> None:
    for region in ("eu", "us", "jp"):
        for table in ("customer", "purchase"):
            astray = sharded.lab.query(
                f"SELECT count(*), count(*) FILTER (WHERE h.region <> '{region}')"
                f" FROM {region}.{table} t JOIN global.home h USING (country)"
            )
            assert astray[0][0] > 0
            assert astray[0][1] == 0


def test_old_statements_go_on_that_were_prepared_before(sharded: Sharded) -> None:
    session, customer = sharded.session, sharded.customer
    (before,) = (session.execute(f"EXECUTE purchases ('{customer}')".encode()).rowcount,)
    session.execute(f"EXECUTE buy ('{customer}', 1)".encode())
    purchases = session.execute(f"EXECUTE purchases ('{customer}')".encode())
    assert purchases.rowcount == before + 1
    assert [column.name for column in purchases.description or ()] == [
        "id", "customer_id", "amount",
    ]  # fmt: skip
    found = session.execute(f"EXECUTE customers ('{customer}')".encode()).fetchall()
    assert [(str(row[0]), *row[1:]) for row in found] == [(customer, "old@example.com", "uk")]
    joined = session.execute(f"EXECUTE join_them ('{customer}')".encode()).fetchall()
    assert joined == [("old@example.com", before + 1)]
    another = customer[:-1] + "2"
    session.execute(f"EXECUTE sign_up ('{another}', 'b@example.com')".encode())
    with session.transaction():
        session.execute(f"EXECUTE buy ('{another}', 2)".encode())
        session.execute(f"EXECUTE buy ('{another}', 3)".encode())
    returned = session.execute(
        "INSERT INTO customer (email) VALUES ('c@example.com') RETURNING id, country"
    ).fetchall()
    assert returned[0][0]
    assert returned[0][1] == "uk"
    nobody = "00000000-0000-0000-0000-0000000000ff"
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match=nobody):
        session.execute(f"EXECUTE buy ('{nobody}', 1)".encode())


def test_a_replica_that_was_away_goes_on_where_it_was(sharded: Sharded) -> None:
    lab = sharded.lab
    lab.kill_server("us", "us_db")
    seeded = lab.workload("seed", "--customers=300", "--purchases-each=3")
    assert seeded.returncode == 0, seeded.stdout + seeded.stderr
    play = lab.play_ok("shard")
    assert "has copies of" not in " ".join(play.output.split())
    assert_verified(lab)


def test_second_run_changes_nothing(sharded: Sharded) -> None:
    assert sharded.lab.play_ok("shard").changed == 0
    assert sharded.lab.play_ok("shard", "--check").changed == 0
    earlier = sharded.lab.play_ok("expand_world")
    assert "past expand_world: nothing to do" in " ".join(earlier.output.split())


@pytest.mark.parametrize("country", ["'xx'", "''", "'US'"])
def test_unknown_country_is_refused(sharded: Sharded, country: str) -> None:
    lab = sharded.lab
    before = counts(lab)
    statements = [
        f"INSERT INTO global.customer (email, country) VALUES ('a', {country})",
        f"INSERT INTO global.test (email, country) VALUES ('a', {country})",
        "INSERT INTO global.purchase (customer_id, amount, country)"
        f" VALUES ('{sharded.customer}', 1, {country})",
        f"INSERT INTO customer (email, country) VALUES ('a', {country})",
        f"INSERT INTO us.customer (email, country) VALUES ('a', {country})",
        f"INSERT INTO eu.test (email, country) VALUES ('a', {country})",
        f"UPDATE global.customer SET country = {country} WHERE id = '{sharded.customer}'",
    ]
    for statement in statements:
        for node in ("eu", "us"):
            with pytest.raises(psycopg.errors.CheckViolation) as refused:
                lab.query(statement, NODES[node])
            message = str(refused.value)
            assert f"country {country} is at home in no region" in message, statement
            assert "global.home" in message
            assert "lab_regions" in message
    assert counts(lab) == before


def test_stranger_is_refused_by_the_leaf_itself(sharded: Sharded) -> None:
    for node in ("eu", "us"):
        with pytest.raises(psycopg.errors.CheckViolation):
            sharded.lab.query(
                "INSERT INTO us.customer (email, country) VALUES ('a', 'de')", NODES[node]
            )


def test_difference_is_named(sharded: Sharded) -> None:
    lab = sharded.lab
    one = "(SELECT id FROM eu.purchase ORDER BY id LIMIT 1)"
    ((key, amount),) = lab.query(f"SELECT id, amount FROM eu.purchase WHERE id = {one}")
    lab.query(f"UPDATE eu.purchase SET amount = amount + 1 WHERE id = '{key}'", NODES["jp"])
    done = lab.workload("verify")
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "DIFFERS: eu.purchase differs in content (eu and eu_2 and us against jp)" in said
    assert said.count("DIFFERS:") == 1
    lab.query(f"DELETE FROM eu.purchase WHERE id = '{key}'", NODES["jp"])
    done = lab.workload("verify")
    assert done.returncode == 1
    (rows,) = lab.query("SELECT count(*) FROM eu.purchase")[0]
    said = " ".join(done.stdout.split())
    assert "eu.purchase differs: " in said
    assert f"us {rows:,}, jp {rows - 1:,} rows" in said
    lab.query(
        "INSERT INTO eu.purchase (id, customer_id, amount, country) SELECT"
        f" '{key}', '{sharded.customer}', {amount}, 'uk'", NODES["jp"]
    )  # fmt: skip
    # Another customer's: the same number of rows, yet not the same.
    assert lab.workload("verify").returncode == 1
    ((owner, country),) = lab.query(
        f"SELECT customer_id, country FROM eu.purchase WHERE id = '{key}'"
    )
    lab.query(
        f"UPDATE eu.purchase SET customer_id = '{owner}', country = '{country}'"
        f" WHERE id = '{key}'", NODES["jp"]
    )  # fmt: skip
    assert_verified(lab)
