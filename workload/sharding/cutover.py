"""The cutover: a region's rows change their home from the origin to their own node, online.

The copy on the new home is up to date to some milliseconds; what is left is to change which one is
written to. Every write is on one side or the other, and customers of other regions do not wait.
Writers lock the parent, then the leaf, for as long as their transaction lasts. A session that locks
the leaf, waits for the last rows and then needs the parent deadlocks with writers. One that locks
the parent first blocks every region for one round trip. So the leaf is below a gate, a partitioned
table of its region's alone (workload/sharding/gates.py), and one transaction does it all:

The gate is locked. A barrier is written; the leaf is taken out and a foreign table put in its
place; when the new home has the barrier, that is committed. Sessions that waited go on, prepared
statements included, and find the foreign table. It takes one round trip.

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

from workload import schemas
from workload.errors import LabError
from workload.processes import Say, reached
from workload.sharding import barrier, checksum, foreign, gates
from workload.sharding.access import Setup
from workload.sharding.definition import carry_objects, of_leaves
from workload.sharding.leaves import TABLES, Leaf, leaves_of
from workload.sharding.locks import LOCKS_S, LockOutcome, PostponedError, exclusively
from workload.sql import describe, take_turns, together
from workload.topology import Topology, set_roles, set_warm_up
from workload.wan import control

#: Round trips in which the region's customers warm up: the twenty over which they spread, and one's
#: own.
WARM_UP_ROUND_TRIPS = 40
#: Seconds to wait for the copy.
CATCH_UP_S = 30.0
#: Seconds to try for a moment without transactions on the origin.
GATES_S = 15.0
#: What the barrier may take beyond its round trip, in ms, before the try is given up.
SLACK_MS = 80.0


@dataclass(frozen=True)
class CutOver:
    """The receipt of one region's cutover."""

    region: str
    rtt_ms: float
    #: The longest time for which the moved region's writers waited, and everybody's at its gates.
    write_pause_ms: float
    others_pause_ms: float
    tries: int
    #: Rows that both sides agreed on by count and checksum before.
    rows: int


def cut_over(setup: Setup, region: str, say: Say, timeout_s: float = LOCKS_S) -> CutOver | None:
    """Make a region's own node the home of its rows; return None where it is already.

    Raises LabError where it cannot get its locks or its catch-up in time; the lab is as it was
    then.
    """
    topology = setup.topology
    node = own_node(topology, region)
    leaves = leaves_of(setup.regions, [region])
    try:
        with setup.connect(topology.origin_primary()) as old, setup.connect(node) as new:
            take_turns(old, LOCKS_S)
            moved = None
            if foreign.relkind(old, leaves[0]) == "r":
                moved = _move(setup, old, new, node, leaves, say, timeout_s)
            if topology.nodes[node]["role"] != "primary":
                set_roles(topology.lab, {node: "primary"})
            return moved
    except psycopg.Error as error:
        raise LabError(f"cutover of {region}: {describe(error)}") from None


def open_gates(setup: Setup, say: Say) -> float:
    """Take away the gates of regions that have left the origin; return all writers' pause in ms.

    They stay where somebody far away writes by the origin all the time, and are in nobody's way.
    """
    topology = setup.topology
    gone = [
        name for name in setup.regions if name != topology.origin() and topology.primary_of(name)
    ]
    try:
        with setup.connect(topology.origin_primary()) as connection:
            take_turns(connection, LOCKS_S)
            return gates.take_down(connection, leaves_of(setup.regions, gone), GATES_S)
    except LabError as error:
        say(f"the gates of {', '.join(gone)} stay until after.yml is played again: {error}")
        return 0.0
    except psycopg.Error as error:
        raise LabError(f"gates of {', '.join(gone)}: {describe(error)}") from None


def own_node(topology: Topology, region: str) -> str:
    """Return the node that a region's rows are to be at home on; raises LabError without one."""
    nodes = topology.nodes_in(region)
    if not nodes:
        raise LabError(f"region {region} has no node of its own: add one to the inventory")
    return nodes[0]


