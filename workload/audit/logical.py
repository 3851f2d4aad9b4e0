"""What SQL shows of each region on a node: rows of tables, and values of tables and statistics.

A row's country tells its region. Values are compared as salted hashes, which each server computes
itself: no node receives another node's e-mails, so none can keep them in its log or its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql

from workload.audit.canaries import Canary
from workload.audit.places import Place
from workload.errors import LabError
from workload.sql import Login, connect, describe
from workload.topology import PHASES, Topology

#: The schema of the audit's control table, which is no customer's data.
OWN_SCHEMA = "lab_audit"
#: The region of rows whose country no region serves.
UNKNOWN = "unknown"
#: The lab's own tables, at home or as partitions: a country tells the region of each row.
LAB_TABLES = ("customer", "purchase", "test")
UUID_TEXT = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: An e-mail or an id within a longer text. An e-mail with one of the separators used here is
#: recognised as a whole value alone.
WITHIN = r"""[^][:space:]"'`<>(),;:=/|&\\{}[]+@[^][:space:]"'`<>(),;:=/|&\\{}@[]+|""" + UUID_TEXT
RELATION_FILE = re.compile(
    r"(?:base|pg_tblspc/(?P<space>\d+)/[^/]+)/(?P<db>\d+)/(?P<node>\d+)(?:_[a-z]+)?(?:\.\d+)?"
)
#: Tables up to this size, in bytes, are compared in full; the files of larger ones are searched
#: for the sample. A table of 38 MB took PostgreSQL 15 less than 10 s on a machine at full load.
COMPARED_BYTES = 64_000_000
#: Hashes that are sent to a home in one statement: one pass over its customers for each.
BATCH = 200_000


@dataclass(frozen=True)
class Table:
    """A table that holds rows on a node."""

    schema: str
    name: str
    #: {name: type and its category in pg_type, as "uuid U"}.
    columns: Mapping[str, str]
    size: int = 0
    #: The schema of the partitioned table that it is a part of.
    root_schema: str | None = None
    #: Of a table without countries: its column that refers to another table, and that table's
    #: schema, name and column.
    through: tuple[str, str, str, str] | None = None

    @property
    def identifier(self) -> sql.Composable:
        """Its name in a statement."""
        return sql.Identifier(self.schema, self.name)

    @property
    def is_the_labs(self) -> bool:
        """Whether the lab's own SQL made it for customers' rows."""
        home = "public" if self.root_schema is None else self.root_schema
        return self.name in LAB_TABLES and home in ("public", "global")

    @property
    def texts(self) -> list[str]:
        """The columns that can hold an e-mail or an id: texts, arrays, composites, uuid, json."""
        return [name for name, kind in self.columns.items() if kind[-1] in "SAUC"]


@dataclass
class Shown:
    """What SQL shows on a node."""

    #: Rows by region.
    rows: Counter[str] = field(default_factory=Counter)
    #: Where these are.
    places: list[Place] = field(default_factory=list)
    #: Hashes of the values that may be customers', ascending, by where they are; the region is "".
    values: dict[Place, array[int]] = field(default_factory=dict)
    #: Tables that were not compared, since they are too large: name and bytes.
    large: list[tuple[str, int]] = field(default_factory=list)
    #: The files of the statistics, relative to the data directory.
    statistics_files: set[str] = field(default_factory=set)
    #: The setting: zstd leaves nothing of a canary in the WAL's copies of whole pages.
    wal_compression: str = "off"


class Regions:
    """Which region serves a country."""

    def __init__(self, topology: Topology) -> None:
        """Read the regions' countries."""
        self._by_country = {
            country: region.name for region in topology.regions for country in region.countries
        }
        #: The region of customers without a country, in phases in which they have none.
        self.without = (
            topology.origin()
            if PHASES.index(topology.phase) < PHASES.index("expand_world")
            else None
        )

    def of(self, country: str | None) -> str:
        """Return the region that serves a country."""
        return self._by_country.get(country or "", UNKNOWN)


def hash_of(value: str, salt: str) -> int:
    """Return what hash_in() makes of a value on a server: 64 bits.

    Among a million customers and a million other values, two hashes are equal in one of ten million
    audits.
    """
    lowered = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in value)
    digest = hashlib.md5(f"{salt}{lowered}".encode(), usedforsecurity=False).hexdigest()
    return int(digest[:16], 16)


def hash_in(value: sql.Composable, salt: str) -> sql.Composed:
    """Return the expression of a value's hash, 16 hexadecimal digits; case does not matter."""
    return sql.SQL('left(md5({} || lower({} COLLATE "C")), 16)').format(sql.Literal(salt), value)


