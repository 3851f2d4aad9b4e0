"""Move the tables of the start into leaf partitions while customers write.

Triggers capture the keys of rows that change; the rows of one snapshot are copied into leaves
without keys, then the keys are built, and what changed meanwhile is brought over until little is
left. One transaction that holds both tables brings over the rest and puts views in the tables'
places: sessions that waited go on with those, prepared statements included.

No session reads the leaves before that transaction, so a run that was interrupted begins again from
nothing. From that transaction on they are the only copy, and nothing drops them any more.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.errors import LabError
from workload.processes import Say, in_parallel, reached
from workload.sharding import capture, gates, uncarried
from workload.sharding.bulk import LOAD_SETTINGS, run_all
from workload.sharding.checks import unknown_countries
from workload.sharding.definition import Definition, grants, of_parents, of_start
from workload.sharding.leaves import (
    LOCK_ORDER,
    REGION,
    STARTED,
    TABLES,
    Leaf,
    Table,
    leaves_of,
)
from workload.sharding.locks import LockOutcome, exclusively
from workload.sharding.objects import of_kind, read
from workload.sql import Login, connect, describe, take_turns, together

#: Keys left to bring over that are few enough to do so while customers wait.
FEW = 200
#: What one try for the locks may wait for them at most; everybody waits behind it.
LONGEST_MS = 200.0
#: The rights on an old name by which a statement goes on to the parent.
WRITTEN_THROUGH = ("SELECT", "INSERT", "UPDATE", "DELETE")
#: Seconds until the swap is given up.
SWAP_TIMEOUT_S = 60.0
#: Seconds until what a run that gave up has made is left to the next one.
UNDO_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Partitioned:
    """What the move took."""

    customers: int
    purchases: int
    #: From asking for the locks to the commit, while customers could not write; the longest where
    #: it took several tries.
    write_pause_ms: float
    tries: int
    seconds: float
    #: The most that the database grew by on the way.
    extra_bytes: int


def is_partitioned(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether views stand where the tables of the start stood."""
    row = connection.execute(
        "SELECT relkind = 'v' FROM pg_class WHERE oid = to_regclass('public.customer')"
    ).fetchone()
    return bool(row and row[0])


def partition(
    login: Login,
    regions: Mapping[str, Sequence[str]],
    say: Say,
    timeout_s: float = SWAP_TIMEOUT_S,
    leaving: Collection[str] = (),
) -> Partitioned | None:
    """Move the rows of public.customer and public.purchase; return None where that is done already.

    regions: {name: countries}; leaving: those that are to leave this node later, and get gates.
    Raises LabError, with the lab as it was, where customers are in a country of no region, or where
    the tables cannot be locked in time.
    """
    leaves = leaves_of(regions)
    with connect(login, 10) as connection:
        connection.autocommit = True
        take_turns(connection, timeout_s)
        try:
            if is_partitioned(connection):
                # The triggers may be those of a rewrite that was killed.
                capture.disarm(connection)
                capture.unwatch(connection, timeout_s)
                _clean_up(connection, timeout_s)
                return None
            problems = uncarried.on_start(connection) + unknown_countries(connection, regions)
            if problems:
                raise LabError("; ".join(problems))
            started = time.monotonic()
            left = _undo(connection, leaves, timeout_s)
            if left:
                raise LabError(
                    f"a long transaction holds a lock on what an earlier run left: {left}"
                )
            done = _move(connection, login, leaves, leaving, say, timeout_s, started)
        except (psycopg.Error, LabError) as error:
            reason = describe(error) if isinstance(error, psycopg.Error) else str(error)
            # Its locks would be in the way of the undoing.
            connection.close()
            raise LabError(_give_up(login, leaves, reason)) from None
        return done


def _move(
    connection: psycopg.Connection[Any],
    login: Login,
    leaves: Sequence[Leaf],
    leaving: Collection[str],
    say: Say,
    timeout_s: float,
    started: float,
) -> Partitioned:
    size_before = _size(connection)
    definitions = of_start(connection)
    _shape_parents(connection, definitions)
    _carry_rights(connection, definitions)
    gates.build(connection, [leaf for leaf in leaves if leaf.region in leaving])
    for leaf in leaves:
        connection.execute(together(definitions[leaf.table].create(leaf)))
        connection.execute(together(gates.put_in(leaf, gates.stands(connection, leaf))))
    reached("partition.created")
    capture.begin(connection, {table.name: table.start() for table in STARTED}, timeout_s)
    reached("partition.armed")
    rows = _load(login, leaves, definitions, say)
    reached("partition.loaded")
    run_all(login, [definitions[leaf.table].keys(leaf) for leaf in leaves])
    run_all(login, [definitions[leaf.table].references(leaf) for leaf in leaves])
    reached("partition.keyed")
    run_all(
        login,
        [[sql.SQL("ANALYZE {}").format(leaf.identifier())] for leaf in leaves],
    )
    extra = _size(connection) - size_before
    say(f"loaded {sum(rows.values()):,} rows in {time.monotonic() - started:.1f} s; swapping")
    swap = _swap(connection, definitions, timeout_s)
    reached("partition.swapped")
    _clean_up(connection, timeout_s)
    return Partitioned(
        customers=rows["customer"],
        purchases=rows["purchase"],
        write_pause_ms=swap.blocked_ms,
        tries=swap.attempts,
        seconds=time.monotonic() - started,
        extra_bytes=max(0, extra),
    )


