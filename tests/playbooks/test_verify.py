"""make verify: it must hold after traffic, and must not hold where something is wrong."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures.labs import LabUnderTest, eventually, wait_for
from workload.proof.verify import Verdict, verify
from workload.topology import Topology
from workload.traffic.ledger import Ledger, read


@pytest.fixture(scope="module")
def traded(new_lab: Callable[..., LabUnderTest]) -> Iterator[LabUnderTest]:
    """Return a lab whose customers have traded for a few seconds."""
    lab = new_lab("embedded")
    lab.play_ok("before")
    # Each leaves a few dozen writes.
    done = lab.workload(
        "traffic", "--headless", USERS="10", SPAWN_RATE="10", TIME="4", LAB_THINK_TIME="0.1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield lab
    lab.remove()


def ledger_folder(lab: LabUnderTest) -> Path:
    return lab.lab.home / "ledger"


def verdicts(lab: LabUnderTest) -> dict[str, Verdict]:
    found = verify(Topology.load(lab.lab), lab.login().password)
    return {verdict.table: verdict for verdict in found}


def acknowledged(lab: LabUnderTest, kind: str) -> list[str]:
    marks = [line for line in read(ledger_folder(lab)) if line[:2] == ("A", kind)]
    return [key for _, _, key in marks]


@pytest.fixture
def extra_ledger(traded: LabUnderTest) -> Iterator[Ledger]:
    """Return a ledger file of a test's own, which goes with it."""
    before = set(ledger_folder(traded).iterdir())
    ledger = Ledger(ledger_folder(traded))
    yield ledger
    ledger.close()
    for path in set(ledger_folder(traded).iterdir()) - before:
        path.unlink()


@pytest.fixture
def buyer(traded: LabUnderTest) -> str:
    return acknowledged(traded, "c")[0]


def test_holds_after_traffic(traded: LabUnderTest) -> None:
    done = traded.workload("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout
    assert "VIOLATED" not in done.stdout
    found = verdicts(traded)
    assert found["customer"].acknowledged == 10
    assert found["purchase"].acknowledged > 20
    for table, verdict in found.items():
        ((rows,),) = traded.query(f"SELECT count(*) FROM {table}")
        assert verdict.intents == verdict.acknowledged == rows
        assert (verdict.refused, verdict.unknown, verdict.lost) == (0, 0, 0)


def test_it_leaves_no_id_in_a_nodes_files(traded: LabUnderTest, extra_ledger: Ledger) -> None:
    """The ledger has customers of every region, and verify asks every node for all of them."""
    keys = [uuid.uuid4() for _ in range(500)]
    for key in keys:
        extra_ledger.write("I", "c", key)
    assert verdicts(traded)["customer"].unknown == len(keys)
    traded.query("CHECKPOINT")
    for path in (traded.lab.home / "nodes/eu/data").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [key for key in keys if key.bytes in content], path


def test_lost_purchase_is_a_violation_that_names_it(traded: LabUnderTest) -> None:
    key = acknowledged(traded, "p")[3]
    ((customer, amount),) = traded.query(
        f"DELETE FROM purchase WHERE id = '{key}' RETURNING customer_id, amount"
    )
    try:
        done = traded.workload("verify")
        assert done.returncode == 1
        assert "HOLDS" not in done.stdout
        (line,) = [" ".join(done.stdout.split()).partition("VIOLATED: ")[2]]
        assert line.startswith("1 acknowledged rows of purchase are lost")
        assert key in done.stdout.replace("\n", " ")
    finally:
        traded.query(f"INSERT INTO purchase VALUES ('{key}', '{customer}', {amount})")
    assert traded.workload("verify").returncode == 0


def test_lost_customer_is_a_violation_of_its_own_table(
    traded: LabUnderTest, extra_ledger: Ledger
) -> None:
    key = uuid.uuid4()
    extra_ledger.write("I", "c", key)
    extra_ledger.write("A", "c", key)
    found = verdicts(traded)
    assert found["customer"].lost == 1
    assert found["customer"].examples == [key]
    assert not found["customer"].holds
    assert found["purchase"].holds


def test_refused_write_that_is_there_is_a_violation(
    traded: LabUnderTest, extra_ledger: Ledger, buyer: str
) -> None:
    key = uuid.uuid4()
    extra_ledger.write("I", "p", key)
    extra_ledger.write("F", "p", key)
    # Refused and absent is as it should be.
    found = verdicts(traded)["purchase"]
    assert (found.refused, found.ghosts, found.holds) == (1, 0, True)
    traded.query(f"INSERT INTO purchase VALUES ('{key}', '{buyer}', 1)")
    try:
        done = traded.workload("verify")
        assert done.returncode == 1
        assert "1 rows of purchase were refused or erased, and are" in done.stdout
    finally:
        traded.query(f"DELETE FROM purchase WHERE id = '{key}'")


def test_unknown_write_may_be_there_or_not(
    traded: LabUnderTest, extra_ledger: Ledger, buyer: str
) -> None:
    before = verdicts(traded)["purchase"]
    there, absent, unfinished = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    for key in (there, absent):
        extra_ledger.write("I", "p", key)
        extra_ledger.write("U", "p", key)
    extra_ledger.write("I", "p", unfinished)
    traded.query(f"INSERT INTO purchase VALUES ('{there}', '{buyer}', 1)")
    try:
        found = verdicts(traded)["purchase"]
        assert found.unknown == 3
        assert found.intents == before.intents + 3
        assert found.acknowledged == before.acknowledged
        assert (found.lost, found.ghosts, found.refused) == (0, 0, 0)
        assert traded.workload("verify").returncode == 0
    finally:
        traded.query(f"DELETE FROM purchase WHERE id = '{there}'")


def test_rows_of_other_writers_are_no_matter(traded: LabUnderTest, buyer: str) -> None:
    key = uuid.uuid4()
    traded.query(f"INSERT INTO purchase VALUES ('{key}', '{buyer}', 1)")
    try:
        assert verdicts(traded)["purchase"].holds
    finally:
        traded.query(f"DELETE FROM purchase WHERE id = '{key}'")


def test_wrong_password_is_one_line(traded: LabUnderTest) -> None:
    done = traded.workload("verify", LAB_PASSWORD="another")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "LAB_PASSWORD" in line


def test_empty_ledger_is_said_to_be_empty(new_lab: Callable[..., LabUnderTest]) -> None:
    lab = new_lab("embedded")
    try:
        lab.play_ok("before")
        done = lab.workload("verify")
        assert done.returncode == 0
        assert "The ledger is empty" in done.stdout
        assert "HOLDS" not in done.stdout
    finally:
        lab.remove()


def test_holds_while_customers_write(traded: LabUnderTest) -> None:
    traffic = traded.start_workload(
        "traffic", "--headless", USERS="10", SPAWN_RATE="10", TIME="6", LAB_THINK_TIME="0.02"
    )
    assert traffic.stdout
    try:
        started = verdicts(traded)["purchase"].acknowledged
        eventually(lambda: verdicts(traded)["purchase"].acknowledged > started)
        grown = set()
        while traffic.poll() is None:
            for verdict in verdicts(traded).values():
                assert verdict.holds, verdict
            grown.add(verdicts(traded)["purchase"].acknowledged)
        assert len(grown) > 3
        assert wait_for(traffic, 30) == 0
    finally:
        traffic.kill()
        traffic.stdout.close()
        traffic.wait()


# Last: nothing answers after it.
def test_stopped_server_is_one_line(traded: LabUnderTest) -> None:
    assert traded.server().stop()
    done = traded.workload("verify")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"127.0.0.1:{traded.port_base}" in line
