"""Move the tables of the start into leaf partitions while customers write.

Triggers note the keys of every row that changes; the rows as they are in one snapshot are copied
into leaves without keys, then the keys are built, and what changed meanwhile is brought over until
little is left. Then, in one transaction that holds both tables, the rest is, and views take the
tables' places: whoever waited goes on with them, prepared statements included.

Nobody reads the leaves before that transaction, so a run that was cut short is begun again from
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from workload.bulk import LOAD_SETTINGS, Say, in_parallel, run_all
from workload.errors import LabError
from workload.leaves import Leaf, leaves_of
from workload.sql import Login, connect, describe, take_turns

#: How long a try for the two tables' locks may take; whoever comes after it queues behind it.
LOCK_TIMEOUT_MS = 100
#: A deadlock with a customer's transaction is ours to give in to, and sooner than they would.
DEADLOCK_TIMEOUT_MS = 10
#: Keys left to bring over that are few enough to do so while customers wait.
FEW = 200
#: Seconds until the swap is given up, and between two tries.
SWAP_TIMEOUT_S, PAUSE_S = 60.0, 0.05

CAPTURE = """
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
TRIGGER = """
CREATE TRIGGER lab_note_change AFTER INSERT OR UPDATE OR DELETE ON public.{table}
FOR EACH ROW EXECUTE FUNCTION lab.note_change({kind})
"""
LOAD = {
    "customer": "SELECT id, email, country FROM public.customer WHERE country IN ({countries})",
    "purchase": (
        "SELECT p.id, p.customer_id, p.amount, c.country FROM public.purchase p"
        " JOIN public.customer c ON c.id = p.customer_id WHERE c.country IN ({countries})"
    ),
}
#: A customer whose country changed takes all purchases along.
BRING_OVER = (
    "DELETE FROM global.purchase WHERE customer_id = ANY(%(c)s)",
    "DELETE FROM global.purchase WHERE id = ANY(%(p)s)",
    "DELETE FROM global.customer WHERE id = ANY(%(c)s)",
    "INSERT INTO global.customer (id, email, country)"
    " SELECT id, email, country FROM public.customer WHERE id = ANY(%(c)s)",
    "INSERT INTO global.purchase (id, customer_id, amount, country)"
    " SELECT p.id, p.customer_id, p.amount, c.country FROM ("
    "  SELECT * FROM public.purchase WHERE id = ANY(%(p)s)"
    "  UNION SELECT * FROM public.purchase WHERE customer_id = ANY(%(c)s)"
    " ) p JOIN public.customer c ON c.id = p.customer_id",
)
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
    "DROP TABLE IF EXISTS lab.changed",
    "DROP FUNCTION IF EXISTS lab.note_change",
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
    login: Login, regions: Mapping[str, Sequence[str]], say: Say, timeout_s: float = SWAP_TIMEOUT_S
) -> Partitioned | None:
    """Move the rows of public.customer and public.purchase; return None where that is done already.

    regions: {name: countries}. Raises LabError, with the lab as it was, where customers are in a
    country of no region, or where the tables cannot be locked in time.
    """
    with connect(login, 10) as connection:
        connection.autocommit = True
        take_turns(connection, timeout_s)
        if is_partitioned(connection):
            _clean_up(connection)
            return None
        leaves = leaves_of(regions)
        _check_countries(connection, regions)
        started = time.monotonic()
        _undo(connection, leaves)
        try:
            return _move(connection, login, leaves, say, timeout_s, started)
        except psycopg.Error as error:
            _undo_quietly(login, leaves)
            raise LabError(
                f"partitioning was given up, nothing is changed: {describe(error)}"
            ) from None
        except LabError as error:
            _undo_quietly(login, leaves)
            raise LabError(f"partitioning was given up, nothing is changed: {error}") from None


