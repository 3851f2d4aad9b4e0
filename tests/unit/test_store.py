"""Report files: rows are replaced by their key, and a damaged file is one line that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workload import store
from workload.audit import residency
from workload.errors import LabError
from workload.lab import Lab
from workload.report import experience, steps
from workload.report.findings import Receipts
from workload.wan.measure import read_wan

READERS: dict[str, Callable[[Lab], Any]] = {
    "experience": experience.load,
    "wan": read_wan,
    "steps": steps.load,
    "residency": residency.load,
    "failover": lambda lab: store.load(lab, "failover"),
    "cutover": Receipts.load,
    "partition": Receipts.load,
    "replicas": Receipts.load,
    "bench": lambda lab: store.load(lab, "bench"),
}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab("lab", tmp_path)


@pytest.mark.parametrize("text", ["{", "[", "3", '[{"x": 1}]', "[1]", '{"a": 1}', '{"a": {}}'])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_report_is_one_line_with_its_path_and_a_remedy(
    lab: Lab, name: str, text: str
) -> None:
    path = store.path_of(lab, name)
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(LabError) as raised:
        READERS[name](lab)
    message = str(raised.value)
    assert message.startswith(f"{path} is damaged (")
    assert message.endswith(f": remove it; {store.REPORTS[name].remedy}")
    assert "\n" not in message


@pytest.mark.parametrize("name", READERS)
def test_a_report_that_is_not_there_is_empty(lab: Lab, name: str) -> None:
    found = READERS[name](lab)
    assert not (found.lines() or found.cutovers if isinstance(found, Receipts) else found)


def test_rows_take_the_place_of_those_with_their_key(lab: Lab) -> None:
    row = {"phase": "shard", "from": "us", "node": "eu", "configured_ms": 80, "serves": True}
    old = [{**row, "measured_ms": 80}, {**row, "phase": "after", "measured_ms": 81}]
    store.save(lab, "wan", old)
    new = [{**row, "measured_ms": 79.5}]
    store.replace(lab, "wan", "phase", new, "shard")
    assert read_wan(lab) == [old[1], *new]
    store.replace(lab, "wan", "phase", [], "after")
    assert json.loads(store.path_of(lab, "wan").read_text()) == new


def test_every_report_is_read_by_a_test() -> None:
    assert READERS.keys() == store.REPORTS.keys()
