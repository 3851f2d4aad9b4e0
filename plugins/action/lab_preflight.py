"""Action: examine the machine, choose the runtime, and begin the lab.

Fails with one line for an obstacle (a port that is taken, a volume of another lab,
no engine, no server, a state folder that cannot be written), or with all that is in the way in the
tables that shard and after move, having changed nothing. Then records
the lab's name and what it runs on, so that a later run keeps to them, generates missing passwords,
and starts a relay of the WAN that is dead.
Returns is_past, where the lab is past the playbook's phase, and the fact lab_machine, which the
plays after it read: phase (that is built), runtime, image, image_present, bin_dir, network, and
existing (nodes that stand already).
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import NODES, LabAction, lab_of, nodes_of
from workload.nodes import identity
from workload.nodes.preflight import begin, check_road, examine, port_warning, revive_wan
from workload.sharding.checks import check
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        # Not "choices": examine() says it in the lab's own words.
        "password": {"type": "str", "required": True, "no_log": True},
        # {name: {countries}}
        "regions": {"type": "dict", "required": True},
        "runtime": {"type": "str", "required": True},
        "images": {"type": "list", "elements": "str", "required": True},
        "bin_dir": {"type": "str", "default": ""},
        "secrets": {"type": "list", "elements": "str", "default": []},
        # The nodes that the playbook is about to touch.
        "nodes": NODES,
        # The phase that this playbook builds, and the one that it needs.
        "builds": {"type": "str", "default": ""},
        "needs": {"type": "str", "default": ""},
        "allows_fenced": {"type": "bool", "default": False},
        # Nodes that may begin with nothing where they have lost their data.
        "start_empty": {"type": "list", "elements": "str", "default": []},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Examine, then begin."""
        lab, builds = lab_of(arguments), arguments["builds"]
        nodes, start_empty = nodes_of(arguments), arguments["start_empty"]
        is_past = check_road(lab, builds, arguments["needs"], arguments["allows_fenced"])
        machine = examine(
            lab,
            arguments["runtime"],
            arguments["images"],
            arguments["bin_dir"],
            nodes,
            None if arguments["allows_fenced"] else start_empty,
        )
        if not dry_run:
            for node in start_empty:
                identity.start_empty(lab, node)
        if builds in ("shard", "after") and not is_past:
            regions = {name: entry["countries"] for name, entry in arguments["regions"].items()}
            for line in check(Topology.load(lab), arguments["password"], regions, builds):
                self.say(line)
        if not builds:
            # Only a phase changes the image that its nodes run on.
            machine["image"] = lab.read_state().get("image", machine["image"])
        changed = begin(lab, machine, arguments["secrets"], dry_run)
        was_dead = revive_wan(lab, dry_run)
        self.say(f"{machine['runtime']} runtime: {machine['why']}")
        warning = port_warning(nodes, len(arguments["regions"]))
        if warning:
            self.say(warning)
        if was_dead:
            self.say(f"the WAN's relay was dead{'' if dry_run else ': started again'}")
        if is_past:
            self.say(
                f"the lab is in phase {lab.read_phase()}, which is past {builds}: nothing to do"
            )
        fact = {**machine, "phase": builds, "network": lab.network}
        return {
            "changed": changed or was_dead,
            "is_past": is_past,
            "ansible_facts": {"lab_machine": fact},
        }
