"""Move the tables of the start into leaf partitions while customers write.

Triggers note the keys of every row that changes; the rows as they are in one snapshot are copied
into leaves without keys, then the keys are built, and what changed meanwhile is brought over until
little is left. Then, in one transaction that holds both tables, the rest is, and views take the
tables' places: whoever waited goes on with them, prepared statements included.

Nobody reads the leaves before that transaction, so a run that was cut short is begun again from
nothing. From that transaction on they are all that there is, and nothing drops them any more.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError
from workload.processes import Say, in_parallel, reached
from workload.sharding import capture, gates
from workload.sharding.bulk import LOAD_SETTINGS, run_all
from workload.sharding.leaves import Leaf, leaves_of
from workload.sharding.locks import exclusively
from workload.sql import Login, connect, describe, take_turns, together

#: Keys left to bring over that are few enough to do so while customers wait.
FEW = 200
#: What one try for the locks may wait for them at most; everybody waits behind it.
LONGEST_MS = 200.0
#: Seconds until the swap is given up.
SWAP_TIMEOUT_S = 60.0
#: Seconds until what a run that gave up has made is left to the next one.
UNDO_TIMEOUT_S = 3.0

LOAD = {
    "customer": "SELECT id, email, country FROM public.customer WHERE country IN ({countries})",
    "purchase": (
        "SELECT p.id, p.customer_id, p.amount, c.country FROM public.purchase p"
        " JOIN public.customer c ON c.id = p.customer_id WHERE c.country IN ({countries})"
    ),
}
#: A customer whose country changed takes all purchases along. Which those are, the leaves know, by
#: an index that public.purchase does not have; what is not in the leaves yet is noted itself.
TAKE_ALONG = "DELETE FROM global.purchase WHERE customer_id = ANY(%(c)s) RETURNING id"
BRING_OVER = (
    "DELETE FROM global.purchase WHERE id = ANY(%(p)s)",
    "DELETE FROM global.customer WHERE id = ANY(%(c)s)",
    "INSERT INTO global.customer (id, email, country)"
    " SELECT id, email, country FROM public.customer WHERE id = ANY(%(c)s)",
    "INSERT INTO global.purchase (id, customer_id, amount, country)"
    " SELECT p.id, p.customer_id, p.amount, c.country FROM public.purchase p"
    " JOIN public.customer c ON c.id = p.customer_id WHERE p.id = ANY(%(p)s)",
)
#: Columns of a person's own, and views and foreign keys that follow a table wherever it goes.
FOREIGN_TO_THE_MOVE = """
SELECT string_agg(what, ', ') FROM (
  SELECT format('column %s.%s', c.relname, a.attname) AS what
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  WHERE c.oid IN ('public.customer'::regclass, 'public.purchase'::regclass)
    AND a.attnum > 0 AND NOT a.attisdropped
    AND a.attname NOT IN ('id', 'email', 'country', 'customer_id', 'amount')
  UNION
  SELECT format('view %s', r.ev_class::regclass)
  FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
  WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
    AND d.refobjid IN ('public.customer'::regclass, 'public.purchase'::regclass)
  UNION
  SELECT format('foreign key %s of %s', conname, conrelid::regclass) FROM pg_constraint
  WHERE contype = 'f' AND conrelid <> 'public.purchase'::regclass
    AND confrelid IN ('public.customer'::regclass, 'public.purchase'::regclass)
) AS found
"""
SWAP = """
CREATE SCHEMA IF NOT EXISTS retired;
ALTER TABLE public.purchase SET SCHEMA retired;
ALTER TABLE public.customer SET SCHEMA retired;
ALTER VIEW lab.customer SET SCHEMA public;
ALTER VIEW lab.purchase SET SCHEMA public;
"""
CLEAN_UP = (
    # Not CASCADE: what a person built on the old tables is theirs to drop.
    "DROP TABLE IF EXISTS retired.purchase, retired.customer",
    "DROP SCHEMA IF EXISTS retired",
)


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
                _clean_up(connection, timeout_s)
                return None
            _check_tables(connection)
            _check_countries(connection, regions)
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
    gates.build(connection, [leaf for leaf in leaves if leaf.region in leaving])
    for leaf in leaves:
        connection.execute(leaf.create())
        connection.execute(together(gates.put_in(leaf, gates.stands(connection, leaf))))
    reached("partition.created")
    capture.begin(connection, {table: sql.Identifier("public", table) for table in LOAD}, timeout_s)
    reached("partition.armed")
    rows = _load(login, leaves, say)
    reached("partition.loaded")
    run_all(login, [leaf.key_statements() for leaf in leaves])
    run_all(login, [leaf.references() for leaf in leaves])
    reached("partition.keyed")
    run_all(
        login,
        [[sql.SQL("ANALYZE {}").format(leaf.identifier())] for leaf in leaves],
    )
    extra = _size(connection) - size_before
    say(f"loaded {sum(rows.values()):,} rows in {time.monotonic() - started:.1f} s; swapping")
    pause_ms, tries = _swap(connection, timeout_s)
    reached("partition.swapped")
    _clean_up(connection, timeout_s)
    return Partitioned(
        customers=rows["customer"],
        purchases=rows["purchase"],
        write_pause_ms=pause_ms,
        tries=tries,
        seconds=time.monotonic() - started,
        extra_bytes=max(0, extra),
    )


def _load(login: Login, leaves: Sequence[Leaf], say: Say) -> dict[str, int]:
    """Fill the leaves from one snapshot, two at a time; return the rows of each table."""
    rows = dict.fromkeys(LOAD, 0)
    with connect(login, 10) as keeper:
        keeper.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = keeper.execute("SELECT pg_export_snapshot()").fetchone()
        assert row
        waiting = [leaf for leaf in reversed(leaves) if leaf.table in LOAD]

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
                    query = sql.SQL(LOAD[leaf.table]).format(countries=leaf.country_list())
                    done = connection.execute(
                        sql.SQL("INSERT INTO {} ({}) {}").format(
                            leaf.identifier(), leaf.column_list(), query
                        )
                    )
                    connection.execute("COMMIT")
                    rows[leaf.table] += done.rowcount
                    say(f"{leaf.name}: {done.rowcount:,} rows")

        in_parallel([work, work])
    return rows


def _swap(connection: psycopg.Connection[Any], timeout_s: float) -> tuple[float, int]:
    """Bring over the rest and let the views take over; return the longest pause (ms), tries."""

    def until_few() -> None:
        while _bring_over(connection) > FEW:
            pass

    def swap() -> None:
        _bring_over(connection)
        connection.execute(SWAP)
        reached("partition.swapping")

    # A purchase's foreign key has its writer lock both in this order.
    tables = [sql.Identifier("public", "purchase"), sql.Identifier("public", "customer")]
    return exclusively(connection, tables, swap, timeout_s, before=until_few, longest_ms=LONGEST_MS)


def _bring_over(connection: psycopg.Connection[Any]) -> int:
    """Copy the rows whose keys were noted as they are now; return how many keys there were."""
    in_transaction = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
    with connection.transaction():
        if not in_transaction:
            # One snapshot: a purchase is never seen without the customer who made it.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        keys = capture.drain(connection)
        if keys["c"] or keys["p"]:
            keys["p"] += [row[0] for row in connection.execute(TAKE_ALONG, keys)]
            for statement in BRING_OVER:
                connection.execute(statement, keys)
    return len(keys["c"]) + len(keys["p"])


def _check_tables(connection: psycopg.Connection[Any]) -> None:
    """Refuse what the move would leave behind: columns, and what is built on the two tables."""
    row: Any = connection.execute(FOREIGN_TO_THE_MOVE).fetchone()
    if row[0]:
        raise LabError(
            f"what is not the lab's would be left behind on the old tables: {row[0]}; drop it, and"
            " make it again after"
        )


def _check_countries(
    connection: psycopg.Connection[Any], regions: Mapping[str, Sequence[str]]
) -> None:
    known = [country for countries in regions.values() for country in countries]
    found = connection.execute(
        "SELECT country, count(*) FROM public.customer WHERE country <> ALL(%s) GROUP BY 1"
        " ORDER BY 2 DESC LIMIT 5",
        (known,),
    ).fetchall()
    if found:
        named = ", ".join(f"{count:,} in {country!r}" for country, count in found)
        raise LabError(
            f"customers are in countries that are at home in no region: {named}; add them to"
            " lab_regions, or mend the rows"
        )


def _undo(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float) -> str:
    """Take away what a run that was cut short left; return what a lock keeps from going, if any.

    Customers write on meanwhile, and have nothing to wait for where something stays.
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
        for statement in CLEAN_UP:
            connection.execute(statement)
        capture.end(connection)

    exclusively(connection, [], work, timeout_s)


def _size(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row
    return int(row[0])
