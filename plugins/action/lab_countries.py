"""Action: refuse an inventory that takes a country from a region that has customers in it.

Countries are added online; customers are moved to another region one by one (make move). Changes
nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.control import LabAction
from workload.countries import check
from workload.lab import Lab, home_path
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
        """Look at those that are to change."""
        del dry_run
        topology = Topology.load(Lab(arguments["name"], home_path(arguments["home"])))
        regions = {name: entry["countries"] for name, entry in arguments["regions"].items()}
        check(topology, arguments["password"], regions)
        return {"changed": False}
