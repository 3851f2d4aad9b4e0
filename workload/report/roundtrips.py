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
    "look": (1, "one statement"),
}


@dataclass(frozen=True)
class Way:
    """How far a region's customers had it in a phase, in ms of RTT: to write, and to look."""

    writes_ms: float = 0.0
    looks_ms: float = 0.0

    def rtt_ms(self, operation: str) -> float | None:
        """Return the RTT of an operation; None where some of them had it further than others.

        Customers who look at another node than they write to have a connection to either.
        """
        if operation == "connect" and self.writes_ms != self.looks_ms:
            return None
        return self.looks_ms if operation == "look" else self.writes_ms


def ways(wan: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Way]:
    """Return the way of each (phase, region) by the rows of wan.json.

    A region that uses none of a phase's links is at home; it is not in what is returned.
    """
    found: dict[tuple[str, str], Way] = {}
    for row in wan:
        key = (row["phase"], row["from"])
        way = found.get(key, Way())
        writes_ms = row["configured_ms"] if row["serves"] else way.writes_ms
        looks_ms = row["configured_ms"] if row.get("looks", row["serves"]) else way.looks_ms
        if (writes_ms, looks_ms) != (0.0, 0.0):
            found[key] = Way(writes_ms, looks_ms)
    return found


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


#: What is said beside figures of first statements.
FIRST = (
    "Where more was measured by a round trip, the run was short: the first time that a connection"
    " sends a statement, the statement is prepared."
)


def explain(rows: Iterable[Experience], found: Mapping[tuple[str, str], Way]) -> list[Explanation]:
    """Return an explanation for each operation that crosses the WAN.

    found: as ways() returns it; a (phase, region) that is not in it is at home.
    """
    rows = list(rows)
    rtt_ms = {
        (row.phase, row.region, row.operation): found.get((row.phase, row.region), Way()).rtt_ms(
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
            rtt_ms=far,
            local_ms=at_home.get((row.phase, row.operation), 0.0),
            measured_ms=row.p50_ms,
        )
        for row in rows
        if (far := rtt_ms[row.phase, row.region, row.operation]) and row.operation in ROUND_TRIPS
    ]


def read_notes(rows: Iterable[Experience], found: Mapping[tuple[str, str], Way]) -> list[str]:
    """Return a sentence for each region that looked at home and wrote from afar."""
    notes = []
    for row in rows:
        way = found.get((row.phase, row.region), Way())
        if row.operation == "look" and way.looks_ms < way.writes_ms:
            notes.append(
                f"{row.phase}, {row.region} look: at home, {milliseconds(row.p50_ms)} ms;"
                f" {row.stale_reads:,} of {row.requests:,} did not show one's own last purchase,"
                " which comes back as a copy"
            )
    return notes