def _shape_parents(
    connection: psycopg.Connection[Any], definitions: Mapping[str, Definition]
) -> None:
    """Make the parents, and the views that are to take over, have the columns of the start."""
    parents = of_parents(connection)
    changes = [
        statement
        for name, parent in parents.items()
        for statement in definitions[name].changes_of(parent)
    ]
    if not changes:
        return
    views = {table.name: sql.Identifier("lab", table.name) for table in STARTED}
    objects = read(connection, views)
    with connection.transaction():
        for view in views.values():
            connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(view))
        connection.execute(together(changes))
        connection.execute("SELECT lab.offer_old_names()")
        for name, view in views.items():
            for statement in grants(objects[name], view):
                connection.execute(statement)


def _carry_rights(
    connection: psycopg.Connection[Any], definitions: Mapping[str, Definition]
) -> None:
    """Give the rights on the tables of the start on the views, and on what these write to.

    A statement by an old name goes on by the parent and by functions of schema lab as the session's
    own role.
    """
    roles = set()
    for table in STARTED:
        rights = of_kind(definitions[table.name].objects, "grant")
        roles |= {item.name for item in rights if item.name != "PUBLIC"}
        writes = [item for item in rights if item.definition in WRITTEN_THROUGH]
        for statement in [
            *grants(rights, sql.Identifier("lab", table.name)),
            *grants(writes, sql.Identifier("global", table.name)),
        ]:
            connection.execute(statement)
    functions = connection.execute(
        "SELECT DISTINCT p.oid::regprocedure::text FROM pg_proc AS p, aclexplode(p.proacl) AS a"
        " WHERE p.pronamespace = 'lab'::regnamespace AND a.grantee NOT IN (0, p.proowner)"
    ).fetchall()
    for role in map(sql.SQL, sorted(roles)):
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA global, lab TO {}").format(role))
        for (name,) in functions:
            connection.execute(
                sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(name), role)
            )


def _rows_of(table: Table, definition: Definition) -> sql.Composed:
    """Return the query of a table's rows as its leaves have them, up to its WHERE.

    The table is called t, and the one that says where its rows are at home, home.
    """
    columns = sql.SQL(", ").join(
        sql.Identifier(table.home if name == REGION else "t", name) for name in definition.names
    )
    query = sql.SQL("SELECT {} FROM {} AS t").format(columns, table.start())
    if not table.follows:
        return query
    return query + sql.SQL(" JOIN {} AS home ON home.id = t.{}").format(
        TABLES[table.follows].start(), sql.Identifier(table.by)
    )


def _load(
    login: Login, leaves: Sequence[Leaf], definitions: Mapping[str, Definition], say: Say
) -> dict[str, int]:
    """Fill the leaves from one snapshot, two at a time; return the rows of each table."""
    rows = {table.name: 0 for table in STARTED}
    with connect(login, 10) as keeper:
        keeper.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = keeper.execute("SELECT pg_export_snapshot()").fetchone()
        assert row
        waiting = [leaf for leaf in reversed(leaves) if leaf.table in rows]

        def work() -> None:
            while waiting:
                try:
                    leaf = waiting.pop()
                except IndexError:
                    return
                with connect(login, 10) as connection:
                    connection.autocommit = True
                    connection.execute(f"{LOAD_SETTINGS}; SET work_mem = '64MB'")
                    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    connection.execute(
                        sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(row[0]))
                    )
                    table, definition = TABLES[leaf.table], definitions[leaf.table]
                    loaded = connection.execute(
                        sql.SQL("INSERT INTO {} ({}) {} WHERE {} IN ({})").format(
                            leaf.identifier(),
                            definition.column_list(),
                            _rows_of(table, definition),
                            sql.Identifier(table.home, REGION),
                            leaf.country_list(),
                        )
                    )
                    connection.execute("COMMIT")
                    rows[leaf.table] += loaded.rowcount
                    say(f"{leaf.name}: {loaded.rowcount:,} rows")

        in_parallel([work, work])
    return rows


