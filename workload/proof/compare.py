"""Do the nodes agree? Counts and checksums of each leaf, on every node that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workload.sharding import barrier, conflicts
from workload.sharding.checksum import Fingerprint, fingerprint
from workload.sharding.definition import Definition, of_leaves
from workload.sharding.leaves import Leaf, leaves_of
from workload.sql import Login, connect
from workload.topology import Topology

#: Seconds for replicas to have all that is written until now.
CATCH_UP_S = 30.0
_IS_TABLE = (
    "SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass(%s) AND relkind IN ('r', 'f')"
)


@dataclass(frozen=True)
class Compared:
    """One leaf on the nodes that hold it as a table of their own."""

    leaf: str
    found: Mapping[str, Fingerprint]

    @property
    def agrees(self) -> bool:
        """Tell whether all nodes hold the same rows."""
        return len(set(self.found.values())) <= 1

    def sentence(self) -> str:
        """Return what differs, in a line."""
        counts = ", ".join(f"{node} {found.rows:,}" for node, found in self.found.items())
        if len({found.rows for found in self.found.values()}) > 1:
            return f"{self.leaf} differs: {counts} rows"
        groups: dict[int, list[str]] = {}
        for node, found in self.found.items():
            groups.setdefault(found.checksum, []).append(node)
        sides = " against ".join(" and ".join(names) for names in groups.values())
        return f"{self.leaf} differs in content ({sides}): {counts} rows"


def compare(topology: Topology, password: str) -> list[Compared]:
    """Return each leaf's fingerprint on every running node, once replicas have caught up.

    Raises LabError where a node takes no login, or is behind for too long.
    """
    logins = {
        node: topology.operator_login(node, password)
        for node, entry in topology.nodes.items()
        if entry["role"] not in ("fenced", "joining")
    }
    followers = {
        node: login
        for node, login in logins.items()
        if topology.nodes[node]["role"] in ("replica", "standby")
    }
    source = logins[topology.origin_primary()]
    barrier.await_all(source, followers, CATCH_UP_S, conflicts.why(topology, password))
    leaves = leaves_of(topology.countries())
    with connect(source, 10) as connection:
        definitions = of_leaves(connection, topology.origin())
    with ThreadPoolExecutor(max_workers=len(logins)) as pool:
        by_node = dict(
            zip(
                logins,
                pool.map(lambda login: _fingerprints(login, leaves, definitions), logins.values()),
                strict=True,
            )
        )
    return [
        Compared(
            leaf.name,
            {node: found[leaf.name] for node, found in by_node.items() if leaf.name in found},
        )
        for leaf in leaves
    ]


def _fingerprints(
    login: Login, leaves: Sequence[Leaf], definitions: Mapping[str, Definition]
) -> dict[str, Fingerprint]:
    with connect(login, 10) as connection:
        connection.autocommit = True
        found = {}
        for leaf in leaves:
            name = leaf.identifier().as_string(connection)
            is_table: Any = connection.execute(_IS_TABLE, (name,)).fetchone()
            if is_table and is_table[0]:
                found[leaf.name] = fingerprint(connection, leaf, definitions[leaf.table])
        return found


def show(found: Sequence[Compared], console: Console) -> bool:
    """Print rows by leaf and node, and what differs; return whether all agree."""
    nodes = list(dict.fromkeys(node for compared in found for node in compared.found))
    table = Table(title="Rows on each node", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("leaf")
    for node in nodes:
        table.add_column(node, justify="right")
    table.add_column("")
    for compared in found:
        cells = [
            f"{compared.found[node].rows:,}" if node in compared.found else "" for node in nodes
        ]
        table.add_row(compared.leaf, *cells, "" if compared.agrees else "differs")
    console.print(table)
    for compared in found:
        if not compared.agrees:
            console.print(f"DIFFERS: {compared.sentence()}", highlight=False)
    agrees = all(compared.agrees for compared in found)
    if agrees:
        console.print("AGREES: each leaf has the same rows on every node that holds it.")
    return agrees
