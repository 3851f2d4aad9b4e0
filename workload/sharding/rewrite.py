"""Write a region's leaves at home anew, without the bytes of rows that were deleted, online.

A deleted row stays in its page, and so it does after a VACUUM. VACUUM FULL writes the table anew
with everybody locked out: two seconds for 330,000 customers with a million purchases. Here new
leaves are filled beside the old ones from a snapshot, follow what changes meanwhile (capture.py),
and take their places in one transaction, for which alone customers wait. The old ones are dropped,
so that their files are unlinked.

Interrupted anywhere, the next call begins again: until the swap nobody uses the new leaves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError
from workload.processes import reached
from workload.sharding import capture, gates
from workload.sharding.bulk import LOAD_SETTINGS, run_all
from workload.sharding.leaves import Leaf, in_lock_order, leaves_of, parents
from workload.sharding.locks import LOCKS_S, exclusively
from workload.sql import Login, connect, describe, take_turns, together

#: Where leaves stand while they are filled, and where the old ones go.
REWRITTEN, RETIRED = "rewritten_{region}", "retired_{region}"
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
#: What would not come along: a person's own indexes, triggers, constraints, views and settings.
_NOT_THE_LABS = """
SELECT string_agg(what, ', ' ORDER BY what) FROM (
  SELECT format('index %%s', indexrelid::regclass) AS what FROM pg_index
  WHERE indrelid = ANY(%(leaves)s::regclass[]) AND NOT indexrelid = ANY (
    SELECT to_regclass(name) FROM unnest(%(indexes)s::text[]) AS name WHERE name IS NOT NULL)
  UNION ALL SELECT format('trigger %%s', tgname) FROM pg_trigger
  WHERE tgrelid = ANY(%(leaves)s::regclass[]) AND NOT tgisinternal AND tgname <> 'lab_note_change'
  UNION ALL SELECT format('constraint %%s', conname) FROM pg_constraint
  WHERE (contype IN ('c', 'x') AND conrelid = ANY(%(leaves)s::regclass[]))
     OR (contype = 'f' AND (conrelid = ANY(%(leaves)s::regclass[])
                            OR confrelid = ANY(%(leaves)s::regclass[]))
         AND NOT (conrelid = %(purchase)s::regclass AND confrelid = %(customer)s::regclass))
  UNION ALL SELECT format('view %%s', r.ev_class::regclass)
  FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
  WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
    AND d.refobjid = ANY(%(leaves)s::regclass[])
  UNION ALL SELECT format('publication %%s', p.pubname)
  FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
  WHERE r.prrelid = ANY(%(leaves)s::regclass[])
  UNION ALL SELECT format('statistics %%s', stxname) FROM pg_statistic_ext
  WHERE stxrelid = ANY(%(leaves)s::regclass[])
  UNION ALL SELECT DISTINCT format('rights on columns of %%s', attrelid::regclass)
  FROM pg_attribute WHERE attrelid = ANY(%(leaves)s::regclass[]) AND attacl IS NOT NULL
  UNION ALL SELECT format('settings of %%s', oid::regclass) FROM pg_class
  WHERE oid = ANY(%(leaves)s::regclass[]) AND (reloptions IS NOT NULL OR relrowsecurity)
) AS found
"""


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
        return f"written anew in {self.seconds:.1f} s{how}; {pause}"


def rewrite(login: Login, regions: Mapping[str, Sequence[str]], region: str) -> Rewritten:
    """Have no bytes of deleted rows in the files of a region's customers and purchases.

    regions: {name: countries}. Where something on the leaves is not the lab's and would not come
    along, it is a VACUUM FULL, and customers wait for as long. Raises LabError where no moment for
    the swap comes in time; the leaves are as they were then.
    """
    started = time.monotonic()
    old = [leaf for leaf in leaves_of(regions, [region]) if leaf.table in capture.KINDS]
    new = [leaf for leaf in leaves_of(regions, [region], REWRITTEN) if leaf.table in capture.KINDS]
    with connect(login, 10) as connection:
        connection.autocommit = True
        take_turns(connection, LOCKS_S)
        try:
            _undo(connection, region, LOCKS_S)
            because = _not_the_labs(connection, old)
            pause_ms = _full(connection, old) if because else _rewrite(connection, login, old, new)
            _undo(connection, region, LOCKS_S)
        except (psycopg.Error, LabError) as error:
            reason = describe(error) if isinstance(error, psycopg.Error) else str(error)
            # Its locks would be in the way of the undoing.
            connection.close()
            _give_up(login, region)
            raise LabError(
                f"bytes of deleted rows are still in {region}'s files, which could not be written"
                f" anew: {reason}; make after tries again"
            ) from None
    return Rewritten(time.monotonic() - started, pause_ms, because)


def _rewrite(
    connection: psycopg.Connection[Any], login: Login, old: Sequence[Leaf], new: Sequence[Leaf]
) -> float:
    """Fill new leaves and have them take the old ones' places; return the pause in ms."""
    region = old[0].region
    retired = sql.Identifier(RETIRED.format(region=region))
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(new[0].schema)))
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(retired))
    for leaf in new:
        connection.execute(leaf.create())
    begin_ms = capture.begin(connection, {leaf.table: leaf.identifier() for leaf in old}, LOCKS_S)
    reached("rewrite.armed")
    connection.execute(LOAD_SETTINGS)
    with connection.transaction():
        # One snapshot: no purchase without the customer who made it.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for source, target in zip(old, new, strict=True):
            load = sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {}").format(
                target.identifier(), source.identifier(), columns=source.column_list()
            )
            connection.execute(load)
    connection.execute("RESET synchronous_commit")
    reached("rewrite.loaded")
    run_all(login, [leaf.key_statements() for leaf in new])
    run_all(login, [leaf.references() for leaf in new])
    run_all(login, [[sql.SQL("ANALYZE {}").format(leaf.identifier())] for leaf in new])
    for source, target in zip(old, new, strict=True):
        _give_the_same_rights(connection, source, target)
    reached("rewrite.keyed")

    def until_few() -> None:
        while _bring_over(connection, old, new) > FEW:
            pass

    move = sql.SQL("ALTER TABLE {} SET SCHEMA {}")
    change: list[sql.Composable] = []
    for leaf in old:
        change += gates.take_out(connection, leaf)
        change.append(move.format(leaf.identifier(), retired))
    for source, target in zip(old, new, strict=True):
        change.append(move.format(target.identifier(), sql.Identifier(region)))
        change += gates.put_in(source, gates.stands(connection, source))

    def swap() -> None:
        _bring_over(connection, old, new)
        connection.execute(together(change))
        reached("rewrite.swapping")

    tables = [*parents(list(capture.KINDS)), *in_lock_order(old)]
    swap_ms, _ = exclusively(connection, tables, swap, LOCKS_S, until_few)
    reached("rewrite.swapped")
    return max(begin_ms, swap_ms)


