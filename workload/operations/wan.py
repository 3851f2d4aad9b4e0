"""What make wan prints: the matrix of RTTs, or what a link now is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from workload.errors import LabError
from workload.lab import Lab
from workload.output import table
from workload.topology import Topology
from workload.wan.config import Config
from workload.wan.control import load, set_state
from workload.wan.measure import measure


def run(lab: Lab, link: str | None, state: str | None, one_way: bool, rtt_ms: float | None) -> int:
    """Change a link, or without one print the matrix; return the exit status, 1 if one is off.

    Raises LabError where the lab has no WAN, or no such link.
    """
    try:
        load(lab)
    except LabError:
        Topology.load(lab)  # Where there is no lab at all, that is what to say.
        raise
    if link is None:
        if state or one_way or rtt_ms is not None:
            raise LabError("STATE, ONE_WAY and RTT need a LINK: make wan LINK=us-eu STATE=cut")
        return 0 if show(measure(lab), Console()) else 1
    set_state(lab, link, state or "up", one_way, rtt_ms)
    print(sentence(load(lab), link, one_way))
    return 0


def sentence(config: Config, link: str, one_way: bool) -> str:
    """Return what a link now is, in one line; one_way tells of its one direction alone."""
    start, end = config.pair(link)
    state = config.direction(start, end)
    scope = f"from {start} to {end}" if one_way else "both ways"
    if state.state == "cut":
        return f"{link} is cut {scope}: what is sent is held until STATE=up"
    if state.state == "reset":
        begun = f"in {start}" if one_way else f"in {start} or {end}"
        return f"{link} is reset: connections begun {begun} break, new ones too"
    if state.rtt_ms is not None and one_way:
        return f"{link} is up, and {scope} it takes {state.rtt_ms / 2:g} ms"
    pair = {start, end}
    rtt = max(config.rtt_ms(x) for x in config.links if {x.source, x.region} == pair)
    return f"{link} is up {scope}, with an RTT of {rtt:g} ms"


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> bool:
    """Print the rows as a matrix that fits 80 columns; return whether all links are as wanted."""
    matrix = table("RTT of the WAN, configured / measured", (0, 0, 0, 0))
    matrix.add_column("from")
    cells = {(row["from"], row["node"]): _cell(row) for row in rows}
    sources = _unique(source for source, _ in cells)
    # In the regions' order: a node is at home in the one that has no link to it.
    nodes = sorted(
        _unique(node for _, node in cells),
        key=lambda node: [(source, node) in cells for source in sources],
    )
    for node in nodes:
        matrix.add_column(f"to {node}", justify="right", min_width=16)
    for source in sources:
        matrix.add_row(source, *(cells.get((source, node), "home") for node in nodes))
    console.print(matrix)
    off = [row for row in rows if not row["ok"]]
    for row in off:
        console.print(_sentence(row), soft_wrap=True, highlight=False)
    return not off


def _cell(row: Mapping[str, Any]) -> str:
    if row["measured_ms"] is None:
        return str(row["trouble"] or "no answer")
    figures = f"{row['configured_ms']:.1f} / {row['measured_ms']:.1f} ms"
    mark = row["trouble"] if row["ok"] else "OFF"
    return f"{figures}\n{mark}" if mark else figures


def _sentence(row: Mapping[str, Any]) -> str:
    link = f"{row['from']} -> {row['node']}"
    if row["error"]:
        return f"OFF: {link}: {row['error']}"
    if row["measured_ms"] is None:
        return f"OFF: {link} is {row['trouble']}"
    return (
        f"OFF: {link} has {row['measured_ms']:.1f} ms where {row['configured_ms']:.1f} ms are"
        " configured"
    )


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
