"""The audit's verdict, and residency.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workload import store
from workload.audit.controller import Controller
from workload.audit.places import FILES, WHERES, Place, Where
from workload.audit.sample import Bound
from workload.lab import Lab
from workload.topology import PHASES

#: What no audit of files and tables can see.
NOT_READ = (
    "memory and swap",
    "blocks that the file system has freed, and deleted files that a process still holds open",
    "backups and archives (the lab makes none)",
    "what was written while a node was being read",
    "what an application has encrypted or packed, or what is split over columns",
)


#: Places that residency.json lists for a node.
PLACES = 100


@dataclass
class NodeFinds:
    """Where each region's data is on one node."""

    node: str
    home_region: str
    #: By region and place: rows in logical, customers' values or canaries' traces elsewhere.
    found: dict[tuple[str, Where], int] = field(default_factory=dict)
    #: Bytes by place.
    read: dict[Where, int] = field(default_factory=dict)
    seconds: float = 0.0
    vanished: int = 0
    not_read: list[str] = field(default_factory=list)
    #: The places in which the audit wrote no control, so that it cannot prove that it reads them.
    unproved: list[Where] = field(default_factory=list)
    #: Files and columns, of all regions; entry() and the report list those of other regions.
    places: list[Place] = field(default_factory=list)
    #: What the sample says of each other region.
    bounds: list[Bound] = field(default_factory=list)
    #: Tables that were not compared with all customers: name and bytes.
    large: list[tuple[str, int]] = field(default_factory=list)

    def rank(self, region: str) -> tuple[bool, bool, str]:
        """Return a sort key of a value's regions: the node's own first, an unknown one last."""
        return region != self.home_region, region == "unknown", region

    def foreign_places(self) -> list[Place]:
        """Return the places with data of other regions, in the order of the matrix."""
        foreign = [place for place in self.places if place.region != self.home_region]
        return sorted(foreign, key=lambda p: (p.region, WHERES.index(p.where), -p.hits))

    def foreign(self) -> dict[str, dict[Where, int]]:
        """Return the hits of each other region on this node, by place."""
        foreign: dict[str, dict[Where, int]] = {}
        for (region, where), hits in sorted(self.found.items(), key=_order):
            if region != self.home_region and hits:
                foreign.setdefault(region, {})[where] = hits
        return foreign

    def entry(self) -> dict[str, Any]:
        """Return the node as residency.json has it."""
        return {
            "home_region": self.home_region,
            "found": [
                {"region": region, "where": where, "hits": hits}
                for (region, where), hits in sorted(self.found.items(), key=_order)
                if hits
            ],
            "read": [{"where": where, "bytes": self.read.get(where, 0)} for where in FILES],
            "seconds": round(self.seconds, 3),
            "vanished": self.vanished,
            "not_read": self.not_read,
            "unproved": self.unproved,
            "places": [place.entry() for place in self.foreign_places()[:PLACES]],
            "places_total": len(self.foreign_places()),
            "sample": [bound.entry() for bound in self.bounds],
            "not_compared": [{"table": name, "bytes": size} for name, size in self.large],
        }


def _order(item: tuple[tuple[str, Where], int]) -> tuple[int, str]:
    (region, where), _ = item
    return WHERES.index(where), region


@dataclass(frozen=True)
class Residency:
    """An audit of all nodes."""

    phase: str
    at: str
    nodes: Sequence[NodeFinds]
    controller: Controller = field(default_factory=Controller)

    @property
    def holds(self) -> bool:
        """Tell whether no node has data of another region, and the controller no e-mail."""
        return not any(node.foreign() for node in self.nodes) and not self.controller.emails

    @property
    def total(self) -> int:
        """Bytes read."""
        return sum(sum(node.read.values()) for node in self.nodes)

    @property
    def seconds(self) -> float:
        """Seconds that the nodes' files took."""
        return sum(node.seconds for node in self.nodes)

    def entry(self) -> dict[str, Any]:
        """Return the audit as residency.json has it."""
        return {
            "phase": self.phase,
            "verdict": "HOLDS" if self.holds else "VIOLATED",
            "at": self.at,
            "nodes": {node.node: node.entry() for node in self.nodes},
            "controller": self.controller.entry(),
            "not_read": list(NOT_READ),
        }


def save(lab: Lab, residency: Residency) -> None:
    """Write an audit to residency.json, in place of its phase's last one."""
    entries = [entry for entry in load(lab) if entry["phase"] != residency.phase]
    entries.append(residency.entry())
    entries.sort(key=lambda entry: PHASES.index(entry["phase"]))
    store.save(lab, "residency", entries)


def load(lab: Lab) -> list[dict[str, Any]]:
    """Return the last audit of each phase; raises LabError where the file is damaged."""
    return store.load(lab, "residency")