def show(login: Login, regions: Regions, salt: str) -> Shown:
    """Read what a node shows, in every database that takes connections.

    Raises LabError with the server's message.
    """
    shown = Shown()
    with connected(login) as connection:
        setting = connection.execute("SHOW wal_compression").fetchone()
        shown.wal_compression = str(setting[0] if setting else "")
    for database in databases(login):
        with connected(database) as connection:
            tables = _tables(connection)
            counted = _counted(connection, tables, regions)
            for table in counted.values():
                rows = _count(connection, table, regions)
                shown.rows += rows
                shown.places += [
                    Place(region, "logical", hits, database.dbname, table.schema, table.name)
                    for region, hits in rows.items()
                ]
            for table in tables.values():
                is_ours = table.is_the_labs and database.dbname == login.dbname
                if is_ours or not table.texts or not table.size:
                    continue
                if table.size > COMPARED_BYTES:
                    name = f"{database.dbname}.{table.schema}.{table.name}"
                    shown.large.append((name, table.size))
                    continue
                _take(shown, connection, table, database.dbname, salt)
            _take_statistics(shown, connection, database.dbname, salt)
            shown.statistics_files.update(
                path for (path,) in connection.execute(statement("statistics_files")).fetchall()
            )
    return shown


class Owners(dict[int, frozenset[str]]):
    """The regions of each hash that is a customer's e-mail or id; equal sets are one object."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self._distinct: dict[frozenset[str], frozenset[str]] = {}

    def add(self, value: int, region: str) -> None:
        """Add a region to those of a hash."""
        regions = self.get(value, frozenset()) | {region}
        self[value] = self._distinct.setdefault(regions, regions)


def owners(
    logins: Sequence[Login],
    values: Iterable[array[int]],
    regions: Regions,
    canaries: Iterable[Canary],
    salt: str,
) -> Owners:
    """Return the regions of each hash that is a customer's e-mail or id, by the nodes' tables.

    logins: of the primaries; a standby's tables are the same. values: hashes, ascending; memory is
    needed for one batch of them, and for those that are customers'.
    """
    owned = Owners()
    for canary in canaries:
        for value in (canary.email, canary.id, canary.purchase):
            owned.add(hash_of(value, salt), canary.region)
    distinct = (f"{value:016x}" for value, _ in itertools.groupby(heapq.merge(*values)))
    while batch := list(itertools.islice(distinct, BATCH)):
        for login in logins:
            for database in databases(login):
                with connected(database) as connection:
                    for table in _counted(connection, _tables(connection), regions).values():
                        if not table.is_the_labs:
                            continue  # A copy does not tell which region a customer is of.
                        for column in {"email", "id"} & set(table.columns):
                            _add_owners(owned, connection, table, column, batch, regions, salt)
    return owned


def relation_of(login: Login, file: str) -> tuple[str, str, str]:
    """Return the database, schema and name of the relation that a file is of; "" where unknown.

    file: a path below the data directory, as of base/5/16384.1.
    """
    matched = RELATION_FILE.fullmatch(file)
    if not matched:
        return "", "", ""
    with connected(login) as connection:
        row = connection.execute(
            "SELECT datname FROM pg_database WHERE oid = %s AND datallowconn", (matched["db"],)
        ).fetchone()
    if row is None:
        return "", "", ""
    with connected(replace(login, dbname=row[0])) as connection:
        name = connection.execute(
            "SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE c.oid = pg_filenode_relation(%s, %s)",
            (int(matched["space"] or 0), int(matched["node"])),
        ).fetchone()
    return (row[0], *name) if name else (row[0], "", "")


def databases(login: Login) -> list[Login]:
    """Return the logins of all databases of a node."""
    with connected(login) as connection:
        rows = connection.execute(statement("databases")).fetchall()
    return [replace(login, dbname=str(name)) for (name,) in rows]


@contextlib.contextmanager
def connected(login: Login) -> Iterator[psycopg.Connection[Any]]:
    """Yield a read-only connection; raises LabError with the database and the server's message."""
    try:
        with contextlib.closing(connect(login)) as connection:
            connection.read_only = True
            connection.execute("SET lock_timeout = '30s'")
            yield connection
    except psycopg.Error as error:
        raise LabError(
            f"database {login.dbname} at {login.where} cannot be read: {describe(error)}"
        ) from error


def statement(name: str) -> sql.SQL:
    """Return a statement of the folder sql, without the semicolon that psql needs."""
    text = (resources.files("workload.audit") / "sql" / f"{name}.sql").read_text()
    return sql.SQL(text.rstrip().removesuffix(";"))


def _tables(connection: psycopg.Connection[Any]) -> dict[int, Table]:
    return {
        oid: Table(schema, name, columns, size, root)
        for oid, schema, name, size, columns, root in connection.execute(statement("tables"))
    }


def _counted(
    connection: psycopg.Connection[Any], tables: Mapping[int, Table], regions: Regions
) -> dict[int, Table]:
    """Return the tables whose rows are customers', or refer to customers by a foreign key.

    Customers have an e-mail and a country; before they have a country, all are the origin's. A
    table with countries and no customers is reference data, such as a list of countries' names.
    """
    counted = {
        oid: table
        for oid, table in tables.items()
        if ("email" in table.columns and ("country" in table.columns or regions.without))
        or ("country" in table.columns and table.is_the_labs)
    }
    references = connection.execute(statement("references")).fetchall()
    grown = True
    while grown:
        grown = False
        for child, column, parent, target_column in references:
            if child not in tables or child in counted or parent not in counted:
                continue
            table, target = tables[child], counted[parent]
            if "country" in table.columns:
                counted[child], grown = table, True
            elif target.through is None:
                through = (str(column), target.schema, target.name, str(target_column))
                counted[child], grown = replace(table, through=through), True
    return counted


