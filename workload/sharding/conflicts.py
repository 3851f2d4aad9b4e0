"""The row that stops a replica: which change cannot be applied there, and by which key.

A logical subscription applies the origin's transactions in their order. Where a row of one cannot
be inserted, since somebody wrote another with its key to the replica directly, the worker fails,
starts again five seconds later and fails again; nothing that comes after arrives. The server's log
would name the key, but the lab keeps errors out of logs: they have customers' values in them. So
the next transaction is read from the replica's slot, as the worker reads it, and tried.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from workload.errors import LabError
from workload.output import printable
from workload.schemas import SUBSCRIPTION, slot
from workload.sql import connect
from workload.topology import Topology

#: Seconds for the origin to read from the slot.
READ_S = 3
#: Transactions that are read from the slot, to find the first that has not been applied.
TRANSACTIONS = 1000


@dataclass(frozen=True)
class Conflict:
    """A row of the origin that another row of a replica keeps out.

    Columns are those of the origin's row, as text; local has None where the row is gone meanwhile.
    """

    subscription: str
    node: str
    origin: str
    region: str
    table: str
    #: The key that both have, {column: value}.
    key: Mapping[str, str]
    incoming: Mapping[str, str | None]
    local: Mapping[str, str | None] | None
    error: str

    @property
    def leaf(self) -> str:
        """The table's name."""
        return f"{self.region}.{self.table}"

    @property
    def key_text(self) -> str:
        """The key for people."""
        return ", ".join(f"{name} {printable(value)}" for name, value in self.key.items())

    @property
    def sentence(self) -> str:
        """What stops the node, and what to do."""
        return (
            f"{self.node} is stopped: subscription {self.subscription} cannot insert the row of"
            f" {self.leaf} with {self.key_text}, since another with it was written to"
            f" {self.node} directly: make resolve NODE={self.node} shows both"
        )


@dataclass(frozen=True)
class Change:
    """A row that a transaction of the origin inserts."""

    schema: str
    table: str
    values: Mapping[str, str | None]


def find(topology: Topology, password: str, node: str) -> Conflict | None:
    """Return the row that stops a replica, None where none does.

    Raises psycopg.errors.ObjectInUse where its slot is being read, which is so while it works and
    for a moment of each attempt that fails; another psycopg.Error, and LabError, where a node does
    not answer.
    """
    origin = topology.origin_primary()
    with connect(topology.operator_login(node, password)) as replica:
        replica.autocommit = True
        applied: Any = replica.execute(
            "SELECT subpublications, coalesce(remote_lsn, '0/0')::text FROM pg_subscription"
            " LEFT JOIN pg_replication_origin_status ON external_id = 'pg_' || oid"
            " WHERE subname = %s",
            (SUBSCRIPTION,),
        ).fetchone()
        if applied is None:
            return None
        with connect(topology.operator_login(origin, password)) as source:
            source.autocommit = True
            changes = _next_transaction(source, slot(node), *applied)
        for change in changes:
            conflict = _try(replica, change)
            if conflict is not None:
                error, key, local = conflict
                return Conflict(
                    SUBSCRIPTION, node, origin, change.schema, change.table, key,
                    change.values, local, error,
                )  # fmt: skip
    return None


def why(topology: Topology, password: str) -> Callable[[str], str | None]:
    """Return what tells of a node which row stops it, None where none is known to."""

    def sentence(node: str) -> str | None:
        with contextlib.suppress(LabError, psycopg.Error):
            conflict = find(topology, password, node)
            return None if conflict is None else conflict.sentence
        return None

    return sentence


def remove_local(connection: psycopg.Connection[Any], conflict: Conflict) -> None:
    """Delete the replica's own row, as the subscription's worker would: no trigger, no reference.

    Rows that refer to it keep doing so: the origin's row has the key too.
    """
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE {}").format(_leaf(conflict), _where(conflict.key)),
            dict(conflict.key),
        )


def take_over(connection: psycopg.Connection[Any], conflict: Conflict) -> None:
    """Give the origin's row the content that the replica's own had, for all nodes.

    Raises psycopg.Error where the origin refuses it.
    """
    assert conflict.local is not None
    columns = [name for name in conflict.local if name not in conflict.key]
    values = {f"new {name}": conflict.local[name] for name in columns}
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(f"new {name}"))
        for name in columns
    )
    connection.execute(
        sql.SQL("UPDATE {} SET {} WHERE {}").format(
            _leaf(conflict), assignments, _where(conflict.key)
        ),
        {**values, **conflict.key},
    )


