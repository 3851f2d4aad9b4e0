"""The leaf partitions: <region>.customer, <region>.purchase and <region>.test below global.*.

A leaf is made in steps, so that rows can be loaded before there are keys to keep up: the table, its
keys, what it refers to, and its place below the parent.

A direct insert of a stranger is refused on the leaf itself: by its partition bound, and while it is
no partition, by a CHECK that says the same. It never has both for long, since PostgreSQL sets them
up anew for each statement, and a list of twenty countries takes a tenth of an INSERT. ATTACH takes
the CHECK as proof, instead of reading the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

#: The CHECK that stands for a leaf's partition bound.
BOUND = "home"
#: The column that says where a row is at home: the partition key of all tables.
REGION = "country"


@dataclass(frozen=True)
class Table:
    """A partitioned table. How it is made, the catalogue says: see definition.py."""

    name: str
    #: The table whose rows say where this one's are at home, and the column that refers to its id;
    #: "" where it says that itself.
    follows: str = ""
    by: str = ""
    #: Whether it stands in public from the start, and is moved from there.
    is_from_start: bool = True

    @property
    def home(self) -> str:
        """What a query calls the table that has the region's column: t is this one."""
        return "home" if self.follows else "t"

    def start(self) -> sql.Identifier:
        """Return its name at the start."""
        return sql.Identifier("public", self.name)


#: The tables, each after the one that it follows.
TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        Table("customer"),
        Table("purchase", follows="customer", by="customer_id"),
        Table("test", is_from_start=False),
    )
}
#: Those of the start.
STARTED = tuple(table for table in TABLES.values() if table.is_from_start)
#: Tables are locked in this order everywhere: a writer of a purchase goes on to its customer, by
#: the foreign key.
LOCK_ORDER = tuple(sorted(TABLES, key=lambda name: not TABLES[name].follows))
#: Where rows stand by themselves: the table of the start, or the leaves that are no foreign tables.
_OWN_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relname = %(table)s AND CASE
  WHEN EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.' || %(table)s)
               AND relkind = 'r') THEN n.nspname = 'public'
  ELSE c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass('global.' || %(table)s)))
END
"""


@dataclass(frozen=True)
class Leaf:
    """One leaf partition by its region and table."""

    region: str
    table: str
    countries: tuple[str, ...]
    #: The schema that it stands in: its region's, or another one while it is filled.
    schema: str

    @property
    def name(self) -> str:
        """The leaf as messages name it."""
        return f"{self.region}.{self.table}"

    def identifier(self) -> sql.Identifier:
        """Return its qualified name."""
        return sql.Identifier(self.schema, self.table)

    def parent(self) -> sql.Identifier:
        """Return its parent's qualified name."""
        return sql.Identifier("global", self.table)

    def country_list(self) -> sql.Composed:
        """Return its countries as a list of literals."""
        return sql.SQL(", ").join(map(sql.Literal, self.countries))

    def check(self) -> sql.Composed:
        """Return the constraint that stands for its bound while it is no partition."""
        return sql.SQL("CONSTRAINT {} CHECK ({} IN ({}))").format(
            sql.Identifier(BOUND), sql.Identifier(REGION), self.country_list()
        )

    def attach(self, parent: sql.Identifier | None = None) -> sql.Composed:
        """Return the statements that make it a partition, with the bound in the CHECK's place."""
        attach = self.attach_to(parent or self.parent(), self.identifier())
        return sql.SQL("{}; {}").format(attach, self.drop_check())

    def drop_check(self) -> sql.Composed:
        """Return the statement that takes the CHECK away again."""
        return sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
            self.identifier(), sql.Identifier(BOUND)
        )

    def attach_to(self, parent: sql.Identifier, child: sql.Identifier) -> sql.Composed:
        """Return the statement that makes a table a partition by its countries."""
        return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(
            parent, child, self.country_list()
        )


def parents(only: Collection[str] = TABLES) -> list[sql.Composed]:
    """Return what of the partitioned tables is to be locked, in the order in which everybody does.

    Not what is below them: a change locks the leaf that it is about.
    """
    return [
        sql.SQL("ONLY {}").format(sql.Identifier("global", table))
        for table in LOCK_ORDER
        if table in only
    ]


def in_lock_order(leaves: Iterable[Leaf]) -> list[sql.Identifier]:
    """Return the names of leaves in the order in which everybody locks them."""
    ordered = sorted(leaves, key=lambda leaf: LOCK_ORDER.index(leaf.table))
    return [leaf.identifier() for leaf in ordered]


def leaves_of(
    regions: Mapping[str, Sequence[str]],
    only: Iterable[str] | None = None,
    schema: str = "{region}",
) -> list[Leaf]:
    """Return the leaves of all regions ({name: countries}), or of some.

    schema is where they stand, with {region} for the region's name.
    """
    chosen = set(regions if only is None else only)
    return [
        Leaf(region, table, tuple(countries), schema.format(region=region))
        for region, countries in regions.items()
        if region in chosen
        for table in TABLES
    ]


def own_tables(connection: psycopg.Connection[Any], table: str) -> list[sql.Identifier]:
    """Return the tables of a node that hold the rows of "customer" or "purchase" on it."""
    rows = connection.execute(_OWN_TABLES, {"table": table}).fetchall()
    return [sql.Identifier(schema, name) for schema, name in rows]
