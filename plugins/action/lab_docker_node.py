"""Action: what the node's container (community.docker) cannot do for itself.

state prepared: the volume holds a data directory, and the server accepts its settings; returns
command and mount, with which the container is to run. A container that runs with them already is
not touched. state ready: the container takes logins; where it ended, the last line of its log is
the message, at once.
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.nodes import identity
from workload.nodes.server import DockerNode, Place
from workload.sql import Login


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "node": {"type": "str", "required": True},
        "container": {"type": "str", "required": True},
        "image": {"type": "str", "required": True},
        "network": {"type": "str", "required": True},
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        # A person's own, over the lab's.
        "settings": {"type": "dict", "default": {}},
        "state": {"type": "str", "choices": ["prepared", "ready"], "required": True},
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Prepare the volume, or wait for the container."""
        names = ("node", "container", "image", "network", "host", "port")
        place = Place(
            lab=lab_of(arguments),
            runtime="docker",
            bin_dir="",
            **{name: arguments[name] for name in names},
        )
        server, password = DockerNode(place), arguments["lab"]["password"]
        if arguments["state"] == "prepared":
            return server.prepare(password, arguments["settings"], dry_run)
        if not dry_run:
            login = Login(arguments["host"], arguments["port"], "postgres", password)
            server.await_login(login, arguments["timeout_s"])
            if identity.recorded(place.lab.home, place.node) is None:
                identity.record(place.lab.home, place.node, server.identity())
        return {"changed": False}
