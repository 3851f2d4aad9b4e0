"""The report: what the customers of each region felt in each phase, and why it took that long."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from workload.errors import LabError
from workload.experience import Experience, load, show
from workload.lab import Lab, write_atomically
from workload.report_page import page
from workload.roundtrips import explain

#: Figures taken over a WAN that was off by more than this are refused.
WAN_TOLERANCE = 0.05


def read_wan(lab: Lab) -> list[dict[str, Any]]:
    """Return what was measured of the WAN around each phase's traffic (reports/wan.json).

    [{phase, from, node, configured_ms, measured_ms, serves}], where serves tells whether the
    region's customers used the link.
    """
    path = lab.home / "reports" / "wan.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def save_wan(lab: Lab, phase: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what was measured of the WAN in a phase, in place of what was there of it."""
    kept = [row for row in read_wan(lab) if row["phase"] != phase]
    found = kept + [{"phase": phase, **row} for row in rows]
    write_atomically(lab.home / "reports" / "wan.json", json.dumps(found, indent=1) + "\n")


def check_wan(rows: Iterable[Mapping[str, Any]], experience: Iterable[Experience]) -> None:
    """Raise LabError where figures were taken over a WAN that was off.

    That is where a link that customers used was more than 5 % (and more than 2 ms) from what is
    configured, could not be measured, or where there is no measurement of a phase with customers
    in several regions.
    """
    rows = list(rows)
    measured = {row["phase"] for row in rows}
    regions: dict[str, set[str]] = {}
    for played in experience:
        regions.setdefault(played.phase, set()).add(played.region)
    for phase, trading in regions.items():
        if len(trading) > 1 and phase not in measured:
            raise LabError(
                f"phase {phase} has customers in several regions and no measurement of the WAN:"
                " play its traffic again (make traffic HEADLESS=1)"
            )
    for row in rows:
        wanted, found = row["configured_ms"], row["measured_ms"]
        if not row["serves"]:
            continue
        if found is None or abs(found - wanted) > max(2.0, WAN_TOLERANCE * wanted):
            seen = "did not answer" if found is None else f"was {found:.1f} ms"
            raise LabError(
                f"the WAN was off in phase {row['phase']}: {row['from']} to {row['node']} {seen},"
                f" configured {wanted:g} ms; make wan shows it now, and make traffic HEADLESS=1"
                " takes the figures again"
            )


def run(lab: Lab, console: Console) -> None:
    """Print the table and the sentences, and write reports/index.html.

    Raises LabError where no phase was played, or over a WAN that was off.
    """
    rows = [Experience(**row) for row in load(lab)]
    if not rows:
        raise LabError(
            "no customer has traded in this lab: make demo, or make traffic HEADLESS=1, first"
        )
    wan = read_wan(lab)
    check_wan(wan, rows)
    rtt = {(row["phase"], row["from"]): row["configured_ms"] for row in wan if row["serves"]}
    explanations = explain(rows, rtt)
    show(rows, console)
    for found in explanations:
        console.print(found.sentence(), highlight=False)
    path = lab.home / "reports" / "index.html"
    write_atomically(path, page(rows, explanations, wan))
    console.print("The report with its charts:")
    console.print(str(path), soft_wrap=True, highlight=False)
