"""A node whose data is gone, or another's, is named, and nothing is run in its place."""

from __future__ import annotations

import shutil

import pytest

from tests.fixtures.labs import LabUnderTest, Play
from workload.nodes.docker import Engine

pytestmark = pytest.mark.slow


def lose(lab: LabUnderTest, node: str, container: str) -> None:
    """Remove a node's data, under the running server where that is possible."""
    if lab.runtime == "embedded":
        shutil.rmtree(lab.server(node).data)
        return
    client, name = Engine().client, f"{lab.lab.name}_{container}"
    client.containers.get(name).remove(force=True)
    client.volumes.get(name).remove()


def refused(play: Play, *words: str) -> None:
    assert play.status != 0, play.output
    assert len(play.errors.strip().splitlines()) == 1, play.errors
    for word in words:
        assert word in play.error, play.error


def test_lost_node_stops_the_run_until_a_person_says_that_it_is_to_begin_empty(
    lab: LabUnderTest,
) -> None:
    start_empty = ("-e", "lab_start_empty=eu")
    refused(lab.play("before", *start_empty), "lab_start_empty", "not lost any data")
    lab.play_ok("before")
    lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    refused(lab.play("before", *start_empty), "lab_start_empty", "not empty")
    lose(lab, "eu", "eu_db")
    for arguments in ((), ("--check",)):
        refused(
            lab.play("before", *arguments),
            *("node eu has lost its data", "empty", "put its data back", "lab_start_empty=eu"),
            "all customers and purchases would be lost",
        )
    status = lab.workload("status")
    assert status.returncode != 0
    assert "node eu has lost its data" in " ".join(status.stdout.split())
    lab.play_ok("before", *start_empty)
    assert lab.query("SELECT count(*) FROM customer WHERE email LIKE 'kept%'") == [(0,)]
    assert lab.play_ok("before").changed == 0


def test_pair_that_loses_either_half(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    lab.play_ok("expand_eu")
    lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    lose(lab, "eu_2", "eu_db_2")
    refused(lab.play("expand_eu"), "node eu_2 has lost its data", "make rejoin")
    output = " ".join(lab.play_ok("rejoin").output.split())
    assert "eu_2 becomes eu's standby (copied anew because its data directory is empty)" in output
    assert lab.play_ok("rejoin").changed == 0

    lose(lab, "eu", "eu_db")
    refused(lab.play("expand_eu"), "node eu has lost its data", "eu_2 has all rows: make failover")
    refused(lab.play("expand_eu", "-e", "lab_start_empty=eu"), "eu_2 has all rows")
    lab.play_ok("failover")
    assert "copied anew" in lab.play_ok("rejoin").output
    kept = "SELECT email FROM customer WHERE email LIKE 'kept%'"
    assert lab.query(kept, 0) == lab.query(kept, 1) == [("kept@example.com",)]
    assert lab.play_ok("expand_eu").changed == 0


def test_another_nodes_data_is_not_taken_for_its_own(embedded_lab: LabUnderTest) -> None:
    lab = embedded_lab
    for phase in ("before", "expand_eu", "expand_world", "after"):
        lab.play_ok(phase)
    us, jp = lab.server("us"), lab.server("jp")
    us.stop()
    jp.stop()
    shutil.move(us.data, us.base / "kept")
    shutil.copytree(jp.data, us.data)
    refused(lab.play("after"), "node us has another database's data", str(jp.identity()))
    shutil.rmtree(us.data)
    refused(lab.play("after"), "node us has lost its data", "rows of region us are nowhere else")

    # By a person's word the home begins with nothing, and is whole.
    lab.play_ok("after", "-e", "lab_start_empty=us")
    insert = "INSERT INTO customer (email, country) VALUES ('new@example.com', 'us') RETURNING 1"
    assert lab.query(insert, 3) == [(1,)]
    assert lab.query("SELECT count(*) FROM us.customer", 2) == [(1,)]
    assert lab.play_ok("after").changed == 0

    # Data that is put back is no more the node's: it has begun anew.
    lab.server("us").stop()
    shutil.rmtree(us.data)
    shutil.move(us.base / "kept", us.data)
    refused(lab.play("after"), "node us has another database's data")
