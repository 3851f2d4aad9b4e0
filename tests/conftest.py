"""Fixtures come as plug-ins, one subject a file."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.fixtures.docker", "tests.fixtures.labs"]

# A shell's background job ignores SIGINT, and so would all that the tests start and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
