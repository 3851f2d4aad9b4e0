"""Audit all nodes of a lab: make audit."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console

from workload.audit import canaries, control, report, residency
from workload.audit.canaries import Canary
from workload.audit.logical import Regions, Shown, look, owners
from workload.audit.places import FILES, Where
from workload.audit.residency import NodeFinds, Residency
from workload.audit.scan import Scan, scan
from workload.errors import LabError, WrongPasswordError
from workload.lab import Lab
from workload.nodes.server import server_of
from workload.sql import Login, connect
from workload.topology import Topology


def run(lab: Lab, password: str, console: Console) -> bool:
    """Audit a lab, print and save what was found; return whether residency holds.

    Raises LabError where the audit could not be done, which is no verdict.
    """
    found = audit(Topology.load(lab), password)
    residency.save(lab, found)
    report.show(found, console)
    return found.holds


def audit(topology: Topology, password: str) -> Residency:
    """Look for every region's data on every node.

    Plants this phase's canaries first. Raises LabError where a region's primary is down, where a
    file cannot be read, and where the audit does not find what it must find.
    """
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    planted = canaries.plant(topology.lab, topology)
    logins, silent = _reachable(topology, password)
    for region in topology.regions:
        if region.node in silent:
            raise LabError(
                f"{region.node}, where region {region.name} writes, does not answer"
                f" ({silent[region.node]}): bring it back (make failover, make rejoin, or play"
                f" playbooks/{topology.phase}.yml again)"
            )
    regions = Regions(topology)
    finds = {name: NodeFinds(name, str(node["region"])) for name, node in topology.nodes.items()}
    with control.shown(logins) as (own, where):
        shown = {node: look(login, regions) for node, login in logins.items()}
        scans = {
            node: scan(
                server_of(topology, node),
                [*planted, own],
                shown[node].statistics_files if node in shown else (),
            )
            for node in topology.nodes
        }
    _check_control(own, scans, where)
    _check_home(topology, planted, scans)
    values = {value for node in shown.values() for value in node.values}
    whose = owners(logins.values(), values, regions, planted)
    for node, find in finds.items():
        _fill(find, scans[node], shown.get(node), whose)
        if node in silent:
            find.not_read.append(f"tables and statistics by SQL ({silent[node]})")
        find.unproved = [place for place in FILES if place not in where.get(node, ())]
    return Residency(topology.phase, at, list(finds.values()))


def _reachable(topology: Topology, password: str) -> tuple[dict[str, Login], dict[str, str]]:
    """Return the logins of the nodes that take one, and why the others do not."""
    logins, silent = {}, {}
    for node in topology.nodes:
        if not server_of(topology, node).is_running():
            silent[node] = "its server is not running"
            continue
        login = topology.operator_login(node, password)
        try:
            connect(login).close()
        except WrongPasswordError:
            raise
        except LabError as error:
            silent[node] = str(error)
        else:
            logins[node] = login
    return logins, silent


def _fill(find: NodeFinds, scanned: Scan, shown: Shown | None, whose: Mapping[str, str]) -> None:
    """Enter what was found on a node.

    In statistics the same value may be seen by SQL and in the file: the larger count stands, since
    SQL also shows customers who are no canaries, and the file also has rows that are dead.
    """
    found: Counter[tuple[str, Where]] = Counter(
        {key: hits for key, hits in scanned.hits.items() if key[0]}
    )
    if shown is not None:
        for region, rows in shown.rows.items():
            found[region, "logical"] = rows
        values = Counter(whose[value] for value in shown.values if value in whose)
        for region, count in values.items():
            found[region, "statistics"] = max(count, found[region, "statistics"])
        nobody = sum(value not in whose for value in shown.values)
        if nobody:
            find.not_read.append(
                f"the owners of {nobody:,} values in the statistics, which no customer has now"
            )
        if shown.wal_compression == "zstd":
            find.not_read.append("copies of whole pages in the WAL, since wal_compression is zstd")
    if scanned.no_log:
        find.not_read.append("the server's log (there is none)")
    find.found = dict(found)
    find.read = dict(scanned.read)
    find.seconds, find.vanished = scanned.seconds, scanned.vanished


def _check_control(
    own: Canary, scans: Mapping[str, Scan], where: Mapping[str, tuple[Where, ...]]
) -> None:
    """Raise LabError where the audit has not found what it put there itself."""
    for node, expected in where.items():
        if blind := control.missing(own, scans[node], expected):
            raise LabError(
                f"the audit is blind: on {node} it does not find its own control in"
                f" {', '.join(blind)}, so it would not find customers there either; run it again,"
                " and look at the server's settings where it stays so"
            )


def _check_home(topology: Topology, planted: Sequence[Canary], scans: Mapping[str, Scan]) -> None:
    """Raise LabError where a region's canaries are not found at home."""
    for region in topology.regions:
        kinds = scans[region.node].kinds
        lost = [
            canary
            for canary in planted
            if canary.region == region.name and not _is_whole(kinds.get(canary.marker, ()))
        ]
        if lost:
            raise LabError(
                f"the audit is blind: canary {lost[0].id} of region {region.name}, planted in phase"
                f" {lost[0].phase}, is not in the tables' files on {region.node}, its home; where"
                " SQL does not show that customer either, its row was lost"
            )


def _is_whole(kinds: Iterable[tuple[Where, str]]) -> bool:
    return {("heap", "marker"), ("heap", "id")} <= set(kinds)
