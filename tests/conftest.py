"""Fixtures come as plug-ins, one subject a file."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["tests.fixtures.docker", "tests.fixtures.labs", "tests.fixtures.refusals"]

# A shell's background job ignores SIGINT, and so would all that the tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: The folders whose files take longest come first, so that no process is left with one at the end.
LONGEST_FIRST = ("e2e", "playbooks", "integration", "unit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long where several processes share the work."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONGEST_FIRST.index(item.path.parent.name))
