"""What customers experienced while each phase was being reached: steps.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console

from workload import store
from workload.lab import Lab
from workload.output import table
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
        operations = by_region.get(region)
        if not operations:
            continue
        buy, read = _times(operations.get("buy")), _times(operations.get("read"))
        requests = sum(entry.num_requests for entry in operations.values())
        failures = sum(entry.num_failures for entry in operations.values())
        rows.append(Step(phase, region, requests, failures, *buy, *read))
    return rows


def _times(entry: Any) -> tuple[float | None, float | None]:
    """Return the p50 and the slowest of one of Locust's entries."""
    if entry is None or not entry.num_requests:
        return None, None
    return float(entry.get_response_time_percentile(0.5)), float(entry.max_response_time)


def save(lab: Lab, rows: list[Step]) -> None:
    """Write the rows to steps.json, where they take the place of their phases' old ones."""
    store.replace(lab, "steps", "phase", map(asdict, rows))


def load(lab: Lab) -> list[Step]:
    """Return the rows of all steps that customers traded through.

    Raises LabError for a damaged file.
    """
    names = [field.name for field in fields(Step)]
    return [Step(**{name: row[name] for name in names}) for row in store.load(lab, "steps")]


def show(rows: Iterable[Step], console: Console) -> None:
    """Print the rows as a table that fits 80 columns."""
    figures = table("What each step did to the customers who traded meanwhile (times in ms)")
    figures.add_column("on the way to")
    figures.add_column("region")
    for column in ("requests", "failed", "buy p50", "slowest", "read p50", "slowest"):
        figures.add_column(column, justify="right")
    for row in rows:
        figures.add_row(*cells(row))
    console.print(figures)


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
