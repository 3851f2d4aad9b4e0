"""Action: make each region's own node the home of its rows, one region after the other, online.

Writes cutover.json. Returns receipts and lines for people; a region that is at home already gives
none. Fails where an acknowledged write is lost, with everything still there to look at.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, ClassVar

from workload import store
from workload.actions import WHOLE_LAB, LabAction, countries_of, lab_of
from workload.errors import LabError
from workload.proof.verify import verify
from workload.sharding.access import Setup, point_servers
from workload.sharding.cutover import cut_over, open_gates, receipt
from workload.topology import Topology
from workload.traffic.ledger import failures_since


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "customers_role": {"type": "str", "required": True},
        # Seconds to go on trying for locks.
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Cut over every region that is not at home."""
        lab = lab_of(arguments)
        topology = Topology.load(lab)
        regions = countries_of(arguments)
        waiting = [
            name
            for name in regions
            if name != topology.origin() and topology.primary_of(name) is None
        ]
        if dry_run:
            return {"changed": bool(waiting), "receipts": [], "lines": []}
        setup = Setup(topology, arguments["password"], regions, arguments["customers_role"])
        receipts = []
        for region in waiting:
            found = self._cut_over(replace(setup, topology=Topology.load(lab)), region, arguments)
            if found:
                receipts.append(found)
        # Nobody has long transactions on the origin any more but those who are at home there.
        pause_ms = open_gates(replace(setup, topology=Topology.load(lab)), self.say)
        for found in receipts:
            found["others_pause_ms"] = max(found["others_pause_ms"], pause_ms)
            store.replace(lab, "cutover", "region", [found])
        lines = [
            f"{found['region']} is at home on its own node: {found['rows']:,} rows, its customers"
            f" could not write for {found['write_pause_ms']:.0f} ms (RTT {found['rtt_ms']:g} ms),"
            f" others for {found['others_pause_ms']:.0f} ms; {found['failed']:,} writes failed,"
            f" 0 of {found['acknowledged']:,} acknowledged ones are lost"
            for found in receipts
        ]
        return {"changed": bool(waiting or pause_ms), "receipts": receipts, "lines": lines}

    def _cut_over(
        self, setup: Setup, region: str, arguments: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Cut over a region; return its receipt, or None where it was at home already."""
        lab = setup.topology.lab
        began = time.time()
        done = cut_over(setup, region, self.say, arguments["timeout_s"])
        topology = Topology.load(lab)
        # The others' servers went to the origin for these rows until now.
        point_servers(replace(setup, topology=topology))
        if done is None:
            return None
        verdicts = verify(topology, setup.password)
        lost = sum(verdict.lost for verdict in verdicts)
        doubled = sum(verdict.doubled for verdict in verdicts)
        acknowledged = sum(verdict.acknowledged for verdict in verdicts)
        copied = store.load_by_name(lab, "replicas").get(str(topology.primary_of(region)), {})
        failed = failures_since(lab.home / "ledger", began)
        found = receipt(done, copied, acknowledged, failed, lost, doubled)
        store.replace(lab, "cutover", "region", [found])
        if lost or doubled:
            raise LabError(
                f"{region} is at home on its own node, and of {acknowledged:,} acknowledged"
                f" writes {lost:,} are lost and {doubled:,} doubled: make verify names some"
            )
        return found
