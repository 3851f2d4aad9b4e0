"""What takes long: an hour's traffic, and the whole road in Docker under traffic."""

from __future__ import annotations

import json
import time

import pytest

from tests.fixtures.after import (
    assert_held,
    assert_whole,
)
from tests.fixtures.labs import LabUnderTest
from tests.fixtures.traffic import (
    customers,
    experience,
    move_somebody,
    play_traffic,
)
from tests.fixtures.world import RTTS_MS

pytestmark = pytest.mark.soak


def test_residency_holds_after_an_hours_traffic(at_after: LabUnderTest) -> None:
    """As many operations as the twenty customers of a demo make in an hour, one a second each."""
    hour, done, deadline = 20 * 3600, 0, time.monotonic() + 300
    while done < hour:
        assert time.monotonic() < deadline, f"{done:,} operations"
        play_traffic(at_after, 15, users=30, LAB_THINK_TIME="0")
        rows = experience(at_after, "after").values()
        done += sum(row["requests"] for row in rows)
        assert {row["failures"] for row in rows} == {0}
    assert_whole(at_after)
    assert_held(at_after)


@pytest.mark.docker
def test_straight_from_expand_world_under_traffic(docker_lab: LabUnderTest) -> None:
    lab = docker_lab
    for phase in ("before", "expand_eu", "expand_world"):
        lab.play_ok(phase)
    with customers(lab):
        lab.play_ok("after")
    assert_whole(lab)
    rows = json.loads((lab.lab.home / "reports" / "cutover.json").read_text())
    assert {row["region"] for row in rows} == set(RTTS_MS)
    for row in rows:
        assert (row["failed"], row["lost"], row["doubled"]) == (0, 0, 0)
    move_somebody(lab)
    assert_held(lab)
    assert lab.play_ok("after").changed == 0
