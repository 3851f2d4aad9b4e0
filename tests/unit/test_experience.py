"""experience.json: the names that other things rely on, and phases that stay apart."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from workload.lab import Lab
from workload.report import experience
from workload.report.experience import Experience

FIELDS = [
    "phase", "region", "operation", "requests", "failures", "p50_ms", "p95_ms", "p99_ms",
    "stale_reads",
]  # fmt: skip


@dataclass
class Entry:
    """One of Locust's statistics entries."""

    name: str
    num_requests: int
    num_failures: int
    median: float

    def get_response_time_percentile(self, share: float) -> float:
        return self.median * (1 + share)


def row(phase: str, region: str = "eu", operation: str = "buy", requests: int = 1) -> Experience:
    return Experience(phase, region, operation, requests, 0, 1.0, 2.0, 3.0, 0)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab("lab", tmp_path)


def saved(lab: Lab) -> list[dict[str, Any]]:
    return list(json.loads((lab.home / "reports/experience.json").read_text()))


def test_a_row_for_each_operation_with_its_stale_reads() -> None:
    entries = [Entry("eu: read", 40, 2, 1.0), Entry("eu: buy", 30, 1, 2.0)]
    rows = experience.collect("before", entries, {("eu", "read"): 5, ("us", "read"): 9})
    assert [(r.region, r.operation, r.requests, r.failures, r.stale_reads) for r in rows] == [
        ("eu", "buy", 30, 1, 0),
        ("eu", "read", 40, 2, 5),
    ]
    assert (rows[0].p50_ms, rows[0].p95_ms, rows[0].p99_ms) == (3.0, 3.9, 3.98)


def test_fields_are_those_of_the_design(lab: Lab) -> None:
    experience.save(lab, [row("before")])
    assert [list(entry) for entry in saved(lab)] == [FIELDS]


def test_a_phase_replaces_its_own_rows_and_keeps_the_others(lab: Lab) -> None:
    experience.save(lab, [row("before", operation="buy"), row("before", operation="read")])
    experience.save(lab, [row("shard", requests=7)])
    experience.save(lab, [row("before", operation="buy", requests=9)])
    kept = {(entry["phase"], entry["operation"]): entry["requests"] for entry in saved(lab)}
    assert kept == {("shard", "buy"): 7, ("before", "buy"): 9}


def test_no_rows_change_nothing(lab: Lab) -> None:
    experience.save(lab, [row("before")])
    experience.save(lab, [])
    assert len(saved(lab)) == 1


def test_table_fits_a_terminal_and_holds_the_figures() -> None:
    out = io.StringIO()
    slow = Experience("expand_world", "eu", "sign up", 1_234_567, 89, 0.123, 45.67, 8_901.2, 3)
    experience.show([slow], Console(file=out, width=80))
    text = out.getvalue()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    for figure in ("expand_world", "sign up", "1,234,567", "89", "0.12", "45.7", "8,901", "3"):
        assert figure in text
