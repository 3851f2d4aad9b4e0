"""The report: what customers felt in each phase and why, and where their data is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from workload.audit import residency
from workload.errors import LabError
from workload.lab import Lab, read_json, write_atomically
from workload.output import table
from workload.report import steps
from workload.report.experience import Experience, load, milliseconds, show
from workload.report.findings import Change, Holding, Receipts, changes, holdings
from workload.report.page import page
from workload.report.roundtrips import FIRST, Explanation, distances, explain, read_notes
from workload.topology import tables_of
from workload.wan.measure import is_within, read_wan


def check_wan(rows: Iterable[Mapping[str, Any]], experience: Iterable[Experience]) -> None:
    """Raise LabError where figures were taken over a WAN that was off.

    That is where a link that customers used was more than 5 % (and more than 2 ms) from what is
    configured, could not be measured, or where there is no measurement of a phase with customers
    in several regions. Where all are at home by what the phase is, nothing is asked of the WAN.
    """
    rows = list(rows)
    measured = {row["phase"] for row in rows}
    regions: dict[str, set[str]] = {}
    for played in experience:
        regions.setdefault(played.phase, set()).add(played.region)
    for phase, trading in regions.items():
        if len(trading) > 1 and phase not in measured and tables_of(phase) != "home":
            raise LabError(
                f"phase {phase} has customers in several regions and no measurement of the WAN:"
                " play its traffic again (make traffic HEADLESS=1)"
            )
    for row in rows:
        configured_ms, measured_ms = row["configured_ms"], row["measured_ms"]
        if not (row["serves"] or row.get("looks")):
            continue
        if measured_ms is None or not is_within(configured_ms, measured_ms):
            outcome = "did not answer" if measured_ms is None else f"was {measured_ms:.1f} ms"
            link = f"{row['from']} to {row['node']}"
            raise LabError(
                f"the WAN was off in phase {row['phase']}: {link} {outcome}, configured"
                f" {configured_ms:g} ms; make wan shows it now, make traffic HEADLESS=1 takes the"
                " figures again"
            )


def run(lab: Lab, console: Console) -> None:
    """Print the tables and the sentences, and write reports/index.html.

    Raises LabError where no phase was played, or over a WAN that was off.
    """
    rows = load(lab)
    if not rows:
        raise LabError(
            "no customer has traded in this lab: make demo, or make traffic HEADLESS=1, first"
        )
    phases = list(dict.fromkeys(row.phase for row in rows))
    regions = list(read_json(lab.topology_file).get("regions", {}))
    # As the inventory has them; one that is gone from there comes last.
    places = {region: place for place, region in enumerate(regions)}
    rows.sort(key=lambda row: (phases.index(row.phase), places.get(row.region, len(places))))
    wan = read_wan(lab)
    check_wan(wan, rows)
    far = distances(wan)
    explanations, notes = explain(rows, far), read_notes(rows, far)
    gains = changes(rows, far)
    held = [(entry, holdings(entry)) for entry in residency.load(lab)]
    receipts, taken = Receipts.load(lab), steps.load(lab)
    show(rows, console)
    _show_explanations(explanations, notes, console)
    if gains:
        _show_changes(gains, console)
    if held:
        _show_holdings(held, console)
    _show_receipts(receipts, console)
    if taken:
        steps.show(taken, console)
    path = lab.home / "reports" / "index.html"
    write_atomically(path, page(rows, explanations, notes, wan, gains, held, receipts, taken))
    console.print("The report with its charts:")
    console.print(str(path), soft_wrap=True, highlight=False)


def _show_explanations(
    explanations: Sequence[Explanation], notes: Sequence[str], console: Console
) -> None:
    if not explanations:
        return
    rows = table("Why it takes that long: round trips x RTT + work (ms)")
    for column in ("phase", "region", "operation"):
        rows.add_column(column)
    for column in ("trips", "RTT", "work", "predicted", "measured"):
        rows.add_column(column, justify="right")
    for each in explanations:
        times = (each.local_ms, each.predicted_ms, each.measured_ms)
        rows.add_row(
            each.phase,
            each.region,
            each.operation,
            str(each.round_trips),
            f"{each.rtt_ms:g}",
            *map(milliseconds, times),
        )
    console.print(rows)
    for each in explanations:
        if each.operation == "buy":
            console.print(f"{each.phase}, {each.sentence()}", highlight=False)
    for note in notes:
        console.print(note, highlight=False)
    if any(each.is_first for each in explanations):
        console.print(FIRST, highlight=False)


def _show_changes(gains: Sequence[Change], console: Console) -> None:
    rows = table("What sharding changed (p50 in ms)")
    rows.add_column("region")
    rows.add_column("operation")
    for column in ("expand_world", "shard", "stale in shard", "after", "speed-up"):
        rows.add_column(column, justify="right")
    for change in gains:
        rows.add_row(
            change.region,
            change.operation,
            *(_ms(value) for value in (change.far_ms, change.shard_ms)),
            change.stale,
            _ms(change.home_ms),
            change.speed_up,
        )
    console.print(rows)


def _ms(value: float | None) -> str:
    return "" if value is None else milliseconds(value)


def _show_holdings(
    held: Sequence[tuple[Mapping[str, Any], Sequence[Holding]]], console: Console
) -> None:
    regions = list(dict.fromkeys(cell.region for _, cells in held for cell in cells))
    rows = table("Where each region's data is (rows + traces)")
    for column in ("phase", "verdict", "node"):
        rows.add_column(column)
    for region in regions:
        rows.add_column(f"of {region}", justify="right")
    for entry, cells in held:
        first = True
        for node in entry["nodes"]:
            by_region = {cell.region: cell for cell in cells if cell.node == node}
            rows.add_row(
                entry["phase"] if first else "",
                entry["verdict"] if first else "",
                node,
                *(_holding(by_region.get(region)) for region in regions),
            )
            first = False
    console.print(rows)
    if any(cell.is_foreign and cell.is_there for _, cells in held for cell in cells):
        console.print(
            "! marks data on a node that is not its home; make audit says what traces are."
        )


def _holding(cell: Holding | None) -> Text:
    if cell is None or not cell.is_there:
        return Text("-")
    return Text(f"{cell.text}{'!' if cell.is_foreign else ''}", "red" if cell.is_foreign else "")


def _show_receipts(receipts: Receipts, console: Console) -> None:
    for line in receipts.lines():
        console.print(line, highlight=False)
    if not receipts.cutovers:
        return
    rows = table("Cutovers (times in ms)")
    rows.add_column("region")
    for column in ("rows", "RTT", "its pause", "others' pause", "acknowledged", "failed", "lost"):
        rows.add_column(column, justify="right")
    for row in receipts.cutovers:
        rows.add_row(*receipts.cells(row))
    console.print(rows)
