"""The base of the lab's own Ansible actions.

They are actions, not modules: each runs inside ansible-playbook on the control node, which has the
lab's state and its embedded servers and reaches every node. Ansible would pack and send a module
and start a Python for it, which takes 0.4 s for each call.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

from ansible.plugins.action import ActionBase

from workload.errors import LabError
from workload.lab import Lab, home_path
from workload.topology import Node

WIDTH = 80

#: Nodes as the filter lab_nodes describes them: a Node's fields, whose types Ansible has too.
NODES: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        field.name: {"type": field.type, "required": True} for field in dataclasses.fields(Node)
    },
}

#: A superuser's login.
LOGIN: dict[str, Any] = {
    "type": "dict",
    "options": {
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "user": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
        "dbname": {"type": "str", "default": "postgres"},
    },
}

#: A lab that preflight has begun: its state folder and its superuser's password.
LAB: dict[str, Any] = {
    "type": "dict",
    "options": {
        "home": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
    },
}

#: Arguments of an action on the lab as a whole, which finds its nodes in topology.json.
WHOLE_LAB: dict[str, Any] = {"lab": {**LAB, "required": True}}


def lab_of(arguments: Mapping[str, Any]) -> Lab:
    """Return the lab that an action works on: by name to begin or remove it, else by its folder."""
    if "name" in arguments:
        return Lab(arguments["name"], home_path(arguments["home"]))
    return Lab.at(home_path(arguments["lab"]["home"]))


def nodes_of(arguments: Mapping[str, Any]) -> list[Node]:
    """Return the nodes that an action's arguments give."""
    return [Node(**node) for node in arguments["nodes"]]


class LabAction(ActionBase):
    """An action that checks its arguments and reports a LabError as a failure of one line."""

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
        """Print how far a long step is, or its result."""
        indent = " " * 11
        # Names and paths stay whole, so that they can be copied.
        shown = textwrap.fill(
            line,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
        self._display.display(shown)

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Do the work and return the result, with "changed" in it; raises LabError."""
        raise NotImplementedError
