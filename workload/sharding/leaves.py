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

#: The partitioned tables, each after those that it refers to.
TABLES = ("customer", "purchase", "test")
#: Tables are locked in this order everywhere: a purchase's foreign key has its writer go on to
#: customer.
LOCK_ORDER = ("purchase", "customer", "test")
_PERSON = (
    "CREATE TABLE {leaf} (id uuid NOT NULL DEFAULT gen_random_uuid(), email text NOT NULL,"
    " country global.country NOT NULL, {check})"
)
_CREATE = {
    "customer": _PERSON,
    "purchase": (
        "CREATE TABLE {leaf} (id uuid NOT NULL DEFAULT gen_random_uuid(),"
        " customer_id uuid NOT NULL, amount decimal NOT NULL, country global.country NOT NULL,"
        " {check})"
    ),
    "test": _PERSON,
}
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "customer": ("id", "email", "country"),
    "purchase": ("id", "customer_id", "amount", "country"),
    "test": ("id", "email", "country"),
}
_KEYS: Mapping[str, tuple[str, ...]] = {
    "customer": ("ALTER TABLE {leaf} ADD PRIMARY KEY (id)",),
    "purchase": (
        "ALTER TABLE {leaf} ADD PRIMARY KEY (id)",
        "CREATE INDEX purchase_customer_id ON {leaf} (customer_id)",
    ),
    "test": ("ALTER TABLE {leaf} ADD PRIMARY KEY (id)",),
}
_REFERENCES: Mapping[str, tuple[str, ...]] = {
    "purchase": ("ALTER TABLE {leaf} ADD FOREIGN KEY (customer_id) REFERENCES {customer} (id)",),
}
#: Where rows stand by themselves: the table of the start, or the leaves that are no foreign tables.
_OWN_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relname = %(table)s AND CASE
  WHEN EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.' || %(table)s)
               AND relkind = 'r') THEN n.nspname = 'public'
  ELSE c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass('global.' || %(table)s)))
END
"""


def columns_of(table: str) -> tuple[str, ...]:
    """Return a table's columns in order."""
    return _COLUMNS[table]


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

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns in order."""
        return _COLUMNS[self.table]

    def identifier(self) -> sql.Identifier:
        """Return its qualified name."""
        return sql.Identifier(self.schema, self.table)

    def parent(self) -> sql.Identifier:
        """Return its parent's qualified name."""
        return sql.Identifier("global", self.table)

    def column_list(self) -> sql.Composed:
        """Return its columns as a list."""
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))

    def country_list(self) -> sql.Composed:
        """Return its countries as a list of literals."""
        return sql.SQL(", ").join(map(sql.Literal, self.countries))

    def check(self) -> sql.Composed:
        """Return the constraint, named home, that stands for its bound while it is no partition."""
        return sql.SQL("CONSTRAINT home CHECK (country IN ({}))").format(self.country_list())

    def create(self) -> sql.Composed:
        """Return the statement that makes the table, without keys."""
        return self._format(_CREATE[self.table])

    def key_statements(self) -> list[sql.Composed]:
        """Return the statements that make its primary key and indexes."""
        return [self._format(text) for text in _KEYS[self.table]]

    def references(self) -> list[sql.Composed]:
        """Return the statements that make its foreign keys; they need the region's other keys."""
        return [self._format(text) for text in _REFERENCES.get(self.table, ())]

    def attach(self, parent: sql.Identifier | None = None) -> sql.Composed:
        """Return the statements that make it a partition, with the bound in the CHECK's place."""
        drop = self._format("ALTER TABLE {leaf} DROP CONSTRAINT IF EXISTS home")
        attach = self.attach_to(parent or self.parent(), self.identifier())
        return sql.SQL("{}; {}").format(attach, drop)

    def attach_to(self, parent: sql.Identifier, child: sql.Identifier) -> sql.Composed:
        """Return the statement that makes a table a partition by its countries."""
        return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES IN ({})").format(
            parent, child, self.country_list()
        )

    def _format(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(
            leaf=self.identifier(),
            customer=sql.Identifier(self.schema, "customer"),
            countries=self.country_list(),
            check=self.check(),
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
    wanted = set(regions if only is None else only)
    return [
        Leaf(region, table, tuple(countries), schema.format(region=region))
        for region, countries in regions.items()
        if region in wanted
        for table in TABLES
    ]


def own_tables(connection: psycopg.Connection[Any], table: str) -> list[sql.Identifier]:
    """Return the tables of a node that hold the rows of "customer" or "purchase" on it."""
    rows = connection.execute(_OWN_TABLES, {"table": table}).fetchall()
    return [sql.Identifier(schema, name) for schema, name in rows]
