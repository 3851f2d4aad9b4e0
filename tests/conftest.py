"""Fixtures come as plug-ins, one subject a file."""

from __future__ import annotations

pytest_plugins = ["tests.fixtures.docker", "tests.fixtures.labs"]
