"""Countries that come to a region, and the partition bounds that follow, while customers write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError
from workload.leaves import LOCK_ORDER, Leaf
from workload.locks import exclusively
from workload.sql import connect
from workload.topology import Topology
from workload.verify import own_tables

TIMEOUT_S = 60.0
_BOUND = """
SELECT pg_get_expr(c.relpartbound, c.oid), c.relkind::text
FROM pg_class c WHERE c.oid = to_regclass(%s) AND c.relispartition
"""


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


def rebound(connection: psycopg.Connection[Any], leaves: Sequence[Leaf], kind: str) -> bool:
    """Give a node's leaves of a kind (r, f) the bounds that they are to have; return whether so.

    The new CHECK is validated before anything is locked for it, so that no row is read while
    customers wait. Raises LabError where a leaf has rows of another country.
    """
    changed = []
    for leaf in leaves:
        row = connection.execute(_BOUND, (leaf.identifier().as_string(connection),)).fetchone()
        if row and row[1] == kind and set(re.findall(r"'([^']*)'", row[0])) != set(leaf.countries):
            changed.append(leaf)
    if not changed:
        return False
    if kind == "r":
        for leaf in changed:
            _check_anew(connection, leaf)

    def swap() -> None:
        for leaf in changed:
            connection.execute(leaf.detach())
            drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT home").format(leaf.identifier())
            connection.execute(drop)
            if kind == "r":
                text = "ALTER TABLE {} RENAME CONSTRAINT new_home TO home"
            else:
                text = "ALTER TABLE {} ADD CONSTRAINT home CHECK (country IN ({}))"
            connection.execute(sql.SQL(text).format(leaf.identifier(), leaf.country_list()))
        for leaf in changed:
            connection.execute(leaf.attach())

    parents = [sql.Identifier("global", table) for table in LOCK_ORDER]
    exclusively(connection, parents, swap, TIMEOUT_S)
    return True


def _check_anew(connection: psycopg.Connection[Any], leaf: Leaf) -> None:
    """Have a second CHECK with the new countries, in two steps: only the first one locks."""
    statements = [
        sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS new_home").format(leaf.identifier()),
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT new_home CHECK (country IN ({})) NOT VALID").format(
            leaf.identifier(), leaf.country_list()
        ),
    ]

    def add() -> None:
        for statement in statements:
            connection.execute(statement)

    exclusively(connection, [], add, TIMEOUT_S)
    connection.execute(
        sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT new_home").format(leaf.identifier())
    )
