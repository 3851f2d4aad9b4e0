"""The source document's two tests of the sharded lab, statement for statement, with what they show.

"Test partitioning" writes through the parent and reads each region's schema. "Test direct
inserts into workers" writes to leaves on their own region's node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from rich.console import Console

from workload.errors import LabError
from workload.output import table
from workload.proof.compare import CATCH_UP_S
from workload.sharding import barrier, conflicts
from workload.sql import connect, describe
from workload.topology import Topology

PARTITIONING = """\
INSERT INTO global.customer (country, email) VALUES
  ('de', 'uk_a@gmail.com'),
  ('fr', 'uk_a@gmail.com'),
  ('ei', 'uk_a@gmail.com'),
  ('uk', 'uk_a@gmail.com'),
  ('us', 'us_a@gmail.com'),
  ('mx', 'us_a@gmail.com'),
  ('ca', 'us_a@gmail.com'),
  ('br', 'us_a@gmail.com'),
  ('jp', 'jp_a@gmail.com'),
  ('zh', 'jp_a@gmail.com'),
  ('in', 'jp_a@gmail.com'),
  ('sg', 'jp_a@gmail.com')"""
READS = ("SELECT * FROM eu.customer", "SELECT * FROM us.customer", "SELECT * FROM jp.customer")
#: By the region on whose node they run; the document's ports are those of its own three nodes.
DIRECT = {
    "jp": ["INSERT INTO jp.test (country, email) VALUES ('jp', 'jp_direct@gmail.com')"],
    "us": ["INSERT INTO us.test (country, email) VALUES ('us', 'us_direct@gmail.com')"],
    "eu": [
        "INSERT INTO eu.test (country, email) VALUES ('de', 'de_direct@gmail.com')",
        "INSERT INTO eu.test (country, email) VALUES ('fr', 'fr_direct@gmail.com')",
    ],
}
#: Rows of a read that are shown at most.
SHOWN = 4


@dataclass(frozen=True)
class Shown:
    """Which direct inserts a node shows: {region whose test rows they are: how many}."""

    node: str
    rows: dict[str, int]


def run(topology: Topology, password: str, console: Console) -> bool:
    """Run both tests and print their results; return whether partitioning holds.

    Raises LabError before phase shard, and where a statement fails.
    """
    if not topology.has_reached("shard"):
        raise LabError(
            f"the lab is in phase {topology.phase}, and the source's tests are of the sharded lab:"
            " play playbooks/shard.yml first"
        )
    holds = partitioning(topology, password, console)
    direct(topology, password, console)
    return holds


def partitioning(topology: Topology, password: str, console: Console) -> bool:
    """Insert through the parent; return whether each row is in its region's leaf and no other."""
    console.print("Test partitioning", style="bold")
    console.print(PARTITIONING, highlight=False)
    countries = topology.countries()
    holds = True
    with _connect(topology, password, topology.origin_primary()) as connection:
        _run(connection, PARTITIONING)
        for read in READS:
            region = read.split()[-1].partition(".")[0]
            console.print(f"\n{read};", highlight=False)
            rows = strangers = 0
            last: deque[tuple[Any, ...]] = deque(maxlen=SHOWN)
            for row in connection.cursor().stream(read.encode()):
                rows += 1
                strangers += row[2] not in countries[region]
                if row[1].endswith("_a@gmail.com"):
                    last.append(row)
            for row in last:
                console.print(f"  {row[0]}  {row[1]:16} {row[2]}", highlight=False)
            holds = holds and rows > 0 and not strangers
            whose = (
                f"{strangers:,} of them at home elsewhere" if strangers else "all of them at home"
            )
            console.print(f"  {rows:,} rows in {region}.customer, {whose}")
    return holds


def direct(topology: Topology, password: str, console: Console) -> list[Shown]:
    """Insert into leaves on their regions' nodes; return and print which rows each node shows."""
    console.print("\nTest direct inserts into workers", style="bold")
    for region, statements in DIRECT.items():
        node = _node_of(topology, region)
        port = topology.nodes[node]["port"]
        with _connect(topology, password, node) as connection:
            for statement in statements:
                console.print(f"{node} (port {port}): {statement}", highlight=False)
                _run(connection, statement)
    followers = {
        node: topology.operator_login(node, password)
        for node, entry in topology.nodes.items()
        if entry["role"] in ("replica", "standby")
    }
    # All that replication carries has arrived then.
    origin = topology.operator_login(topology.origin_primary(), password)
    barrier.await_all(origin, followers, CATCH_UP_S, conflicts.why(topology, password))
    shown = []
    for node, entry in topology.nodes.items():
        if entry["role"] == "fenced":
            continue
        with _connect(topology, password, node) as connection:
            rows = {
                region: int(_run(connection, f'SELECT count(*) FROM "{region}".test')[0][0])
                for region in DIRECT
            }
        shown.append(Shown(node, rows))
    counted = table("Rows that each node shows")
    counted.add_column("node")
    for region in DIRECT:
        counted.add_column(f"{region}.test", justify="right")
    for row in shown:
        counted.add_row(row.node, *(str(count) for count in row.rows.values()))
    console.print(counted)
    for region in DIRECT:
        counts = {row.node: row.rows[region] for row in shown}
        if len(set(counts.values())) > 1:
            most = [node for node, count in counts.items() if count == max(counts.values())]
            console.print(
                f"{region}.test diverges: all of its rows are on {', '.join(most)} alone."
            )
    if all(len({row.rows[region] for row in shown}) == 1 for region in DIRECT):
        console.print("Every node sees all of them.")
    return shown


def _node_of(topology: Topology, region: str) -> str:
    """Return the node that a region's direct inserts go to: its primary, or its replica."""
    roles = {"primary": 0, "replica": 1}
    names = [
        name
        for name, node in topology.nodes.items()
        if node["region"] == region and node["role"] in roles
    ]
    if not names:
        raise LabError(f"region {region}, which the source's tests write to, has no node up")
    return min(names, key=lambda name: roles[topology.nodes[name]["role"]])


def _connect(topology: Topology, password: str, node: str) -> psycopg.Connection[Any]:
    connection: psycopg.Connection[Any] = connect(topology.operator_login(node, password), 5)
    connection.autocommit = True
    return connection


def _run(connection: psycopg.Connection[Any], statement: str) -> Sequence[tuple[Any, ...]]:
    try:
        cursor = connection.execute(statement.encode())
    except psycopg.Error as error:
        raise LabError(f"{statement.splitlines()[0]}: {describe(error)}") from None
    return cursor.fetchall() if cursor.description else []
