"""Action: make each region's own node the home of its rows, one region after the other, online.

Writes cutover.json. Fails where an acknowledged write is lost, with everything still there to
examine.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.operations.cutover import cut_over_all


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        # Seconds to go on trying for locks.
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Cut over every region that is not at home."""
        lab, password = lab_of(arguments), arguments["lab"]["password"]
        return {"changed": cut_over_all(lab, password, arguments["timeout_s"], self.say, dry_run)}