def _move(
    setup: Setup,
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    node: str,
    leaves: Sequence[Leaf],
    say: Say,
    timeout_s: float,
) -> CutOver:
    topology, customers_role = setup.topology, setup.customers_role
    region = leaves[0].region
    way = topology.region(topology.origin()).way_to(node)
    rtt_ms = control.rtt_ms(topology.lab, topology.origin(), node)
    for role in foreign.SECRETS:
        foreign.grant(new, role, region)
    foreign.grant_customers(new, leaves, customers_role)
    # What the barrier vouches for has to survive a crash of the new home.
    new.execute("ALTER SUBSCRIPTION lab SET (synchronous_commit = 'on')")

    def await_arrival() -> None:
        if not barrier.await_arrival(new, barrier.write(old), CATCH_UP_S):
            raise LabError(f"cutover of {region}: {node} is more than {CATCH_UP_S:.0f} s behind")

    await_arrival()
    definitions = of_leaves(old, region)
    for leaf in leaves:
        carry_objects(new, leaf, definitions[leaf.table])
    agreements = [
        checksum.agree(old, new, leaf, definitions[leaf.table], await_arrival) for leaf in leaves
    ]
    rows = sum(agreed.rows for agreed in agreements)
    extra = sum(agreed.extra for agreed in agreements)
    more = f", and {extra:,} that were written to {node} directly stay there" if extra else ""
    reached("cutover.agreed")
    say(f"{region}: {rows:,} rows agree on both sides{more}")
    foreign.stage(old, leaves, definitions)
    staged = schemas.STAGED.format(region=region)
    foreign.grant_customers(old, leaves, customers_role, staged)
    warm_up = foreign.make_warm_up(old, region, customers_role)
    passwords = {role: setup.secret(role) for role in foreign.SECRETS}
    foreign.allow_forwarding(old, leaves, staged, passwords)
    reached("cutover.staged")
    # Nothing is locked for a link that does not work.
    old.execute(warm_up.encode())
    _warm_up(topology, old, new, region, warm_up, rtt_ms)
    reached("cutover.warmed")
    across = f"host={way['host']} port={way['port']}"
    conninfo = f"{topology.operator_login(node, setup.password).conninfo()} {across}"
    try:
        others_ms = gates.put_up(old, leaves, timeout_s)
        reached("cutover.gated")
        swap = _swap(setup, old, conninfo, leaves, rtt_ms, timeout_s)
    finally:
        set_warm_up(topology.lab, region, "")
    reached("cutover.swapped")
    set_roles(topology.lab, {node: "primary"})
    reached("cutover.homed")
    return CutOver(region, rtt_ms, swap.blocked_ms, others_ms, swap.attempts, rows)


def _warm_up(
    topology: Topology,
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    region: str,
    statement: str,
    rtt_ms: float,
) -> None:
    """Ask the region's customers to open their sessions' connections to the new home, and wait.

    Not for long: a customer who thinks for minutes finds a cold one, and nothing worse.
    """
    set_warm_up(topology.lab, region, statement)
    deadline = time.monotonic() + 3 + WARM_UP_ROUND_TRIPS * rtt_ms / 1e3
    while time.monotonic() < deadline:
        theirs: Any = old.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            (f"customers of {region}",),
        ).fetchone()
        # The last that postgres_fdw says: a session is there some round trips before it is of use.
        warm: Any = new.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'idle'"
            " AND query ILIKE 'COMMIT%%'",
            (foreign.CUSTOMERS_ROLE,),
        ).fetchone()
        if warm[0] >= theirs[0]:
            return
        time.sleep(0.05)


def _swap(
    setup: Setup,
    old: psycopg.Connection[Any],
    across: str,
    leaves: Sequence[Leaf],
    rtt_ms: float,
    timeout_s: float,
) -> LockOutcome:
    """Let foreign tables take the leaves' places when the new home has the last row.

    across: how to connect to the new home across the WAN.
    """
    region = leaves[0].region
    retired = schemas.RETIRED.format(region=region)
    schemas.drop(old, retired, list(TABLES))
    old.execute(schemas.create(retired))
    change: list[sql.Composable] = []
    for leaf in leaves:
        gate = gates.gate_of(leaf)
        change += [
            sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(gate, leaf.identifier()),
            sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(
                leaf.identifier(), sql.Identifier(retired)
            ),
            foreign.unstage(leaf),
            leaf.attach_to(gate, leaf.identifier()),
        ]
    origin = setup.topology.origin_primary()
    with setup.connect(origin) as writer, contextlib.ExitStack() as stack:
        listeners: list[psycopg.Connection[Any]] = []

        def before() -> None:
            # The one of a try that had to hang up is gone.
            if not listeners:
                listeners.append(psycopg.connect(across, autocommit=True))
                stack.callback(listeners[0].close)

        def work() -> None:
            arrived: list[bool] = []
            listener = listeners[0]
            token = barrier.write(writer)
            timeout_ms = rtt_ms + SLACK_MS

            def wait() -> None:
                with contextlib.suppress(psycopg.Error):
                    arrived.append(barrier.await_arrival(listener, token, timeout_ms / 1e3))

            waiting = threading.Thread(target=wait)
            waiting.start()
            try:
                old.execute(together(change))
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
            reached("cutover.swapping")

        return exclusively(old, gates.locks(leaves), work, timeout_s, before)


def _hang_up(connection: psycopg.Connection[Any]) -> None:
    """End a connection that another thread waits on."""
    with (
        socket.socket(fileno=os.dup(connection.fileno())) as connected,
        contextlib.suppress(OSError),
    ):
        connected.shutdown(socket.SHUT_RDWR)


def receipt(
    moved: CutOver,
    copied: Mapping[str, Any],
    acknowledged: int,
    failed: int,
    lost: int,
    doubled: int,
) -> dict[str, Any]:
    """Return the row of cutover.json: the cutover, its copy, and the customers' ledger.

    failed: writes that were refused or stayed in doubt while it went on; acknowledged, lost and
    doubled: of all that there ever were.
    """
    return {
        **asdict(moved),
        "rows_copied": copied.get("rows", moved.rows),
        "copy_rows_per_s": copied.get("rows_per_s"),
        "acknowledged": acknowledged,
        "failed": failed,
        "lost": lost,
        "doubled": doubled,
    }
