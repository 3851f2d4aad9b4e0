"""The names of what the lab makes beside the tables, and the mark by which it knows its own.

A schema that the lab makes carries a comment that says so. Only what carries it is ever dropped,
and never with CASCADE: what a person made in there, or on top of it, stays and is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError

#: The comment of a schema that the lab made.
MARK = "made by the geo-sharding lab"
#: Between a parent and a region's leaf, on the origin, until the region has left it.
GATE = "gate_{region}"
#: Where a foreign leaf stands until it takes a table's place, and where that table goes.
STAGED, RETIRED = "staged_{region}", "retired_{region}"
#: Where leaves stand while they are filled: copies of another node's, and an online rewrite's.
INCOMING, REWRITTEN = "incoming_{region}", "rewritten_{region}"
TRANSITIONAL = (GATE, STAGED, RETIRED, INCOMING, REWRITTEN)
#: Where the tables of the start go.
OLD = "retired"
#: What else the lab or PostgreSQL has there.
RESERVED = frozenset({"global", "lab", "public", OLD, "information_schema"})
#: And what such a name begins with.
PREFIXES = ("pg_", "lab_", *(name.format(region="") for name in TRANSITIONAL))

SUBSCRIPTION = "lab"
#: The publication of the barrier's row.
BARRIER = "lab_marker"


def beside(region: str) -> tuple[str, str]:
    """Return the schemas in which leaves are filled before they take a region's places."""
    return (INCOMING.format(region=region), REWRITTEN.format(region=region))


def is_taken(region: str) -> bool:
    """Tell whether a region cannot have a name: its schema would be something else."""
    return region in RESERVED or region.startswith(PREFIXES)


def taken() -> list[str]:
    """Return what a region cannot be named, as a message says it."""
    return [*sorted(RESERVED), *(f"{prefix}..." for prefix in PREFIXES)]


def publication(region: str) -> str:
    """Return the name of the publication of a region's leaves."""
    return f"lab_{region}"


def slot(node: str) -> str:
    """Return the name of the slot on the origin by which a node follows it."""
    return f"lab_{node.replace('-', '_')}"


def create(name: str) -> sql.Composed:
    """Return the statements that make a schema and mark it as the lab's."""
    return sql.SQL("CREATE SCHEMA {name}; COMMENT ON SCHEMA {name} IS {mark}").format(
        name=sql.Identifier(name), mark=sql.Literal(MARK)
    )


def exists(connection: psycopg.Connection[Any], name: str) -> bool:
    """Tell whether there is a schema of the lab's of that name; raises LabError for another's."""
    row = connection.execute(
        "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (name,)
    ).fetchone()
    if row is not None and row[0] != MARK:
        raise LabError(
            f"schema {name} is not the lab's, which needs the name: rename it (ALTER SCHEMA ..."
            " RENAME TO ...)"
        )
    return row is not None


def drop(connection: psycopg.Connection[Any], name: str, tables: Sequence[str]) -> bool:
    """Drop a schema of the lab's with its tables; return whether there was one.

    Raises LabError where it is not the lab's, or where something else is in it or rests on it.
    """
    if not exists(connection, name):
        return False
    try:
        for statement in drop_statements(connection, name, tables):
            connection.execute(statement)
    except psycopg.errors.DependentObjectsStillExist as error:
        what = " ".join((error.diag.message_detail or "").split())
        raise LabError(f"schema {name} holds more than the lab put there: {what}") from None
    return True


def drop_statements(
    connection: psycopg.Connection[Any], name: str, tables: Sequence[str]
) -> list[sql.Composed]:
    """Return the statements that drop a schema and those of the tables that are there now."""
    there = connection.execute(
        "SELECT relname, relkind = 'f' FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname = %s AND relkind IN ('r', 'p', 'f')"
        " AND relname = ANY(%s) ORDER BY array_position(%s::name[], relname) DESC",
        (name, list(tables), list(tables)),
    ).fetchall()
    return [
        *(
            sql.SQL("DROP {} {}").format(
                sql.SQL("FOREIGN TABLE" if is_foreign else "TABLE"), sql.Identifier(name, table)
            )
            for table, is_foreign in there
        ),
        sql.SQL("DROP SCHEMA {}").format(sql.Identifier(name)),
    ]
