"""Action: let every node reach the rows of every region where they are at home.

TLS on all nodes, least-privilege roles, foreign servers, and foreign leaves in place of copies; the
origin keeps what is not at home elsewhere yet.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.control import LabAction
from workload.homes import Setup, prepare
from workload.lab import Lab, home_path
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        # {name: {countries}}
        "regions": {"type": "dict", "required": True},
        "customers_role": {"type": "str", "required": True},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Prepare all nodes."""
        topology = Topology.load(Lab(arguments["name"], home_path(arguments["home"])))
        regions = {name: entry["countries"] for name, entry in arguments["regions"].items()}
        if dry_run:
            return {
                "changed": topology.phase != "after" or set(regions) != set(topology.countries())
            }
        setup = Setup(topology, arguments["password"], regions, arguments["customers_role"])
        return {"changed": prepare(setup)}
