"""Action: make the lab's relay run with the links that the regions and nodes call for.

Starts or reconfigures it and waits until it listens; open connections of links that stay go on,
and a link that was cut stays cut. Returns links: {name, port, rtt_ms} of each.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import NODE, LabAction
from workload.lab import Lab, home_path
from workload.nodes.docker import Engine
from workload.wan import control


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        # In order: a link's port goes by its region's place.
        "regions": {"type": "list", "elements": "str", "required": True},
        "nodes": {"type": "list", "elements": "dict", "required": True, "options": NODE},
        "rtt_ms": {"type": "dict", "required": True},
        "jitter_ms": {"type": "float", "default": 0.0},
        "port_base": {"type": "int", "required": True},
        "listen": {"type": "list", "elements": "str", "default": ["127.0.0.1"]},
        # A Docker network on whose gateway the links listen too, or "".
        "network": {"type": "str", "default": ""},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Start or reconfigure the relay."""
        lab = Lab(arguments["name"], home_path(arguments["home"]))
        links = control.links_for(
            arguments["regions"],
            arguments["nodes"],
            arguments["rtt_ms"],
            arguments["jitter_ms"],
            arguments["port_base"],
        )
        listen = list(arguments["listen"])
        if arguments["network"]:
            listen.append(Engine().gateway(arguments["network"]))
        if dry_run:
            changed = not control.is_current(lab, links, listen)
        else:
            changed = control.ensure(lab, links, listen)
        shown = [{"name": link.name, "port": link.port, "rtt_ms": link.rtt_ms} for link in links]
        return {"changed": changed, "links": shown}
