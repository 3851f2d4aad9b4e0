"""make status and make psql on a lab that runs: what is wrong shows, and nothing hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fixtures.labs import LabUnderTest, eventually
from workload.wan import control

#: Seconds for the whole command, however many nodes are silent.
LONGEST_S = 8


@pytest.fixture(scope="module")
def world(all_at_expand_world: LabUnderTest) -> LabUnderTest:
    """Return a lab in phase expand_world."""
    return all_at_expand_world


def status(lab: LabUnderTest) -> tuple[int, str]:
    """Return the exit status and what was said, its lines joined."""
    started = time.monotonic()
    done = lab.workload("status")
    assert time.monotonic() - started < LONGEST_S
    assert done.stderr == ""
    wide = [x for x in done.stdout.splitlines() if len(x) > 80 and str(lab.lab.home) not in x]
    assert not wide
    return done.returncode, " ".join(done.stdout.split())


def healthy(lab: LabUnderTest) -> None:
    """Wait until nothing is wrong any more."""
    eventually(lambda: status(lab)[0] == 0, seen=lambda: status(lab))


@contextmanager
def stopped(lab: LabUnderTest, node: str) -> Iterator[None]:
    """Stop a node's postmaster by a signal while the block runs."""
    postmaster = lab.server(node).postmaster()
    assert postmaster
    os.kill(postmaster.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(postmaster.pid, signal.SIGCONT)


def test_a_lab_that_is_well(world: LabUnderTest) -> None:
    code, said = status(world)
    assert code == 0, said
    assert "HEALTHY" in said
    assert "phase expand_world, embedded runtime" in said
    for text in ("physical streaming, sync", "us-eu up 80 ms", "make audit"):
        assert text in said, said


def test_nodes_that_do_not_answer_hold_up_nobody(world: LabUnderTest) -> None:
    with stopped(world, "eu"), stopped(world, "eu_2"):
        code, said = status(world)
    assert code == 1
    assert "node eu takes connections and does not answer" in said
    assert "node eu_2 takes connections and does not answer" in said
    healthy(world)


def test_a_dead_standby_is_named_with_its_remedy_and_the_remedy_works(world: LabUnderTest) -> None:
    world.kill_server("eu_2", "eu_db_2")
    code, said = status(world)
    assert code == 1
    assert "node eu_2 is down (connection refused): make expand_world starts it again" in said
    world.play_ok("expand_world")
    healthy(world)


def test_links_and_the_relay(world: LabUnderTest) -> None:
    control.set_state(world.lab, "jp-eu", "cut")
    code, said = status(world)
    assert code == 1
    assert "WRONG: link jp-eu is cut: make wan LINK=jp-eu STATE=up" in said
    control.set_state(world.lab, "jp-eu")
    relay = control.running(world.lab)
    assert relay
    relay.suspend()
    assert "relay is paused" in status(world)[1]
    relay.kill()
    eventually(lambda: control.running(world.lab) is None)
    code, said = status(world)
    assert code == 1
    assert "relay is not running: no link carries anything; make expand_world" in said
    world.play_ok("expand_world")
    healthy(world)


def test_what_a_killed_run_left(world: LabUnderTest) -> None:
    world.query("CREATE SCHEMA retired_us")
    assert "schema retired_us on eu is left of a run" in status(world)[1]
    world.query("DROP SCHEMA retired_us")
    world.query("BEGIN; CREATE SCHEMA mine; PREPARE TRANSACTION 'half'")
    code, said = status(world)
    world.query("ROLLBACK PREPARED 'half'")
    assert code == 1
    assert "prepared transaction 'half' on eu" in said
    healthy(world)


def test_psql_runs_one_statement_on_the_node_that_is_named(world: LabUnderTest) -> None:
    for node, port in (("", world.port_base), ("eu_2", world.port_base + 1)):
        done = world.workload("psql", NODE=node, SQL="SHOW port")
        assert done.returncode == 0, done.stderr
        assert str(port) in done.stdout
    wrong = world.workload("psql", SQL="SELECT nothing")
    assert wrong.returncode == 1
    assert 'column "nothing" does not exist' in wrong.stderr


def test_psql_names_the_nodes_that_there_are(world: LabUnderTest) -> None:
    done = world.workload("psql", NODE="us")
    assert done.returncode == 1
    assert done.stderr == "lab: no node 'us' in this lab: use one of eu, eu_2\n"
