"""Action: make the origin's second node the synchronous standby of its primary.

state seeded: its data directory is a base backup of the primary's. state synchronous: it streams,
and the primary waits for it before it acknowledges a write.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.nodes.pair import pair_of
from workload.nodes.standby import REPLICATION_ROLE, make_synchronous, seed
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "state": {"type": "str", "choices": ["seeded", "synchronous"], "required": True},
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Seed it, or make the primary wait for it."""
        topology = Topology.load(lab_of(arguments))
        if dry_run:
            return {"changed": not topology.has_reached("expand_eu")}
        primary, standby = pair_of(topology, arguments["lab"]["password"], topology.origin())
        if arguments["state"] == "seeded":
            password = topology.lab.secret_file(REPLICATION_ROLE).read_text()
            return {"changed": seed(primary, standby, password)}
        return {"changed": make_synchronous(primary, standby, arguments["timeout_s"])}
