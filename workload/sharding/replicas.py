"""Logical replicas: leaves of the origin, copied to other nodes and kept up to date there.

A subscription's own initial copy keeps up the keys row by row and copies one table a worker. Here a
slot is made first, with an exported snapshot; the snapshot is copied by several binary COPYs, keys
are built after, and the subscription begins where the snapshot ends (copy_data = false). New leaves
are filled beside the old ones and take their place in one transaction, so that sessions which
read there go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import DiagnosticField, ExecStatus

from workload import schemas, store
from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.peers import conninfo_for, replication_password
from workload.nodes.standby import REPLICATION_ROLE
from workload.processes import Say, in_parallel, poll, reached
from workload.schemas import BARRIER, INCOMING, SUBSCRIPTION, publication, slot
from workload.sharding import barrier
from workload.sharding.bulk import Progress, copy, run_all, split
from workload.sharding.definition import Definition, give_parents_columns, of_leaves
from workload.sharding.leaves import TABLES, Leaf, leaves_of
from workload.sql import Login, connect, describe, take_turns, together
from workload.topology import Topology

#: Seconds until a replica has to be up to date with the origin.
CATCH_UP_S = 60.0


@dataclass(frozen=True)
class Copied:
    """What the first copy to one node took."""

    node: str
    rows: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        """Rows a second, keys included."""
        return self.rows / max(1e-9, self.seconds)


def save(lab: Lab, copies: Sequence[Copied]) -> None:
    """Write what first copies took to replicas.json, {node: {rows, seconds, rows_per_s}}."""
    rows = store.load_by_name(lab, "replicas")
    for copied in copies:
        rows[copied.node] = {
            "rows": copied.rows,
            "seconds": copied.seconds,
            "rows_per_s": copied.rows_per_s,
        }
    if copies:
        store.save(lab, "replicas", rows)


def replicate(
    topology: Topology,
    password: str,
    regions: Mapping[str, Sequence[str]],
    kept_by_node: Mapping[str, Sequence[str]],
    say: Say,
    why: Callable[[str], str | None] = lambda node: None,
) -> list[Copied]:
    """Ensure that nodes hold copies of regions' leaves; return what was copied now.

    regions: {name: countries}, all; kept_by_node: {node: regions whose leaves it copies}. A copy
    that is kept up to date is left alone. why tells what stops a node for good. Raises LabError
    with the node that it went wrong on.
    """
    source = topology.operator_login(topology.origin_primary(), password)
    for node, kept in kept_by_node.items():
        narrow(topology, password, node, kept)
    stale = [
        node
        for node in kept_by_node
        if not is_current(topology, password, node, leaves_of(regions, kept_by_node[node]))
    ]
    if stale:
        with connect(source, 10) as connection:
            connection.autocommit = True
            take_turns(connection, CATCH_UP_S)
            publish(connection, regions)
        reached("replicas.published")
    copies: list[Copied] = []

    def job(node: str) -> None:
        try:
            copies.append(_copy_to(topology, password, node, regions, kept_by_node[node], say))
        except psycopg.Error as error:
            raise LabError(f"{node}: {describe(error)}") from None

    in_parallel([lambda node=node: job(node) for node in stale])  # type: ignore[misc]
    logins = {node: topology.operator_login(node, password) for node in kept_by_node}
    barrier.await_all(source, logins, CATCH_UP_S, why)
    return copies


def kept_by(
    topology: Topology, password: str, regions: Mapping[str, Sequence[str]], own: bool
) -> dict[str, list[str]]:
    """Return the regions whose leaves each node outside the origin is to hold copies of.

    All of them; with own each node's own region alone, until its rows are at home there.
    """
    kept_by_node: dict[str, list[str]] = {}
    for name, node in topology.nodes.items():
        if node["region"] == topology.origin():
            continue
        if not own:
            kept_by_node[name] = list(regions)
        elif node["role"] != "primary" and is_at_origin(topology, password, node["region"]):
            kept_by_node[name] = [node["region"]]
    return kept_by_node


def is_at_origin(topology: Topology, password: str, region: str) -> bool:
    """Tell whether the origin has a region's rows, so that there is something to copy."""
    with connect(topology.operator_login(topology.origin_primary(), password), 10) as connection:
        row = connection.execute(
            "SELECT FROM pg_class WHERE oid = to_regclass(%s) AND relkind = 'r'",
            (f'"{region}".customer',),
        ).fetchone()
    return row is not None


