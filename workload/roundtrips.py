"""The round-trip ledger: why an operation takes as long as it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workload.experience import Experience, milliseconds

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

    def sentence(self) -> str:
        """Return the sentence that explains the figure."""
        trips = f"{self.round_trips} round trip{'s' if self.round_trips > 1 else ''}"
        why = ROUND_TRIPS[self.operation][1]
        return (
            f"{self.region} {self.operation}: {trips} ({why}) x {self.rtt_ms:g} ms"
            f" + {milliseconds(self.local_ms)} ms at the server"
            f" = {milliseconds(self.predicted_ms)} ms; measured {milliseconds(self.measured_ms)} ms"
        )


def explain(
    rows: Iterable[Experience], rtt_ms: Mapping[tuple[str, str], float]
) -> list[Explanation]:
    """Return an explanation for each operation that crosses the WAN.

    rtt_ms: the configured RTT between a region's customers and their node by (phase, region); a
    region that is not in it is at home.
    """
    rows = list(rows)
    at_home = {
        (row.phase, row.operation): row.p50_ms
        for row in rows
        if not rtt_ms.get((row.phase, row.region))
    }
    return [
        Explanation(
            phase=row.phase,
            region=row.region,
            operation=row.operation,
            round_trips=ROUND_TRIPS[row.operation][0],
            rtt_ms=rtt_ms[row.phase, row.region],
            local_ms=at_home.get((row.phase, row.operation), 0.0),
            measured_ms=row.p50_ms,
        )
        for row in rows
        if rtt_ms.get((row.phase, row.region)) and row.operation in ROUND_TRIPS
    ]
