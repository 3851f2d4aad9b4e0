"""Replication barrier: write a token on one node and wait until it is visible on the others.

Waiting for pg_stat_replication's positions would take up to 10 s: an idle subscriber reports its
own that rarely (wal_receiver_status_interval).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import psycopg

from workload.errors import LabError
from workload.sql import Login, connect

#: Seconds between two questions why a node is behind.
SLICE_S = 2.0
_WRITE = (
    "INSERT INTO lab.marker VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET token = EXCLUDED.token"
)


def write(connection: psycopg.Connection[Any]) -> UUID:
    """Write a barrier after all that is committed so far, and return its token."""
    token = uuid4()
    connection.execute(_WRITE, (token,))
    return token


def await_arrival(connection: psycopg.Connection[Any], token: UUID, timeout_s: float) -> bool:
    """Wait until a barrier is visible on a node; return whether it was in time."""
    row = connection.execute(
        "SELECT lab.await_marker(%s, %s)", (token, int(timeout_s * 1e3))
    ).fetchone()
    return bool(row and row[0])


def await_all(
    source: Login,
    targets: Mapping[str, Login],
    timeout_s: float,
    why: Callable[[str], str | None] = lambda node: None,
) -> float:
    """Wait until all that is committed on a node has arrived on others; return the seconds.

    targets: logins by node. why tells what stops a node for good, so that it is not waited for.
    Raises LabError with that, or with the node that is behind.
    """
    started = time.monotonic()
    with connect(source) as connection:
        connection.autocommit = True
        token = write(connection)
    for node, login in targets.items():
        with connect(login) as connection:
            connection.autocommit = True
            deadline = time.monotonic() + timeout_s
            while not await_arrival(connection, token, min(SLICE_S, timeout_s)):
                if reason := why(node):
                    raise LabError(reason)
                if time.monotonic() < deadline:
                    continue
                raise LabError(
                    f"{node} is more than {timeout_s:.0f} s behind {source.where}: make status"
                    " names its lag"
                )
    return time.monotonic() - started
