"""What the Ansible actions of a primary and standby pair have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workload.actions import NODE
from workload.lab import Lab, home_path
from workload.nodes.server import Place, node_server
from workload.nodes.standby import Member
from workload.sql import Login

#: Arguments that say where a pair's nodes are.
PAIR: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "home": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "runtime": {"type": "str", "required": True},
    "network": {"type": "str", "required": True},
    "image": {"type": "str", "default": ""},
    "bin_dir": {"type": "str", "default": ""},
    "timeout_s": {"type": "int", "default": 60},
    "primary": {"type": "dict", "required": True, "options": NODE},
    "standby": {"type": "dict", "required": True, "options": NODE},
}


def members(arguments: Mapping[str, Any]) -> tuple[Lab, Member, Member]:
    """Return the lab, the primary and the standby that an action's arguments name."""
    lab = Lab(arguments["name"], home_path(arguments["home"]))

    def member(node: Mapping[str, Any]) -> Member:
        place = Place(
            lab=lab,
            runtime=arguments["runtime"],
            node=node["name"],
            host=node["host"],
            port=node["port"],
            container=node["container"],
            network=arguments["network"],
            image=arguments["image"],
            bin_dir=arguments["bin_dir"],
        )
        login = Login(node["host"], node["port"], "postgres", arguments["password"])
        return Member(node["name"], node_server(place), login)

    return lab, member(arguments["primary"]), member(arguments["standby"])
