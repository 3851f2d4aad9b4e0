"""Action: remove all that a lab made, in any state, and nothing else.

Goes by what is there (labels of Docker objects, node folders below the state folder), not by the
inventory, so that it also removes what an older inventory named.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import LabAction, lab_of
from workload.errors import LabError
from workload.nodes.teardown import remove


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Remove the lab."""
        if dry_run:
            raise LabError("a teardown has no dry run: run it without --check")
        removed = remove(lab_of(arguments))
        self.say(f"removed: {', '.join(removed) or 'nothing, there was no lab'}")
        return {"changed": bool(removed)}
