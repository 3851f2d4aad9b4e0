"""Phase expand_eu and its drills: the standby, failover and rejoin, played for real."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time

import psutil
import psycopg
import pytest

from tests.fixtures.kills import kill_group
from tests.fixtures.labs import LabUnderTest, eventually
from tests.fixtures.traffic import acknowledged, lost, traffic
from workload.nodes.docker import Engine
from workload.topology import Topology


@pytest.fixture
def pair(lab: LabUnderTest) -> LabUnderTest:
    lab.play_ok("before")
    lab.play_ok("expand_eu")
    return lab


def lose_primary(lab: LabUnderTest, how: int) -> None:
    """Send a signal to every process of the node that is the primary now."""
    node = Topology.load(lab.lab).primary()
    if lab.runtime == "docker":
        container = {"eu": "eu_db", "eu_2": "eu_db_2"}[node]
        found = Engine().client.containers.get(f"{lab.lab.name}_{container}")
        if how == signal.SIGSTOP:
            found.pause()
        else:
            found.kill(how)
    else:
        for process in lab.server(node).processes():
            # Some end by themselves when the first one does.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)


def failover_record(lab: LabUnderTest) -> dict[str, float]:
    records = json.loads((lab.lab.home / "reports" / "failover.json").read_text())
    return dict(records[-1])


def fail_over(lab: LabUnderTest, how: int) -> None:
    already = acknowledged(lab)
    lose_primary(lab, how)
    play = lab.play_ok("failover")
    eventually(lambda: acknowledged(lab) > already, 20, lambda: play.output)
    record = failover_record(lab)
    assert record["lost"] == 0
    assert record["rto_ms"] is not None, play.output


def test_standby_is_synchronous_and_has_data_of_its_own(pair: LabUnderTest) -> None:
    rows = pair.query("SELECT application_name, state, sync_state FROM pg_stat_replication")
    assert rows == [("eu_2", "streaming", "sync")]
    assert pair.query("SELECT pg_is_in_recovery()", offset=1) == [(True,)]
    pair.query("INSERT INTO customer (email) VALUES ('a@example.com')")
    eventually(lambda: pair.query("SELECT count(*) FROM customer", offset=1) == [(1,)])
    if pair.runtime == "docker":
        volumes = {
            mount["Name"]
            for name in ("eu_db", "eu_db_2")
            for mount in Engine().client.containers.get(f"{pair.lab.name}_{name}").attrs["Mounts"]
            if mount["Type"] == "volume"
        }
        assert volumes == {f"{pair.lab.name}_eu_db", f"{pair.lab.name}_eu_db_2"}
    assert pair.play_ok("expand_eu").changed == 0
    assert pair.play_ok("expand_eu", "--check").changed == 0
    before = pair.play_ok("before")
    assert "past before: nothing to do" in " ".join(before.output.split())
    with traffic(pair, 20):
        readers = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'customers'"
        eventually(lambda: pair.query(readers, offset=1)[0][0] > 0)
    assert lost(pair) == 0


def test_a_standby_that_is_gone_is_brought_back(pair: LabUnderTest) -> None:
    pair.kill_server("eu_2", "eu_db_2")
    pair.play_ok("expand_eu")
    eventually(lambda: pair.query("SELECT sync_state FROM pg_stat_replication") == [("sync",)], 20)
    assert pair.play_ok("expand_eu").changed == 0


def test_fail_over_and_rejoin_under_load(pair: LabUnderTest) -> None:
    """Five kills and a pause without Docker; one of each with it, where a round takes longer."""
    ways = [signal.SIGKILL, signal.SIGSTOP]
    if pair.runtime == "embedded":
        ways = [signal.SIGKILL] * 5 + [signal.SIGSTOP]
    with traffic(pair, 150):
        for number, how in enumerate(ways):
            fail_over(pair, how)
            old = {0: "eu", 1: "eu_2"}[number % 2]
            assert pair.lab.read_roles()[old] == "fenced"
            play = pair.play_ok("rejoin")
            assert f"{old} becomes" in play.output
            assert pair.lab.read_roles()[old] == "standby"
    assert lost(pair) == 0
    assert pair.workload("verify").returncode == 0
    assert pair.play_ok("expand_eu").changed == 0


def test_a_fenced_primary_takes_no_write(embedded_lab: LabUnderTest) -> None:
    lab = embedded_lab
    lab.play_ok("before")
    lab.play_ok("expand_eu")
    paused = [process.pid for process in lab.server("eu").processes()]
    lose_primary(lab, signal.SIGSTOP)
    lab.play_ok("failover")
    # Nothing is left that could wake up.
    assert paused
    assert lab.server("eu").processes() == []
    # Whatever starts it behind the lab's back finds a server that can only be read.
    machine = lab.server("eu")
    lab.query("SELECT 1", offset=1)
    from workload.nodes.embedded import EmbeddedServer, find_bin_dir

    EmbeddedServer(machine.base, lab.port_base, find_bin_dir()).start()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        lab.query("INSERT INTO customer (email) VALUES ('split@example.com')")
    refused = lab.play("expand_eu")
    assert refused.status != 0
    assert "rejoin.yml" in refused.error
    lab.play_ok("rejoin")
    lab.query("INSERT INTO customer (email) VALUES ('one@example.com')", offset=1)
    eventually(lambda: lab.query("SELECT email FROM customer") == [("one@example.com",)])
    again = lab.play_ok("rejoin")
    assert again.changed == 0


def test_rejoin_copies_where_it_cannot_rewind(embedded_lab: LabUnderTest) -> None:
    lab = embedded_lab
    lab.play_ok("before")
    lab.play_ok("expand_eu")
    lose_primary(lab, signal.SIGKILL)
    lab.play_ok("failover")
    (lab.server("eu").data / "global" / "pg_control").unlink()
    play = lab.play_ok("rejoin")
    output = " ".join(play.output.split())
    assert "(copied anew because pg_rewind: error: could not open file" in output
    assert "pg_control" in output
    eventually(
        lambda: lab.query("SELECT sync_state FROM pg_stat_replication", offset=1) == [("sync",)]
    )


def test_fail_over_needs_a_standby(embedded_lab: LabUnderTest) -> None:
    lab = embedded_lab
    refused = lab.play("expand_eu")
    assert "builds on before: play playbooks/before.yml first" in refused.error
    assert not lab.lab.home.exists()
    lab.play_ok("before")
    refused = lab.play("failover")
    assert "builds on expand_eu" in refused.error
    lab.play_ok("expand_eu")
    lab.kill_server("eu_2")
    refused = lab.play("failover")
    assert "eu_2 cannot take over" in refused.error
    lab.query("INSERT INTO customer (email) SELECT 'x' WHERE false")  # The primary is untouched.


def test_a_volume_that_a_node_uses_is_refused(embedded_lab: LabUnderTest) -> None:
    lab = embedded_lab
    lab.play_ok("before")
    refused = lab.play("expand_eu", "-e", "node_container=eu_db")
    assert refused.status != 0
    assert "eu_db" in refused.error
    assert "two servers on one volume destroy its data" in refused.error
    assert not (lab.lab.home / "nodes" / "eu_2").exists()


@pytest.mark.soak
def test_killed_runs_converge(lab: LabUnderTest) -> None:
    """Each round kills both playbooks at a random moment, and plays them again."""
    seed = random.randrange(10**6)
    print("seed", seed)
    moments = random.Random(seed)
    durations = {}
    lab.play_ok("before")
    for phase in ("expand_eu", "expand_world"):
        started = time.monotonic()
        lab.play_ok(phase)
        durations[phase] = time.monotonic() - started
    for _ in range(2 if lab.runtime == "embedded" else 1):
        lab.remove()
        lab.play_ok("before")
        for phase, duration in durations.items():
            process = lab.start(phase)
            time.sleep(moments.uniform(0.3, duration))
            kill_group(process)
            lab.play_ok(phase, "-e", "node_timeout_s=20")
            assert lab.play_ok(phase).changed == 0
        rows = lab.query("SELECT sync_state FROM pg_stat_replication")
        assert rows == [("sync",)]
        # A machine that is busy for a moment is not a WAN that is off.
        eventually(lambda: lab.workload("wan").returncode == 0)
