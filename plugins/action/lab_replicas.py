"""Action: have nodes hold copies of regions' leaves, kept up to date by logical replication.

Returns copied, {node: rows}, of what was copied anew, and lines for people.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, countries_of, lab_of
from workload.sharding import conflicts
from workload.sharding.leaves import leaves_of
from workload.sharding.replicas import is_at_origin, is_current, replicate, save
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "nodes": {"type": "list", "elements": "str", "required": True},
        # all: each node copies the leaves of all regions. own: those of its own, until they are at
        # home there.
        "leaves": {"type": "str", "choices": ["all", "own"], "default": "all"},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Copy what is not there."""
        topology = Topology.load(lab_of(arguments))
        regions = countries_of(arguments)
        wanted: dict[str, list[str]] = {}
        for node in arguments["nodes"]:
            found_node = topology.nodes.get(node, {"region": "", "role": "joining"})
            if arguments["leaves"] == "all":
                wanted[node] = list(regions)
            elif found_node["role"] != "primary" and is_at_origin(
                topology, arguments["password"], found_node["region"]
            ):
                wanted[node] = [found_node["region"]]
        if dry_run:
            missing = [
                node
                for node, kept in wanted.items()
                if node not in topology.nodes
                or not is_current(topology, arguments["password"], node, leaves_of(regions, kept))
            ]
            return {"changed": bool(missing), "copied": {}, "lines": []}
        found = replicate(
            topology,
            arguments["password"],
            regions,
            wanted,
            self.say,
            conflicts.why(topology, arguments["password"]),
        )
        lines = [
            f"{copied.node} has copies of {copied.rows:,} rows ({copied.seconds:.1f} s,"
            f" {copied.rows_per_s:,.0f} rows/s with their keys)"
            for copied in found
        ]
        save(topology.lab, found)
        copied_rows = {copied.node: copied.rows for copied in found}
        return {"changed": bool(found), "copied": copied_rows, "lines": lines}
