"""What SQL shows of each region on a node: rows of tables, and values in the statistics."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from workload.audit.canaries import Canary
from workload.errors import LabError
from workload.sql import Login, connect, describe
from workload.topology import Topology

#: The schema of the audit's own control table, which is nobody's data.
OWN_SCHEMA = "lab_audit"
#: The region of rows whose country no region serves.
UNKNOWN = "unknown"
UUID_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

DATABASES = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname"

# Whatever holds rows here: not foreign tables, nor parents, whose rows are their partitions'. A
# session's temporary tables nobody else can read: the files show those. global.home says which
# country is at home where, and is nobody's row.
TABLES = """
SELECT c.oid, n.nspname, c.relname,
  (
    SELECT coalesce(json_object_agg(attname, format_type(atttypid, NULL)), '{}') FROM pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
  )
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relispopulated AND c.relpersistence <> 't'
  AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> ALL (%s)
  AND (n.nspname, c.relname) <> ('global', 'home')
"""

REFERENCES = """
SELECT c.conrelid, child.attname, c.confrelid, parent.attname
FROM pg_constraint c
JOIN pg_attribute child ON child.attrelid = c.conrelid AND child.attnum = c.conkey[1]
JOIN pg_attribute parent ON parent.attrelid = c.confrelid AND parent.attnum = c.confkey[1]
WHERE c.contype = 'f' AND cardinality(c.conkey) = 1
"""

# Partitioned parents and foreign tables too: ANALYZE of either brings other regions' values here.
STATISTICS = """
WITH wanted AS (
  SELECT s.most_common_vals::text::text[] AS common, s.histogram_bounds::text::text[] AS bounds
  FROM pg_stats s
  JOIN pg_namespace n ON n.nspname = s.schemaname
  JOIN pg_class c ON c.relname = s.tablename AND c.relnamespace = n.oid
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = s.attname
  JOIN pg_type t ON t.oid = a.atttypid
  WHERE (t.typcategory = 'S' OR t.typname = 'uuid')
    AND s.schemaname NOT LIKE 'pg\\_%%' AND s.schemaname <> ALL (%(own)s)
  UNION ALL
  SELECT most_common_vals, NULL FROM pg_stats_ext
  WHERE schemaname NOT LIKE 'pg\\_%%' AND schemaname <> ALL (%(own)s)
  UNION ALL
  SELECT most_common_vals::text::text[], histogram_bounds::text::text[] FROM pg_stats_ext_exprs
  WHERE schemaname NOT LIKE 'pg\\_%%' AND schemaname <> ALL (%(own)s)
)
SELECT value FROM wanted, unnest(common) AS value WHERE value IS NOT NULL
UNION ALL
SELECT value FROM wanted, unnest(bounds) AS value WHERE value IS NOT NULL
"""

STATISTICS_FILES = """
WITH relation AS (
  SELECT oid, reltoastrelid FROM pg_class
  WHERE oid IN ('pg_statistic'::regclass, 'pg_statistic_ext_data'::regclass)
), file AS (
  SELECT oid FROM relation UNION SELECT reltoastrelid FROM relation
)
SELECT pg_relation_filepath(oid) FROM file
UNION
SELECT pg_relation_filepath(indexrelid) FROM pg_index WHERE indrelid IN (SELECT oid FROM file)
"""

NOT_USERS = ["information_schema", OWN_SCHEMA]


@dataclass(frozen=True)
class Table:
    """A table whose rows are customers', or belong to customers."""

    schema: str
    name: str
    #: Their types by name.
    columns: Mapping[str, str]
    #: The countries of its rows come from another one's: its own column, the other's schema, name
    #: and column.
    through: tuple[str, str, str, str] | None = None

    @property
    def identifier(self) -> sql.Composable:
        """Its name in a statement."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True)
class Shown:
    """What a node shows by SQL."""

    #: Rows by region.
    rows: Mapping[str, int]
    #: Values in the statistics that may be customers'.
    values: tuple[str, ...]
    #: The files of the statistics, relative to the data directory.
    statistics_files: frozenset[str]
    #: The setting: zstd leaves nothing of a marker in the WAL's copies of whole pages.
    wal_compression: str = "off"


class Regions:
    """Whose a country is."""

    def __init__(self, topology: Topology) -> None:
        """Read the regions' countries."""
        self.origin = topology.origin()
        self._by_country = {
            country: region.name for region in topology.regions for country in region.countries
        }

    def of(self, country: str | None) -> str:
        """Return the region that serves a country."""
        return self._by_country.get(country or "", UNKNOWN)


