"""The cut-over: a region's rows change their home from the origin to their own node, online.

The copy on the new home is up to date to some milliseconds; what is left is to change which one is
written to, with every write on one side or the other, and nobody held up who has nothing to do with
it. Writers lock the parent, then the leaf, for as long as their transaction lasts. Who waits for
the last rows with the leaf locked and then wants the parent, deadlocks with them; who locks the
parent first, holds up the customers of all regions for a round trip. So a second partitioned table
goes between the parent and the region's leaf, for this time:

1. enter: global.customer -> moving_us.customer -> us.customer. Parents locked, milliseconds.
2. swap: only the tables below the parents are locked. A marker is written; the leaf is taken out
   and a foreign table put in its place; when the new home has the marker, that is committed. Who
   waited goes on, prepared statements included, and finds the foreign table. One round trip.
3. leave: global.customer -> us.customer, a foreign table now. Parents locked, milliseconds.

Interrupted anywhere, it goes on from what the catalogue says: before the swap nothing has happened,
after it there is no way back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload import diff, foreign, marker
from workload.bounds import prove, settle
from workload.bulk import Say
from workload.errors import LabError
from workload.leaves import Leaf, leaves_of, parents
from workload.locks import LOCKS_S, PostponedError, exclusively
from workload.sql import connect, describe, take_turns
from workload.topology import Topology, set_roles, set_warm_up

MOVING = "moving_{region}"
RETIRED = "retired_{region}"
#: Round trips in which the region's customers warm up: the twenty over which they spread, and one's
#: own.
WARM_UP_ROUND_TRIPS = 40
#: Seconds to wait for the copy.
CATCH_UP_S = 30.0
#: What the marker may take beyond its round trip before the try is given up.
SLACK_MS = 80.0


@dataclass(frozen=True)
class CutOver:
    """The receipt of one region's cut-over."""

    region: str
    rtt_ms: float
    #: The longest time for which the moved region's writers waited, and everybody else's.
    write_pause_ms: float
    others_pause_ms: float
    tries: int
    #: Rows that both sides agreed on by count and checksum before.
    rows: int


def cut_over(
    topology: Topology,
    password: str,
    region: str,
    regions: Mapping[str, Sequence[str]],
    customers_role: str,
    say: Say,
    timeout_s: float = LOCKS_S,
) -> CutOver | None:
    """Make a region's own node the home of its rows; return None where it is already.

    Raises LabError where it cannot get its locks or its catch-up in time; the lab is as it was
    then.
    """
    origin = topology.primaries()[0]
    node = own_node(topology, region)
    leaves = leaves_of(regions, [region])
    try:
        with (
            connect(topology.operator_login(origin, password), 10) as old,
            connect(topology.operator_login(node, password), 10) as new,
        ):
            old.autocommit = new.autocommit = True
            take_turns(old, LOCKS_S)
            _leave(old, leaves, timeout_s)
            done = None
            if foreign.relkind(old, leaves[0]) == "r":
                done = _move(
                    topology, password, old, new, node, leaves, customers_role, say, timeout_s
                )
            if topology.nodes[node]["role"] != "primary":
                set_roles(topology.lab, {node: "primary"})
            return done
    except psycopg.Error as error:
        raise LabError(f"cut-over of {region}: {describe(error)}") from None


def own_node(topology: Topology, region: str) -> str:
    """Return the node that a region's rows are to be at home on; raises LabError without one."""
    found = [name for name, node in topology.nodes.items() if node["region"] == region]
    if not found:
        raise LabError(f"region {region} has no node of its own: add one to the inventory")
    return found[0]


