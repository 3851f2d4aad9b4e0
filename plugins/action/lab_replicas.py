"""Action: copy regions' leaves to nodes, kept up to date by logical replication.

Returns copied, {node: rows}, of what was copied in this run.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.sharding import conflicts
from workload.sharding.leaves import leaves_of
from workload.sharding.replicas import is_current, kept_by, replicate, save
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        # all: each node copies the leaves of all regions. own: those of its own, until they are at
        # home there.
        "leaves": {"type": "str", "choices": ["all", "own"], "default": "all"},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Copy the leaves that a node does not have."""
        topology, password = Topology.load(lab_of(arguments)), arguments["lab"]["password"]
        regions = topology.countries()
        if dry_run and not topology.has_reached("shard"):
            return {"changed": True, "copied": {}}
        leaves_by_node = kept_by(topology, password, regions, arguments["leaves"] == "own")
        if dry_run:
            current = (
                is_current(topology, password, node, leaves_of(regions, kept))
                for node, kept in leaves_by_node.items()
            )
            return {"changed": not all(current), "copied": {}}
        why = conflicts.why(topology, password)
        copies = replicate(topology, password, regions, leaves_by_node, self.say, why)
        save(topology.lab, copies)
        for copied in copies:
            self.say(
                f"{copied.node} has copies of {copied.rows:,} rows ({copied.seconds:.1f} s,"
                f" {copied.rows_per_s:,.0f} rows/s with their keys)"
            )
        return {"changed": bool(copies), "copied": {each.node: each.rows for each in copies}}
