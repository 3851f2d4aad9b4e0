"""What the report compares and proves: before and after, where the data is, what each move took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workload import store
from workload.lab import Lab
from workload.report.experience import Experience, milliseconds
from workload.report.roundtrips import Distance

#: What is compared: one write and one read.
COMPARED = ("buy", "read")


@dataclass(frozen=True)
class Change:
    """One operation of one region: served from afar, sharded, and at home; p50s in ms."""

    region: str
    operation: str
    far_ms: float | None
    shard_ms: float | None
    home_ms: float | None
    #: Whether it crossed the WAN in expand_world.
    was_far: bool = True
    reads: int = 0
    stale_reads: int = 0

    @property
    def speed_up(self) -> str:
        """Return p50 from afar by p50 at home; "" for customers who never crossed the WAN."""
        if not (self.was_far and self.far_ms and self.home_ms):
            return ""
        factor = self.far_ms / self.home_ms
        return f"{factor:,.0f} x" if factor >= 10 else f"{factor:.1f} x"

    @property
    def stale(self) -> str:
        """Return how many reads of phase shard missed one's own last purchase."""
        if self.operation != "read" or self.shard_ms is None:
            return ""
        return f"{self.stale_reads:,} of {self.reads:,}"


def changes(rows: Iterable[Experience], far: Mapping[tuple[str, str], Distance]) -> list[Change]:
    """Return what became of buying and reading, for each region; [] until there is a change.

    far: as roundtrips.distances() returns it.
    """
    figures = {(row.phase, row.region, row.operation): row for row in rows}
    phases = {phase for phase, _, _ in figures}
    if "expand_world" not in phases or not phases & {"shard", "after"}:
        return []

    def p50(phase: str, region: str, operation: str) -> float | None:
        row = figures.get((phase, region, operation))
        return None if row is None else row.p50_ms

    gains = []
    for region in dict.fromkeys(region for phase, region, _ in figures if phase == "expand_world"):
        for operation in COMPARED:
            sharded = figures.get(("shard", region, operation))
            gains.append(
                Change(
                    region=region,
                    operation=operation,
                    far_ms=p50("expand_world", region, operation),
                    shard_ms=p50("shard", region, operation),
                    home_ms=p50("after", region, operation),
                    was_far=("expand_world", region) in far,
                    reads=sharded.requests if sharded else 0,
                    stale_reads=sharded.stale_reads if sharded else 0,
                )
            )
    return gains


@dataclass(frozen=True)
class Holding:
    """What a node has of a region's data."""

    node: str
    region: str
    is_foreign: bool
    rows: int
    #: In files and statistics.
    traces: int

    @property
    def is_there(self) -> bool:
        """Tell whether there is anything."""
        return bool(self.rows or self.traces)

    @property
    def text(self) -> str:
        """Return rows and traces in a word."""
        return f"{self.rows:,} + {self.traces:,}"


def holdings(entry: Mapping[str, Any]) -> list[Holding]:
    """Return an audit's matrix of nodes and regions from its entry in residency.json."""
    nodes = entry["nodes"]
    regions = list(dict.fromkeys(node["home_region"] for node in nodes.values()))
    for node in nodes.values():
        regions += [found["region"] for found in node["found"] if found["region"] not in regions]
    cells = []
    for name, node in nodes.items():
        for region in regions:
            hits = {f["where"]: f["hits"] for f in node["found"] if f["region"] == region}
            rows = hits.pop("logical", 0)
            cells.append(
                Holding(name, region, region != node["home_region"], rows, sum(hits.values()))
            )
    return cells


@dataclass(frozen=True)
class Receipts:
    """What the moves took, as they wrote it themselves."""

    partition: Mapping[str, Any]
    replicas: Mapping[str, Mapping[str, Any]]
    cutovers: Sequence[Mapping[str, Any]]

    @classmethod
    def load(cls, lab: Lab) -> Receipts:
        """Return those that there are; raises LabError for a damaged file."""
        return cls(
            store.load_one(lab, "partition"),
            store.load_by_name(lab, "replicas"),
            store.load(lab, "cutover"),
        )

    def lines(self) -> list[str]:
        """Return a sentence for the partitioning and for each first copy."""
        sentences = []
        if self.partition:
            rows = self.partition["customers"] + self.partition["purchases"]
            sentences.append(
                f"Partitioning moved {rows:,} rows in {self.partition['seconds']:.1f} s; nobody"
                f" could write for {milliseconds(self.partition['write_pause_ms'])} ms."
            )
        for node, copied in self.replicas.items():
            sentences.append(
                f"The copy to {node} took {copied['seconds']:.1f} s for {copied['rows']:,} rows,"
                f" {copied['rows_per_s']:,.0f} rows/s with their keys."
            )
        return sentences

    @staticmethod
    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return a cutover as text: region, rows, RTT, pauses, writes by their outcome."""
        return (
            str(row["region"]),
            f"{row['rows']:,}",
            f"{row['rtt_ms']:g}",
            milliseconds(row["write_pause_ms"]),
            milliseconds(row["others_pause_ms"]),
            f"{row['acknowledged']:,}",
            f"{row['failed']:,}",
            f"{row['lost']:,}",
        )
