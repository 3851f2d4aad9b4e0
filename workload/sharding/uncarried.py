"""What on a table cannot come along to leaves: each object by its name, and what to do about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.sharding.leaves import BOUND, REGION, STARTED, TABLES, Leaf, Table
from workload.sharding.objects import Object, of_kind, read

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


def on_start(connection: psycopg.Connection[Any]) -> list[str]:
    """Return what is on the tables of the start that leaves would not have, a problem each."""
    objects = read(connection, {table.name: table.start() for table in STARTED})
    problems = []
    for table in STARTED:
        if not objects[table.name]:
            problems.append(f"table public.{table.name} is not there: play before.yml")
            continue
        problems += _problems(table, objects[table.name])
    return list(dict.fromkeys(problems))


def unique_by_region(connection: psycopg.Connection[Any]) -> Iterator[str]:
    """Yield the keys of the start's tables that will hold within a region, and no further."""
    objects = read(connection, {table.name: table.start() for table in STARTED})
    for item in itertools.chain.from_iterable(objects.values()):
        if item.detail.get("type") in ("u", "x") or (
            item.kind == "index" and item.detail["is_unique"]
        ):
            yield (
                f"{item.kind} {item.name} on {item.table} will hold within each region: the"
                " same value may come in two of them"
            )


def roles(connection: psycopg.Connection[Any], own: str) -> list[str]:
    """Return the roles with rights on the tables of the start, but for PUBLIC and the lab's own."""
    objects = read(connection, {table.name: table.start() for table in STARTED})
    rights = of_kind(itertools.chain.from_iterable(objects.values()), "grant")
    return sorted({item.name for item in rights} - {"PUBLIC", own})


def on_leaves(connection: psycopg.Connection[Any], node: str, leaves: Iterable[Leaf]) -> list[str]:
    """Return what is on leaves that another table takes the places of, a problem each."""
    objects = read(connection, {leaf.name: leaf.identifier() for leaf in leaves})
    return [
        f"{item.kind} {item.name} on {name} of {node}: the table is going from there, and a"
        " foreign table takes its place: drop it, and make it again after"
        for name, each in objects.items()
        if name and each and of_kind(each, "table")[0].definition == "r"
        for item in of_kind(each, *_LEFT_BEHIND)
        if not _is_own_partition(item) and not _is_the_labs(item)
    ]


def on_parents(connection: psycopg.Connection[Any], node: str) -> list[str]:
    """Return what on partitioned tables keeps foreign leaves from being put below them."""
    objects = read(connection, {name: sql.Identifier("global", name) for name in TABLES})
    return [
        f"{item.kind} {item.name} on global.{name} of {node}: no foreign table can be a partition"
        " below a unique key: drop it"
        for name, each in objects.items()
        for item in of_kind(each, "constraint", "index")
        if item.detail.get("type") in ("p", "u", "x") or item.detail.get("is_unique")
    ]


def kept_in_place(
    connection: psycopg.Connection[Any], leaves: Mapping[str, sql.Identifier]
) -> list[str]:
    """Return what is on leaves, {table: name}, and would not go along to new tables."""
    objects = read(connection, leaves)
    names = {item.table for each in objects.values() for item in each if item.table}
    fixed = []
    for item in itertools.chain.from_iterable(objects.values()):
        if item.kind in _LEFT_BEHIND and not _is_own_partition(item):
            fixed.append(f"{item.kind} {item.name}")
        if item.kind == "table" and item.detail["row_security"]:
            fixed.append(f"row security of {item.table}")
        if item.kind == "table" and item.detail["label"]:
            fixed.append(f"security label of {item.table}")
        if item.detail.get("type") == "f" and item.detail["refers_to"] not in names:
            fixed.append(f"constraint {item.name}")
    return fixed


def _is_own_partition(item: Object) -> bool:
    return item.kind == "inheritance" and bool(item.detail["is_partition"])


def _is_the_labs(item: Object) -> bool:
    return (item.kind == "publication" and item.name.startswith("lab_")) or (
        item.kind == "subscription" and item.name == schemas.SUBSCRIPTION
    )


def _problems(table: Table, objects: Sequence[Object]) -> Iterator[str]:
    name = objects[0].table
    for item in of_kind(objects, *_LEFT_BEHIND):
        what = item.name if item.kind != "foreign key" else f"{item.name} of {item.definition}"
        yield f"{item.kind} {what} on {name}: {_LEFT_BEHIND[item.kind]}"
    for item in of_kind(objects, "need"):
        yield (
            f"{item.name} needs {item.definition}, which other nodes do not have: use what"
            " PostgreSQL brings, or drop it"
        )
    yield from _table_problems(of_kind(objects, "table")[0], name)
    yield from _column_problems(table, of_kind(objects, "column"), name)
    for item in of_kind(objects, "constraint", "index"):
        what = f"{item.kind} {item.name} on {name}"
        kind = item.detail.get("type")
        if item.detail.get("tablespace"):
            yield f"{what} is in tablespace {item.detail['tablespace']}: move it to the default"
        if item.detail.get("is_valid") is False:
            yield f"{what} is not valid: REINDEX it, or drop it"
        if item.kind == "constraint" and item.name == BOUND:
            yield f"{what}: the lab needs the name, rename it"
        if kind == "p" and item.detail["columns"] != ["id"]:
            yield f"{what} is on {', '.join(item.detail['columns'])}: rows go by the column id"
        if kind == "f" and (
            not table.follows
            or item.detail["refers_to"] != f"public.{table.follows}"
            or item.detail["columns"] != [table.by]
        ):
            yield (
                f"foreign key {item.name} on {name} refers to {item.detail['refers_to']}, whose"
                " rows may be on another node: drop it"
            )
    if not any(item.detail.get("type") == "p" for item in of_kind(objects, "constraint")):
        yield f"{name} has no primary key: add one on id"


def _table_problems(item: Object, name: str) -> Iterator[str]:
    detail = item.detail
    if item.definition != "r":
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
    there = {item.name: item for item in columns}
    for key in filter(None, ("id", table.by)):
        if key not in there or there[key].definition != "uuid":
            yield f"column {name}.{key} is no uuid: rows go by one"
    if table.follows and REGION in there:
        yield f"column {name}.{REGION}: the lab adds one of that name, rename it"
    if not table.follows and (REGION not in there or there[REGION].definition != "text"):
        yield f"column {name}.{REGION} is no text: it says where a row is at home"
    for item in columns:
        if item.detail["identity"]:
            yield f"column {name}.{item.name} is an identity: {_LEFT_BEHIND['sequence']}"
        if item.detail["is_virtual"]:
            yield f"column {name}.{item.name} is generated when it is read: make it STORED"
