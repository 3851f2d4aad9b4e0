"""Run all measurements: python -m bench [part ...]."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from rich.console import Console

from bench import after, audit, populations, provisioning, rows, sharding, wan, whole
from workload.lab import Lab

PARTS: dict[str, Callable[[], Iterator[rows.Row]]] = {
    "provisioning": provisioning.rows,
    "populations": populations.rows,
    "wan": wan.rows,
    "sharding": sharding.rows,
    "after": after.rows,
    "whole": whole.rows,
    "audit": audit.rows,
}


def main() -> int:
    """Measure, print, write bench.json; return 1 where a goal is missed."""
    asked = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in asked if name not in PARTS]:
        sys.exit(f"bench: no part '{unknown[0]}': use {', '.join(PARTS)}")
    console = Console()
    measured: list[rows.Row] = []
    for name in asked:
        console.print(f"{name} ...")
        measured += PARTS[name]()
    rows.show(measured, console)
    rows.save(Lab.from_environment(), measured)
    return 0 if all(row.holds for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