def _move(
    topology: Topology,
    password: str,
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    node: str,
    leaves: Sequence[Leaf],
    customers_role: str,
    say: Say,
    timeout_s: float,
) -> CutOver:
    region = leaves[0].region
    way = topology.region(topology.origin()).way_to(node)
    rtt_ms = float(way["rtt_ms"])
    for role in foreign.SECRETS:
        foreign.grant(new, role, region)
    foreign.grant_customers(new, leaves, customers_role)
    # What the marker vouches for has to survive a crash of the new home.
    new.execute("ALTER SUBSCRIPTION lab SET (synchronous_commit = 'on')")

    def await_arrival() -> None:
        if not marker.await_arrival(new, marker.write(old), CATCH_UP_S):
            raise LabError(f"cut-over of {region}: {node} is more than {CATCH_UP_S:.0f} s behind")

    await_arrival()
    found = [diff.compare(old, new, leaf, await_arrival) for leaf in leaves]
    rows = sum(agreed.rows for agreed in found)
    extra = sum(agreed.extra for agreed in found)
    more = f", and {extra:,} that were written to {node} directly stay there" if extra else ""
    say(f"{region}: {rows:,} rows agree on both sides{more}")
    foreign.stage(old, leaves)
    staged = foreign.STAGED.format(region=region)
    foreign.grant_customers(old, leaves, customers_role, staged)
    old.execute(
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(
            sql.Identifier(staged), sql.Identifier(customers_role)
        )
    )
    # Nothing is locked for a link that does not work.
    old.execute(sql.SQL("SELECT FROM {} LIMIT 0").format(sql.Identifier(staged, "test")))
    _warm_up(topology, old, new, region, staged, rtt_ms)
    across = f"host={way['host']} port={way['port']}"
    conninfo = f"{topology.operator_login(node, password).conninfo()} {across}"
    try:
        others_ms = _enter(old, leaves, timeout_s)
        pause_ms, tries = _swap(topology, password, old, conninfo, leaves, rtt_ms, timeout_s)
    except BaseException as error:
        _go_back(old, leaves, timeout_s, error)
        raise
    finally:
        set_warm_up(topology.lab, region, "")
    set_roles(topology.lab, {node: "primary"})
    others_ms = max(others_ms, _leave(old, leaves, timeout_s))
    return CutOver(region, rtt_ms, pause_ms, others_ms, tries, rows)


def _go_back(
    connection: psycopg.Connection[Any],
    leaves: Sequence[Leaf],
    timeout_s: float,
    why: BaseException,
) -> None:
    """Have the lab as it was before a swap that is given up; raises LabError where that fails."""
    try:
        _leave(connection, leaves, timeout_s)
    except LabError as error:
        schema = MOVING.format(region=leaves[0].region)
        raise LabError(
            f"{why}; its customers go on by the tables in schema {schema}, which stay until the"
            f" phase is played again: {error}"
        ) from None


def _warm_up(
    topology: Topology,
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    region: str,
    staged: str,
    rtt_ms: float,
) -> None:
    """Have the region's customers open their sessions' connections to the new home, and wait.

    Not for long: a customer who thinks for minutes finds a cold one, and nothing worse.
    """
    set_warm_up(topology.lab, region, f'SELECT FROM "{staged}".test LIMIT 0')
    deadline = time.monotonic() + 3 + WARM_UP_ROUND_TRIPS * rtt_ms / 1e3
    count = "SELECT count(*) FROM pg_stat_activity WHERE {} = %s"
    while time.monotonic() < deadline:
        theirs: Any = old.execute(
            count.format("application_name"), (f"customers of {region}",)
        ).fetchone()
        warm: Any = new.execute(count.format("usename"), (foreign.CUSTOMERS_ROLE,)).fetchone()
        if warm[0] >= theirs[0]:
            return
        time.sleep(0.05)


def _between(leaf: Leaf) -> sql.Identifier:
    return sql.Identifier(MOVING.format(region=leaf.region), leaf.table)


def _enter(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float) -> float:
    """Put a partitioned table between each parent and its leaf; return the pause in ms."""
    schema = sql.Identifier(MOVING.format(region=leaves[0].region))
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    for leaf in leaves:
        connection.execute(
            sql.SQL(
                "CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS) PARTITION BY LIST (country)"
            ).format(_between(leaf), leaf.parent())
        )
    # Twice the leaf is attached while everybody waits.
    proof_ms = prove(connection, leaves, timeout_s)

    def work() -> None:
        for leaf in leaves:
            connection.execute(leaf.detach())
            connection.execute(_attach(leaf, _between(leaf), leaf.identifier()))
            connection.execute(_attach(leaf, leaf.parent(), _between(leaf)))

    return max(proof_ms, exclusively(connection, parents(), work, timeout_s)[0])


