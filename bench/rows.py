"""A figure beside its goal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workload.lab import Lab, write_atomically


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
    write_atomically(lab.home / "reports" / "bench.json", json.dumps(found, indent=1) + "\n")


def show(rows: list[Row], console: Console) -> None:
    """Print the rows as a table that fits 80 columns."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("what")
    for column in ("value", "baseline", "ratio", "goal"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        sign = "<=" if row.better == "lower" else ">="
        table.add_row(
            row.name,
            f"{row.value:,.4g} {row.unit}",
            "" if row.baseline is None else f"{row.baseline:,.4g} {row.unit}",
            "" if row.ratio is None else f"{row.ratio:.2f} x",
            f"{sign} {row.goal:g} {'x' if row.ratio is not None else row.unit}",
            "holds" if row.holds else "MISSED",
        )
    console.print(table)