def _swap(
    connection: psycopg.Connection[Any], definitions: Mapping[str, Definition], timeout_s: float
) -> LockOutcome:
    """Bring over the rest and let the views take over."""
    bring_over = _bring_over_statements(definitions)
    names = [table.name for table in reversed(STARTED)]
    change = [
        schemas.create(schemas.OLD),
        *(
            sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(
                TABLES[name].start(), sql.Identifier(schemas.OLD)
            )
            for name in names
        ),
        *(
            sql.SQL("ALTER VIEW {} SET SCHEMA public").format(sql.Identifier("lab", name))
            for name in names
        ),
    ]

    def until_few() -> None:
        while _bring_over(connection, bring_over) > FEW:
            pass

    def swap() -> None:
        _bring_over(connection, bring_over)
        connection.execute(together(change))
        reached("partition.swapping")

    tables = [TABLES[name].start() for name in LOCK_ORDER if TABLES[name].is_from_start]
    return exclusively(connection, tables, swap, timeout_s, before=until_few, longest_ms=LONGEST_MS)


def _bring_over_statements(
    definitions: Mapping[str, Definition],
) -> tuple[Mapping[str, sql.Composed], list[sql.Composed]]:
    """Return what brings over the rows whose keys were captured, %(table)s, as they are now.

    First, by table, what returns the keys of rows that come along with their captured home row: a
    customer whose country changed takes all purchases along. Which those are, the leaves know by
    their index; what is not in the leaves yet was captured itself.
    """
    along = {
        table.name: sql.SQL("DELETE FROM {} WHERE {} = ANY({}) RETURNING id").format(
            sql.Identifier("global", table.name),
            sql.Identifier(table.by),
            sql.Placeholder(table.follows),
        )
        for table in STARTED
        if table.follows
    }
    delete = [
        sql.SQL("DELETE FROM {} WHERE id = ANY({})").format(
            sql.Identifier("global", table.name), sql.Placeholder(table.name)
        )
        for table in reversed(STARTED)
    ]
    insert = [
        sql.SQL("INSERT INTO {} ({}) {} WHERE t.id = ANY({})").format(
            sql.Identifier("global", table.name),
            definitions[table.name].column_list(),
            _rows_of(table, definitions[table.name]),
            sql.Placeholder(table.name),
        )
        for table in STARTED
    ]
    return along, [*delete, *insert]


def _bring_over(
    connection: psycopg.Connection[Any],
    statements: tuple[Mapping[str, sql.Composed], list[sql.Composed]],
) -> int:
    """Copy the rows whose keys were captured as they are now; return how many keys there were."""
    in_transaction = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
    with connection.transaction():
        if not in_transaction:
            # One snapshot: a purchase is never read without the customer who made it.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        keys = capture.drain(connection)
        if any(keys.values()):
            along, change = statements
            for table, statement in along.items():
                keys[table] += [row[0] for row in connection.execute(statement, keys)]
            for statement in change:
                connection.execute(statement, keys)
    return sum(map(len, keys.values()))


def _undo(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float) -> str:
    """Drop what an interrupted run left; return what could not be locked, "" for nothing.

    Customers write on meanwhile, and nothing makes them wait where something stays.
    """
    capture.disarm(connection)
    for leaf in reversed(leaves):
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(leaf.identifier()))
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(gates.gate_of(leaf)))
    try:
        capture.unwatch(connection, timeout_s)
        _clean_up(connection, timeout_s)
    except LabError:
        return "trigger lab_note_change"
    return ""


def _give_up(login: Login, leaves: Sequence[Leaf], reason: str) -> str:
    """Undo on a new connection, unless the views have taken over; return what to say of it."""
    try:
        with connect(login, 10) as connection:
            connection.autocommit = True
            take_turns(connection, UNDO_TIMEOUT_S)
            if is_partitioned(connection):
                return f"the rows are in their partitions, what they were in is not gone: {reason}"
            left = _undo(connection, leaves, UNDO_TIMEOUT_S)
    except (LabError, psycopg.Error):
        return f"partitioning was cut short, the next run finds out how far it came: {reason}"
    rest = f" but for {left}, which is in nobody's way and which the next run removes"
    return f"partitioning was given up, nothing is changed{rest if left else ''}: {reason}"


def _clean_up(connection: psycopg.Connection[Any], timeout_s: float) -> None:
    def work() -> None:
        schemas.drop(connection, schemas.OLD, [table.name for table in STARTED])
        capture.end(connection)

    exclusively(connection, [], work, timeout_s)


def _size(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row
    return int(row[0])