def _leave(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], timeout_s: float) -> float:
    """Put what is below the tables between directly below the parents; return the pause in ms.

    That is the leaf where there was no swap, and the foreign table after it.
    """
    region = leaves[0].region
    schema = sql.Identifier(MOVING.format(region=region))
    row: Any = connection.execute(
        "SELECT to_regnamespace(%s) IS NOT NULL", (schema.as_string(connection),)
    ).fetchone()
    if not row[0]:
        return 0.0

    if not any(_is_below(connection, _between(leaf), leaf.parent()) for leaf in leaves):
        # Never entered: nobody is there, so nobody has to be kept away.
        settle(connection, leaves, timeout_s)
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))
        return 0.0

    def work() -> None:
        for leaf in leaves:
            between = _between(leaf)
            for child, parent in ((leaf.identifier(), between), (between, leaf.parent())):
                if _is_below(connection, child, parent):
                    connection.execute(
                        sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(parent, child)
                    )
            if not _is_below(connection, leaf.identifier(), leaf.parent()):
                connection.execute(leaf.attach())
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))

    return exclusively(connection, parents(), work, timeout_s)[0]


def _attach(leaf: Leaf, parent: sql.Identifier, child: sql.Identifier) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(
        parent, child, leaf.country_list()
    )


def _is_below(
    connection: psycopg.Connection[Any], child: sql.Identifier, parent: sql.Identifier
) -> bool:
    names = (child.as_string(connection), parent.as_string(connection))
    row = connection.execute(
        "SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s) AND inhparent = to_regclass(%s)",
        names,
    ).fetchone()
    return row is not None


def _swap(
    topology: Topology,
    password: str,
    old: psycopg.Connection[Any],
    across: str,
    leaves: Sequence[Leaf],
    rtt_ms: float,
    timeout_s: float,
) -> tuple[float, int]:
    """Let foreign tables take the leaves' places when the new home has the last row.

    across: how to connect to the new home across the WAN. Returns the pause in ms and the tries.
    """
    region = leaves[0].region
    retired = sql.Identifier(RETIRED.format(region=region))
    old.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(retired))
    old.execute(sql.SQL("CREATE SCHEMA {}").format(retired))
    login = topology.operator_login(topology.primaries()[0], password)
    with connect(login, 10) as writer, contextlib.ExitStack() as stack:
        writer.autocommit = True
        listeners: list[psycopg.Connection[Any]] = []

        def before() -> None:
            # The one of a try that had to hang up is gone.
            if not listeners:
                listeners.append(psycopg.connect(across, autocommit=True))
                stack.callback(listeners[0].close)

        def work() -> None:
            arrived: list[bool] = []
            listener = listeners[0]
            token = marker.write(writer)
            timeout_ms = rtt_ms + SLACK_MS

            def wait() -> None:
                with contextlib.suppress(psycopg.Error):
                    arrived.append(marker.await_arrival(listener, token, timeout_ms / 1e3))

            waiting = threading.Thread(target=wait)
            waiting.start()
            try:
                for leaf in leaves:
                    old.execute(
                        sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(
                            _between(leaf), leaf.identifier()
                        )
                    )
                    old.execute(
                        sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(leaf.identifier(), retired)
                    )
                    old.execute(foreign.unstage(leaf))
                    old.execute(_attach(leaf, _between(leaf), leaf.identifier()))
            finally:
                # A link that goes silent must not hold the locks.
                waiting.join((timeout_ms + rtt_ms) / 1e3)
                if waiting.is_alive():
                    _hang_up(listener)
                    waiting.join()
            if not arrived:
                listeners.clear()
            if arrived != [True]:
                raise PostponedError(
                    f"{region}'s node did not have the last row within {timeout_ms:.0f} ms"
                )

        tables = parents(MOVING.format(region=region))
        return exclusively(old, tables, work, timeout_s, before)


def _hang_up(connection: psycopg.Connection[Any]) -> None:
    """End a connection that another thread waits on."""
    with socket.socket(fileno=os.dup(connection.fileno())) as found, contextlib.suppress(OSError):
        found.shutdown(socket.SHUT_RDWR)


def receipt(
    done: CutOver, copied: Mapping[str, Any], acknowledged: int, lost: int, doubled: int
) -> dict[str, Any]:
    """Return the row of cutover.json: the cut-over, its copy, and the customers' ledger."""
    return {
        **asdict(done),
        "rows_copied": copied.get("rows", done.rows),
        "copy_rows_per_s": copied.get("rows_per_s"),
        "acknowledged": acknowledged,
        "lost": lost,
        "doubled": doubled,
    }
