"""The preflight of data: what the lab would lose or trip over, asked before anything is changed.

All problems come in one message. Each says what it is about, what is wrong with it, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.errors import LabError
from workload.sharding import uncarried
from workload.sharding.definition import Definition, of_parents
from workload.sharding.leaves import REGION, STARTED, leaves_of, own_tables
from workload.sharding.objects import LOCK_TIMEOUT_S
from workload.sql import Login, connect, describe
from workload.topology import Topology

#: Slots and prepared transactions that keep WAL and deleted rows.
_HOLDERS = files("workload.sharding").joinpath("sql", "holders.sql").read_text()
#: The schemas that are there, whether the lab made them, and some of what is in them.
_SCHEMAS = """
SELECT n.nspname, obj_description(n.oid, 'pg_namespace') IS NOT DISTINCT FROM %(mark)s,
  (SELECT string_agg(relname, ', ' ORDER BY relname) FROM (
    SELECT relname FROM pg_class WHERE relnamespace = n.oid AND relkind IN ('r', 'p', 'v', 'f', 'm')
    ORDER BY 1 LIMIT 5) AS few)
FROM pg_namespace n WHERE n.nspname = ANY(%(names)s) ORDER BY 1
"""
_DOUBLED = """
SELECT id::text FROM ({}) AS every (id) GROUP BY id HAVING count(*) > 1 LIMIT 3
"""


def check(
    topology: Topology, password: str, regions: Mapping[str, Sequence[str]], phase: str
) -> list[str]:
    """Return what a person should know before a phase is built, a line each.

    regions: {name: countries} as they are to be; phase: shard or after. Raises LabError with
    everything that is in the way, having changed nothing. A node that does not answer is left out:
    the playbook starts it, and each step looks again at what it drops.
    """
    problems: list[str] = []
    notes: list[str] = []
    parents: dict[str, dict[str, Definition]] = {}
    for node, entry in topology.nodes.items():
        if entry["role"] in ("standby", "fenced"):
            continue
        try:
            connection = connect(topology.operator_login(node, password))
        except LabError:
            if entry["role"] != "joining":
                notes.append(f"{node} does not answer, and what is on it was not checked")
            continue
        with connection, _one_line(node):
            connection.autocommit = True
            connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
            is_sharded = _is_sharded(connection)
            problems += _foreign_schemas(connection, node, regions, is_sharded)
            if is_sharded:
                parents[node] = of_parents(connection)
                problems += uncarried.on_parents(connection, node)
                problems += _dropped_leaves(connection, topology, node, regions, phase)
            if node == topology.origin_primary():
                if _has_start(connection):
                    problems += uncarried.on_start(connection)
                    problems += unknown_countries(connection, regions)
                notes += _told(connection, topology, node, regions)
            is_due = phase == "after" and _is_purge_due(topology, regions)
            held = list(_holders(connection, node, topology, is_due))
            (problems if is_due else notes).extend(held)
    problems += _odd_columns(parents)
    problems += _taken_countries(topology, password, regions)
    if problems:
        raise LabError("; ".join(dict.fromkeys(problems)))
    return notes


@contextmanager
def _one_line(node: str) -> Iterator[None]:
    """Raise what a node answers as a LabError."""
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        raise LabError(
            f"a session on {node} has locked a table for more than {LOCK_TIMEOUT_S} s that is to be"
            " checked before anything is changed: end it (pg_locks and pg_stat_activity name it)"
        ) from None
    except psycopg.Error as error:
        raise LabError(f"{node}: {describe(error)}") from None


def _is_sharded(connection: psycopg.Connection[Any]) -> bool:
    row: Any = connection.execute(
        "SELECT to_regclass('global.home') IS NOT NULL"
        " AND to_regclass('global.customer') IS NOT NULL"
    ).fetchone()
    return bool(row[0])


def _has_start(connection: psycopg.Connection[Any]) -> bool:
    row: Any = connection.execute(
        "SELECT count(*) FROM pg_class WHERE relkind <> 'v' AND oid IN ("
        " SELECT to_regclass('public.' || name) FROM unnest(%s::text[]) AS name)",
        ([table.name for table in STARTED],),
    ).fetchone()
    return bool(row[0])


def _foreign_schemas(
    connection: psycopg.Connection[Any],
    node: str,
    regions: Mapping[str, Sequence[str]],
    is_sharded: bool,
) -> Iterator[str]:
    """Yield the schemas of a person's own whose names the lab needs."""
    known = set()
    if is_sharded:
        # Made together with the countries in global.home.
        known = {row[0] for row in connection.execute("SELECT DISTINCT region FROM global.home")}
        known.add("global")
    marked = [schemas.OLD, *(n.format(region=r) for n in schemas.TRANSITIONAL for r in regions)]
    names = [*marked, *({"global", *regions} - known)]
    for name, is_the_labs, content in connection.execute(
        _SCHEMAS, {"mark": schemas.MARK, "names": names}
    ).fetchall():
        if not (is_the_labs and name in marked):
            holds = f", with {content}," if content else ""
            yield (
                f"schema {name} on {node}{holds} is not the lab's, which needs the name: ALTER"
                f" SCHEMA {name} RENAME TO another"
            )


