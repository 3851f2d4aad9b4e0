"""Action: refuse an inventory that takes a country from a region that has customers in it.

Countries are added online; customers are moved to another region one by one (make move). Changes
nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, countries_of, lab_of
from workload.sharding.checks import check
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = WHOLE_LAB

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Look at those that are to change."""
        del dry_run
        topology = Topology.load(lab_of(arguments))
        regions = countries_of(arguments)
        for line in check(topology, arguments["password"], regions, "after"):
            self.say(line)
        return {"changed": False}
