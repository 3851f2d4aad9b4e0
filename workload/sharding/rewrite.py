"""Online rewrite of a region's leaves at home, as pg_repack does: no bytes of deleted rows stay.

A deleted row stays in its page, and so it does after a VACUUM. VACUUM FULL rewrites the table under
an exclusive lock: two seconds for 330,000 customers with a million purchases. Here new leaves are
filled beside the old ones from a snapshot, follow what changes meanwhile (capture.py), and take
their places in one transaction, for which alone customers wait. The old ones are dropped, so that
their files are unlinked.

Interrupted anywhere, the next call begins again: until the swap no session uses the new leaves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.errors import LabError
from workload.processes import reached
from workload.schemas import RETIRED, REWRITTEN
from workload.sharding import capture, gates, uncarried
from workload.sharding.bulk import LOAD_SETTINGS, run_all
from workload.sharding.definition import Definition, grants, of_leaves
from workload.sharding.leaves import STARTED, TABLES, Leaf, in_lock_order, leaves_of, parents
from workload.sharding.locks import LOCKS_S, exclusively
from workload.sql import Login, connect, describe, take_turns, together

#: Keys left to bring over that are few enough to do so while customers wait.
FEW = 200
#: Seconds until what a run that gave up has made is left to the next one.
UNDO_S = 3.0
#: Rows as they are now, for keys that were noted: {new} from {old}. A purchase comes after its
#: customer and goes before.
_UPSERT = (
    "INSERT INTO {new} ({columns}) SELECT {columns} FROM {old} WHERE id = ANY(%s)"
    " ON CONFLICT (id) DO UPDATE SET ({columns}) = ROW ({excluded})"
)
_FORGET = (
    "DELETE FROM {new} AS n WHERE id = ANY(%s)"
    " AND NOT EXISTS (SELECT FROM {old} AS o WHERE o.id = n.id)"
)


@dataclass(frozen=True)
class Rewritten:
    """What it took."""

    seconds: float
    #: For which customers of the region waited at most.
    pause_ms: float
    #: What made it a VACUUM FULL, "" where nothing did.
    because: str = ""

    def __str__(self) -> str:
        """Say it."""
        how = f", by VACUUM FULL because of {self.because}" if self.because else ""
        pause = f"nobody waited longer than {self.pause_ms:,.0f} ms"
        return f"rewritten in {self.seconds:.1f} s{how}; {pause}"


def rewrite(login: Login, regions: Mapping[str, Sequence[str]], region: str) -> Rewritten:
    """Remove the bytes of deleted rows from the files of a region's customers and purchases.

    regions: {name: countries}. Where something on the leaves is not the lab's and would not come
    along, it is a VACUUM FULL, and customers wait for as long. Raises LabError where no moment for
    the swap comes in time; the leaves are as they were then.
    """
    started = time.monotonic()
    tables = [table.name for table in STARTED]
    old = [leaf for leaf in leaves_of(regions, [region]) if leaf.table in tables]
    new = [leaf for leaf in leaves_of(regions, [region], REWRITTEN) if leaf.table in tables]
    with connect(login, 10) as connection:
        connection.autocommit = True
        take_turns(connection, LOCKS_S)
        try:
            _undo(connection, region, LOCKS_S)
            because = ", ".join(
                uncarried.kept_in_place(connection, {leaf.table: leaf.identifier() for leaf in old})
            )
            pause_ms = _full(connection, old) if because else _rewrite(connection, login, old, new)
            _undo(connection, region, LOCKS_S)
        except (psycopg.Error, LabError) as error:
            reason = describe(error) if isinstance(error, psycopg.Error) else str(error)
            # Its locks would be in the way of the undoing.
            connection.close()
            _give_up(login, region)
            raise LabError(
                f"bytes of deleted rows are still in {region}'s files, which could not be"
                f" rewritten: {reason}; make after tries again"
            ) from None
    return Rewritten(time.monotonic() - started, pause_ms, because)


def _rewrite(
    connection: psycopg.Connection[Any], login: Login, old: Sequence[Leaf], new: Sequence[Leaf]
) -> float:
    """Fill new leaves and put them in the old ones' places; return the pause in ms."""
    region = old[0].region
    retired = RETIRED.format(region=region)
    definitions = of_leaves(connection, region)
    for schema in (new[0].schema, retired):
        connection.execute(schemas.create(schema))
    for leaf in new:
        connection.execute(together(definitions[leaf.table].create(leaf)))
    begin_ms = capture.begin(connection, {leaf.table: leaf.identifier() for leaf in old}, LOCKS_S)
    reached("rewrite.armed")
    connection.execute(LOAD_SETTINGS)
    with connection.transaction():
        # One snapshot: no purchase without the customer who made it.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for source, target in zip(old, new, strict=True):
            load = sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {}").format(
                target.identifier(),
                source.identifier(),
                columns=definitions[source.table].column_list(),
            )
            connection.execute(load)
    connection.execute("RESET synchronous_commit")
    reached("rewrite.loaded")
    run_all(login, [definitions[leaf.table].keys(leaf) for leaf in new])
    run_all(login, [definitions[leaf.table].references(leaf) for leaf in new])
    run_all(login, [[sql.SQL("ANALYZE {}").format(leaf.identifier())] for leaf in new])
    for leaf in new:
        for statement in grants(definitions[leaf.table].objects, leaf.identifier()):
            connection.execute(statement)
    reached("rewrite.keyed")
    bring_over = _bring_over_statements(old, new, definitions)

    def until_few() -> None:
        while _bring_over(connection, bring_over) > FEW:
            pass

    change: list[sql.Composable] = []
    for leaf in old:
        change += gates.take_out(connection, leaf)
        change += definitions[leaf.table].move(leaf, retired)
    for source, target in zip(old, new, strict=True):
        change += definitions[target.table].move(target, region)
        change += gates.put_in(source, gates.stands(connection, source))

    def swap() -> None:
        _bring_over(connection, bring_over)
        connection.execute(together(change))
        reached("rewrite.swapping")

    tables = [*parents([leaf.table for leaf in old]), *in_lock_order(old)]
    outcome = exclusively(connection, tables, swap, LOCKS_S, until_few)
    reached("rewrite.swapped")
    return max(begin_ms, outcome.blocked_ms)


