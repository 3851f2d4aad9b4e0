"""Ansible module: look at the machine, choose the runtime, and begin the lab."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_preflight
short_description: Look at the machine before a node is touched, and choose the runtime
description:
  - Fails with one line where something is in the way (a port that is taken, a volume of another
    lab, no engine, no server, a state folder that cannot be written), having changed nothing.
  - Records the lab's name and runtime in C(lab.json), so that a later run keeps to them.
options:
  name: {description: The lab's name., type: str, required: true}
  home: {description: The lab's state folder., type: path, required: true}
  runtime: {description: Which runtime is asked for (auto, docker or embedded)., type: str,
    required: true}
  images: {description: Candidates for the containers' image, type: list, elements: str,
    required: true}
  bin_dir: {description: Folder of the user's own PostgreSQL programs., type: str, default: ""}
  nodes:
    description: The nodes that the play is about to touch.
    type: list
    elements: dict
    required: true
    options:
      name: {description: The node., type: str, required: true}
      port: {description: Its port on this machine., type: int, required: true}
      container: {description: Its container., type: str, required: true}
      volume: {description: Its volume., type: str, required: true}
  secrets:
    description: Passwords to generate below C(secrets/) in the state folder, one file each.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {support: full, description: Records nothing.}
author: The geo-sharding lab maintainers
"""

EXAMPLES = r"""
- name: Look at the machine
  lab_preflight:
    name: lab
    home: .lab
    runtime: auto
    images: ["postgres:16"]
    nodes: [{name: eu, port: 5432, container: eu_db, volume: eu_db}]
"""

RETURN = r"""
machine:
  description: The runtime, why it was chosen, its image or program folder, the phase reached
    before, and which of the nodes exist.
  type: dict
  returned: success
"""

import json
import secrets

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "home": {"type": "path", "required": True},
            "runtime": {"type": "str", "required": True},
            "images": {"type": "list", "elements": "str", "required": True},
            "bin_dir": {"type": "str", "default": ""},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "nodes": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "container": {"type": "str", "required": True},
                    "volume": {"type": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    from workload.errors import LabError
    from workload.lab import Lab, write_atomically
    from workload.preflight import Node, absolute, examine

    asked = module.params
    try:
        lab = Lab(asked["name"], absolute(asked["home"]))
        machine = examine(
            lab,
            asked["runtime"],
            asked["images"],
            asked["bin_dir"],
            [Node(**node) for node in asked["nodes"]],
        )
        begun = {"name": lab.name, "runtime": machine["runtime"]}
        files = {
            lab.home / "secrets" / name: secrets.token_urlsafe(24) for name in asked["secrets"]
        }
        missing = {path: text for path, text in files.items() if not path.exists()}
        changed = lab.read_state() != begun or bool(missing)
        if changed and not module.check_mode:
            write_atomically(lab.home / "lab.json", json.dumps(begun) + "\n")
            for path, text in missing.items():
                write_atomically(path, text, mode=0o600)
    except LabError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, machine=machine)


if __name__ == "__main__":
    main()
