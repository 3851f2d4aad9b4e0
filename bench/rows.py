"""A figure beside its goal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workload import store
from workload.lab import Lab


@dataclass(frozen=True)
class Row:
    """One measurement.

    value is what the lab does and baseline what it is held against, in the same unit and from the
    same run; what judges is their ratio, or value itself where there is no baseline.
    """

    name: str
    value: float
    unit: str
    goal: float
    better: Literal["lower", "higher"]
    baseline: float | None = None

    @property
    def ratio(self) -> float | None:
        """value / baseline."""
        return None if self.baseline is None else self.value / self.baseline

    @property
    def holds(self) -> bool:
        """Tell whether the goal is met."""
        judged = self.value if self.ratio is None else self.ratio
        return judged <= self.goal if self.better == "lower" else judged >= self.goal


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def save(lab: Lab, rows: list[Row]) -> None:
    """Write bench.json."""
    found = [
        {
            **{k: v for k, v in asdict(row).items() if k != "better"},
            "ratio": row.ratio,
            "holds": row.holds,
        }
        for row in rows
    ]
    store.save(lab, "bench", found)


def show(rows: list[Row], console: Console) -> None:
    """Print the rows as a table that fits 80 columns."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("what")
    for column in ("value", "beside"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for column in ("ratio", "goal"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        sign = "<=" if row.better == "lower" else ">="
        table.add_row(
            row.name,
            f"{row.value:,.4g}",
            "" if row.baseline is None else f"{row.baseline:,.4g}",
            row.unit,
            "" if row.ratio is None else f"{row.ratio:,.2f} x",
            f"{sign} {row.goal:g}{' x' if row.ratio is not None else ''}",
            "holds" if row.holds else "MISSED",
        )
    console.print(table)
