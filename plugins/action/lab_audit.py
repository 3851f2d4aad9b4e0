"""Action: say where each region's data is on each node, down to the bytes, or plant its canaries.

state audited: returns holds (the verdict) and lines for people, and writes residency.json. state
planted: has the phase's canary customers in each region.
"""

from __future__ import annotations

import io
from typing import Any, ClassVar

from rich.console import Console

from workload.actions import LabAction, lab_of
from workload.audit import canaries, run
from workload.topology import Topology

#: What the terse output indents by is left for that.
WIDTH = 78


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        # Customers of each region that are looked for; none given, as LAB_AUDIT_SAMPLE says.
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
        if dry_run:
            return {"changed": False, "holds": True, "lines": []}
        said = io.StringIO()
        holds = run.run(
            lab, arguments["password"], Console(file=said, width=WIDTH), arguments["sample"]
        )
        return {"changed": False, "holds": holds, "lines": said.getvalue().splitlines()}
