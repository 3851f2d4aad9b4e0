"""What a leaf has to show for itself before it is made a partition while customers write.

ATTACH reads a table of millions with its parent locked, unless a CHECK says already what it looks
for. Such a CHECK is made and validated before: that reads the table as well, and locks nobody out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload.sharding.leaves import Leaf, in_lock_order
from workload.sharding.locks import exclusively


def prove(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float) -> float:
    """Have leaves ready to be attached by their countries; return the pause of their writers in ms.

    Raises LabError where they cannot be locked in time, and psycopg's CheckViolation where a leaf
    has a row of another country; nothing is changed then.
    """
    add = [_drop(leaf) for leaf in leaves] + [
        sql.SQL("ALTER TABLE {} ADD {} NOT VALID").format(leaf.identifier(), leaf.check())
        for leaf in leaves
    ]
    pause_ms, _ = exclusively(connection, in_lock_order(leaves), add, timeout_s)
    try:
        for leaf in leaves:
            statement = sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT home")
            connection.execute(statement.format(leaf.identifier()))
    except psycopg.errors.CheckViolation:
        # It would refuse new rows like the one that there is.
        settle(connection, leaves, timeout_s)
        raise
    return pause_ms


def settle(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float) -> None:
    """Take the CHECK from leaves that are partitions after all."""
    names = [leaf.identifier().as_string(connection) for leaf in leaves]
    found = connection.execute(
        "SELECT 1 FROM pg_constraint WHERE conname = 'home' AND contype = 'c'"
        " AND conrelid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)",
        (names,),
    ).fetchone()
    if found is None:
        return
    drop = [_drop(leaf) for leaf in leaves]
    exclusively(connection, in_lock_order(leaves), drop, timeout_s)


def _drop(leaf: Leaf) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS home").format(leaf.identifier())
