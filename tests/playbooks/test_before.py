"""Phase before, played for real in both runtimes."""

from __future__ import annotations

import json
from collections.abc import Callable

import psutil
import psycopg
import pytest

from tests.fixtures.labs import LabUnderTest
from tests.playbooks.traces import traces
from workload.topology import Topology

KEEP = (
    "INSERT INTO customer (email) VALUES ('kept@example.com');"
    " INSERT INTO purchase (customer_id, amount) SELECT id, 4.2 FROM customer"
)
KEPT = "SELECT email, amount::text FROM purchase JOIN customer ON customer.id = customer_id"


def test_dry_run_on_an_empty_lab_makes_nothing(lab: LabUnderTest) -> None:
    play = lab.play_ok("before", "--check")
    assert play.changed > 0
    assert play.errors == ""
    assert traces(lab) == []


def test_second_run_changes_nothing(shared_lab: LabUnderTest) -> None:
    assert shared_lab.play_ok("before").changed == 0


def test_dry_run_on_a_running_lab_changes_nothing(shared_lab: LabUnderTest) -> None:
    assert shared_lab.play_ok("before", "--check").changed == 0


def test_site_is_the_same_road(shared_lab: LabUnderTest) -> None:
    play = shared_lab.play_ok("site", "--list-tasks")
    assert "before" in play.output.lower()


def test_says_which_runtime_and_why_on_one_line_a_task(
    new_lab: Callable[..., LabUnderTest],
) -> None:
    lab = new_lab("embedded")
    try:
        play = lab.play_ok("before")
        lines = [line.strip() for line in play.output.strip().splitlines() if line.strip()]
        assert "embedded runtime: asked for" in lines
        assert play.errors == ""
        assert len(lines) < 12, play.output
        assert all(len(line) <= 100 for line in play.output.splitlines())
    finally:
        lab.remove()


def test_topology_says_where_the_customers_go(shared_lab: LabUnderTest) -> None:
    topology = Topology.load(shared_lab.lab)
    assert (topology.phase, topology.runtime) == ("before", shared_lab.runtime)
    assert list(topology.nodes) == ["eu"]
    address = {"region": "eu", "host": "127.0.0.1", "port": shared_lab.port_base}
    assert address.items() <= topology.nodes["eu"].items()
    (region,) = topology.regions
    assert (region.name, region.node, region.port) == ("eu", "eu", shared_lab.port_base)
    assert {"uk", "de", "fr", "ei", "no"} <= set(region.countries)
    assert all(isinstance(country, str) for country in region.countries)


def test_state_file_says_what_it_was_begun_as(shared_lab: LabUnderTest) -> None:
    state = json.loads((shared_lab.lab.home / "lab.json").read_text())
    assert (state["name"], state["runtime"]) == (shared_lab.lab.name, shared_lab.runtime)


def test_server_is_as_later_phases_need_it(shared_lab: LabUnderTest) -> None:
    settings = {
        name: shared_lab.query(f"SHOW {name}")[0][0]
        for name in ("wal_level", "data_checksums", "wal_recycle", "log_min_duration_statement")
    }
    assert settings == {
        "wal_level": "logical",
        "data_checksums": "on",
        "wal_recycle": "off",
        "log_min_duration_statement": "-1",
    }


def test_port_is_open_on_loopback_alone(shared_lab: LabUnderTest) -> None:
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.laddr
        and connection.status == psutil.CONN_LISTEN
        and connection.laddr.port == shared_lab.port_base
    }
    assert listening == {"127.0.0.1"}


def test_server_that_was_killed_comes_back_with_its_data(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    lab.query(KEEP)
    for _ in range(2):
        lab.kill_server()
        with pytest.raises(psycopg.OperationalError):
            lab.query("SELECT 1")
        assert lab.play_ok("before").changed == 1
        assert lab.query(KEPT) == [("kept@example.com", "4.2")]
    assert lab.play_ok("before").changed == 0


def test_changed_settings_reach_the_server_and_keep_the_data(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    lab.query(KEEP)
    settings = json.dumps({"node_settings": {"max_connections": 77, "wal_level": "logical"}})
    assert lab.play_ok("before", "-e", settings, "--check").changed == 1
    assert lab.query("SHOW max_connections") == [("400",)]
    assert lab.play_ok("before", "-e", settings).changed == 1
    assert lab.query("SHOW max_connections") == [("77",)]
    assert lab.query(KEPT) == [("kept@example.com", "4.2")]
    assert lab.play_ok("before", "-e", settings).changed == 0


def test_another_port_base_moves_the_node_and_keeps_the_data(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    lab.query(KEEP)
    lab.port_base += 1
    assert lab.play_ok("before").changed == 2
    assert lab.query(KEPT) == [("kept@example.com", "4.2")]
    assert Topology.load(lab.lab).regions[0].port == lab.port_base
    assert lab.play_ok("before").changed == 0


def test_own_password_is_used(lab: LabUnderTest) -> None:
    lab.environment["LAB_PASSWORD"] = "another one's"
    lab.play_ok("before")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        lab.query("SELECT 1")
    assert lab.play_ok("before").changed == 0