def _bring_over(
    connection: psycopg.Connection[Any], old: Sequence[Leaf], new: Sequence[Leaf]
) -> int:
    """Have the rows whose keys were noted as they are now; return how many keys there were."""
    in_transaction = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
    with connection.transaction():
        if not in_transaction:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        keys = capture.drain(connection)
        pairs = list(zip(old, new, strict=True))
        for text, order in ((_UPSERT, pairs), (_FORGET, pairs[::-1])):
            for source, target in order:
                statement = sql.SQL(text).format(
                    new=target.identifier(),
                    old=source.identifier(),
                    columns=source.column_list(),
                    excluded=sql.SQL(", ").join(
                        sql.Identifier("excluded", column) for column in source.columns
                    ),
                )
                ids = keys[capture.KINDS[source.table]]
                if ids:
                    connection.execute(statement, (ids,))
    return sum(map(len, keys.values()))


def _give_the_same_rights(connection: psycopg.Connection[Any], source: Leaf, target: Leaf) -> None:
    """Grant on a table what is granted on another."""
    rights = connection.execute(
        "SELECT a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text"
        " END, a.is_grantable FROM pg_class c, aclexplode(c.relacl) a"
        " WHERE c.oid = %s::regclass AND a.grantee <> c.relowner",
        (source.identifier().as_string(connection),),
    ).fetchall()
    for right, role, is_grantable in rights:
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}{}").format(
                sql.SQL(right),
                target.identifier(),
                sql.SQL(role),
                sql.SQL(" WITH GRANT OPTION" if is_grantable else ""),
            )
        )


def _not_the_labs(connection: psycopg.Connection[Any], leaves: Sequence[Leaf]) -> str:
    """Return what is built on leaves that the lab has not made, "" for nothing."""
    region = sql.Identifier(leaves[0].region).as_string(connection)
    names = {leaf.table: leaf.identifier().as_string(connection) for leaf in leaves}
    indexes = ("customer_pkey", "purchase_pkey", "purchase_customer_id")
    row: Any = connection.execute(
        _NOT_THE_LABS,
        {
            "leaves": list(names.values()),
            "indexes": [f"{region}.{index}" for index in indexes],
            **names,
        },
    ).fetchone()
    return str(row[0] or "")


def _full(connection: psycopg.Connection[Any], leaves: Sequence[Leaf]) -> float:
    """Write leaves anew with everybody locked out; return for how many ms that was at most."""
    started = time.monotonic()
    for leaf in reversed(leaves):
        connection.execute(sql.SQL("VACUUM (FULL, ANALYZE) {}").format(leaf.identifier()))
    return (time.monotonic() - started) * 1e3


def _undo(connection: psycopg.Connection[Any], region: str, timeout_s: float) -> None:
    """Take away what a rewrite has made but for leaves that are in their places."""
    capture.disarm(connection)
    # With their triggers.
    for name in (REWRITTEN, RETIRED):
        schema = sql.Identifier(name.format(region=region))
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(schema))
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
