"""Callback: one line a task, and one line for an error. -v brings Ansible's own output back."""

from __future__ import annotations

DOCUMENTATION = """
name: lab
type: stdout
short_description: One line a task
description:
  - Prints a line for each task that ran on a host, and for a failure the message alone.
  - With -v, behaves as the default callback.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

import gc
import importlib
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812  (its customary name)
from ansible.plugins.callback.default import CallbackModule as DefaultCallback
from ansible.release import __version__ as CORE  # noqa: N812

#: The release of ansible-core that requirements.txt brings.
CORE_RELEASE = "2.19."


def _find_package() -> None:
    """Make the checkout's package importable by all plugins, or end the run with one line.

    Ansible loads this plugin before any other, so that a person's own ansible-playbook works too
    where its Python has what the lab needs.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    problem = "" if CORE.startswith(CORE_RELEASE) else f"this is ansible-core {CORE}"
    for name in () if problem else ("psycopg", "psutil", "docker", "rich"):
        try:
            importlib.import_module(name)
        except ImportError:
            problem = f"{sys.executable} has no {name}"
    if problem:
        sys.exit(
            f"ERROR {problem}, and the lab needs ansible-core {CORE_RELEASE}x with the packages of"
            " requirements.txt: make setup, then .venv/bin/ansible-playbook playbooks/before.yml"
        )


_find_package()

#: For a task with no_log.
HIDDEN = "its output is hidden for the secret in it"
WIDTH = 80
COLOURS = {"ok": C.COLOR_OK, "changed": C.COLOR_CHANGED, "failed": C.COLOR_ERROR}


class CallbackModule(DefaultCallback):
    """The default callback, made terse."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "lab"

    def __init__(self) -> None:
        """Start the clock."""
        super().__init__()
        self._started = time.monotonic()
        self._failed = False
        self._title = ""

    @property
    def _terse(self) -> bool:
        return bool(self._display.verbosity == 0)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Keep the play's name, which is printed only where a task runs."""
        # Each task on each host is a fork. A garbage collection there would write to all pages of
        # Ansible's memory, and so copy them, which is a fifth of a run's CPU time.
        gc.freeze()
        if not self._terse:
            super().v2_playbook_on_play_start(play)
            return
        self._play = play
        dry = " (dry run)" if play.check_mode else ""
        self._title = f"\n{play.get_name().strip()}{dry}"

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Print nothing: the lab is past the phase."""
        if not self._terse:
            super().v2_playbook_on_no_hosts_matched()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Print the play's name before its first task; a task's line comes with its result."""
        if not self._terse:
            super().v2_playbook_on_task_start(task, is_conditional)
        elif self._title:
            self._display.display(self._title, color=C.COLOR_HIGHLIGHT)
            self._title = ""

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Print nothing: the included tasks print their own lines."""
        if not self._terse:
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Print nothing."""

    def v2_runner_on_ok(self, result: Any) -> None:
        """Print a task that changed something, or had nothing to change."""
        if not self._terse:
            super().v2_runner_on_ok(result)
            return
        action = result.task.action.rpartition(".")[2]
        if action in (
            "include_role",
            "include_tasks",
            "import_tasks",
            "set_fact",
            "add_host",
            "assert",
            "validate_argument_spec",
        ):
            return
        if action == "debug":
            # Text for people, so it is wrapped; an error stays one line.
            message = str(result.result.get("msg", ""))
            for line in message.splitlines():
                self._display.display(
                    textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="  ")
                )
            return
        self._line("changed" if result.result.get("changed") else "ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Print the reason in one line; a failure that a rescue handles is a retry."""
        if not self._terse:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        message = str(result.result.get("msg") or HIDDEN)
        message = re.sub(r"^(Task|Action) failed: ", "", " ".join(message.split()))
        if ignore_errors or _is_rescued(result.task):
            self._line("retry", result)
            self._display.display(f"           {message}", color=C.COLOR_SKIP)
            return
        self._failed = True
        self._line("failed", result)
        self._display.display(f"ERROR {message}", color=C.COLOR_ERROR, stderr=True)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Print nothing: the loop's task prints one line."""
        if not self._terse:
            super().v2_runner_item_on_ok(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Print why a host cannot be reached."""
        self.v2_runner_on_failed(result)

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """Print nothing: the failure has its line."""
        if not self._terse:
            super().v2_playbook_on_no_hosts_remaining()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print how many tasks changed something, and how long it took."""
        if not self._terse:
            super().v2_playbook_on_stats(stats)
            return
        changed = sum(stats.changed.values())
        took = time.monotonic() - self._started
        end = "failed" if self._failed else f"done, changed={changed}"
        self._display.display(f"  {end}, {took:.1f} s", color=None)

    def _line(self, state: str, result: Any) -> None:
        name = result.task.get_name().strip()
        role, separator, rest = name.partition(" : ")
        text = rest.rpartition(" | ")[2] if separator else name
        where = f"{role}: " if separator else ""
        self._display.display(
            f"  {state:8} {result.host.get_name():9} {where}{text}", color=COLOURS.get(state)
        )


def _is_rescued(task: Any) -> bool:
    block = task._parent
    while block is not None:
        if getattr(block, "rescue", None) and task not in block.rescue:
            return not _is_within(task, block.rescue)
        block = block._parent
    return False


def _is_within(task: Any, entries: list[Any]) -> bool:
    for entry in entries:
        parent = task._parent
        while parent is not None:
            if parent is entry or getattr(parent, "_uuid", None) == entry._uuid:
                return True
            parent = parent._parent
    return False