def _source(table: Table) -> tuple[sql.Composable, sql.Composable]:
    """Return what to select a table's rows from, as t, and the expression of their country."""
    source: sql.Composable = sql.SQL("ONLY {} AS t").format(table.identifier)
    if "country" in table.columns:
        return source, sql.SQL("t.country::text")
    if table.through is None:
        return source, sql.SQL("NULL::text")
    column, schema, name, target_column = table.through
    joined = sql.SQL("{} LEFT JOIN {} AS parent ON parent.{} = t.{}").format(
        source, sql.Identifier(schema, name), sql.Identifier(target_column), sql.Identifier(column)
    )
    # By JSON: the parent has no such column before customers have a country.
    return joined, sql.SQL("to_jsonb(parent) ->> 'country'")


def _region(country: str | None, regions: Regions) -> str:
    return regions.without if country is None and regions.without else regions.of(country)


def _count(connection: psycopg.Connection[Any], table: Table, regions: Regions) -> Counter[str]:
    """Count a table's rows by region."""
    counts: Counter[str] = Counter()
    source, country_of = _source(table)
    query = sql.SQL("SELECT {}, count(*) FROM {} GROUP BY 1").format(country_of, source)
    for country, rows in connection.execute(query).fetchall():
        if rows:
            counts[_region(country, regions)] += rows
    return counts


def _take(
    shown: Shown, connection: psycopg.Connection[Any], table: Table, database: str, salt: str
) -> None:
    """Add the hashes of all values of a table, and of the e-mails and ids within them."""
    columns = table.texts
    values = [
        sql.SQL("({}, {}, {})").format(
            sql.Literal(number),
            sql.Literal(table.columns[column].startswith("uuid ")),
            sql.SQL(
                "encode(t.{}, 'escape')"
                if table.columns[column].startswith("bytea ")
                else "t.{}::text"
            ).format(sql.Identifier(column)),
        )
        for number, column in enumerate(columns)
    ]
    query = sql.SQL(
        "COPY (SELECT part.number, {hash} FROM ONLY {table} AS t"
        " CROSS JOIN LATERAL (VALUES {values}) AS whole (number, is_id, value)"
        " CROSS JOIN LATERAL (SELECT number, value UNION ALL"
        " SELECT number, rtrim(m[1], '.!?') FROM regexp_matches(value, {within}, 'gi') AS m"
        " WHERE NOT is_id AND rtrim(m[1], '.!?') <> value) AS part (number, value)"
        " WHERE part.value <> '') TO STDOUT"
    ).format(
        hash=hash_in(sql.SQL("part.value"), salt),
        table=table.identifier,
        values=sql.SQL(", ").join(values),
        within=sql.Literal(f"({WITHIN})"),
    )
    hashes = [array("Q") for _ in columns]
    with connection.cursor().copy(query) as copy:
        for number, value in copy.rows():
            hashes[int(number)].append(int(value, 16))
    for column, content in zip(columns, hashes, strict=True):
        if content:
            where = Place("", "logical", 0, database, table.schema, table.name, column)
            shown.values[where] = array("Q", sorted(content))


def _take_statistics(
    shown: Shown, connection: psycopg.Connection[Any], database: str, salt: str
) -> None:
    """Add the hashes of the statistics' e-mails and ids."""
    query = sql.SQL(
        "SELECT schemaname, tablename, attname, {} FROM ({}) AS shown WHERE value ~ {}"
    ).format(
        hash_in(sql.SQL("value"), salt), statement("statistics"), sql.Literal(f"@|^{UUID_TEXT}$")
    )
    hashes: dict[Place, list[int]] = {}
    for schema, table, column, value in connection.execute(query).fetchall():
        where = Place("", "statistics", 0, database, schema, table, column)
        hashes.setdefault(where, []).append(int(value, 16))
    shown.values.update({where: array("Q", sorted(each)) for where, each in hashes.items()})


def _add_owners(
    owned: Owners,
    connection: psycopg.Connection[Any],
    table: Table,
    column: str,
    values: list[str],
    regions: Regions,
    salt: str,
) -> None:
    """Add the region of each hash that is that of a value of a table's column."""
    source, country_of = _source(table)
    query = sql.SQL("SELECT {hash}, {country} FROM {source} WHERE {hash} = ANY({values})").format(
        hash=hash_in(sql.SQL("t.{}::text").format(sql.Identifier(column)), salt),
        country=country_of,
        source=source,
        # Constants: PostgreSQL looks them up in a hash table.
        values=sql.Literal(values),
    )
    for value, country in connection.execute(query):
        owned.add(int(value, 16), _region(country, regions))
