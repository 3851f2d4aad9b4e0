"""Know which rows change while they are copied: triggers note the keys of customers and purchases.

A trigger is made under a lock that waits for everybody who writes. So whatever is read after that,
each later change of it is noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql

from workload.sharding.locks import exclusively

#: What keys are noted as.
KINDS: Mapping[str, str] = {"customer": "c", "purchase": "p"}
_BEGIN = """
CREATE TABLE lab.changed (kind "char" NOT NULL, id uuid NOT NULL);
CREATE OR REPLACE FUNCTION lab.note_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $body$
BEGIN
  IF TG_OP <> 'INSERT' THEN
    INSERT INTO lab.changed VALUES (TG_ARGV[0], OLD.id);
  END IF;
  IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND NEW.id <> OLD.id THEN
    INSERT INTO lab.changed VALUES (TG_ARGV[0], NEW.id);
  END IF;
  RETURN NULL;
END
$body$;
"""
_WATCH = """
CREATE TRIGGER lab_note_change AFTER INSERT OR UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION lab.note_change({kind})
"""
_WATCHED = """
SELECT n.nspname, c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgname = 'lab_note_change'
"""
_DISARM = """
CREATE OR REPLACE FUNCTION lab.note_change() RETURNS trigger
LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'
"""
_END = ("DROP TABLE IF EXISTS lab.changed", "DROP FUNCTION IF EXISTS lab.note_change")


def begin(
    connection: psycopg.Connection[Any], tables: Mapping[str, sql.Composable], timeout_s: float
) -> float:
    """Note changes of tables, {"customer" or "purchase": name}, from now on.

    Returns the longest time in ms for which their writers waited. Raises LabError where one cannot
    be locked in time.
    """
    connection.execute(_BEGIN)
    pause_ms = 0.0
    for table, name in tables.items():
        watch = sql.SQL(_WATCH).format(table=name, kind=sql.Literal(KINDS[table]))
        waited_ms, _ = exclusively(connection, [name], [watch], timeout_s)
        pause_ms = max(pause_ms, waited_ms)
    return pause_ms


def drain(connection: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    """Return the keys that were noted so far, {"c": ids, "p": ids}, and forget them."""
    keys: dict[str, list[Any]] = {kind: [] for kind in KINDS.values()}
    for kind, key in connection.execute("DELETE FROM lab.changed RETURNING kind::text, id"):
        keys[kind].append(key)
    return keys


def disarm(connection: psycopg.Connection[Any]) -> None:
    """Have the triggers do nothing from here on; this locks no table."""
    row: Any = connection.execute("SELECT to_regproc('lab.note_change') IS NOT NULL").fetchone()
    if row[0]:
        connection.execute(_DISARM)


def unwatch(connection: psycopg.Connection[Any], timeout_s: float) -> None:
    """Take the triggers from all tables; raises LabError where one cannot be locked in time."""
    for schema, table in connection.execute(_WATCHED).fetchall():
        name = sql.Identifier(schema, table)
        drop = sql.SQL("DROP TRIGGER lab_note_change ON {}").format(name)
        exclusively(connection, [name], [drop], timeout_s)


def end(connection: psycopg.Connection[Any]) -> None:
    """Take away what the triggers wrote to; nothing has them any more."""
    for statement in _END:
        connection.execute(statement.encode())