def _leaf(conflict: Conflict) -> sql.Identifier:
    return sql.Identifier(conflict.region, conflict.table)


def _where(key: Mapping[str, str]) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in key
    )


def _try(
    replica: psycopg.Connection[Any], change: Change
) -> tuple[str, dict[str, str], dict[str, str | None] | None] | None:
    """Insert a row and roll back; return the error, the key and the row in its place."""
    table = sql.Identifier(change.schema, change.table)
    names = sql.SQL(", ").join(map(sql.Identifier, change.values))
    values = sql.SQL(", ").join(map(sql.Placeholder, change.values))
    statement = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})")
    try:
        with replica.transaction(force_rollback=True):
            replica.execute("SET LOCAL session_replication_role = replica")
            replica.execute("SET LOCAL lock_timeout = '1s'")
            replica.execute(statement.format(table, names, values), change.values)
    except errors.UniqueViolation as error:
        columns = [
            row[0]
            for row in replica.execute(
                "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid"
                " AND attnum = ANY(indkey) WHERE indexrelid = %s::regclass",
                (f'"{error.diag.schema_name}"."{error.diag.constraint_name}"',),
            )
        ]
        key = {name: str(change.values[name]) for name in columns if change.values.get(name)}
        row: Any = replica.execute(
            sql.SQL("SELECT {} FROM {} WHERE {}").format(
                sql.SQL(", ").join(
                    sql.SQL("{}::text").format(sql.Identifier(name)) for name in change.values
                ),
                table,
                _where(key),
            ),
            key,
        ).fetchone()
        local = None if row is None else dict(zip(change.values, row, strict=True))
        return str(error.diag.message_primary), key, local
    return None


# -- the slot's next transaction -------------------------------------------------------------------


def _next_transaction(
    source: psycopg.Connection[Any], slot: str, publications: Sequence[str], applied: str
) -> list[Change]:
    """Return the rows that the first transaction after a position inserts, [] where none waits."""
    source.execute(f"SET statement_timeout = '{READ_S}s'")
    statement = (
        "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, %s, 'proto_version', '1',"
        " 'publication_names', %s)"
    )
    names = ",".join(f'"{name}"' for name in publications)
    for count in (1, TRANSACTIONS):
        rows = source.execute(statement, (slot, count, names)).fetchall()
        for position, changes in _transactions(bytes(data) for (data,) in rows):
            if position > _position(applied):
                return changes
        if not rows:
            break
    return []


def _position(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def _transactions(messages: Iterator[bytes]) -> Iterator[tuple[int, list[Change]]]:
    """Yield (position of its commit, inserted rows) for each transaction of pgoutput's messages.

    As PostgreSQL's documentation has the logical replication message formats, protocol 1.
    """
    relations: dict[int, tuple[str, str, list[str]]] = {}
    position = 0
    changes: list[Change] = []
    for message in messages:
        kind, body = message[:1], message[1:]
        if kind == b"B":
            position, changes = struct.unpack_from(">q", body)[0], []
        elif kind == b"R":
            relations.update([_relation(body)])
        elif kind == b"I":
            schema, table, columns = relations[struct.unpack_from(">i", body)[0]]
            values = _tuple(body[5:])
            changes.append(Change(schema, table, dict(zip(columns, values, strict=True))))
        elif kind == b"C":
            yield position, changes


def _relation(body: bytes) -> tuple[int, tuple[str, str, list[str]]]:
    (number,) = struct.unpack_from(">i", body)
    schema, table, rest = body[4:].split(b"\0", 2)
    (count,) = struct.unpack_from(">h", rest, 1)
    columns, rest = [], rest[3:]
    for _ in range(count):
        name, rest = rest[1:].split(b"\0", 1)
        columns.append(name.decode())
        # Type and its modifier.
        rest = rest[8:]
    return number, (schema.decode(), table.decode(), columns)


def _tuple(body: bytes) -> list[str | None]:
    (count,) = struct.unpack_from(">h", body)
    values: list[str | None] = []
    place = 2
    for _ in range(count):
        kind, place = body[place : place + 1], place + 1
        if kind != b"t":
            values.append(None)
            continue
        (length,) = struct.unpack_from(">i", body, place)
        values.append(body[place + 4 : place + 4 + length].decode())
        place += 4 + length
    return values
