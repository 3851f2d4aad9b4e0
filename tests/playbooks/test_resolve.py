"""A row that was written to a replica directly stops it: named at once, and resolved by a word."""

from __future__ import annotations

import time
from uuid import uuid4

import psycopg
import pytest

from tests.fixtures.labs import LabUnderTest, eventually

EU, US, JP = 0, 2, 3
#: Seconds in which a row that stops a replica is named; without, it is waited for for 60.
AT_ONCE_S = 30


@pytest.fixture(scope="module")
def shard(all_at_shard: LabUnderTest) -> LabUnderTest:
    """Return a lab in phase shard."""
    return all_at_shard


def insert(lab: LabUnderTest, offset: int, key: str, email: str) -> None:
    with psycopg.connect(lab.login(offset).conninfo(), autocommit=True) as connection:
        connection.execute("INSERT INTO us.customer VALUES (%s, %s, 'us')", (key, email))


def emails(lab: LabUnderTest, key: str) -> dict[int, str]:
    """Return the e-mail that each node has for a customer."""
    statement = f"SELECT email FROM us.customer WHERE id = '{key}'"
    return {offset: lab.query(statement, offset)[0][0] for offset in (EU, US, JP)}


def words(text: str) -> str:
    return " ".join(text.split())


def status(lab: LabUnderTest) -> str:
    return words(lab.workload("status").stdout)


def test_one_id_on_three_nodes(shard: LabUnderTest) -> None:
    key = str(uuid4())
    for offset, email in ((US, "on us"), (JP, "[/on] jp\x1b[2J\nHEALTHY"), (EU, "on eu")):
        insert(shard, offset, key, email)
    # What comes after waits too.
    insert(shard, EU, str(uuid4()), "later")
    for node in ("us", "jp"):
        eventually(lambda node=node: f"{node} is stopped" in status(shard), 20)  # type: ignore[misc]
    said = status(shard)
    for node in ("us", "jp"):
        assert (
            f"{node} is stopped: subscription lab cannot insert the row of us.customer with id"
            f" {key}, since another with it was written to {node} directly: make resolve"
            f" NODE={node} shows both"
        ) in said
    assert "HEALTHY" not in said
    started = time.monotonic()
    play = shard.play("shard")
    assert play.status != 0
    assert "is stopped: subscription lab cannot insert the row of us.customer" in play.error
    assert "make resolve NODE=" in play.error
    assert shard.workload("verify").stderr.startswith("lab: us is stopped: subscription lab")
    assert time.monotonic() - started < AT_ONCE_S

    shown = shard.workload("resolve", NODE="jp")
    assert shown.returncode == 1
    assert "KEEP=local gives" in shown.stdout
    assert "[/on] jp\\x1b[2J\\nHEALTHY" in shown.stdout
    assert "on eu" in shown.stdout
    assert emails(shard, key) == {EU: "on eu", US: "on us", JP: "[/on] jp\x1b[2J\nHEALTHY"}

    one = shard.workload("resolve", NODE="us", KEEP="origin")
    assert "us goes on; the row is the origin's (eu)." in one.stdout
    assert "Not compared: jp is stopped" in words(one.stdout)
    other = shard.workload("resolve", NODE="jp", KEEP="local")
    assert other.returncode == 0, other.stdout + other.stderr
    assert "AGREES" in other.stdout
    assert set(emails(shard, key).values()) == {"[/on] jp\x1b[2J\nHEALTHY"}
    assert shard.play_ok("shard").changed == 0
    eventually(lambda: shard.workload("status").returncode == 0, 20)


def test_nothing_to_resolve_and_what_cannot_be(shard: LabUnderTest) -> None:
    assert words(shard.workload("resolve", NODE="us").stdout) == "No row stops us."
    for environ, message in (
        ({"NODE": "eu"}, "NODE is 'eu', and a row can stop a replica only: us, jp"),
        ({"NODE": "us", "KEEP": "x"}, "KEEP is 'x': use origin or local"),
    ):
        done = shard.workload("resolve", **environ)
        assert done.returncode == 1
        assert done.stderr == f"lab: {message}\n"


def test_a_slot_of_somebody_else_and_missing_leaves_are_named(shard: LabUnderTest) -> None:
    shard.query("SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')")
    try:
        assert "slot debezium on eu is not the lab's, holds" in status(shard)
    finally:
        shard.query("SELECT pg_drop_replication_slot('debezium')")
    with psycopg.connect(shard.login(JP).conninfo(), autocommit=True) as connection:
        connection.execute("ALTER TABLE eu.test RENAME TO kept")
        assert "node jp has no eu.test: make shard makes what is missing" in status(shard)
        connection.execute("ALTER TABLE eu.kept RENAME TO test")
    eventually(lambda: shard.workload("status").returncode == 0, 20)