def unknown_countries(
    connection: psycopg.Connection[Any], regions: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return, as one problem, the countries of customers that are at home in no region."""
    known = [country for countries in regions.values() for country in countries]
    rows = connection.execute(
        "SELECT country, count(*) FROM public.customer WHERE country <> ALL(%s) GROUP BY 1"
        " ORDER BY 2 DESC LIMIT 5",
        (known,),
    ).fetchall()
    if not rows:
        return []
    named = ", ".join(f"{count:,} in {country!r}" for country, count in rows)
    return [
        f"customers are in countries that are at home in no region: {named}; add them to"
        " lab_regions, or mend the rows"
    ]


def _told(
    connection: psycopg.Connection[Any],
    topology: Topology,
    node: str,
    regions: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """Yield what is to be known: keys that hold within a region, ids that are in two."""
    if _has_start(connection):
        yield from uncarried.unique_by_region(connection)
        for role in uncarried.roles(connection, topology.user):
            yield f"role {role} keeps its rights on {node}; other nodes do not have the role"
        return
    for table in STARTED:
        leaves = [leaf for leaf in leaves_of(regions) if leaf.table == table.name]
        own = {name.as_string(connection) for name in own_tables(connection, table.name)}
        here = [leaf.identifier() for leaf in leaves if leaf.identifier().as_string(None) in own]
        if len(here) < 2:
            continue
        every = sql.SQL(" UNION ALL ").join(sql.SQL("SELECT id FROM {}").format(x) for x in here)
        rows = connection.execute(sql.SQL(_DOUBLED).format(every)).fetchall()
        if rows:
            ids = ", ".join(row[0] for row in rows)
            yield (
                f"{table.name}: the same id is in two regions, where each is a row of its own"
                f" (keys hold within a region): {ids}"
            )


def _dropped_leaves(
    connection: psycopg.Connection[Any],
    topology: Topology,
    node: str,
    regions: Mapping[str, Sequence[str]],
    phase: str,
) -> list[str]:
    """Return what is on other regions' leaves, which leave a node in phase after."""
    if phase != "after":
        return []
    own = topology.nodes[node]["region"]
    others = [leaf for leaf in leaves_of(regions) if leaf.region != own]
    return uncarried.on_leaves(connection, node, others)


def _odd_columns(parents: Mapping[str, Mapping[str, Definition]]) -> Iterator[str]:
    """Yield the columns that are not on all nodes, or not of one type."""
    for first, definitions in list(parents.items())[:1]:
        for node, others in parents.items():
            for table, definition in definitions.items():
                for column in definition.differences(others[table]):
                    yield (
                        f"column global.{table}.{column} is not the same on {first} and {node}:"
                        " add it to global." + table + " on every node, or drop it"
                    )


def _is_purge_due(topology: Topology, regions: Mapping[str, Sequence[str]]) -> bool:
    return topology.phase != "after" or any(
        topology.primary_of(region) is None for region in regions
    )


def _holders(
    connection: psycopg.Connection[Any], node: str, topology: Topology, is_due: bool
) -> Iterator[str]:
    """Yield what keeps WAL or deleted rows that a purge has to wait for."""
    own = {schemas.slot(name) for name in topology.nodes}
    own |= {name.replace("-", "_") for name in topology.nodes}
    for kind, name, holds in connection.execute(_HOLDERS.encode()).fetchall():
        if (kind == "slot" and name in own) or name.startswith("lab_move_"):
            continue
        verb = "blocks" if is_due else "will block"
        remedy = (
            f"SELECT pg_drop_replication_slot('{name}')"
            if kind == "slot"
            else f"COMMIT PREPARED or ROLLBACK PREPARED '{name}'"
        )
        yield (
            f"{kind} {name} on {node} holds {holds}, and {verb} the purge of rows that moved: end"
            f" it ({remedy}) before after.yml, and make it again after"
        )


def _taken_countries(
    topology: Topology, password: str, regions: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yield the countries that are taken from a region that has customers in them."""
    home = {country: name for name, countries in regions.items() for country in countries}
    for region in topology.regions:
        leaving = [country for country in region.countries if home.get(country) != region.name]
        if not leaving:
            continue
        login: Login = topology.operator_login(region.node, password)
        with connect(login, 5) as connection:
            for table in own_tables(connection, "customer"):
                row: Any = connection.execute(
                    sql.SQL(
                        "SELECT count(*), min({region}::text) FROM {}"
                        " WHERE {region}::text = ANY(%s)"
                    ).format(table, region=sql.Identifier(REGION)),
                    (leaving,),
                ).fetchone()
                if row[0]:
                    yield (
                        f"lab_regions takes '{row[1]}' from region {region.name}, which has"
                        f" {row[0]:,} customers in {', '.join(leaving)}: move them first (make"
                        " move), or leave it there"
                    )
