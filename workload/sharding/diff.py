"""Does a new home have every row of a leaf, while customers write to the old one?

Rows are compared by buckets of their key's hash, counts and checksums. A write on its way makes its
bucket differ for a moment, so a bucket counts as equal once it was: each round compares those that
are left, after all that the old home had has arrived at the new one. What still differs then is
compared row by row: rows that only the new home has were written to it directly, and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError
from workload.sharding.leaves import Leaf

BUCKETS = 256
ROUNDS = 8
_CONTENT = """
SELECT uuid_hash(id) & {mask}, count(*), sum(hash_record_extended(leaf, 0))
FROM {leaf} AS leaf WHERE uuid_hash(id) & {mask} = ANY(%s) GROUP BY 1
"""
_ROWS = """
SELECT id, hash_record_extended(leaf, 0) FROM {leaf} AS leaf
WHERE uuid_hash(id) & {mask} = ANY(%s)
"""


@dataclass(frozen=True)
class Agreed:
    """How many rows of a leaf both sides have, and how many the new home has alone."""

    rows: int
    extra: int


def compare(
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    leaf: Leaf,
    await_arrival: Callable[[], None],
) -> Agreed:
    """Return what two nodes agree on; raises LabError where the new home lacks a row.

    await_arrival returns when all that is committed on the old home has arrived.
    """
    left = list(range(BUCKETS))
    rows = 0
    for _ in range(ROUNDS):
        mine = _content(old, leaf, left)
        await_arrival()
        theirs = _content(new, leaf, left)
        equal = [bucket for bucket in left if mine.get(bucket) == theirs.get(bucket)]
        rows += sum(mine[bucket][0] for bucket in equal if bucket in mine)
        left = [bucket for bucket in left if bucket not in set(equal)]
        if not left:
            return Agreed(rows, 0)
    mine_rows = _rows(old, leaf, left)
    await_arrival()
    their_rows = _rows(new, leaf, left)
    missing = [key for key, content in mine_rows.items() if their_rows.get(key) != content]
    if missing:
        raise LabError(
            f"{leaf.name}: {len(missing):,} rows are not on the new home, or not the same, among"
            f" them {missing[0]}: what was written to it directly is in their way; make verify"
            " shows both sides"
        )
    return Agreed(rows + len(mine_rows), len(their_rows) - len(mine_rows))


def _content(
    connection: psycopg.Connection[Any], leaf: Leaf, buckets: list[int]
) -> dict[int, tuple[int, int]]:
    return {
        int(bucket): (int(count), int(checksum))
        for bucket, count, checksum in connection.execute(_format(_CONTENT, leaf), (buckets,))
    }


def _rows(connection: psycopg.Connection[Any], leaf: Leaf, buckets: list[int]) -> dict[Any, int]:
    return dict(connection.execute(_format(_ROWS, leaf), (buckets,)).fetchall())


def _format(text: str, leaf: Leaf) -> sql.Composed:
    return sql.SQL(text).format(leaf=leaf.identifier(), mask=sql.Literal(BUCKETS - 1))
