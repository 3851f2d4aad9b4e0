"""Fixtures come as plug-ins, one subject a file; a plug-in stands after those that it imports."""

from __future__ import annotations

import signal

pytest_plugins = [
    "tests.fixtures.docker",
    "tests.fixtures.labs",
    "tests.fixtures.traffic",
    "tests.fixtures.golden",
    "tests.fixtures.refusals",
    "tests.fixtures.tiers",
]

# A shell's background job ignores SIGINT, and so would all that the tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
