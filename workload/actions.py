"""The base of the lab's own Ansible actions.

They are actions, not modules: each runs inside ansible-playbook on the control node, where the
lab's state, its embedded servers and a way to every node are. A module would be packed, sent and
started as a Python of its own first, 0.4 s of nothing on each call.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

from ansible.plugins.action import ActionBase

from workload.errors import LabError
from workload.lab import Lab, home_path

WIDTH = 80
#: A node as the filter lab_nodes describes it.
NODE: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "region": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "port_offset": {"type": "int", "required": True},
    # The primary that it begins as a standby of, or "".
    "follows": {"type": "str", "required": True},
    "container": {"type": "str", "required": True},
    "volume": {"type": "str", "required": True},
}

#: A superuser's login.
LOGIN: dict[str, Any] = {
    "type": "dict",
    "required": True,
    "options": {
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "user": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        "dbname": {"type": "str", "default": "postgres"},
    },
}

#: Arguments of an action on all nodes of the lab, which finds them in topology.json.
WHOLE_LAB: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "home": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    # {name: {countries}}
    "regions": {"type": "dict", "required": True},
}


def lab_of(arguments: Mapping[str, Any]) -> Lab:
    """Return the lab that an action's arguments name."""
    return Lab(arguments["name"], home_path(arguments["home"]))


def countries_of(arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the regions that an action's arguments give, as {name: countries}."""
    return {name: list(entry["countries"]) for name, entry in arguments["regions"].items()}


class LabAction(ActionBase):
    """Checks the arguments, does the work, and makes a LabError the task's one-line failure."""

    _requires_connection = False
    #: As AnsibleModule takes it.
    ARGUMENTS: ClassVar[dict[str, Any]] = {}

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the action as Ansible calls it."""
        del tmp
        result: dict[str, Any] = super().run(None, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=self.ARGUMENTS)
        try:
            result.update(self.act(arguments, bool(self._task.check_mode)))
        except LabError as error:
            result.update(failed=True, msg=str(error), error=type(error).__name__)
        return result

    def say(self, line: str) -> None:
        """Tell a person how far a long step is."""
        indent = " " * 11
        shown = textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent)
        self._display.display(shown)

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Do the work and return the result, with "changed" in it; raises LabError."""
        raise NotImplementedError
