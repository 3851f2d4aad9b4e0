"""A run that is killed at any named step is finished by the same command, and nothing is lost.

Customers write into the ledger meanwhile. At some steps the origin's server is killed with the run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fixtures.kills import play_until
from tests.fixtures.labs import LabUnderTest, eventually
from tests.fixtures.traffic import new_customer
from tests.fixtures.world import HOMES
from tests.fixtures.writers import writing_to_the_ledger
from workload.processes import STEPS
from workload.proof.verify import verify
from workload.topology import Topology

#: Steps next to a commit that decides, at which the origin's server crashes too.
SERVER_CRASHES = {
    "partition.swapping", "partition.swapped", "replicas.slotted", "cutover.gated",
    "cutover.swapping", "cutover.swapped", "purge.dropped",
}  # fmt: skip


def steps_of(*subjects: str) -> pytest.MarkDecorator:
    """Return a parametrisation over the steps of some subjects."""
    names = [step for step in STEPS if step.partition(".")[0] in subjects]
    return pytest.mark.parametrize("step", names)


def assert_finished(lab: LabUnderTest, phase: str) -> None:
    """Assert that a phase is reached, that each write is there once, and that status is healthy."""
    topology = Topology.load(lab.lab)
    assert topology.phase == phase
    verdicts = verify(topology, "password")
    assert sum(verdict.acknowledged for verdict in verdicts) > 0
    assert all(verdict.holds for verdict in verdicts), verdicts
    # A machine that is busy for a moment may delay a standby or a link.
    eventually(lambda: lab.workload("status").returncode == 0, 20, lambda: lab.workload("status"))


@contextmanager
def customers_go_on(lab: LabUnderTest) -> Iterator[None]:
    """Let customers of all regions write, and see that each can still do so in the end."""
    with writing_to_the_ledger(lab.lab) as sessions:
        yield
        already = [session.acknowledged for session in sessions]
        eventually(
            lambda: all(
                session.acknowledged > before
                for session, before in zip(sessions, already, strict=True)
            ),
            seen=lambda: (already, sessions),
        )


def kill_and_play_again(lab: LabUnderTest, step: str, playbook: str) -> None:
    """Kill a playbook at a step, and play it to its end."""
    with customers_go_on(lab):
        play_until(lab, step, playbook)
        if step in SERVER_CRASHES:
            lab.kill_server("eu")
        lab.play_ok(playbook)


@steps_of("standby")
def test_standby(at_before: LabUnderTest, step: str) -> None:
    kill_and_play_again(at_before, step, "expand_eu")
    assert_finished(at_before, "expand_eu")


@steps_of("partition", "replicas")
def test_shard(at_expand_world: LabUnderTest, step: str) -> None:
    kill_and_play_again(at_expand_world, step, "shard")
    assert_finished(at_expand_world, "shard")


@steps_of("cutover", "purge")
def test_after(at_shard: LabUnderTest, step: str) -> None:
    kill_and_play_again(at_shard, step, "after")
    assert_finished(at_shard, "after")


@steps_of("failover")
def test_failover(at_expand_eu: LabUnderTest, step: str) -> None:
    lab = at_expand_eu
    with customers_go_on(lab):
        lab.kill_server("eu")
        play_until(lab, step, "failover")
        if step == "failover.routed":
            # All that was left to do was to count the bill: there is no second standby.
            assert "eu is fenced" in lab.play("failover").error
        else:
            lab.play_ok("failover")
        lab.play_ok("rejoin")
    assert Topology.load(lab.lab).primary() == "eu_2"
    assert_finished(lab, "expand_eu")


@steps_of("rejoin")
def test_rejoin(at_expand_eu: LabUnderTest, step: str) -> None:
    lab = at_expand_eu
    with customers_go_on(lab):
        lab.kill_server("eu")
        lab.play_ok("failover")
        play_until(lab, step, "rejoin")
        lab.play_ok("rejoin")
    assert_finished(lab, "expand_eu")


def kill_command(lab: LabUnderTest, step: str, command: str, **variables: str) -> None:
    """Run a command of the workload that is killed at a step."""
    killed = lab.workload(command, **variables, LAB_KILL_AT=step)
    assert killed.returncode == -signal.SIGKILL, f"{command} never reached {step}: {killed.stdout}"


def copies(lab: LabUnderTest, customer: str) -> list[str]:
    """Return the regions at whose homes a customer is."""
    row = f"SELECT 1 FROM {{}}.customer WHERE id = '{customer}'"
    return [region for region, offset in HOMES.items() if lab.query(row.format(region), offset)]


@steps_of("move", "rewrite")
def test_move(all_at_after: LabUnderTest, step: str) -> None:
    lab = all_at_after
    key = new_customer(lab, "de", purchases=4)
    kill_command(lab, step, "move", CUSTOMER=key, COUNTRY="us")
    assert len(copies(lab, key)) <= 1
    lab.play_ok("after")
    assert len(copies(lab, key)) == 1
    again = lab.workload("move", CUSTOMER=key, COUNTRY="us")
    assert again.returncode == 0, again.stderr
    assert copies(lab, key) == ["us"]
    assert lab.query(f"SELECT count(*) FROM us.purchase WHERE customer_id = '{key}'", 2) == [(4,)]
    assert_finished(lab, "after")


@steps_of("forget")
def test_forget(all_at_after: LabUnderTest, step: str) -> None:
    lab = all_at_after
    key = new_customer(lab, "de", purchases=4)
    kill_command(lab, step, "forget", CUSTOMER=key)
    lab.play_ok("after")
    assert copies(lab, key) == []
    assert_finished(lab, "after")
