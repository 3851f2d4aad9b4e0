"""Action: bring a lost node back as the standby of the node that has its rows.

state copied: its data directory is rewound or copied, for the node role to start. state
synchronous: it streams, and the primary waits for it. A standby that lost its data comes back too.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.nodes import identity
from workload.nodes.pair import pair_of
from workload.nodes.standby import REPLICATION_ROLE, copy_back, resume
from workload.topology import Topology, set_roles


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "state": {"type": "str", "choices": ["copied", "synchronous"], "required": True},
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Bring back a lost node; a pair that is whole needs nothing."""
        topology = Topology.load(lab_of(arguments))
        lab = topology.lab
        primary, old = pair_of(topology, arguments["lab"]["password"], topology.origin())
        is_fenced = topology.nodes[old.name]["role"] == "fenced"
        if arguments["state"] == "synchronous":
            if not dry_run:
                resume(primary, old, arguments["timeout_s"])
                set_roles(lab, {old.name: "standby"})
            return {"changed": is_fenced}
        if not is_fenced and not identity.loss(lab, old.name, old.server.identity()):
            self.say(f"{old.name} is not lost: nothing to bring back")
            return {"changed": False}
        if dry_run:
            self.say(f"{old.name} would become {primary.name}'s standby")
            return {"changed": True}
        how = copy_back(primary, old, lab.secret_file(REPLICATION_ROLE).read_text())
        identity.record(lab.home, old.name, old.server.identity())
        self.say(f"{old.name} becomes {primary.name}'s standby ({how})")
        return {"changed": True}
