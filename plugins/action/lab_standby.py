"""Action: make a node the synchronous standby of another.

state seeded: its data directory is a base backup of the primary's; returns changed. state
synchronous: it streams, and the primary waits for it before it acknowledges a write.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import LabAction
from workload.nodes.pair import PAIR, members
from workload.nodes.standby import REPLICATION_ROLE, make_synchronous, seed


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **PAIR,
        "state": {"type": "str", "choices": ["seeded", "synchronous"], "required": True},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Seed it, or have the primary wait for it."""
        lab, primary, standby = members(arguments)
        if dry_run:
            return {"changed": not lab.read_roles().get(standby.name)}
        if arguments["state"] == "seeded":
            password = lab.secret_file(REPLICATION_ROLE).read_text()
            return {"changed": seed(primary, standby, password)}
        return {"changed": make_synchronous(primary, standby, arguments["timeout_s"])}