def look(login: Login, regions: Regions) -> Shown:
    """Read what a node shows, in every database that takes connections.

    Raises LabError with the server's message.
    """
    rows: Counter[str] = Counter()
    values: list[str] = []
    files: set[str] = set()
    with _connected(login) as connection:
        setting = connection.execute("SHOW wal_compression").fetchone()
    for database in _databases(login):
        with _connected(database) as connection:
            tables, has_country = _tables(connection)
            for table in tables:
                rows += _count(connection, table, has_country, regions)
            found = connection.execute(STATISTICS, {"own": NOT_USERS}).fetchall()
            values += [value for (value,) in found if "@" in value or UUID_TEXT.fullmatch(value)]
            files.update(path for (path,) in connection.execute(STATISTICS_FILES).fetchall())
    return Shown(dict(rows), tuple(values), frozenset(files), str(setting[0] if setting else ""))


def owners(
    logins: Iterable[Login],
    values: Collection[str],
    regions: Regions,
    canaries: Iterable[Canary],
) -> dict[str, str]:
    """Return the region of each value that is a customer's e-mail or id on any of the nodes."""
    found: dict[str, str] = {}
    for canary in canaries:
        found.update(dict.fromkeys((canary.email, canary.id, canary.purchase), canary.region))
    for login in logins:
        for database in _databases(login):
            with _connected(database) as connection:
                tables, has_country = _tables(connection)
                for table in tables:
                    found.update(_owned(connection, table, values, has_country, regions))
    return found


def _databases(login: Login) -> list[Login]:
    with _connected(login) as connection:
        names = [str(name) for (name,) in connection.execute(DATABASES).fetchall()]
    return [replace(login, dbname=name) for name in names]


@contextlib.contextmanager
def _connected(login: Login) -> Iterator[psycopg.Connection[Any]]:
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


def _tables(connection: psycopg.Connection[Any]) -> tuple[list[Table], bool]:
    """Return a database's tables of customers' rows, and whether these have a country.

    Before they have one, it is all tables with e-mails and what refers to them.
    """
    by_oid: dict[int, Table] = {
        oid: Table(schema, name, columns)
        for oid, schema, name, columns in connection.execute(TABLES, (NOT_USERS,)).fetchall()
    }
    has_country = any("country" in table.columns for table in by_oid.values())
    column = "country" if has_country else "email"
    roots = {oid: table for oid, table in by_oid.items() if column in table.columns}
    found = list(roots.values())
    seen = set(roots)
    for child, own, parent, other in connection.execute(REFERENCES).fetchall():
        if child in by_oid and child not in seen and parent in roots:
            seen.add(child)
            target = roots[parent]
            through = (str(own), target.schema, target.name, str(other))
            found.append(replace(by_oid[child], through=through))
    return found, has_country


def _source(table: Table, has_country: bool) -> tuple[sql.Composable, sql.Composable]:
    """Return what to select a table's rows from, as t, and the expression of their country."""
    source: sql.Composable = sql.SQL("ONLY {} AS t").format(table.identifier)
    if not has_country:
        return source, sql.SQL("NULL::text")
    if table.through is None:
        return source, sql.SQL("t.country::text")
    own, schema, name, other = table.through
    parent = sql.SQL("{} LEFT JOIN {} AS parent ON parent.{} = t.{}").format(
        source, sql.Identifier(schema, name), sql.Identifier(other), sql.Identifier(own)
    )
    return parent, sql.SQL("parent.country::text")


def _count(
    connection: psycopg.Connection[Any], table: Table, has_country: bool, regions: Regions
) -> Counter[str]:
    """Count a table's rows by region."""
    found: Counter[str] = Counter()
    source, country_of = _source(table, has_country)
    query = sql.SQL("SELECT {}, count(*) FROM {} GROUP BY 1").format(country_of, source)
    for country, rows in connection.execute(query).fetchall():
        region = regions.of(country) if has_country else regions.origin
        if rows:
            found[region] += rows
    return found


def _owned(
    connection: psycopg.Connection[Any],
    table: Table,
    values: Collection[str],
    has_country: bool,
    regions: Regions,
) -> dict[str, str]:
    """Return the region of each value that is an e-mail or an id in a table."""
    wanted: dict[str, Sequence[str]] = {
        "email": [value for value in values if "@" in value],
        "id": [value for value in values if UUID_TEXT.fullmatch(value)],
    }
    found: dict[str, str] = {}
    for column, candidates in wanted.items():
        if column not in table.columns or not candidates:
            continue
        # An id is looked up by its index.
        is_uuid = table.columns[column] == "uuid"
        source, country_of = _source(table, has_country)
        query = sql.SQL(
            "SELECT DISTINCT t.{column}::text, {country} FROM {source}"
            " JOIN unnest(%s::text[]) AS wanted (value) ON {match}"
        ).format(
            column=sql.Identifier(column),
            country=country_of,
            source=source,
            match=sql.SQL("t.{0} = value::uuid" if is_uuid else "t.{0}::text = value").format(
                sql.Identifier(column)
            ),
        )
        for value, country in connection.execute(query, (list(candidates),)).fetchall():
            found[value] = regions.of(country) if has_country else regions.origin
    return found
