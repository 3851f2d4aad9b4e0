"""Action: look at the machine, choose the runtime, and begin the lab.

Fails with one line where something is in the way (a port that is taken, a volume of another lab,
no engine, no server, a state folder that cannot be written), having changed nothing. Then records
the lab's name and runtime, so that a later run keeps to them, and generates missing passwords.
Returns machine: the runtime and why, its image or program folder, the phase reached before, which
of the nodes exist, and whether the WAN's relay was dead and is started again; is_past, where the
lab is past the playbook's phase; and lines that say so to people.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import NODE, LabAction
from workload.lab import Lab, home_path
from workload.nodes.preflight import Node, begin, check_road, examine, revive_wan


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        # Not "choices": examine() says it in the lab's own words.
        "runtime": {"type": "str", "required": True},
        "images": {"type": "list", "elements": "str", "required": True},
        "bin_dir": {"type": "str", "default": ""},
        "secrets": {"type": "list", "elements": "str", "default": []},
        # The nodes that the play is about to touch.
        "nodes": {"type": "list", "elements": "dict", "required": True, "options": NODE},
        # The road, and this playbook's place on it.
        "phases": {"type": "list", "elements": "str", "required": True},
        "builds": {"type": "str", "default": ""},
        "needs": {"type": "str", "default": ""},
        "allows_fenced": {"type": "bool", "default": False},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Examine, then begin."""
        lab = Lab(arguments["name"], home_path(arguments["home"]))
        is_past = check_road(
            lab,
            arguments["phases"],
            arguments["builds"],
            arguments["needs"],
            arguments["allows_fenced"],
        )
        machine = examine(
            lab,
            arguments["runtime"],
            arguments["images"],
            arguments["bin_dir"],
            [Node(**node) for node in arguments["nodes"]],
        )
        changed = begin(lab, machine["runtime"], arguments["secrets"], dry_run)
        machine["wan_revived"] = revive_wan(lab, dry_run)
        changed = changed or machine["wan_revived"]
        lines = [f"{machine['runtime']} runtime: {machine['why']}"]
        if machine["wan_revived"]:
            lines.append(f"the WAN's relay was dead{'' if dry_run else ': started again'}")
        if is_past:
            lines.append(
                f"the lab is in phase {machine['phase']}, which is past {arguments['builds']}:"
                " nothing to do"
            )
        return {"changed": changed, "machine": machine, "is_past": is_past, "lines": lines}
