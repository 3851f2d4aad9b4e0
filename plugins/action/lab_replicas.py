"""Action: have nodes hold copies of regions' leaves, kept up to date by logical replication.

Returns copied, {node: rows}, of what was copied anew, and lines for people.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.control import LabAction
from workload.lab import Lab, home_path
from workload.leaves import leaves_of
from workload.replicas import is_current, replicate
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        # {name: {countries}}
        "regions": {"type": "dict", "required": True},
        # The nodes that hold copies of all leaves.
        "nodes": {"type": "list", "elements": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Copy what is not there."""
        topology = Topology.load(Lab(arguments["name"], home_path(arguments["home"])))
        regions = {name: entry["countries"] for name, entry in arguments["regions"].items()}
        if dry_run:
            missing = [
                node
                for node in arguments["nodes"]
                if node not in topology.nodes
                or not is_current(topology, arguments["password"], node, leaves_of(regions))
            ]
            return {"changed": bool(missing), "copied": {}, "lines": []}
        wanted = {node: list(regions) for node in arguments["nodes"]}
        found = replicate(topology, arguments["password"], regions, wanted, self.say)
        lines = [
            f"{copied.node} has a copy of all {copied.rows:,} rows ({copied.seconds:.1f} s,"
            f" {copied.rows_per_s:,.0f} rows/s with their keys)"
            for copied in found
        ]
        copied_rows = {copied.node: copied.rows for copied in found}
        return {"changed": bool(found), "copied": copied_rows, "lines": lines}
