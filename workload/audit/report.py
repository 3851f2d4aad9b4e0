"""Print an audit for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workload.audit.places import FILES, WHERES, Where
from workload.audit.residency import NOT_READ, NodeFinds, Residency
from workload.output import size


def show(residency: Residency, console: Console) -> None:
    """Print the matrix, the verdict and what it rests on, in 80 columns."""
    table = Table(
        title="Where each region's data is",
        title_justify="left",
        box=SIMPLE_HEAD,
        # With Rich's own padding six figures beside each other would not fit.
        padding=(0, 0),
        show_edge=False,
    )
    table.add_column("node")
    table.add_column("home")
    for where in WHERES:
        table.add_column(where, justify="right", no_wrap=True)
    for node in residency.nodes:
        table.add_row(node.node, node.home_region, *(_cell(node, where) for where in WHERES))
    console.print(table)
    marked = "" if residency.holds else " ! marks a region whose home is elsewhere."
    _say(
        console,
        "logical: rows; statistics: values that SQL shows, or traces of canaries; elsewhere: traces"
        f" of canaries.{marked}",
    )
    for node in residency.nodes:
        for line in violations(node):
            _say(console, line)
    if residency.holds:
        whole = not any(node.not_read or node.unproved for node in residency.nodes)
        _say(
            console,
            f"HOLDS{'' if whole else ', as far as could be read'}: no node has a row, a value or a"
            " trace of another region's customers.",
        )
    for line in basis(residency):
        _say(console, line)


def violations(node: NodeFinds) -> Iterable[str]:
    """Yield a line for each region that is where it does not belong."""
    for region, places in node.foreign().items():
        unknown = region == "unknown"
        whose = "whose country no region serves" if unknown else f"of {region}"
        traces = ", ".join(
            f"{hits:,} in {where}" for where, hits in places.items() if where != "logical"
        )
        if rows := places.get("logical", 0):
            line = f"{node.node} holds {rows:,} {'row' if rows == 1 else 'rows'} {whose}"
            line += f"; its customers' traces: {traces}" if traces else ""
        else:
            line = f"{node.node} holds traces of {region}'s customers: {traces}"
        yield f"VIOLATED: {line}"


def basis(residency: Residency) -> Iterable[str]:
    """Yield what was read, at which rate, and what was not."""
    read: Counter[Where] = Counter()
    for node in residency.nodes:
        read.update(node.read)
    places = ", ".join(f"{where} {size(read[where])}" for where in FILES)
    rate = residency.total / 1e6 / residency.seconds if residency.seconds else 0
    count = len(residency.nodes)
    line = (
        f"Read on {count} {'node' if count == 1 else 'nodes'}: {places}; {rate:,.0f} MB/s,"
        f" {residency.seconds:.1f} s"
    )
    vanished = sum(node.vanished for node in residency.nodes)
    if vanished:
        line += f"; {vanished:,} files were removed before they were read"
    yield line + "."
    for node in residency.nodes:
        for what in node.not_read:
            yield f"Not read on {node.node}: {what}."
        if node.unproved:
            yield (
                f"Not proved on {node.node}: that the audit would have found something in"
                f" {', '.join(node.unproved)}; no control could be shown there."
            )
    yield f"Not read: {'; '.join(NOT_READ)}."


def _cell(node: NodeFinds, where: Where) -> Text:
    """Return a place's hits by region, a line each, those of other regions marked."""
    hits: Mapping[str, int] = {
        region: count for (region, place), count in sorted(node.found.items()) if place == where
    }
    cell = Text(justify="right")
    for number, (region, count) in enumerate(hits.items()):
        foreign = region != node.home_region
        cell.append("\n" if number else "")
        cell.append(f"{region} {count:,}{'!' if foreign else ' '}", "red" if foreign else "")
    return cell if hits else Text("- ", justify="right")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False)
