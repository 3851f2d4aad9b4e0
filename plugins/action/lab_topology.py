"""Action: write topology.json, by which the populations find their node.

The last step of a phase, so that the file never promises what is not there yet. Written
atomically: the populations read it while it is replaced. A node keeps the role that a fail-over or
a rejoin gave it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, ClassVar

from workload.actions import NODE, LabAction
from workload.lab import Lab, home_path, read_json, write_atomically
from workload.topology import build, tables_of
from workload.wan.config import links_for


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        "phase": {"type": "str", "required": True},
        "runtime": {"type": "str", "required": True},
        "dbname": {"type": "str", "required": True},
        "customers": {"type": "dict", "required": True},
        "regions": {"type": "dict", "required": True},
        "nodes": {"type": "list", "elements": "dict", "required": True, "options": NODE},
        # The arguments of links_for that the nodes do not tell; none while all are at home.
        "wan": {"type": "dict", "default": {}},
        # What the nodes run on: image, bin_dir and network.
        "servers": {"type": "dict", "required": True},
        # reached: the phase is. joining: it is not yet; new nodes are named, and nobody sent there.
        # partitioned: neither, but customers name the partitioned tables from now on.
        "state": {
            "type": "str",
            "choices": ["reached", "joining", "partitioned"],
            "default": "reached",
        },
        # Roles that change with this step.
        "roles": {"type": "dict", "default": {}},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Write the file where it differs."""
        lab = Lab(arguments["name"], home_path(arguments["home"]))
        before = read_json(lab.topology_file)
        roles = {name: node["role"] for name, node in before.get("nodes", {}).items()}
        phase = arguments["phase"]
        tables = ""
        if arguments["state"] != "reached":
            phase = before["phase"]
            tables = before.get("tables") or tables_of(phase)
            if arguments["state"] == "partitioned" and tables == "public":
                tables = "global"
            names = [node["name"] for node in arguments["nodes"]]
            roles = {**dict.fromkeys(names, "joining"), **roles}
        else:
            roles = {name: role for name, role in roles.items() if role != "joining"}
        regions = dict(arguments["regions"])
        closed: set[str] = set()
        if arguments["state"] != "reached":
            # Customers come from new countries and regions when there is a place for them.
            for name, region in before["regions"].items():
                regions[name] = {"countries": region["countries"]}
            known = {name for name, found in before["regions"].items() if found.get("open", True)}
            closed = set(regions) - known
        wan = arguments["wan"]
        wanted = build(
            phase=phase,
            runtime=arguments["runtime"],
            dbname=arguments["dbname"],
            customers=arguments["customers"],
            regions=regions,
            nodes=arguments["nodes"],
            links=[asdict(x) for x in links_for(nodes=arguments["nodes"], **wan)] if wan else [],
            roles={**roles, **arguments["roles"]},
            servers=arguments["servers"],
            tables=tables,
            closed=closed,
        )
        changed = before != wanted
        if changed and not dry_run:
            write_atomically(lab.topology_file, json.dumps(wanted, indent=1) + "\n")
        return {"changed": changed}
