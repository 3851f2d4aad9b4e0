"""Gates: on the origin, a partitioned table between each parent and a region's leaf.

    global.customer -> gate_us.customer -> us.customer

DETACH locks the parent that it takes something from against everybody. A leaf right below
global.customer could only be taken out in a moment in which no customer of any region has a
transaction open there; below a gate, only those of its own region matter. So gates stand from when
rows are partitioned until no region is to leave the origin any more. Then they go, at the first
moment for it, since each level takes a planner's time.

ATTACH reads a table of millions with its parent locked, unless a CHECK says already what it looks
for. Such a CHECK is made and validated before: that reads the table as well, and locks nobody out.

What is done here is right from any state that a killed run leaves: it goes by the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.sharding.leaves import BOUND, LOCK_ORDER, REGION, TABLES, Leaf, in_lock_order, parents
from workload.sharding.locks import exclusively

_BOUND = """
SELECT pg_get_expr(c.relpartbound, c.oid), c.relkind::text
FROM pg_class c WHERE c.oid = to_regclass(%s) AND c.relispartition
"""


def gate_of(leaf: Leaf) -> sql.Identifier:
    """Return the name of a leaf's gate."""
    return sql.Identifier(schemas.GATE.format(region=leaf.region), leaf.table)


def stands(connection: psycopg.Connection[Any], leaf: Leaf) -> bool:
    """Tell whether a leaf has a gate, be it below it or not."""
    name = gate_of(leaf).as_string(connection)
    row: Any = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone()
    return bool(row[0])


def build(connection: psycopg.Connection[Any], leaves: Iterable[Leaf]) -> None:
    """Make the gates of leaves that have none, with nothing below them."""
    for leaf in leaves:
        name = schemas.GATE.format(region=leaf.region)
        if not schemas.exists(connection, name):
            connection.execute(schemas.create(name))
        if stands(connection, leaf):
            continue
        connection.execute(
            sql.SQL(
                "CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED)"
                " PARTITION BY LIST ({})"
            ).format(gate_of(leaf), leaf.parent(), sql.Identifier(REGION))
        )
        keep_no_statistics(connection, gate_of(leaf))


def keep_no_statistics(connection: psycopg.Connection[Any], parent: sql.Identifier) -> bool:
    """Let a partitioned table keep none; return whether it did.

    They would be made from all leaves' rows, those of foreign ones too.
    """
    columns = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0"
        " AND NOT attisdropped AND coalesce(attstattarget, -1) <> 0",
        (parent.as_string(connection),),
    ).fetchall()
    if columns:
        actions = [
            sql.SQL("ALTER {} SET STATISTICS 0").format(sql.Identifier(name)) for (name,) in columns
        ]
        connection.execute(
            sql.SQL("ALTER TABLE ONLY {} {}").format(parent, sql.SQL(", ").join(actions))
        )
    return bool(columns)


def take_out(connection: psycopg.Connection[Any], leaf: Leaf) -> list[sql.Composed]:
    """Return the statements that take a leaf, and its gate if it has one, out of its parent."""
    gate = gate_of(leaf)
    return [
        sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(parent, child)
        for child, parent in (
            (leaf.identifier(), gate),
            (gate, leaf.parent()),
            (leaf.identifier(), leaf.parent()),
        )
        if _is_below(connection, child, parent)
    ]


def put_in(leaf: Leaf, by_gate: bool) -> list[sql.Composed]:
    """Return the statements that make a leaf that was taken out a partition of its parent."""
    if not by_gate:
        return [leaf.attach()]
    # The empty gate first: what is below it would be asked for a proof a second time.
    return [leaf.attach_to(leaf.parent(), gate_of(leaf)), leaf.attach(gate_of(leaf))]


def put_up(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float) -> float:
    """Put a region's leaves below gates; return the pause of all writers in ms.

    Raises LabError where there is no moment for it in time; nothing is changed then.
    """
    if all(_is_below(connection, leaf.identifier(), gate_of(leaf)) for leaf in leaves):
        drop_bound_checks(connection, leaves, timeout_s)
        return 0.0
    build(connection, leaves)
    checked_ms = add_bound_checks(connection, leaves, timeout_s)
    statements = [
        statement
        for leaf in leaves
        for statement in (*take_out(connection, leaf), *put_in(leaf, by_gate=True))
    ]
    swap = exclusively(connection, parents(), statements, timeout_s)
    return max(checked_ms, swap.blocked_ms)


