"""Ansible module: one PostgreSQL server process without Docker."""

from __future__ import annotations

DOCUMENTATION = r"""
module: embedded_node
short_description: Have a PostgreSQL server process running below the lab's state folder
description:
  - Runs initdb once, writes the configuration beside the data directory, and starts the server
    where it is not running or its configuration changed. A killed run leaves nothing half-made.
options:
  base: {description: The node's folder., type: path, required: true}
  bin_dir: {description: Folder with postgres and initdb., type: path, required: true}
  port: {description: Port on 127.0.0.1., type: int, required: true}
  password: {description: The superuser's first password., type: str, required: true}
  settings: {description: Server settings by name., type: dict, default: {}}
  state: {description: Whether it runs., type: str, choices: [started, stopped], default: started}
  timeout_s: {description: Seconds for the server to become ready., type: int, default: 60}
attributes:
  check_mode: {support: full, description: Starts and writes nothing.}
author: The geo-sharding lab maintainers
"""

EXAMPLES = r"""
- name: Run the node
  embedded_node:
    base: .lab/nodes/eu
    bin_dir: /usr/lib/postgresql/17/bin
    port: 5432
    password: secret
    settings: {wal_level: logical}
"""

RETURN = r"""
created: {description: Whether initdb ran., type: bool, returned: success}
started: {description: Whether the server was started., type: bool, returned: success}
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "base": {"type": "path", "required": True},
            "bin_dir": {"type": "path", "required": True},
            "port": {"type": "int", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "settings": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "timeout_s": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    from workload.errors import LabError
    from workload.runtime.embedded import EmbeddedServer

    asked = module.params
    server = EmbeddedServer(
        Path(asked["base"]).absolute(),
        port=asked["port"],
        bin_dir=Path(asked["bin_dir"]),
        settings=asked["settings"],
    )
    try:
        if asked["state"] == "stopped":
            module.exit_json(
                changed=bool(server.processes()) if module.check_mode else server.stop()
            )
        if module.check_mode:
            created = not server.exists()
            started = created or not server.is_configured() or server.postmaster() is None
        else:
            with server.locked() as lock:
                created = server.initialise(asked["password"], lock)
                if server.configure():
                    server.stop()
                started = server.start(asked["timeout_s"])
    except LabError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=created or started, created=created, started=started)


if __name__ == "__main__":
    main()
