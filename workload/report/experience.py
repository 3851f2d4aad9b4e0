"""What the customers experienced: experience.json and its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console

from workload import store
from workload.lab import Lab
from workload.output import table


@dataclass(frozen=True)
class Experience:
    """One operation of one region in one phase; times in milliseconds."""

    phase: str
    region: str
    operation: str
    requests: int
    failures: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    stale_reads: int


def collect(
    phase: str, entries: Iterable[Any], stale: Mapping[tuple[str, str], int]
) -> list[Experience]:
    """Return a row for each of Locust's statistics entries, which are named "region: operation"."""
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        region, _, operation = entry.name.partition(": ")
        p50, p95, p99 = (
            float(entry.get_response_time_percentile(share)) for share in (0.5, 0.95, 0.99)
        )
        rows.append(
            Experience(
                phase=phase,
                region=region,
                operation=operation,
                requests=entry.num_requests,
                failures=entry.num_failures,
                p50_ms=p50,
                p95_ms=p95,
                p99_ms=p99,
                stale_reads=stale.get((region, operation), 0),
            )
        )
    return rows


def save(lab: Lab, rows: list[Experience]) -> None:
    """Write the rows to experience.json, where they take the place of their phase's old ones."""
    store.replace(lab, "experience", "phase", map(asdict, rows))


def load(lab: Lab) -> list[Experience]:
    """Return the rows of all phases that were played; raises LabError for a damaged file."""
    names = [field.name for field in fields(Experience)]
    return [
        Experience(**{name: row[name] for name in names}) for row in store.load(lab, "experience")
    ]


def show(rows: list[Experience], console: Console) -> None:
    """Print the rows as a table that fits 80 columns."""
    figures = table("What the customers experienced (times in ms)", (0, 0, 0, 0))
    for column in ("phase", "region", "operation"):
        figures.add_column(column)
    for column in ("requests", "failed", "p50", "p95", "p99", "stale"):
        figures.add_column(column, justify="right")
    for row in rows:
        figures.add_row(
            row.phase,
            row.region,
            row.operation,
            f"{row.requests:,}",
            f"{row.failures:,}",
            *(milliseconds(value) for value in (row.p50_ms, row.p95_ms, row.p99_ms)),
            f"{row.stale_reads:,}",
        )
    console.print(figures)


def milliseconds(value: float) -> str:
    """Return a time with three significant digits at most."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
