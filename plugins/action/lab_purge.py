"""Action: remove the leftovers of rows that moved: tables, slots, statistics, WAL.

Also ends an interrupted move or erasure of one customer.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.operations.people import resolve
from workload.sharding.purge import purge
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = WHOLE_LAB

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Remove it."""
        topology, password = Topology.load(lab_of(arguments)), arguments["lab"]["password"]
        if dry_run:
            return {"changed": topology.phase != "after"}
        removed = purge(topology, password, topology.countries())
        ended = resolve(topology, password)
        for line in ended:
            self.say(line)
        return {"changed": bool(removed or ended), "removed": removed}
