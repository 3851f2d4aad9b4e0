"""Action: bring a fenced node back as the standby of the node that took over from it."""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.nodes.pair import pair_of
from workload.nodes.standby import REPLICATION_ROLE, rejoin
from workload.topology import Topology, set_roles


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Bring back a fenced node; a pair that is whole needs nothing."""
        topology = Topology.load(lab_of(arguments))
        primary, old = pair_of(topology, arguments["lab"]["password"], topology.origin())
        if topology.nodes[old.name]["role"] != "fenced":
            self.say(f"{old.name} is not fenced: nothing to bring back")
            return {"changed": False}
        if dry_run:
            self.say(f"{old.name} would become {primary.name}'s standby")
            return {"changed": True}
        password = topology.lab.secret_file(REPLICATION_ROLE).read_text()
        how = rejoin(primary, old, password, arguments["timeout_s"])
        set_roles(topology.lab, {old.name: "standby"})
        self.say(f"{old.name} is {primary.name}'s synchronous standby ({how})")
        return {"changed": True}
