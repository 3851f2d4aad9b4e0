"""Action: write a step towards a phase to topology.json, from which customers read their nodes.

The last step of a phase, so that the file never lists what does not exist yet.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from workload.actions import NODES, WHOLE_LAB, LabAction, lab_of, nodes_of
from workload.topology import advance
from workload.wan.control import links


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "phase": {"type": "str", "required": True},
        # See workload.topology.advance().
        "state": {
            "type": "str",
            "choices": ["joining", "partitioned", "reached"],
            "default": "reached",
        },
        "customers_role": {"type": "str", "required": True},
        # {name: {countries}}
        "regions": {"type": "dict", "required": True},
        "nodes": NODES,
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Write the file where it differs."""
        lab = lab_of(arguments)
        return {
            "changed": advance(
                lab,
                arguments["phase"],
                arguments["state"],
                arguments["customers_role"],
                {name: list(entry["countries"]) for name, entry in arguments["regions"].items()},
                nodes_of(arguments),
                [asdict(link) for link in links(lab)],
                dry_run,
            )
        }
