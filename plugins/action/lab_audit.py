"""Action: report where each region's data is on each node, byte by byte, or plant its canaries.

state audited: prints the result, writes residency.json, and fails where a region's data is not at
home. state planted: each region has the phase's canaries.
"""

from __future__ import annotations

import io
from typing import Any, ClassVar

from rich.console import Console

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.audit import canaries, run
from workload.errors import LabError
from workload.topology import Topology

#: Columns beside the indentation of the terse output.
WIDTH = 78


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        # Customers of each region in the sample; by default LAB_AUDIT_SAMPLE.
        "sample": {"type": "int"},
        "state": {"type": "str", "choices": ["audited", "planted"], "default": "audited"},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Audit, or plant."""
        lab = lab_of(arguments)
        if arguments["state"] == "planted":
            before = canaries.load(lab)
            planted = before if dry_run else canaries.plant(lab, Topology.load(lab))
            return {"changed": len(planted) != len(before)}
        if not dry_run:
            text = io.StringIO()
            console = Console(file=text, width=WIDTH)
            holds = run.run(lab, arguments["lab"]["password"], console, arguments["sample"])
            for line in text.getvalue().splitlines():
                self._display.display(f"  {line.rstrip()}")
            if not holds:
                raise LabError("residency is VIOLATED, see above")
        return {"changed": False}
