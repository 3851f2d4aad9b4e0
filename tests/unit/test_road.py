"""A lab's place on the road: what a playbook may do there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.preflight import check_road


def lab_in(tmp_path: Path, phase: str | None, **roles: str) -> Lab:
    lab = Lab("lab", tmp_path)
    if phase is not None:
        nodes = {name: {"role": role} for name, role in roles.items()}
        lab.topology_file.write_text(json.dumps({"phase": phase, "nodes": nodes}))
    return lab


def test_a_phase_that_is_reached_is_played_again_and_one_that_is_passed_is_not(
    tmp_path: Path,
) -> None:
    lab = lab_in(tmp_path, "expand_eu")
    assert not check_road(lab, "expand_eu", "before", False)
    assert check_road(lab, "before", "", False)


@pytest.mark.parametrize(
    ("phase", "needs", "says"),
    [
        (None, "before", "playbooks/before.yml"),
        ("before", "expand_world", "playbooks/expand_eu.yml"),
    ],
)
def test_a_phase_is_not_left_out(tmp_path: Path, phase: str | None, needs: str, says: str) -> None:
    with pytest.raises(LabError, match=says):
        check_road(lab_in(tmp_path, phase), "", needs, False)


def test_a_fenced_node_is_started_by_nobody_but_rejoin(tmp_path: Path) -> None:
    lab = lab_in(tmp_path, "expand_eu", eu="fenced", eu_2="primary")
    with pytest.raises(LabError, match=r"node eu is fenced .* playbooks/rejoin\.yml"):
        check_road(lab, "expand_eu", "before", False)
    assert not check_road(lab, "", "expand_eu", True)


def test_a_phase_that_is_not_on_the_road_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="'dusk'"):
        check_road(lab_in(tmp_path, "dusk"), "before", "", False)
