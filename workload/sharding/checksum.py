"""Do two nodes have the same rows of a leaf? Counts and checksums, while customers write.

A checksum is the sum of each row's own hash, so it goes by content and not by order; it is a
server's work alone, and servers of one major version agree on it.

Rows are compared by buckets of their key's hash. A write on its way makes its bucket differ for a
moment, so a bucket counts as equal once it was: each round compares those that are left, after all
that the old home had has arrived at the new one. What still differs then is compared row by row:
rows that only the new home has were written to it directly, and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError
from workload.sharding.definition import Definition
from workload.sharding.leaves import Leaf
from workload.sql import describe

BUCKETS = 256
ROUNDS = 8
_CONTENT = """
SELECT {bucket}, count(*), coalesce(sum(hash_record_extended({row}, 0)), 0)
FROM {leaf} WHERE {bucket} = ANY(%s) GROUP BY 1
"""
_ROWS = "SELECT id, hash_record_extended({row}, 0) FROM {leaf} WHERE {bucket} = ANY(%s)"
_WHOLE = "SELECT count(*), coalesce(sum(hash_record_extended({row}, 0)), 0) FROM {leaf}"


@dataclass(frozen=True)
class Fingerprint:
    """The content of a leaf: how many rows, and the sum of their hashes."""

    rows: int
    checksum: int


@dataclass(frozen=True)
class Agreed:
    """How many rows of a leaf both sides have, and how many the new home has alone."""

    rows: int
    extra: int


def fingerprint(
    connection: psycopg.Connection[Any], leaf: Leaf, definition: Definition
) -> Fingerprint:
    """Return a leaf's fingerprint; raises LabError with the server's message."""
    try:
        row: Any = connection.execute(_format(_WHOLE, leaf, definition)).fetchone()
    except psycopg.Error as error:
        raise LabError(f"{leaf.name}: {describe(error)}") from None
    return Fingerprint(int(row[0]), int(row[1]))


def agree(
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    leaf: Leaf,
    definition: Definition,
    await_arrival: Callable[[], None],
) -> Agreed:
    """Return what two nodes agree on; raises LabError where the new home lacks a row.

    await_arrival returns when all that is committed on the old home has arrived.
    """
    content = _format(_CONTENT, leaf, definition)
    left = list(range(BUCKETS))
    rows = 0
    for _ in range(ROUNDS):
        mine = _content(old, content, left)
        await_arrival()
        theirs = _content(new, content, left)
        equal = {bucket for bucket in left if mine.get(bucket) == theirs.get(bucket)}
        rows += sum(mine[bucket].rows for bucket in equal if bucket in mine)
        left = [bucket for bucket in left if bucket not in equal]
        if not left:
            return Agreed(rows, 0)
    each = _format(_ROWS, leaf, definition)
    mine_rows = dict(old.execute(each, (left,)).fetchall())
    await_arrival()
    their_rows = dict(new.execute(each, (left,)).fetchall())
    missing = [key for key, content in mine_rows.items() if their_rows.get(key) != content]
    if missing:
        raise LabError(
            f"{leaf.name}: {len(missing):,} rows are not on the new home, or not the same, among"
            f" them {missing[0]}: what was written to it directly is in their way; make verify"
            " shows both sides"
        )
    return Agreed(rows + len(mine_rows), len(their_rows) - len(mine_rows))


def _content(
    connection: psycopg.Connection[Any], statement: sql.Composed, buckets: list[int]
) -> dict[int, Fingerprint]:
    return {
        int(bucket): Fingerprint(int(count), int(checksum))
        for bucket, count, checksum in connection.execute(statement, (buckets,))
    }


def _format(text: str, leaf: Leaf, definition: Definition) -> sql.Composed:
    bucket = sql.SQL("uuid_hash(id) & {}").format(sql.Literal(BUCKETS - 1))
    return sql.SQL(text).format(leaf=leaf.identifier(), row=definition.row(), bucket=bucket)
