"""Audit all nodes of a lab: make audit."""

from __future__ import annotations

import datetime
import secrets
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from workload.audit import canaries, control, controller, logical, report, residency, sample
from workload.audit.canaries import Canary
from workload.audit.logical import Owners, Regions, Shown
from workload.audit.places import FILES, Place, Where
from workload.audit.residency import NodeFinds, Residency
from workload.audit.sample import Bound, Customer
from workload.audit.scan import Scan, scan
from workload.errors import LabError, WrongPasswordError
from workload.lab import Lab
from workload.nodes.server import server_of
from workload.sql import Login, connect
from workload.topology import Topology


def run(lab: Lab, password: str, console: Console, size: int | None = None) -> bool:
    """Audit a lab, print and save the result; return whether residency holds.

    size: customers of each region in the sample, or None for what LAB_AUDIT_SAMPLE says. Raises
    LabError where the audit could not be done, which is no verdict.
    """
    result = audit(Topology.load(lab), password, size)
    residency.save(lab, result)
    report.show(result, console)
    return result.holds


def audit(topology: Topology, password: str, size: int | None = None) -> Residency:
    """Search every node for every region's data.

    Plants this phase's canaries first. Raises LabError where a region's primary is down, where a
    file cannot be read, and where the audit does not find its own control.
    """
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    size = sample.size_from() if size is None else size
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
    salt = secrets.token_hex(8)
    finds = {name: NodeFinds(name, str(node["region"])) for name, node in topology.nodes.items()}
    drawn = {
        region.name: sample.draw(topology, region, logins[region.node], size, planted)
        for region in topology.regions
    }
    customers = [customer for some, _ in drawn.values() for customer in some]
    foreign_customers = {
        node: sample.foreign_to(topology, node, customers) for node in topology.nodes
    }
    with control.shown(logins) as (planted_control, where):
        shown = {node: logical.show(login, regions, salt) for node, login in logins.items()}
        scans = {
            node: scan(
                server_of(topology, node),
                [*planted, planted_control],
                shown[node].statistics_files if node in shown else (),
                foreign_customers[node],
            )
            for node in topology.nodes
        }
    _check_control(planted_control, scans, where)
    _check_home(topology, planted, scans)
    # A customer of the sample who is on a node may be a customer of the node's region too.
    sampled = sorted(
        value
        for scanned in scans.values()
        for some in scanned.sampled.values()
        for customer in some
        for value in customer.hashes(salt)
    )
    values = [hashes for each in shown.values() for hashes in each.values.values()]
    primaries = [logins[node] for node in topology.primaries() if node in logins]
    whose = logical.owners(primaries, [*values, array("Q", sampled)], regions, planted, salt)
    for node, find in finds.items():
        _fill(find, scans[node], shown.get(node), whose)
        _fill_sample(find, scans[node], foreign_customers[node], drawn, whose, salt)
        if node in logins:
            find.places = [_named(logins[node], place) for place in find.foreign_places()]
        if node in silent:
            find.not_read.append(f"tables and statistics by SQL ({silent[node]})")
        find.unproved = [place for place in FILES if place not in where.get(node, ())]
    return Residency(
        topology.phase, at, list(finds.values()), controller.read(topology.lab, customers)
    )


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


def _fill(find: NodeFinds, scanned: Scan, shown: Shown | None, whose: Owners) -> None:
    """Enter the results of a node's scan and of its SQL.

    SQL and the file may both show one value of the statistics. The larger count is entered, since
    SQL also shows customers that are no canaries, and the file also has dead rows.
    """
    hits: Counter[tuple[str, Where]] = Counter(
        {key: count for key, count in scanned.hits.items() if key[0]}
    )
    find.places += [place for place in scanned.places if not place.is_sample]
    if shown is not None:
        find.places += shown.places
        find.large = shown.large
        for region, rows in shown.rows.items():
            hits[region, "logical"] = rows
        values: Counter[str] = Counter()
        tables: dict[tuple[str, ...], int] = {}
        unowned = 0
        counted = {(p.region, p.database, p.schema, p.table) for p in shown.places}
        for place, hashes in shown.values.items():
            matched = Counter(
                min(whose[value], key=find.rank) for value in hashes if value in whose
            )
            find.places += [replace(place, region=r, hits=n) for r, n in matched.items()]
            if place.where == "statistics":
                values += matched
                unowned += len(hashes) - matched.total()
                continue
            for region, count in matched.items():
                key = (region, place.database, place.schema, place.table)
                # A row may have a customer's e-mail and id: its table counts by its largest
                # column. Rows that are counted by country are not added.
                if key not in counted:
                    tables[key] = max(count, tables.get(key, 0))
        for (region, *_), count in tables.items():
            hits[region, "logical"] += count
        for region, count in values.items():
            hits[region, "statistics"] = max(count, hits[region, "statistics"])
        if unowned:
            find.not_read.append(
                f"the owners of {unowned:,} values in the statistics, which no customer has now"
            )
        if shown.wal_compression == "zstd":
            find.not_read.append("copies of whole pages in the WAL, since wal_compression is zstd")
    if scanned.no_log:
        find.not_read.append("the server's log (there is none)")
    find.found = dict(hits)
    find.read = dict(scanned.read)
    find.seconds, find.vanished = scanned.seconds, scanned.vanished


def _fill_sample(
    find: NodeFinds,
    scanned: Scan,
    foreign_customers: Sequence[Customer],
    drawn: Mapping[str, tuple[Sequence[Customer], int]],
    whose: Owners,
    salt: str,
) -> None:
    """Enter the customers of the sample that a node's files have."""
    away_by_region: dict[str, set[Customer]] = {}
    for (region, where), customers in scanned.sampled.items():
        away = {
            customer
            for customer in customers
            if not any(find.home_region in whose.get(v, ()) for v in customer.hashes(salt))
        }
        if away:
            away_by_region.setdefault(region, set()).update(away)
            find.found[region, where] = find.found.get((region, where), 0) + len(away)
            find.places += [
                place
                for place in scanned.places
                if (place.region, place.where, place.is_sample) == (region, where, True)
            ]
    for region, count in Counter(customer.region for customer in foreign_customers).items():
        find.bounds.append(
            Bound(
                region,
                drawn[region][1],
                count,
                len(away_by_region.get(region, ())),
                sum(
                    not customer.email
                    for customer in foreign_customers
                    if customer.region == region
                ),
            )
        )


def _named(login: Login, place: Place) -> Place:
    """Return a place, with the name of the table that its file is of."""
    if place.where in ("heap", "statistics") and place.file:
        database, schema, table = logical.relation_of(login, place.file)
        return replace(place, database=database, schema=schema, table=table)
    return place


def _check_control(
    planted_control: Canary, scans: Mapping[str, Scan], where: Mapping[str, tuple[Where, ...]]
) -> None:
    """Raise LabError where the scan has not found the audit's own control."""
    for node, expected in where.items():
        if blind := control.missing(planted_control, scans[node], expected):
            raise LabError(
                f"the audit is blind: on {node} it does not find its own control in"
                f" {', '.join(blind)}, so it would not find customers there either; run it again,"
                " and check the server's settings if it fails again"
            )


def _check_home(topology: Topology, planted: Sequence[Canary], scans: Mapping[str, Scan]) -> None:
    """Raise LabError where the scan has not found a region's canaries at home."""
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
