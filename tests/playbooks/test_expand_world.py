"""Phase expand_world: the WAN, customers of every region, and what they experience."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from tests.fixtures.labs import DOCKER_IN_SOAK, LabUnderTest, eventually
from tests.fixtures.traffic import (
    customers,
    experience,
    lost,
    traffic,
)
from workload.nodes.embedded import find_bin_dir
from workload.wan import control


@pytest.fixture(scope="module")
def world(shared_lab: LabUnderTest) -> LabUnderTest:
    """Return a lab that went the road up to expand_world while EU customers were writing."""
    shared_lab.play_ok("expand_eu")
    with customers(shared_lab):
        shared_lab.play_ok("expand_world")
    assert lost(shared_lab) == 0
    return shared_lab


@DOCKER_IN_SOAK
def test_country_is_added_without_a_rewrite(world: LabUnderTest) -> None:
    rows = world.query(
        "SELECT data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_name = 'customer' AND column_name = 'country'"
    )
    assert rows == [("text", "NO", "'uk'::text")]
    # A default that is kept in the catalogue is how one sees that no row was rewritten.
    missing = world.query(
        "SELECT atthasmissing FROM pg_attribute"
        " WHERE attrelid = 'customer'::regclass AND attname = 'country'"
    )
    assert missing == [(True,)]
    assert world.query("SELECT count(*) > 0 FROM customer WHERE country = 'uk'") == [(True,)]
    world.query("INSERT INTO customer (email) VALUES ('old-sql@example.com')")


@DOCKER_IN_SOAK
def test_second_run_under_traffic_of_all_regions(world: LabUnderTest) -> None:
    with traffic(world, 60, users=50):
        eventually(lambda: world.query("SELECT count(DISTINCT country) > 10 FROM customer")[0][0])
        assert world.play_ok("expand_world").changed == 0
        assert world.play_ok("expand_world", "--check").changed == 0
    assert lost(world) == 0
    assert all(row["failures"] == 0 for row in experience(world).values())


@DOCKER_IN_SOAK
def test_a_dead_relay_is_noticed_and_started_again(world: LabUnderTest) -> None:
    for playbook in ("expand_world", "before"):
        process = control.running(world.lab)
        assert process
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: control.running(world.lab) is None)
        play = world.play_ok(playbook)
        assert "the WAN's relay was dead: started again" in play.output
        assert control.running(world.lab)
    assert world.play_ok("expand_world").changed == 0


def test_nodes_cross_the_wan(world: LabUnderTest) -> None:
    """What a node sends to another region takes its time too, from inside a container as well."""
    config = control.load(world.lab)
    link = next(link for link in config.links if link.source == "us")
    command = [str(find_bin_dir() / "psql")]
    host = "127.0.0.1"
    if world.runtime == "docker":
        command = ["docker", "exec", "-e", "PGPASSWORD=password", f"{world.lab.name}_eu_db", "psql"]
        host = next(address for address in config.listen if address != host)
    where = f"host={host} port={link.port} user=postgres sslmode=disable"
    started = time.monotonic()
    subprocess.run(
        [*command, where, "-Atc", "SELECT 1"],
        env={**os.environ, "PGPASSWORD": "password"},
        check=True,
        capture_output=True,
        timeout=30,
    )
    # TCP, start-up, two for SCRAM, and the statement.
    assert time.monotonic() - started > 5 * link.rtt_ms / 1e3