def _move(
    connection: psycopg.Connection[Any],
    login: Login,
    leaves: Sequence[Leaf],
    say: Say,
    timeout_s: float,
    started: float,
) -> Partitioned:
    size_before = _size(connection)
    for leaf in leaves:
        connection.execute(leaf.create())
        connection.execute(leaf.attach())
    connection.execute(CAPTURE)
    for table, kind in (("customer", "c"), ("purchase", "p")):
        _with_retries(
            connection,
            sql.SQL(TRIGGER).format(table=sql.Identifier(table), kind=sql.Literal(kind)),
            timeout_s,
        )
    rows = _load(login, leaves, say)
    run_all(login, [leaf.keys() for leaf in leaves])
    run_all(login, [leaf.references() for leaf in leaves])
    run_all(
        login,
        [[sql.SQL("ANALYZE {}").format(leaf.identifier())] for leaf in leaves],
    )
    extra = _size(connection) - size_before
    say(f"loaded {sum(rows.values()):,} rows in {time.monotonic() - started:.1f} s; swapping")
    pause_ms, tries = _swap(connection, timeout_s)
    _clean_up(connection)
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
    """Bring over what is left and let the views take over; return the longest pause (ms), tries."""
    connection.execute(f"SET deadlock_timeout = {DEADLOCK_TIMEOUT_MS}")
    connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    deadline = time.monotonic() + timeout_s
    tries, longest_ms = 0, 0.0
    while True:
        while _bring_over(connection) > FEW:
            pass
        tries += 1
        started = time.perf_counter()
        try:
            with connection.transaction():
                # A purchase's foreign key has its writer lock both in this order.
                connection.execute("LOCK TABLE public.purchase, public.customer")
                _bring_over(connection)
                connection.execute(SWAP)
            return max(longest_ms, (time.perf_counter() - started) * 1e3), tries
        except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
            longest_ms = max(longest_ms, (time.perf_counter() - started) * 1e3)
            if time.monotonic() > deadline:
                raise LabError(
                    f"no lock on customer and purchase in {timeout_s:.0f} s ({tries} tries): a long"
                    f" transaction holds one; {describe(error)}"
                ) from None
            time.sleep(PAUSE_S)


def _bring_over(connection: psycopg.Connection[Any]) -> int:
    """Copy the rows whose keys were noted as they are now; return how many keys there were."""
    in_transaction = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
    with connection.transaction():
        if not in_transaction:
            # One snapshot: a purchase is never seen without the customer who made it.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        keys: dict[str, list[Any]] = {"c": [], "p": []}
        for kind, key in connection.execute("DELETE FROM lab.changed RETURNING kind::text, id"):
            keys[kind].append(key)
        if keys["c"] or keys["p"]:
            for statement in BRING_OVER:
                connection.execute(statement, keys)
    return len(keys["c"]) + len(keys["p"])


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


def _undo(connection: psycopg.Connection[Any], leaves: Sequence[Leaf]) -> None:
    """Take away what a run that was cut short left; customers write on meanwhile."""
    for table in ("customer", "purchase"):
        _with_retries(
            connection,
            sql.SQL("DROP TRIGGER IF EXISTS lab_note_change ON public.{}").format(
                sql.Identifier(table)
            ),
            SWAP_TIMEOUT_S,
        )
    for leaf in reversed(leaves):
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(leaf.identifier()))
    _clean_up(connection)


def _undo_quietly(login: Login, leaves: Sequence[Leaf]) -> None:
    """Undo on a new connection; where that fails too, the next run does it."""
    try:
        with connect(login, 10) as connection:
            connection.autocommit = True
            _undo(connection, leaves)
    except (LabError, psycopg.Error):
        return


def _clean_up(connection: psycopg.Connection[Any]) -> None:
    for statement in CLEAN_UP:
        connection.execute(statement)


def _with_retries(
    connection: psycopg.Connection[Any], statement: sql.Composed, timeout_s: float
) -> None:
    connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute(statement)
            break
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)
    connection.execute("SET lock_timeout = 0")


def _size(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row
    return int(row[0])
