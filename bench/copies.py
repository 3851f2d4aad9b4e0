"""Many rows, and tables to copy them into, for the measurements of copies.

BENCH_CUSTOMERS is the number of customers; each has three purchases.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from bench.labs import BenchLab
from workload.schemas import slot
from workload.sharding import replicas
from workload.sharding.definition import Definition, of_leaves
from workload.sharding.leaves import Leaf
from workload.sql import Login, connect

CUSTOMERS = int(os.environ.get("BENCH_CUSTOMERS") or 300_000)
PURCHASES_EACH = 3
ROUNDS = 3
USERS = 50
PASSWORD = "password"
#: Where the measured copies go, beside the replica's own leaves.
SCHEMA = "bench_{region}"
SLOT = "bench"


def seed(lab: BenchLab) -> None:
    """Create CUSTOMERS in a lab, each with PURCHASES_EACH purchases."""
    lab.run(
        sys.executable, "-m", "workload", "seed", f"--customers={CUSTOMERS}",
        f"--purchases-each={PURCHASES_EACH}",
    )  # fmt: skip


def release(source: Login, target: Login, node: str) -> None:
    """Drop the node's own subscription, which would take its share of the machine."""
    with connect(target) as connection:
        connection.autocommit = True
        replicas.unsubscribe(connection)
    with connect(source) as connection:
        connection.autocommit = True
        replicas.drop_slot(connection, slot(node))


def definitions_at(login: Login, region: str) -> dict[str, Definition]:
    """Return how a region's leaves on a node are made."""
    with connect(login) as connection:
        return of_leaves(connection, region)


def empty(target: Login, leaves: Sequence[Leaf], definitions: Mapping[str, Definition]) -> None:
    """Make the tables of the measured copies, empty and without keys."""
    with connect(target) as connection:
        connection.autocommit = True
        for schema in dict.fromkeys(leaf.schema for leaf in leaves):
            name = sql.Identifier(schema)
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        for leaf in leaves:
            for statement in definitions[leaf.table].create(leaf):
                connection.execute(statement)
        connection.execute("TRUNCATE lab.marker")
        connection.execute("CHECKPOINT")


def count(login: Login, leaves: Sequence[Leaf], at_home: bool = True) -> int:
    """Return the rows of leaves where they are at home, or of the measured copies."""
    with connect(login) as connection:
        names = [
            sql.Identifier(leaf.region, leaf.table) if at_home else leaf.identifier()
            for leaf in leaves
        ]
        counts = sql.SQL(" + ").join(
            sql.SQL("(SELECT count(*) FROM {})").format(name) for name in names
        )
        row: Any = connection.execute(sql.SQL("SELECT {}").format(counts)).fetchone()
        return int(row[0])
