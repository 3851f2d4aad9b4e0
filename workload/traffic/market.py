"""What the customers of one process share: the lab, its topology, their ledger and figures."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from workload.lab import Lab
from workload.topology import Topology
from workload.traffic.ledger import Ledger

#: Seconds between two checks of topology.json for a change.
TOPOLOGY_S = 0.05


@dataclass
class Market:
    """What the customers of one process share."""

    lab: Lab
    seed: int = 0
    think_time_s: float = 1.0
    stale_reads: dict[tuple[str, str], int] = field(default_factory=dict)
    last_ack: dict[str, float] = field(default_factory=dict)
    longest_gap_s: dict[str, float] = field(default_factory=dict)
    spawned: int = 0
    _ledger: Ledger | None = None
    _topology: Topology | None = None
    _topology_mark: tuple[int, int] = (0, 0)
    _topology_due: float = 0.0

    def topology(self) -> Topology:
        """Return the lab's topology as it is now, read again when the file has changed.

        Raises LabError where there is no lab.
        """
        now = time.monotonic()
        if self._topology is None or now >= self._topology_due:
            self._topology_due = now + TOPOLOGY_S
            with contextlib.suppress(OSError):
                file = self.lab.topology_file.stat()
                mark = (file.st_mtime_ns, file.st_ino)
                if self._topology is not None and mark == self._topology_mark:
                    return self._topology
                self._topology_mark = mark
            self._topology = Topology.load(self.lab)
        return self._topology

    @property
    def ledger(self) -> Ledger:
        """The ledger, opened when first written: a forked worker must not share its file."""
        if self._ledger is None:
            self._ledger = Ledger(Path(self.lab.home) / "ledger")
        return self._ledger

    def note_ack(self, region: str) -> None:
        """Note that a region's write was acknowledged, and how long the one before it is past."""
        now = time.monotonic()
        gap = now - self.last_ack.get(region, now)
        self.last_ack[region] = now
        if gap > self.longest_gap_s.get(region, 0):
            self.longest_gap_s[region] = gap