def narrow(topology: Topology, password: str, node: str, kept: Sequence[str]) -> bool:
    """Let a node that copies more regions than it is to follow those alone; return whether so.

    What it holds of the others is left as it is.
    """
    publications = {publication(region) for region in kept} | {BARRIER}
    with connect(topology.operator_login(node, password), 10) as connection:
        connection.autocommit = True
        row: Any = connection.execute(
            "SELECT subpublications FROM pg_subscription WHERE subname = %s", (SUBSCRIPTION,)
        ).fetchone()
        if row is None or not set(row[0]) > publications:
            return False
        names = sql.SQL(", ").join(map(sql.Identifier, sorted(publications)))
        connection.execute(
            sql.SQL("ALTER SUBSCRIPTION {} SET PUBLICATION {} WITH (copy_data = false)").format(
                sql.Identifier(SUBSCRIPTION), names
            )
        )
    return True


def publish(connection: psycopg.Connection[Any], regions: Mapping[str, Sequence[str]]) -> None:
    """Ensure a publication for each region's leaves, and one for the barrier."""
    tables = {
        publication(region): [leaf.identifier() for leaf in leaves_of(regions, [region])]
        for region in regions
    }
    tables[BARRIER] = [sql.Identifier("lab", "marker")]
    for name, members in tables.items():
        exists = connection.execute(
            "SELECT FROM pg_publication WHERE pubname = %s", (name,)
        ).fetchone()
        statement = "CREATE PUBLICATION {} FOR TABLE {}" if exists is None else ""
        if statement:
            connection.execute(
                sql.SQL(statement).format(sql.Identifier(name), sql.SQL(", ").join(members))
            )
    barrier.write(connection)


def is_current(topology: Topology, password: str, node: str, leaves: Sequence[Leaf]) -> bool:
    """Tell whether a node's copies are all there and the origin holds the slot that feeds them."""
    with connect(topology.operator_login(node, password), 10) as connection:
        row: Any = connection.execute(
            "SELECT subenabled, subpublications FROM pg_subscription WHERE subname = %s",
            (SUBSCRIPTION,),
        ).fetchone()
        publications = {publication(leaf.region) for leaf in leaves} | {BARRIER}
        if not row or not row[0] or set(row[1]) != publications:
            return False
        if not all(_is_attached(connection, leaf) for leaf in leaves):
            return False
    with connect(topology.operator_login(topology.origin_primary(), password), 10) as connection:
        row = connection.execute(
            "SELECT FROM pg_replication_slots WHERE slot_name = %s AND wal_status <> 'lost'",
            (slot(node),),
        ).fetchone()
    return row is not None


def _is_attached(connection: psycopg.Connection[Any], leaf: Leaf) -> bool:
    row = connection.execute(
        "SELECT FROM pg_class WHERE oid = to_regclass(%s) AND relispartition AND relkind = 'r'",
        (leaf.identifier().as_string(connection),),
    ).fetchone()
    return row is not None


def _copy_to(
    topology: Topology,
    password: str,
    node: str,
    regions: Mapping[str, Sequence[str]],
    kept: Sequence[str],
    say: Say,
) -> Copied:
    origin = topology.origin_primary()
    source = topology.operator_login(origin, password)
    target = topology.operator_login(node, password)
    incoming = leaves_of(regions, kept, INCOMING)
    with connect(target, 10) as at_target:
        at_target.autocommit = True
        take_turns(at_target, CATCH_UP_S)
        unsubscribe(at_target)
        with connect(source, 10) as at_source:
            at_source.autocommit = True
            drop_slot(at_source, slot(node))
            definitions = of_leaves(at_source, topology.origin())
        for region in kept:
            schemas.drop(at_target, INCOMING.format(region=region), list(TABLES))
            at_target.execute(schemas.create(INCOMING.format(region=region)))
        for leaf in incoming:
            at_target.execute(together(definitions[leaf.table].create(leaf)))
        give_parents_columns(at_target, definitions)
        at_target.execute("TRUNCATE lab.marker")
        reached("replicas.emptied")
        copied = load(
            source,
            target,
            across_the_wan(topology, target, node),
            slot(node),
            incoming,
            definitions,
            say,
        )
        reached("replicas.loaded")
        with at_target.transaction():
            # A purchase's foreign key goes before what it refers to.
            for leaf in reversed(leaves_of(regions, kept)):
                at_target.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(leaf.identifier()))
            for leaf in incoming:
                at_target.execute(together(definitions[leaf.table].move(leaf, leaf.region)))
            for leaf in leaves_of(regions, kept):
                at_target.execute(leaf.attach())
        for region in kept:
            schemas.drop(at_target, INCOMING.format(region=region), list(TABLES))
        reached("replicas.attached")
        subscribe(
            at_target,
            conninfo_for(
                topology,
                node,
                [
                    origin,
                    *(node for node in topology.nodes_in(topology.origin()) if node != origin),
                ],
                REPLICATION_ROLE,
                replication_password(topology.lab),
                node,
            ),
            slot(node),
            [publication(region) for region in kept],
        )
    return copied


