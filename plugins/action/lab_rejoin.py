"""Action: bring a fenced node back as the standby of the node that took over from it."""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import LabAction
from workload.nodes.pair import PAIR, members
from workload.nodes.standby import REPLICATION_ROLE, rejoin
from workload.topology import set_roles


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = PAIR

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Bring back a fenced node; a pair that is whole needs nothing."""
        lab, primary, old = members(arguments)
        if lab.read_roles().get(old.name) != "fenced":
            return {"changed": False, "line": f"{old.name} is not fenced: nothing to bring back"}
        if dry_run:
            return {"changed": True, "line": f"{old.name} would become {primary.name}'s standby"}
        password = lab.secret_file(REPLICATION_ROLE).read_text()
        how = rejoin(primary, old, password, arguments["timeout_s"])
        set_roles(lab, {old.name: "standby"})
        return {
            "changed": True,
            "line": f"{old.name} is {primary.name}'s synchronous standby ({how})",
        }
