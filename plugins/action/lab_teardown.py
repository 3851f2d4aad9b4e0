"""Action: remove all that a lab made, in any state, and nothing else.

Goes by what is there (labels of Docker objects, node folders below the state folder), not by the
inventory, so that it also removes what an older inventory named. Returns removed, a list for
people to read.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import LabAction
from workload.errors import LabError
from workload.lab import Lab, home_path
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
        removed = remove(Lab(arguments["name"], home_path(arguments["home"])))
        return {"changed": bool(removed), "removed": removed}