def across_the_wan(topology: Topology, login: Login, node: str) -> Login:
    """Return how rows of the origin get to a node: as the nodes' own traffic, by the WAN."""
    way = topology.region(topology.origin()).way_to(node)
    return replace(login, host=str(way["host"]), port=int(way["port"]))


def load(
    source: Login,
    target: Login,
    way: Login,
    slot_name: str,
    leaves: Sequence[Leaf],
    definitions: Mapping[str, Definition],
    say: Say,
) -> Copied:
    """Make a slot and copy what its snapshot sees into leaves without keys; then build the keys.

    The rows take the way, all else goes to the target directly; the slot has the target's name in
    it. The barrier's row comes along. Raises LabError; the slot stays then, for the clean-up.
    """
    name = slot_name.removeprefix("lab_")
    # A slot begins when all transactions have ended that write now.
    options = f"replication=database options='-c lock_timeout={int(CATCH_UP_S * 1e3)}'"
    with psycopg.connect(f"{source.conninfo()} {options}", autocommit=True) as walsender:
        snapshot = _make_slot(walsender, slot_name)
        reached("replicas.slotted")
        with connect(source, 10) as reader:
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            marker_table = sql.Identifier("lab", "marker")
            parts = list(
                split(reader, "lab.marker", marker_table, sql.SQL("id, token"), marker_table)
            )
            total = 0
            for leaf in leaves:
                at_source = sql.Identifier(leaf.region, leaf.table)
                columns = definitions[leaf.table].column_list()
                parts += split(reader, leaf.name, at_source, columns, leaf.identifier())
                total += _estimate(reader, at_source)
            progress = Progress(name, total, say)
            copy(source, way, snapshot, parts, progress)
    say(f"{progress.line()}; building keys")
    run_all(target, [definitions[leaf.table].keys(leaf) for leaf in leaves])
    run_all(target, [definitions[leaf.table].references(leaf) for leaf in leaves])
    run_all(target, [[sql.SQL("ANALYZE {}").format(leaf.identifier())] for leaf in leaves])
    seconds = time.monotonic() - progress.started
    return Copied(node=name, rows=progress.done, seconds=seconds)


def _estimate(connection: psycopg.Connection[Any], table: sql.Identifier) -> int:
    row = connection.execute(
        "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = %s::regclass",
        (table.as_string(connection),),
    ).fetchone()
    return int(row[0]) if row else 0


def _make_slot(walsender: psycopg.Connection[Any], name: str) -> str:
    """Make a logical slot and return the snapshot from which its changes go on."""
    statement = f"CREATE_REPLICATION_SLOT \"{name}\" LOGICAL pgoutput (SNAPSHOT 'export')"
    result = walsender.pgconn.exec_(statement.encode())
    if result.status != ExecStatus.TUPLES_OK:
        message = " ".join(result.error_message.decode().split())
        if result.error_field(DiagnosticField.SQLSTATE) == b"55P03":
            message = f"a transaction that writes is open there for more than {CATCH_UP_S:.0f} s"
        raise LabError(f"no slot on the origin: {message}")
    value = result.get_value(0, 2)
    assert value
    return value.decode()


def subscribe(
    connection: psycopg.Connection[Any],
    conninfo: str,
    slot_name: str,
    publications: Sequence[str],
) -> None:
    """Subscribe to publications from where a slot begins."""
    names = sql.SQL(", ").join(map(sql.Identifier, [*publications, BARRIER]))
    connection.execute(
        sql.SQL(
            "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {}"
            " WITH (create_slot = false, copy_data = false, slot_name = {})"
        ).format(sql.Identifier(SUBSCRIPTION), sql.Literal(conninfo), names, sql.Literal(slot_name))
    )


def unsubscribe(connection: psycopg.Connection[Any]) -> bool:
    """Drop a node's subscription and leave its slot to the origin; return whether there was one."""
    row = connection.execute(
        "SELECT FROM pg_subscription WHERE subname = %s", (SUBSCRIPTION,)
    ).fetchone()
    if row is None:
        return False
    name = sql.Identifier(SUBSCRIPTION)
    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(name))
    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(name))
    connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(name))
    return True


def drop_slot(connection: psycopg.Connection[Any], name: str) -> bool:
    """Drop a slot, ending the session that reads from it; return whether there was one."""
    row = connection.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s",
        (name,),
    ).fetchone()
    if row is None:
        return False

    def dropped() -> bool:
        try:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                " WHERE slot_name = %s",
                (name,),
            )
        except psycopg.errors.ObjectInUse:
            return False
        return True

    poll(dropped, 10, f"slot {name} is in use")
    return True
