"""What the lab would lose or trip over, asked before anything is changed, all of it by name.

Each problem says what it is about, what is wrong with it, and what to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError
from workload.sharding.leaves import BOUND, REGION, STARTED, Table, own_tables
from workload.sharding.objects import Object, of_kind, read
from workload.sql import connect
from workload.topology import Topology

#: What cannot come along to a leaf, and what a person can do about it.
_LEFT_BEHIND: Mapping[str, str] = {
    "trigger": "its function is on this node alone: drop it, and make both on every node's own leaf"
    " after",
    "rule": "drop it, and make it for the parent after",
    "policy": "row security is not carried: drop it, and make it on the parent on every node after",
    "publication": "it would publish no row any more, or the lab's own tables: drop it, and publish"
    " the leaves after",
    "subscription": "it cannot write to the view that takes the table's place: let it catch up and"
    " drop it",
    "foreign key": "what it refers to is to be on several nodes: drop it, or move its table's data"
    " into one of the lab's",
    "view": "it would stay with the old table: drop it, and make it again after",
    "materialized view": "it would stay with the old table: drop it, and make it again after",
    "function": "it takes or returns the old table's rows: drop it, and make it again after",
    "column of its row type": "it holds the old table's rows: give it another type",
    "inheritance": "rows of other tables are not moved: end it (ALTER TABLE ... NO INHERIT ...)",
    "sequence": "each region would count on its own, and take numbers twice: give the column"
    " another default, such as gen_random_uuid()",
}


def uncarried(connection: psycopg.Connection[Any]) -> list[str]:
    """Return what is on the tables of the start that leaves would not have, a problem each."""
    objects = read(connection, {table.name: table.start() for table in STARTED})
    problems = []
    for table in STARTED:
        if not objects[table.name]:
            problems.append(f"table public.{table.name} is not there: play before.yml")
            continue
        problems += _problems(table, objects[table.name])
    return list(dict.fromkeys(problems))


def kept_in_place(
    connection: psycopg.Connection[Any], leaves: Mapping[str, sql.Identifier]
) -> list[str]:
    """Return what is on leaves, {table: name}, and would not go along to new tables."""
    objects = read(connection, leaves)
    names = {found.table for each in objects.values() for found in each if found.table}
    fixed = []
    for found in itertools.chain.from_iterable(objects.values()):
        if found.kind in _LEFT_BEHIND and not _is_own_partition(found):
            fixed.append(f"{found.kind} {found.name}")
        if found.kind == "table" and found.detail["row_security"]:
            fixed.append(f"row security of {found.table}")
        if found.kind == "table" and found.detail["label"]:
            fixed.append(f"security label of {found.table}")
        if found.detail.get("type") == "f" and found.detail["refers_to"] not in names:
            fixed.append(f"constraint {found.name}")
    return fixed


def _is_own_partition(found: Object) -> bool:
    return found.kind == "inheritance" and bool(found.detail["is_partition"])


def _problems(table: Table, objects: Sequence[Object]) -> Iterator[str]:
    name = objects[0].table
    for found in of_kind(objects, *_LEFT_BEHIND):
        what = found.name if found.kind != "foreign key" else f"{found.name} of {found.definition}"
        yield f"{found.kind} {what} on {name}: {_LEFT_BEHIND[found.kind]}"
    for found in of_kind(objects, "need"):
        yield (
            f"{found.name} needs {found.definition}, which other nodes do not have: use what"
            " PostgreSQL brings, or drop it"
        )
    yield from _table_problems(of_kind(objects, "table")[0], name)
    yield from _column_problems(table, of_kind(objects, "column"), name)
    for found in of_kind(objects, "constraint", "index"):
        what = f"{found.kind} {found.name} on {name}"
        kind = found.detail.get("type")
        if found.detail.get("tablespace"):
            yield f"{what} is in tablespace {found.detail['tablespace']}: move it to the default"
        if found.detail.get("is_valid") is False:
            yield f"{what} is not valid: REINDEX it, or drop it"
        if found.kind == "constraint" and found.name == BOUND:
            yield f"{what}: the lab needs the name, rename it"
        if kind == "p" and found.detail["columns"] != ["id"]:
            yield f"{what} is on {', '.join(found.detail['columns'])}: rows go by the column id"
        if kind == "f" and (
            not table.follows
            or found.detail["refers_to"] != f"public.{table.follows}"
            or found.detail["columns"] != [table.by]
        ):
            yield (
                f"foreign key {found.name} on {name} refers to {found.detail['refers_to']}, whose"
                " rows may be on another node: drop it"
            )
    if not any(found.detail.get("type") == "p" for found in of_kind(objects, "constraint")):
        yield f"{name} has no primary key: add one on id"


def _table_problems(found: Object, name: str) -> Iterator[str]:
    detail = found.detail
    if found.definition != "r":
        yield f"{name} is no plain table: its rows are moved from one"
    if not detail["is_superusers"]:
        yield (
            f"{name} is owned by {detail['owner']}, who would not own the leaves: ALTER TABLE ..."
            f" OWNER TO postgres, and GRANT {detail['owner']} what it needs"
        )
    if detail["persistence"] != "p":
        yield f"{name} is unlogged, and its rows would not be copied: ALTER TABLE ... SET LOGGED"
    if detail["tablespace"]:
        yield f"{name} is in tablespace {detail['tablespace']}: move it to the default"
    if detail["row_security"]:
        yield (
            f"{name} has row security, which is not carried: ALTER TABLE ... DISABLE ROW LEVEL"
            " SECURITY"
        )
    if detail["replica_identity"] == "n":
        yield (
            f"{name} has no replica identity, which copies need: ALTER TABLE ... REPLICA IDENTITY"
            " DEFAULT"
        )
    if detail["label"]:
        yield f"{name} has a security label ({detail['label']}), which is not carried: drop it"


def _column_problems(table: Table, columns: Sequence[Object], name: str) -> Iterator[str]:
    there = {found.name: found for found in columns}
    for key in filter(None, ("id", table.by)):
        if key not in there or there[key].definition != "uuid":
            yield f"column {name}.{key} is no uuid: rows go by one"
    if table.follows and REGION in there:
        yield f"column {name}.{REGION}: the lab adds one of that name, rename it"
    if not table.follows and (REGION not in there or there[REGION].definition != "text"):
        yield f"column {name}.{REGION} is no text: it says where a row is at home"
    for found in columns:
        if found.detail["identity"]:
            yield f"column {name}.{found.name} is an identity: {_LEFT_BEHIND['sequence']}"
        if found.detail["is_virtual"]:
            yield f"column {name}.{found.name} is generated when it is read: make it STORED"


def check(topology: Topology, password: str, regions: Mapping[str, Sequence[str]]) -> None:
    """Raise LabError where a country is taken from a region that has customers in it.

    regions: {name: countries} as they are to be.
    """
    home = {country: name for name, countries in regions.items() for country in countries}
    for region in topology.regions:
        leaving = [country for country in region.countries if home.get(country) != region.name]
        if not leaving:
            continue
        with connect(topology.operator_login(region.node, password), 5) as connection:
            for table in own_tables(connection, "customer"):
                row: Any = connection.execute(
                    sql.SQL(
                        "SELECT count(*), min(country::text) FROM {} WHERE country::text = ANY(%s)"
                    ).format(table),
                    (leaving,),
                ).fetchone()
                if row[0]:
                    raise LabError(
                        f"lab_regions takes '{row[1]}' from region {region.name}, which has"
                        f" {row[0]:,} customers in {', '.join(leaving)}: move them first (make"
                        " move), or leave it there"
                    )
