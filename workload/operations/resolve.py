"""A replica that a conflicting row stops: show both rows, and go on with the one that is kept."""

from __future__ import annotations

import time

import psycopg
from rich.console import Console

from workload.errors import LabError
from workload.output import printable, table
from workload.proof import compare
from workload.schemas import SUBSCRIPTION
from workload.sharding import barrier, conflicts
from workload.sharding.conflicts import Conflict
from workload.sql import connect, describe
from workload.topology import Topology

#: Seconds for a replica to go on: its worker starts again every five, over the WAN.
GO_ON_S = 60.0
KEEP = ("origin", "local")


def run(topology: Topology, password: str, node: str | None, keep: str, console: Console) -> int:
    """Show the rows, and with keep (origin or local) go on; return 0 where the node goes on.

    keep origin deletes the replica's own row. keep local gives the origin's row the content of the
    replica's own, which then reaches every node. No row of another key is touched, and no
    transaction is skipped. Raises LabError for a node that is no replica.
    """
    replicas = [name for name, entry in topology.nodes.items() if entry["role"] == "replica"]
    if node not in replicas:
        names = ", ".join(replicas) or f"none in phase {topology.phase}"
        raise LabError(f"NODE is '{node or ''}', and a row can stop a replica only: {names}")
    if keep and keep not in KEEP:
        raise LabError(f"KEEP is '{keep}': use {' or '.join(KEEP)}")
    resolved = 0
    while (conflict := _next(topology, password, node)) is not None:
        show(conflict, console)
        if not keep:
            console.print(
                f"make resolve NODE={node} KEEP=origin deletes the row of {node}; KEEP=local gives"
                f" its content to all nodes. What else stops {node} afterwards is resolved alike.",
                highlight=False,
            )
            return 1
        try:
            resolve(topology, password, conflict, keep)
        except psycopg.Error as error:
            raise LabError(f"the row of {conflict.leaf} stays: {describe(error)}") from None
        resolved += 1
    if not resolved:
        console.print(f"No row stops {node}.", highlight=False)
        return 0
    whose = f"the origin's ({topology.origin_primary()})" if keep == "origin" else f"that of {node}"
    count = "the row is" if resolved == 1 else f"{resolved:,} rows are"
    console.print(f"{node} goes on; {count} {whose}.", highlight=False)
    try:
        return 0 if compare.show(compare.compare(topology, password), console) else 1
    except LabError as error:
        # Another replica has its own.
        console.print(f"Not compared: {error}", markup=False, highlight=False)
        return 1


def resolve(topology: Topology, password: str, conflict: Conflict, keep: str) -> None:
    """Delete a replica's own row; with keep local, give its content to the origin's.

    Raises psycopg.Error where the origin refuses that: the replica then has the origin's row.
    """
    with connect(topology.operator_login(conflict.node, password), 5) as replica:
        replica.autocommit = True
        conflicts.remove_local(replica, conflict)
        # The worker need not wait out its pause of five seconds.
        name = f'"{SUBSCRIPTION}"'
        replica.execute(f"ALTER SUBSCRIPTION {name} DISABLE".encode())
        replica.execute(f"ALTER SUBSCRIPTION {name} ENABLE".encode())
    if keep == "local" and conflict.local is not None:
        with connect(topology.operator_login(conflict.origin, password), 5) as origin:
            origin.autocommit = True
            conflicts.take_over(origin, conflict)


def show(conflict: Conflict, console: Console) -> None:
    """Print both rows beside each other."""
    console.print(
        f"{conflict.leaf} on {conflict.node}: {conflict.error}", markup=False, highlight=False
    )
    rows = table()
    for title in ("column", f"origin ({conflict.origin})", f"local ({conflict.node})"):
        rows.add_column(title, overflow="fold")
    for name, value in conflict.incoming.items():
        local = None if conflict.local is None else conflict.local[name]
        rows.add_row(
            *(printable("NULL" if cell is None else cell) for cell in (name, value, local))
        )
    console.print(rows, markup=False)


def _next(topology: Topology, password: str, node: str) -> Conflict | None:
    """Return the row that stops a node, None once all that the origin has is there."""
    origin = topology.operator_login(topology.origin_primary(), password)
    with (
        connect(origin, 5) as source,
        connect(topology.operator_login(node, password), 5) as target,
    ):
        source.autocommit = target.autocommit = True
        token = barrier.write(source)
        deadline = time.monotonic() + GO_ON_S
        while not barrier.await_arrival(target, token, 1.0):
            try:
                conflict = conflicts.find(topology, password, node)
            except psycopg.errors.ObjectInUse:
                conflict = None
            if conflict is not None:
                return conflict
            if time.monotonic() > deadline:
                raise LabError(
                    f"{node} does not go on, and no row is known to stop it: make status names what"
                    " is wrong with its subscription"
                )
    return None
