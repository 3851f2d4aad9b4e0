"""Action: run idempotent SQL scripts on a node.

The node is named by a login, or is the origin's primary of a lab. Waits until it takes a login,
then runs each script in a transaction of its own; on a standby none, which gets everything from its
primary. Reports a change exactly where a script wrote something (its transaction got an id), which
the community modules cannot tell for anything but plain DML; so a script must write only what
differs. A dry run rolls back, and takes a node that does not answer for one that does not exist
yet. Returns changed_scripts and server_version (as server_version_num).
"""

from __future__ import annotations

from typing import Any, ClassVar

from workload.actions import LAB, LOGIN, LabAction, lab_of
from workload.errors import LabError, WrongPasswordError
from workload.sql import Login, apply, connect
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        # One of the two.
        "login": LOGIN,
        "lab": LAB,
        "scripts": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                # How errors name the script.
                "name": {"type": "str", "required": True},
                "text": {"type": "str", "required": True},
            },
        },
        # The oldest PostgreSQL major that will do.
        "minimum_version": {"type": "int", "default": 15},
        # Seconds for a login, and for a lock where lock_timeout_ms says how long one try may take.
        "timeout_s": {"type": "int", "default": 60},
        "lock_timeout_ms": {"type": "int", "default": 0},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Log in and run the scripts."""
        login = _login(arguments)
        scripts = [dict(script) for script in arguments["scripts"]]
        try:
            connection = connect(login, 0 if dry_run else arguments["timeout_s"])
        except WrongPasswordError:
            raise
        except LabError:
            if not dry_run:
                raise
            names = [script["name"] for script in scripts]
            return {"changed": bool(names), "changed_scripts": names, "server_version": 0}
        with connection:
            version = connection.info.server_version
            if version // 10_000 < arguments["minimum_version"]:
                raise LabError(
                    f"{login.where} runs PostgreSQL {version // 10_000}: the lab needs"
                    f" {arguments['minimum_version']} or newer"
                )
            connection.autocommit = True
            in_recovery = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            if in_recovery == (True,):
                scripts = []
            changed = apply(
                connection,
                scripts,
                dry_run,
                arguments["lock_timeout_ms"],
                arguments["timeout_s"],
            )
        return {"changed": bool(changed), "changed_scripts": changed, "server_version": version}


def _login(arguments: dict[str, Any]) -> Login:
    if arguments["login"]:
        return Login(**arguments["login"])
    topology = Topology.load(lab_of(arguments))
    return topology.operator_login(topology.origin_primary(), arguments["lab"]["password"])
