"""Change capture: triggers log the keys of rows that change during a copy.

A trigger is made under a lock that waits for all writers. So each later change of what is read
after that is logged. It fires for every session, those of session_replication_role = replica too: a
logical subscription's worker, a restore, a bulk loader. TRUNCATE leaves no keys, and is refused
meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql

from workload.sharding.leaves import STARTED
from workload.sharding.locks import exclusively

_BEGIN = files("workload.sharding").joinpath("sql", "capture.sql").read_text()
_WATCH = """
CREATE TRIGGER lab_note_change AFTER INSERT OR UPDATE OR DELETE ON {table}
  FOR EACH ROW EXECUTE FUNCTION lab.note_change({name});
CREATE TRIGGER lab_note_truncate BEFORE TRUNCATE ON {table}
  FOR EACH STATEMENT EXECUTE FUNCTION lab.note_change({name});
ALTER TABLE {table} ENABLE ALWAYS TRIGGER lab_note_change, ENABLE ALWAYS TRIGGER lab_note_truncate
"""
_WATCHED = """
SELECT n.nspname, c.relname, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgfoid = to_regproc('lab.note_change')
"""
_DISARM = """
CREATE OR REPLACE FUNCTION lab.note_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NULL; END'
"""
_END = ("DROP TABLE IF EXISTS lab.changed", "DROP FUNCTION IF EXISTS lab.note_change")


def begin(
    connection: psycopg.Connection[Any], tables: Mapping[str, sql.Composable], timeout_s: float
) -> float:
    """Capture the changes of tables, {one of STARTED: name}, from now on.

    Returns the longest time in ms for which their writers waited. Raises LabError where one cannot
    be locked in time.
    """
    connection.execute(_BEGIN.encode())
    blocked_ms = 0.0
    for table, name in tables.items():
        watch = sql.SQL(_WATCH).format(table=name, name=sql.Literal(table))
        outcome = exclusively(connection, [name], [watch], timeout_s)
        blocked_ms = max(blocked_ms, outcome.blocked_ms)
    return blocked_ms


def drain(connection: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    """Return the keys that were logged so far, {table: ids}, and forget them."""
    keys: dict[str, list[Any]] = {table.name: [] for table in STARTED}
    for table, key in connection.execute("DELETE FROM lab.changed RETURNING kind, id"):
        keys[table].append(key)
    return keys


def disarm(connection: psycopg.Connection[Any]) -> None:
    """Make the triggers do nothing from here on; this locks no table."""
    row: Any = connection.execute("SELECT to_regproc('lab.note_change') IS NOT NULL").fetchone()
    if row[0]:
        connection.execute(_DISARM)


def unwatch(connection: psycopg.Connection[Any], timeout_s: float) -> None:
    """Take the triggers from all tables; raises LabError where one cannot be locked in time."""
    drops: dict[tuple[str, str], list[sql.Composed]] = {}
    for schema, table, trigger in connection.execute(_WATCHED).fetchall():
        drops.setdefault((schema, table), []).append(
            sql.SQL("DROP TRIGGER {} ON {}").format(
                sql.Identifier(trigger), sql.Identifier(schema, table)
            )
        )
    for name, drop in drops.items():
        exclusively(connection, [sql.Identifier(*name)], drop, timeout_s)


def end(connection: psycopg.Connection[Any]) -> None:
    """Drop what the triggers wrote to; no table has them any more."""
    for statement in _END:
        connection.execute(statement.encode())
