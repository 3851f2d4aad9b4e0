"""Print an audit for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workload.audit.logical import COMPARED_BYTES
from workload.audit.places import FILES, WHERES, Place, Where
from workload.audit.residency import NOT_READ, NodeFinds, Residency
from workload.audit.sample import AS_BYTES, LONGEST, SHORTEST, Bound
from workload.audit.sample import bound as share
from workload.output import printable, size

#: Places that are printed of each node.
FEW = 3


def show(residency: Residency, console: Console) -> None:
    """Print the matrix, the verdict and what it rests on, in 80 columns."""
    table = Table(
        title="Where each region's data is",
        title_justify="left",
        box=SIMPLE_HEAD,
        # Six columns of figures do not fit with Rich's padding.
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
        "logical: rows and values that SQL shows; statistics: values that SQL shows, or traces of"
        " canaries; elsewhere: traces of canaries, and customers of the sample. A canary is a test"
        " customer that the lab signs up; a trace is a copy of its e-mail or of an id, also in rows"
        f" that are deleted.{marked}",
    )
    for node in residency.nodes:
        for line in violations(node):
            _say(console, line)
        for line in places(node):
            _say(console, line)
    for line in controllers(residency):
        _say(console, line)
    if residency.holds:
        whole = not any(node.not_read or node.unproved for node in residency.nodes)
        _say(
            console,
            f"HOLDS{'' if whole else ', as far as could be read'}: no node has a row, a value or a"
            " trace of another region's customers.",
        )
    for line in (*bounds(residency), *basis(residency)):
        _say(console, line)


def violations(node: NodeFinds) -> Iterable[str]:
    """Yield a line for each region whose data is on a node that is not its home."""
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


def places(node: NodeFinds) -> Iterable[str]:
    """Yield a line for each of the first places with data of other regions on a node."""
    foreign = node.foreign_places()
    for place in foreign[:FEW]:
        yield f"  {place.region}: {_where(place)}"
    if len(foreign) > FEW:
        yield f"  and {len(foreign) - FEW:,} more places (reports/residency.json)"


def controllers(residency: Residency) -> Iterable[str]:
    """Yield what the controller's state folder holds, violations first."""
    controller = residency.controller
    for file, hits in list(controller.emails.items())[:FEW]:
        yield f"VIOLATED: controller holds {_count(hits, 'e-mail')} of customers: {printable(file)}"
    if len(controller.emails) > FEW:
        yield f"  and {len(controller.emails) - FEW:,} more files (reports/residency.json)"
    if controller.files:
        line = (
            f"Controller: {controller.files:,} files of the state folder read"
            f" ({size(controller.read)}), {len(controller.emails)} with a sampled customer's"
            " e-mail. ledger may hold ids, canaries.json canaries"
        )
        if controller.ids:
            line += f"; ids also in {', '.join(map(printable, list(controller.ids)[:FEW]))}"
        yield f"{line}."


def bounds(residency: Residency) -> Iterable[str]:
    """Yield the sample's bound for each region, and what the sample leaves out."""
    by_region: dict[str, list[tuple[str, Bound]]] = {}
    for node in residency.nodes:
        for bound in node.bounds:
            by_region.setdefault(bound.region, []).append((node.node, bound))
    for region, entries in by_region.items():
        clean = [node for node, bound in entries if not bound.found]
        one = entries[0][1]
        for name, bound in entries:
            if bound.found:
                yield f"Sample: {bound.found:,} of {bound.sampled:,} {region} customers on {name}."
        if clean and one.sampled == one.customers:
            yield f"Sample: none of all {one.customers:,} {region} customers on {', '.join(clean)}."
        elif clean:
            yield (
                f"Sample: 0 of {one.sampled:,} sampled {region} customers (of {one.customers:,}) on"
                f" {', '.join(clean)}: with 95 % confidence fewer than"
                f" {_percent(share(one.sampled))} % are."
            )
        if one.without_email:
            yield (
                f"  {_count(one.without_email, 'e-mail')} of them shorter than {SHORTEST} or longer"
                f" than {LONGEST} bytes, or with line feeds: SQL alone searches for those."
            )
    if by_region:
        few = min(AS_BYTES, *(some[0][1].sampled for some in by_region.values()))
        yield (
            "  By e-mail, by id as text, and for"
            f" {few:,} of each region by the id's 16 bytes (fewer than {_percent(share(few))} %)."
        )
        large = {entry for node in residency.nodes for entry in node.large}
        yield (
            "Compared by SQL with all customers, not a sample: every text, array, json, bytea and"
            f" uuid column of tables that are not the lab's own, up to {size(COMPARED_BYTES)}"
            f"{'' if large else '; no table is larger'}."
        )
        for name, count in sorted(large)[:FEW]:
            yield f"  Not compared: {printable(name)} ({size(count)}): its file alone."
        if len(large) > FEW:
            yield f"  and {len(large) - FEW:,} more (reports/residency.json)"


def _where(place: Place) -> str:
    table = ".".join(part for part in (place.database, place.schema, place.table) if part)
    if place.where == "log":
        kind = f", {place.severity}" if place.severity else ""
        # Every role that may connect can write to the log: by RAISE LOG, or by a login's name.
        return (
            f"{_count(place.hits, 'trace')} in log, {printable(place.file)}, line {place.line:,}"
            f"{kind}: words that a session wrote"
        )
    if place.file:
        whose = f" ({printable(table)})" if table else ""
        kind = "sample hit" if place.is_sample else "trace"
        return f"{_count(place.hits, kind)} in {place.where}, {printable(place.file)}{whose}"
    if place.column:
        column = printable(place.column, 20)
        return (
            f"{_count(place.hits, 'value')} in {place.where}, {printable(table)}, column {column}"
        )
    return f"{_count(place.hits, 'row')} in {place.where}, {printable(table)}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _percent(value: float) -> str:
    """Return a share in per cent with two figures, rounded up so that it stays an upper bound."""
    percent = value * 100
    digits = 0 if percent >= 10 else 1 if percent >= 0.1 else 3
    return f"{math.ceil(percent * 10**digits) / 10**digits:.{digits}f}"


def basis(residency: Residency) -> Iterable[str]:
    """Yield what was read and at which rate, and what was not read."""
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
                f" {', '.join(node.unproved)}; no control could be written there."
            )
    yield f"Not read: {'; '.join(NOT_READ)}."


def _cell(node: NodeFinds, where: Where) -> Text:
    """Return a place's hits, one line for each region; ! marks other regions."""
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