def _bring_over_statements(
    old: Sequence[Leaf], new: Sequence[Leaf], definitions: Mapping[str, Definition]
) -> list[tuple[str, sql.Composed]]:
    """Return, with the table whose keys each takes, what makes captured rows as they are now."""
    statements = []
    pairs = list(zip(old, new, strict=True))
    for text, order in ((_UPSERT, pairs), (_FORGET, pairs[::-1])):
        for source, target in order:
            definition = definitions[source.table]
            statement = sql.SQL(text).format(
                new=target.identifier(),
                old=source.identifier(),
                columns=definition.column_list(),
                excluded=sql.SQL(", ").join(
                    sql.Identifier("excluded", column) for column in definition.names
                ),
            )
            statements.append((source.table, statement))
    return statements


def _bring_over(
    connection: psycopg.Connection[Any], statements: Sequence[tuple[str, sql.Composed]]
) -> int:
    """Bring over the rows whose keys were captured; return how many keys there were."""
    in_transaction = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
    with connection.transaction():
        if not in_transaction:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        keys = capture.drain(connection)
        for table, statement in statements:
            if keys[table]:
                connection.execute(statement, (keys[table],))
    return sum(map(len, keys.values()))


def _full(connection: psycopg.Connection[Any], leaves: Sequence[Leaf]) -> float:
    """Rewrite leaves under an exclusive lock; return for how many ms at most."""
    started = time.monotonic()
    for leaf in reversed(leaves):
        connection.execute(sql.SQL("VACUUM (FULL, ANALYZE) {}").format(leaf.identifier()))
    return (time.monotonic() - started) * 1e3


def _undo(connection: psycopg.Connection[Any], region: str, timeout_s: float) -> None:
    """Drop what a rewrite has made but for leaves that are in their places."""
    capture.disarm(connection)
    # With their triggers.
    for name in (REWRITTEN, RETIRED):
        schemas.drop(connection, name.format(region=region), list(TABLES))
    capture.unwatch(connection, timeout_s)
    capture.end(connection)


def _give_up(login: Login, region: str) -> None:
    try:
        with connect(login, 10) as connection:
            connection.autocommit = True
            take_turns(connection, UNDO_S)
            _undo(connection, region, UNDO_S)
    except (LabError, psycopg.Error):
        # The next call does it; what is left is in nobody's way.
        return
