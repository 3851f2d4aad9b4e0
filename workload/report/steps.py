"""What each step of the road did to the customers who traded on while it was taken: steps.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workload.errors import LabError
from workload.lab import Lab, write_atomically
from workload.report.experience import milliseconds


@dataclass(frozen=True)
class Step:
    """What one region's customers went through while a phase was reached; times in ms.

    A time is None where nobody did that meanwhile.
    """

    phase: str
    region: str
    requests: int
    failures: int
    buy_p50_ms: float | None
    buy_slowest_ms: float | None
    look_p50_ms: float | None
    look_slowest_ms: float | None


def collect(phase: str, regions: Iterable[str], entries: Iterable[Any]) -> list[Step]:
    """Return a row for each region in Locust's statistics, whose names are "region: operation"."""
    by_region: dict[str, dict[str, Any]] = {}
    for entry in entries:
        region, _, operation = entry.name.partition(": ")
        by_region.setdefault(region, {})[operation] = entry
    rows = []
    for region in regions:
        found = by_region.get(region)
        if not found:
            continue
        buy, look = _times(found.get("buy")), _times(found.get("look"))
        requests = sum(entry.num_requests for entry in found.values())
        failures = sum(entry.num_failures for entry in found.values())
        rows.append(Step(phase, region, requests, failures, *buy, *look))
    return rows


def _times(entry: Any) -> tuple[float | None, float | None]:
    """Return the p50 and the slowest of one of Locust's entries."""
    if entry is None or not entry.num_requests:
        return None, None
    return float(entry.get_response_time_percentile(0.5)), float(entry.max_response_time)


def save(lab: Lab, rows: list[Step]) -> None:
    """Write the rows to steps.json, where they take the place of their phases' old ones."""
    phases = {row.phase for row in rows}
    kept = [row for row in load(lab) if row.phase not in phases]
    text = json.dumps([asdict(row) for row in [*kept, *rows]], indent=1) + "\n"
    write_atomically(_path(lab), text)


def load(lab: Lab) -> list[Step]:
    """Return the rows of all steps that customers traded through.

    Raises LabError for a damaged file.
    """
    path = _path(lab)
    try:
        return [Step(**row) for row in json.loads(path.read_text())] if path.exists() else []
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{path} cannot be read ({error}): remove it") from error


def _path(lab: Lab) -> Path:
    return lab.home / "reports" / "steps.json"


def show(rows: Iterable[Step], console: Console) -> None:
    """Print the rows as a table that fits 80 columns."""
    table = Table(
        title="What each step did to those who traded on meanwhile (times in ms)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("on the way to")
    table.add_column("region")
    for column in ("requests", "failed", "buy p50", "slowest", "look p50", "slowest"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)


def cells(row: Step) -> tuple[str, ...]:
    """Return a row as text."""
    times = (row.buy_p50_ms, row.buy_slowest_ms, row.look_p50_ms, row.look_slowest_ms)
    return (
        row.phase,
        row.region,
        f"{row.requests:,}",
        f"{row.failures:,}",
        *("" if time is None else milliseconds(time) for time in times),
    )
