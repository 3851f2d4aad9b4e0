"""steps.json: what customers went through while a phase was reached, from Locust's statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from workload.errors import LabError
from workload.lab import Lab
from workload.report import steps
from workload.report.steps import Step


@dataclass
class Entry:
    """One of Locust's statistics entries."""

    name: str
    num_requests: int = 10
    num_failures: int = 0
    max_response_time: float = 50.0

    def get_response_time_percentile(self, share: float) -> float:
        return self.max_response_time * share


def test_a_row_for_each_region_in_the_labs_order() -> None:
    entries = [Entry("jp: buy"), Entry("us: buy", num_failures=2), Entry("us: read", 5, 1, 7.0)]
    rows = steps.collect("after", ["eu", "us", "jp"], entries)
    assert rows == [
        Step("after", "us", 15, 3, 25.0, 50.0, 3.5, 7.0),
        Step("after", "jp", 10, 0, 25.0, 50.0, None, None),
    ]


def test_what_nobody_did_has_no_time() -> None:
    (row,) = steps.collect("shard", ["eu"], [Entry("eu: buy", 0), Entry("eu: connect", 3, 3)])
    assert row == Step("shard", "eu", 3, 3, None, None, None, None)
    assert steps.cells(row) == ("shard", "eu", "3", "3", "", "", "", "")


def test_a_step_takes_the_place_of_its_own_earlier_one(tmp_path: Path) -> None:
    lab = Lab("lab", tmp_path)
    assert steps.load(lab) == []
    first, other, again = (
        Step(phase, "eu", requests, 0, 1.0, 2.0, 3.0, 4.0)
        for phase, requests in (("shard", 1), ("after", 2), ("shard", 3))
    )
    for rows in ([first], [other], [again]):
        steps.save(lab, rows)
    assert steps.load(lab) == [other, again]


@pytest.mark.parametrize("text", ["{", '[{"phase": "shard"}]', "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "steps.json").write_text(text)
    with pytest.raises(LabError, match=r"steps\.json is damaged .*: remove it"):
        steps.load(Lab("lab", tmp_path))