def take_down(
    connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float
) -> float:
    """Put what is below regions' gates right below the parents; return all writers' pause in ms.

    Raises LabError where there is no moment for it in time; nothing is changed then.
    """
    gated = [leaf for leaf in leaves if stands(connection, leaf)]
    if not gated:
        return 0.0
    statements = [statement for leaf in gated for statement in take_out(connection, leaf)]
    for region in dict.fromkeys(leaf.region for leaf in gated):
        name = schemas.GATE.format(region=region)
        if schemas.exists(connection, name):
            statements += schemas.drop_statements(connection, name, list(TABLES))
    for leaf in gated:
        statements += put_in(leaf, by_gate=False)
    return exclusively(connection, parents(), statements, timeout_s).blocked_ms


def rebound(
    connection: psycopg.Connection[Any], leaves: Sequence[Leaf], kind: str, timeout_s: float
) -> bool:
    """Give a node's leaves of a kind (r, f) the bounds that they are to have; return whether so.

    Raises LabError where a moment without long transactions does not come in time, and psycopg's
    CheckViolation where a leaf has rows of another country; nothing is changed then.
    """
    changed: list[Leaf] = []
    settled: list[Leaf] = []
    for leaf in leaves:
        row = connection.execute(_BOUND, (leaf.identifier().as_string(connection),)).fetchone()
        if row and row[1] == kind:
            is_settled = set(re.findall(r"'([^']*)'", row[0])) == set(leaf.countries)
            (settled if is_settled else changed).append(leaf)
    # A killed run's CHECK may be of countries that were thought better of.
    drop_bound_checks(connection, settled, timeout_s)
    if not changed:
        return False
    # All out before any comes in: a country may go from one leaf to another.
    statements = [statement for leaf in changed for statement in take_out(connection, leaf)]
    for leaf in changed:
        statements += put_in(leaf, stands(connection, leaf))
    if kind == "r":
        add_bound_checks(connection, changed, timeout_s)
    exclusively(connection, parents(), statements, timeout_s)
    return True


def locks(leaves: Sequence[Leaf]) -> list[sql.Identifier]:
    """Return a region's gates in the order in which everybody locks the tables below them."""
    return [gate_of(leaf) for leaf in sorted(leaves, key=lambda leaf: LOCK_ORDER.index(leaf.table))]


def add_bound_checks(
    connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float
) -> float:
    """Validate the CHECK that lets ATTACH skip its scan; return how long writers waited in ms.

    Raises LabError where the leaves cannot be locked in time, and psycopg's CheckViolation where a
    leaf has a row of another country; nothing is changed then.
    """
    add = [leaf.drop_check() for leaf in leaves] + [
        sql.SQL("ALTER TABLE {} ADD {} NOT VALID").format(leaf.identifier(), leaf.check())
        for leaf in leaves
    ]
    outcome = exclusively(connection, in_lock_order(leaves), add, timeout_s)
    try:
        for leaf in leaves:
            connection.execute(
                sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
                    leaf.identifier(), sql.Identifier(BOUND)
                )
            )
    except psycopg.errors.CheckViolation:
        # It would refuse new rows like the one that there is.
        drop_bound_checks(connection, leaves, timeout_s)
        raise
    return outcome.blocked_ms


def drop_bound_checks(
    connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float
) -> None:
    """Take the CHECK from leaves that are partitions after all."""
    names = [leaf.identifier().as_string(connection) for leaf in leaves]
    row = connection.execute(
        "SELECT 1 FROM pg_constraint WHERE conname = %s AND contype = 'c'"
        " AND conrelid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)",
        (BOUND, names),
    ).fetchone()
    if row is not None:
        drop = [leaf.drop_check() for leaf in leaves]
        exclusively(connection, in_lock_order(leaves), drop, timeout_s)


def _is_below(
    connection: psycopg.Connection[Any], child: sql.Identifier, parent: sql.Identifier
) -> bool:
    names = (child.as_string(connection), parent.as_string(connection))
    row = connection.execute(
        "SELECT 1 FROM pg_inherits WHERE inhrelid = to_regclass(%s)"
        " AND inhparent = to_regclass(%s)",
        names,
    ).fetchone()
    return row is not None
