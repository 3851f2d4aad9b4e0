"""Action: have the network on which a lab's containers reach each other.

Not community.docker's: to an engine a network's name is no key, so two runs at once, or one beside
what a killed one left at work, would make two of a name, and no container could be run on either.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import LabAction
from workload.lab import Lab, home_path
from workload.nodes.docker import Engine


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        "network": {"type": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Make it where there is none."""
        lab = Lab(arguments["name"], home_path(arguments["home"]))
        return {"changed": Engine().have_network(lab, arguments["network"], dry_run)}
