"""The round-trip ledger: why an operation takes as long as it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workload.report.experience import Experience, milliseconds

#: Round trips that an operation takes by the protocol, and why (PostgreSQL's message flow; a
#: prepared statement's Bind, Execute and Sync go in one packet).
ROUND_TRIPS: Mapping[str, tuple[int, str]] = {
    "connect": (4, "TCP, start-up, and two for SCRAM"),
    "sign up": (1, "one statement"),
    "buy": (1, "one statement"),
    "basket": (4, "BEGIN, two statements, COMMIT"),
    "read": (1, "one statement"),
}


@dataclass(frozen=True)
class Distance:
    """The RTT in ms that a region's customers cross in a phase: to write, and to read."""

    writes_ms: float = 0.0
    reads_ms: float = 0.0

    def rtt_ms(self, operation: str) -> float | None:
        """Return the RTT of an operation; None where they cross two of them.

        Customers who read from another node than they write to have a connection to either.
        """
        if operation == "connect" and self.writes_ms != self.reads_ms:
            return None
        return self.reads_ms if operation == "read" else self.writes_ms


def distances(wan: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Distance]:
    """Return the distance of each (phase, region) by the rows of wan.json.

    A region that uses none of a phase's links is at home; it is not in what is returned.
    """
    by_region: dict[tuple[str, str], Distance] = {}
    for row in wan:
        key = (row["phase"], row["from"])
        known = by_region.get(key, Distance())
        writes_ms = row["configured_ms"] if row["serves"] else known.writes_ms
        reads_ms = row["configured_ms"] if row.get("looks", row["serves"]) else known.reads_ms
        if (writes_ms, reads_ms) != (0.0, 0.0):
            by_region[key] = Distance(writes_ms, reads_ms)
    return by_region


@dataclass(frozen=True)
class Explanation:
    """One operation's time as round trips; all times in milliseconds."""

    phase: str
    region: str
    operation: str
    round_trips: int
    rtt_ms: float
    #: What the same operation takes at home in the same phase: the server's and the client's work.
    local_ms: float
    measured_ms: float

    @property
    def predicted_ms(self) -> float:
        """Round trips times RTT, and the work."""
        return self.round_trips * self.rtt_ms + self.local_ms

    @property
    def is_first(self) -> bool:
        """Tell whether the figure is that of statements which a connection sends first.

        Those are prepared, a round trip more; in a short run they are most.
        """
        return self.measured_ms - self.predicted_ms > self.rtt_ms / 2

    def sentence(self) -> str:
        """Return the sentence that explains the figure."""
        trips = f"{self.round_trips} round trip{'s' if self.round_trips > 1 else ''}"
        why = ROUND_TRIPS[self.operation][1]
        return (
            f"{self.region} {self.operation}: {trips} ({why}) x {self.rtt_ms:g} ms"
            f" + {milliseconds(self.local_ms)} ms at the server"
            f" = {milliseconds(self.predicted_ms)} ms; measured {milliseconds(self.measured_ms)} ms"
        )


#: A note beside figures of first statements.
FIRST = (
    "Where more was measured by a round trip, the run was short: the first time that a connection"
    " sends a statement, the statement is prepared."
)


def explain(
    rows: Iterable[Experience], far: Mapping[tuple[str, str], Distance]
) -> list[Explanation]:
    """Return an explanation for each operation that crosses the WAN.

    far: as distances() returns it; a (phase, region) that is not in it is at home.
    """
    rows = list(rows)
    rtt_ms = {
        (row.phase, row.region, row.operation): far.get((row.phase, row.region), Distance()).rtt_ms(
            row.operation
        )
        for row in rows
    }
    at_home = {
        (row.phase, row.operation): row.p50_ms
        for row in reversed(rows)
        if rtt_ms[row.phase, row.region, row.operation] == 0
    }
    return [
        Explanation(
            phase=row.phase,
            region=row.region,
            operation=row.operation,
            round_trips=ROUND_TRIPS[row.operation][0],
            rtt_ms=rtt,
            local_ms=at_home.get((row.phase, row.operation), 0.0),
            measured_ms=row.p50_ms,
        )
        for row in rows
        if (rtt := rtt_ms[row.phase, row.region, row.operation]) and row.operation in ROUND_TRIPS
    ]


def read_notes(rows: Iterable[Experience], far: Mapping[tuple[str, str], Distance]) -> list[str]:
    """Return a sentence for each region that read at home and wrote from afar."""
    notes = []
    for row in rows:
        distance = far.get((row.phase, row.region), Distance())
        if row.operation == "read" and distance.reads_ms < distance.writes_ms:
            notes.append(
                f"{row.phase}, {row.region} read: at home, {milliseconds(row.p50_ms)} ms;"
                f" {row.stale_reads:,} of {row.requests:,} did not show one's own last purchase,"
                " which comes back as a copy"
            )
    return notes
