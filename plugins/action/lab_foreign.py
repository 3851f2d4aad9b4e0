"""Action: let every node reach the rows of every region where they are at home.

TLS on all nodes, least-privilege roles, foreign servers, and foreign leaves in place of copies; the
origin keeps what is not at home elsewhere yet.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.sharding.access import prepare, setup_of
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = WHOLE_LAB

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Prepare all nodes."""
        topology = Topology.load(lab_of(arguments))
        if dry_run:
            return {"changed": topology.phase != "after"}
        return {"changed": prepare(setup_of(topology, arguments["lab"]["password"]))}
