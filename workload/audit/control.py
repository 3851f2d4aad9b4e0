"""The audit's control: a canary that the scan must find in every place of every running node.

PostgreSQL itself writes it there, as it writes customers' data: to a table and its statistics, a
WAL record, a line of the log, and a temporary file that a cursor spills to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.audit.canaries import Canary, Kind, new_canary
from workload.audit.logical import OWN_SCHEMA
from workload.audit.places import FILES, Where
from workload.audit.scan import Scan
from workload.errors import LabError
from workload.processes import poll
from workload.sql import Login, connect, describe

#: Seconds for a standby to replay the control.
REPLAY_S = 30
ROWS = 400

#: What the scan must find in each place: together these are all kinds of patterns.
EXPECTED: Mapping[Where, tuple[frozenset[Kind], ...]] = {
    "heap": (frozenset({"marker"}), frozenset({"id"})),
    "wal": (frozenset({"marker"}), frozenset({"id_text"})),
    # pg_statistic is compressed: pglz keeps parts of a marker, lz4 all of it.
    "statistics": (frozenset({"window", "marker"}),),
    "log": (frozenset({"marker"}), frozenset({"id_text"})),
    "temp": (frozenset({"marker"}),),
}

SETTINGS = (
    # A standby that is away must not hold up the audit.
    "SET synchronous_commit = local",
    "SET work_mem = '64kB'",
    "SET temp_file_limit = -1",
    "SET default_statistics_target = 100",
    "SET lock_timeout = '60s'",
)


@contextlib.contextmanager
def shown(logins: Mapping[str, Login]) -> Iterator[tuple[Canary, dict[str, tuple[Where, ...]]]]:
    """Write a new control to all places of the nodes; yield it, and the places of each node.

    The temporary files live as long as the context does; at its end no table has the control. A
    checkpoint writes all that was committed before to the nodes' files. A standby that streams from
    no primary of the lab has the control in its log and its temporary files alone. Raises LabError
    where a node fails.
    """
    control = new_canary("", "", "")
    with contextlib.ExitStack() as stack:
        writable: dict[str, psycopg.Connection[Any]] = {}
        standbys: dict[str, psycopg.Connection[Any]] = {}
        for node, login in logins.items():
            connection: psycopg.Connection[Any] = stack.enter_context(
                contextlib.closing(connect(login))
            )
            with _naming(node):
                connection.autocommit = True
                for setting in SETTINGS:
                    connection.execute(setting)
                follows = _value(connection, "SELECT pg_is_in_recovery()")
            (standbys if follows else writable)[node] = connection
        for node, connection in writable.items():
            with _naming(node):
                # One audit at a time: two would drop each other's table.
                connection.execute("SELECT pg_advisory_lock(hashtext('geo-sharding-lab audit'))")
                stack.callback(_forget, connection)
                _store(connection, control)
        for node, connection in (writable | standbys).items():
            with _naming(node):
                _log_and_spill(connection, control)
        written: dict[object, str] = {}
        for node, connection in writable.items():
            with _naming(node):
                cluster = _value(connection, "SELECT system_identifier FROM pg_control_system()")
                written[cluster] = _write_wal(connection, control)
        where: dict[str, tuple[Where, ...]] = dict.fromkeys(writable, FILES)
        for node, connection in standbys.items():
            with _naming(node):
                cluster = _value(connection, "SELECT system_identifier FROM pg_control_system()")
                where[node] = ("log", "temp")
                # After a promotion two primaries are of one cluster: a standby may follow neither.
                if cluster in written and _streams(connection):
                    _await_replay(node, connection, written[cluster])
                    where[node] = FILES
                # On a standby this is a restartpoint: all that it has replayed is in its files.
                connection.execute("CHECKPOINT")
        yield control, where


def missing(control: Canary, scan: Scan, where: tuple[Where, ...]) -> list[Where]:
    """Return the places of a node in which the scan should have found the control and did not."""
    kinds_by_place = scan.kinds.get(control.marker, set())
    return [
        place
        for place in where
        if not all(
            any((place, kind) in kinds_by_place for kind in kinds) for kinds in EXPECTED[place]
        )
    ]


def _store(connection: psycopg.Connection[Any], control: Canary) -> None:
    """Write the control to a table and to its statistics."""
    schema = sql.Identifier(OWN_SCHEMA)
    schemas.drop(connection, OWN_SCHEMA, ["control"])
    with connection.transaction():
        connection.execute(schemas.create(OWN_SCHEMA))
        connection.execute(sql.SQL("CREATE TABLE {}.control (key uuid, note text)").format(schema))
        # Distinct values, so that ANALYZE keeps a histogram, which is large enough to compress.
        connection.execute(
            sql.SQL(
                "INSERT INTO {}.control"
                " SELECT %s, %s || md5(i::text) FROM generate_series(1, %s) AS i"
            ).format(schema),
            (control.id, control.marker, ROWS),
        )
    connection.execute(sql.SQL("ANALYZE {}.control").format(schema))


def _forget(connection: psycopg.Connection[Any]) -> None:
    """Drop the control's table; where the server has gone meanwhile, the next audit does."""
    with contextlib.suppress(psycopg.Error, LabError):
        connection.execute("CLOSE ALL")
        schemas.drop(connection, OWN_SCHEMA, ["control"])


def _log_and_spill(connection: psycopg.Connection[Any], control: Canary) -> None:
    """Write the control to the server's log, and to a temporary file that the session keeps."""
    connection.execute(
        sql.SQL("DO $$ BEGIN RAISE LOG 'residency audit, control: % %', {}, {}; END $$").format(
            sql.Literal(control.marker), sql.Literal(control.id)
        )
    )
    connection.execute(
        sql.SQL(
            "DECLARE lab_audit CURSOR WITH HOLD FOR"
            " SELECT {} || repeat(md5(i::text), 4) FROM generate_series(1, 4000) AS i"
        ).format(sql.Literal(control.marker))
    )


def _write_wal(connection: psycopg.Connection[Any], control: Canary) -> str:
    """Make a checkpoint, then write the control to the WAL; return the WAL's end."""
    # In this order: a checkpoint may remove older WAL.
    connection.execute("CHECKPOINT")
    # Several times: a page boundary may split one of them.
    text = f"{control.marker} {control.id} " * 4
    connection.execute("SELECT pg_logical_emit_message(true, 'lab_audit', %s)", (text,))
    return str(_value(connection, "SELECT pg_current_wal_lsn()"))


def _streams(connection: psycopg.Connection[Any]) -> bool:
    return bool(_value(connection, "SELECT count(*) FROM pg_stat_wal_receiver"))


def _await_replay(node: str, connection: psycopg.Connection[Any], position: str) -> None:
    def is_replayed() -> bool:
        row = connection.execute(
            "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)
        ).fetchone()
        return bool(row and row[0])

    poll(is_replayed, REPLAY_S, f"{node} does not replay its primary's WAL")


def _value(connection: psycopg.Connection[Any], query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


@contextlib.contextmanager
def _naming(node: str) -> Iterator[None]:
    """Turn a server's error into a LabError that names the node."""
    try:
        yield
    except psycopg.Error as error:
        raise LabError(
            f"{node}: the audit's control cannot be written: {describe(error)}"
        ) from error
