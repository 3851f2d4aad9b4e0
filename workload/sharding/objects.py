"""What is on a table: every object that a person can have put there, by one query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql

#: Seconds to wait for a lock on a table.
LOCK_TIMEOUT_S = 10
_OBJECTS = files("workload.sharding").joinpath("sql", "objects.sql").read_text()


@dataclass(frozen=True)
class Object:
    """One object: its kind and name, the text that makes it, and what else there is to know.

    See sql/objects.sql for the kinds, and for what detail has for each.
    """

    #: The table that it is on, schema-qualified; "" for what concerns all tables.
    table: str
    kind: str
    name: str
    definition: str
    detail: Mapping[str, Any] = field(default_factory=dict)


def read(
    connection: psycopg.Connection[Any], tables: Mapping[str, sql.Identifier]
) -> dict[str, list[Object]]:
    """Return the objects on each table of {key: name}, by its key; "" has what is on none.

    A table that is not there has none. Raises psycopg.errors.LockNotAvailable where a session has
    locked one for longer than LOCK_TIMEOUT_S.
    """
    names = {name.as_string(connection): key for key, name in tables.items()}
    with connection.transaction():
        # A definition is read under a lock, which somebody may keep from us for hours.
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
        # All names in definitions are qualified then.
        connection.execute("SET LOCAL search_path = ''")
        row: Any = connection.execute(
            "SELECT array_agg(name), array_agg(oid::regclass::text) FROM ("
            " SELECT name, to_regclass(name)::oid AS oid FROM unnest(%s::text[]) AS name) AS t"
            " WHERE oid IS NOT NULL",
            (list(names),),
        ).fetchone()
        by_key: dict[str, list[Object]] = {key: [] for key in [*tables, ""]}
        if row[0] is None:
            return by_key
        keys = {qualified: names[name] for name, qualified in zip(*row, strict=True)}
        connection.execute("SELECT set_config('lab.tables', %s::text[]::text, true)", (row[1],))
        for table, kind, name, definition, detail in connection.execute(_OBJECTS.encode()):
            by_key[keys[table] if table else ""].append(
                Object(table, kind, name, definition or "", detail or {})
            )
    return by_key


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    """Return the objects of some kinds, in their order."""
    return [each for each in objects if each.kind in kinds]


def table_of(objects: Sequence[Object]) -> Object:
    """Return the row of the table itself."""
    return of_kind(objects, "table")[0]
