"""Take away what is left of rows that are at home elsewhere now, down to the files.

Dropping a table unlinks its files; a DELETE would leave every row in them. What else held the rows
is the WAL, the slots that keep it, and the statistics: those go too, on standbys as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.errors import LabError
from workload.processes import in_parallel, poll, reached
from workload.sharding import replicas
from workload.sharding.foreign import WARM_UP, relkind
from workload.sharding.leaves import TABLES, leaves_of
from workload.sharding.locks import LOCKS_S
from workload.sharding.rewrite import Rewritten, rewrite
from workload.sql import connect, describe, take_turns
from workload.topology import Topology

#: Seconds for old WAL to go: a standby has to have it first.
WAL_S = 30.0
#: And for transactions to end that began before.
OPEN_S = 60.0
#: Written together with a deletion of rows, so that their bytes are not forgotten in the files.
TO_SCRUB = "INSERT INTO lab.to_scrub DEFAULT VALUES"
#: Statistics of the parents and of foreign tables are made from other regions' rows.
_STRAY_STATISTICS = """
DELETE FROM pg_statistic WHERE starelid IN (
  SELECT oid FROM pg_class WHERE relkind IN ('f', 'p') AND oid >= 16384)
"""
#: Sessions and slots for which rows are kept that were deleted before a transaction.
_STILL_SEEING = """
SELECT count(*) FROM (
  SELECT backend_xmin FROM pg_stat_activity WHERE pid <> pg_backend_pid()
  UNION ALL SELECT backend_xid FROM pg_stat_activity WHERE pid <> pg_backend_pid()
  UNION ALL SELECT xmin FROM pg_replication_slots
  UNION ALL SELECT catalog_xmin FROM pg_replication_slots
) AS found (horizon)
WHERE age(horizon) >= age(%(xid)s::xid)
"""
#: Segments that hold what was written before a position; a name begins with its timeline.
_OLD_WAL = """
SELECT count(*) FROM pg_ls_waldir()
WHERE name ~ '^[0-9A-F]{24}$' AND right(name, 16) < right(%s, 16)
"""


def purge(topology: Topology, password: str, regions: Mapping[str, Sequence[str]]) -> list[str]:
    """Remove every copy of a region's rows but those at home; return what was removed, by node.

    Raises LabError where a region is not at home on a node of its own yet, or where old WAL does
    not go.
    """
    for region in regions:
        if topology.primary_of(region) is None:
            raise LabError(f"region {region} is not at home on its own node: nothing is purged")
    removed: list[str] = []
    # A run that was killed may have removed all that there is to see, and scrubbed nothing.
    due = topology.lab.home / "purge-due"
    is_due = due.exists() or topology.phase != "after"
    due.touch()
    reached("purge.due")

    def job(node: str) -> None:
        try:
            removed.extend(
                f"{node}: {what}" for what in _purge_node(topology, password, node, regions, is_due)
            )
        except psycopg.Error as error:
            raise LabError(f"{node}: {describe(error)}") from None

    primaries = topology.primaries()
    # Subscribers first: a subscription of theirs would look for its slot for ever.
    for node in sorted(primaries, key=lambda node: node == topology.origin_primary()):
        job(node)
        reached("purge.dropped")
    reached("purge.removed")
    if removed or is_due:

        def scrub(node: str) -> Callable[[], None]:
            return lambda: drop_old_wal(topology, password, node)

        in_parallel([scrub(node) for node in primaries])
    reached("purge.scrubbed")
    due.unlink()
    return removed


def _purge_node(
    topology: Topology,
    password: str,
    node: str,
    regions: Mapping[str, Sequence[str]],
    is_due: bool,
) -> list[str]:
    removed = []
    with connect(topology.operator_login(node, password), 10) as connection:
        connection.autocommit = True
        take_turns(connection, LOCKS_S)
        if replicas.unsubscribe(connection):
            removed.append("subscription")
            reached("purge.unsubscribed")
        slots = [schemas.slot(name) for name in topology.nodes]
        removed += [f"slot {name}" for name in slots if replicas.drop_slot(connection, name)]
        for name in [*map(schemas.publication, regions), schemas.BARRIER]:
            row = connection.execute(
                "SELECT FROM pg_publication WHERE pubname = %s", (name,)
            ).fetchone()
            if row is not None:
                connection.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
                removed.append(f"publication {name}")
        for region in regions:
            for schema in (schemas.RETIRED, schemas.STAGED, schemas.INCOMING):
                name = schema.format(region=region)
                if schemas.drop(connection, name, [*TABLES, WARM_UP]):
                    removed.append(f"schema {name}")
        if removed or is_due:
            clean_statistics(connection)
            for leaf in leaves_of(regions):
                if relkind(connection, leaf) == "r":
                    connection.execute(sql.SQL("ANALYZE {}").format(leaf.identifier()))
    return removed


def scrub(topology: Topology, password: str, node: str) -> Rewritten:
    """Remove the bytes of rows deleted from a home from its files, and from those of its standbys.

    Its leaves are rewritten, since a VACUUM leaves deleted rows in their pages; then statistics and
    WAL go. Raises LabError where something does not go in time.
    """
    region = topology.nodes[node]["region"]
    login = topology.operator_login(node, password)
    with connect(login, 10) as connection:
        connection.autocommit = True
        since = connection.execute("SELECT clock_timestamp()").fetchone()
        rewritten = rewrite(login, topology.countries(), region)
        reached("move.rewritten")
        clean_statistics(connection)
        drop_old_wal(topology, password, node)
        reached("move.cleaned")
        connection.execute("DELETE FROM lab.to_scrub WHERE since <= %s", since)
    return rewritten


def clean_statistics(connection: psycopg.Connection[Any]) -> None:
    """Rewrite the statistics without those of foreign rows and of tables that are gone.

    Rows that were deleted stay in the file until it is rewritten, and longer where a transaction is
    open that might still see them: those are waited for. Raises LabError where one does not end.
    """
    connection.execute("SET allow_system_table_mods = on")
    connection.execute(_STRAY_STATISTICS)
    connection.execute("RESET allow_system_table_mods")
    row: Any = connection.execute("SELECT pg_current_xact_id()::xid").fetchone()

    def nobody_sees_them() -> bool:
        seers: Any = connection.execute(_STILL_SEEING, {"xid": row[0]}).fetchone()
        return bool(seers[0] == 0)

    poll(nobody_sees_them, OPEN_S, "a transaction is open that still sees what was removed")
    for name in ("pg_statistic", "pg_statistic_ext_data"):
        connection.execute(f"VACUUM FULL pg_catalog.{name}")


def drop_old_wal(topology: Topology, password: str, node: str) -> None:
    """Remove all WAL from before now on a node and its standbys; raises LabError.

    wal_recycle is off in the lab: a recycled segment would keep its rows under a future name.
    """
    with connect(topology.operator_login(node, password), 10) as connection:
        connection.autocommit = True
        connection.execute("SELECT pg_switch_wal()")
        # At a segment's very beginning, pg_walfile_name() gives the one before.
        connection.execute("SELECT pg_logical_emit_message(true, 'lab', 'purged')")
        row: Any = connection.execute(
            "SELECT pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_lsn()"
        ).fetchone()
        first_kept, position = str(row[0]), row[1]
        _await_removal(connection, first_kept, node)
    for name in topology.nodes_in(topology.nodes[node]["region"]):
        if topology.nodes[name]["role"] == "standby":
            with connect(topology.operator_login(name, password), 10) as standby:
                standby.autocommit = True

                def has_replayed(standby: psycopg.Connection[Any] = standby) -> bool:
                    row: Any = standby.execute(
                        "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)
                    ).fetchone()
                    return bool(row[0])

                poll(has_replayed, WAL_S, f"{name} does not replay the WAL of {node}")
                _await_removal(standby, first_kept, name)


def _await_removal(connection: psycopg.Connection[Any], first_kept: str, node: str) -> None:
    def is_gone() -> bool:
        connection.execute("CHECKPOINT")
        row: Any = connection.execute(_OLD_WAL, (first_kept,)).fetchone()
        return bool(row[0] == 0)

    poll(is_gone, WAL_S, f"{node} keeps WAL from before {first_kept}: a slot that is not read does")
