"""Links that are cut, slow or off, under traffic; the same in both runtimes, so played in one."""

from __future__ import annotations

import json
import time

import pytest

from tests.fixtures.labs import LabUnderTest, eventually
from tests.fixtures.traffic import acknowledged, experience, lost, play_traffic, traffic
from workload.wan import control

#: workload.traffic.customer has it too, but importing that patches this process's sockets.
OPERATION_TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def world(all_at_expand_world: LabUnderTest) -> LabUnderTest:
    """Return a lab in phase expand_world."""
    return all_at_expand_world


def test_report_refuses_a_wan_that_was_off(world: LabUnderTest) -> None:
    play_traffic(world)
    assert world.workload("report").returncode == 0
    path = world.lab.home / "reports" / "wan.json"
    rows = json.loads(path.read_text())
    served = next(row for row in rows if row["serves"])
    served["measured_ms"] = served["configured_ms"] * 1.06
    path.write_text(json.dumps(rows))
    refused = world.workload("report")
    assert refused.returncode == 1
    assert "the WAN was off in phase expand_world" in refused.stderr
    process = control.running(world.lab)
    assert process
    process.kill()
    eventually(lambda: control.running(world.lab) is None)
    done = world.workload("traffic", "--headless", "--time=3", "--users=3", REGIONS="eu")
    assert done.returncode == 0, done.stdout + done.stderr
    refused = world.workload("report")
    assert refused.returncode == 1
    assert "did not answer" in refused.stderr
    assert control.revive(world.lab)
    play_traffic(world)
    assert world.workload("report").returncode == 0


@pytest.mark.serial
@pytest.mark.parametrize("state", ["cut", "reset"])
def test_customers_recover_from_a_cut_link(world: LabUnderTest, state: str) -> None:
    with traffic(world, 60, users=10, REGIONS="us"):
        already = acknowledged(world)
        eventually(lambda: acknowledged(world) > already + 20)
        control.set_state(world.lab, "us-eu", state)
        time.sleep(0.3)  # What was on its way may still be acknowledged.
        during = acknowledged(world)
        # Longer than a customer waits for an answer: a shorter cut of a black hole is only a delay.
        deadline = time.monotonic() + OPERATION_TIMEOUT_S + 1.5
        while time.monotonic() < deadline:
            assert acknowledged(world) == during
            time.sleep(0.1)
        control.set_state(world.lab, "us-eu", "up")
        healed = time.monotonic()
        eventually(lambda: acknowledged(world) > during, 10)
        assert time.monotonic() - healed <= 2.0
    assert lost(world) == 0
    assert sum(row["failures"] for row in experience(world).values()) > 0


def test_failures_are_counted_once(world: LabUnderTest) -> None:
    """Every failure is one row of Locust's; a write that was sent has one outcome."""
    folder = world.lab.home / "ledger"
    before = {path.name for path in folder.glob("*.txt")}
    control.set_state(world.lab, "us-eu", "reset")
    try:
        done = world.workload("traffic", "--headless", "--time=4", "--users=5", REGIONS="us")
    finally:
        control.set_state(world.lab, "us-eu", "up")
    assert done.returncode == 1
    rows = experience(world)
    # Nobody could connect, so nobody sent anything: all is failed sign-ups, at most two a second
    # and customer after the first moments.
    assert set(rows) == {("us", "sign up")}
    row = rows["us", "sign up"]
    assert row["failures"] == row["requests"] > 0
    assert row["failures"] <= 5 * (4 / 0.5 + 6)
    assert {path.name for path in folder.glob("*.txt")} == before
