"""Action: remove what is left of rows that moved: tables, slots, statistics, WAL."""

from __future__ import annotations

from typing import Any, ClassVar

from workload.control import LabAction
from workload.lab import Lab, home_path
from workload.purge import purge
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        # {name: {countries}}
        "regions": {"type": "dict", "required": True},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Remove it."""
        topology = Topology.load(Lab(arguments["name"], home_path(arguments["home"])))
        if dry_run:
            return {"changed": topology.phase != "after", "removed": []}
        regions = {name: entry["countries"] for name, entry in arguments["regions"].items()}
        removed = purge(topology, arguments["password"], regions)
        return {"changed": bool(removed), "removed": removed}
