"""Action: ensure that the lab's relay runs with the links that the regions and nodes need.

Starts or reconfigures it and waits until it listens; open connections of links that stay go on,
and a link that was cut stays cut.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from workload.actions import NODES, WHOLE_LAB, LabAction, lab_of, nodes_of
from workload.nodes.docker import Engine
from workload.wan import control
from workload.wan.config import links_for


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        # In order: a region's place determines its links' ports.
        "regions": {"type": "list", "elements": "str", "required": True},
        "nodes": NODES,
        "rtt_ms": {"type": "dict", "required": True},
        "jitter_ms": {"type": "float", "default": 0.0},
        "port_base": {"type": "int", "required": True},
        "listen": {"type": "list", "elements": "str", "default": ["127.0.0.1"]},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Start or reconfigure the relay."""
        lab = lab_of(arguments)
        links = links_for(
            arguments["regions"],
            [asdict(node) for node in nodes_of(arguments)],
            arguments["rtt_ms"],
            arguments["jitter_ms"],
            arguments["port_base"],
        )
        listen = list(arguments["listen"])
        if lab.read_state()["runtime"] == "docker":
            # Containers connect through the relay too, at their network's gateway.
            listen.append(Engine().gateway(lab.network))
        if dry_run:
            return {"changed": not control.is_current(lab, links, listen)}
        return {"changed": control.ensure(lab, links, listen)}
