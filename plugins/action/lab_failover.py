"""Action: fence a primary, promote its standby, and report what customers lost by it.

Returns fence_ms, promote_ms, rto_ms (the longest time without an acknowledged write around it, or
None where no customer was writing), acknowledged and lost (RPO).
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.nodes.pair import pair_of
from workload.operations.failover import fail_over
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = WHOLE_LAB

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Fail over."""
        topology, password = Topology.load(lab_of(arguments)), arguments["lab"]["password"]
        primary, standby = pair_of(topology, password, topology.origin())
        result = fail_over(topology.lab, primary, standby, password, dry_run)
        self.say(result["line"])
        return result
