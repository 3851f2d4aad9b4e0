"""Prove that every acknowledged write is in the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg import sql
from rich.console import Console

from workload.output import table
from workload.sharding.leaves import own_tables
from workload.sql import Login, connect
from workload.topology import Topology
from workload.traffic.ledger import KINDS, read

#: How often each id of the ledger is in a node's own tables: a foreign table's rows are another's.
PRESENT = """
SELECT kind, id, count(*) AS copies FROM ({tables}) AS found (kind, id)
WHERE (kind, id) IN (SELECT kind, id FROM ledger) GROUP BY kind, id
"""


@dataclass(frozen=True)
class Verdict:
    """What became of the writes of one table."""

    table: str
    intents: int = 0
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    lost: int = 0
    doubled: int = 0
    #: Forgotten on purpose.
    erased: int = 0
    #: Refused or erased, yet present.
    ghosts: int = 0
    examples: list[Any] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Tell whether nothing was lost, doubled, or written against a refusal."""
        return not (self.lost or self.doubled or self.ghosts)


def verify(topology: Topology, password: str) -> list[Verdict]:
    """Compare the whole ledger with the databases, and return a verdict for each table.

    A row counts where it is at home, which is on the nodes that take writes: replicas and standbys
    hold copies. The ledger is read before the tables, so this may run while customers write. Raises
    LabError where a node takes no login.
    """
    outcomes: dict[tuple[str, UUID], set[str]] = {}
    for mark, kind, key in read(topology.lab.home / "ledger"):
        outcomes.setdefault((kind, UUID(key)), set()).add(mark)
    copies: Counter[tuple[str, UUID]] = Counter()
    for node in topology.primaries():
        copies.update(_present(topology.operator_login(node, password), outcomes))
    return [_judge(kind, table, outcomes, copies) for kind, table in KINDS.items()]


def _present(login: Login, keys: Iterable[tuple[str, UUID]]) -> dict[tuple[str, UUID], int]:
    """Return how often each key is in the tables of a node."""
    with connect(login) as connection:
        connection.execute("CREATE TEMP TABLE ledger (kind text, id uuid) ON COMMIT DROP")
        with connection.cursor().copy("COPY ledger FROM STDIN") as copy:
            for key in keys:
                copy.write_row(key)
        connection.execute("CREATE UNIQUE INDEX ON ledger (kind, id)")
        connection.execute("ANALYZE ledger")
        tables = [
            sql.SQL("SELECT {}::text, id FROM {}").format(sql.Literal(kind), name)
            for kind, table in KINDS.items()
            for name in own_tables(connection, table)
        ]
        if not tables:
            return {}
        statement = sql.SQL(PRESENT).format(tables=sql.SQL(" UNION ALL ").join(tables))
        rows: list[Any] = connection.execute(statement).fetchall()
    return {(kind, key): copies for kind, key, copies in rows}


def _judge(
    kind: str,
    table: str,
    outcomes: Mapping[tuple[str, UUID], set[str]],
    copies: Mapping[tuple[str, UUID], int],
) -> Verdict:
    counts: Counter[str] = Counter()
    examples = []
    for key, marks in outcomes.items():
        if key[0] != kind:
            continue
        there = copies.get(key, 0)
        outcome = next((name for mark, name in _OUTCOMES if mark in marks), "unknown")
        counts["intents"] += 1
        counts[outcome] += 1
        counts["doubled"] += there > 1
        counts["ghosts"] += outcome in ("refused", "erased") and there > 0
        if outcome == "acknowledged" and not there:
            counts["lost"] += 1
            examples.append(key[1])
    return Verdict(table=table, **counts, examples=examples[:3])


_OUTCOMES = (("E", "erased"), ("A", "acknowledged"), ("F", "refused"))


def show(verdicts: list[Verdict], console: Console) -> bool:
    """Print the verdicts as a table; return whether all hold."""
    rows = table("Writes in the ledger against the database")
    rows.add_column("table")
    for column in ("intents", "acknowledged", "refused", "unknown", "lost", "doubled"):
        rows.add_column(column, justify="right")
    for verdict in verdicts:
        rows.add_row(
            verdict.table,
            *(
                f"{getattr(verdict, name):,}"
                for name in ("intents", "acknowledged", "refused", "unknown", "lost", "doubled")
            ),
        )
    console.print(rows)
    holds = all(verdict.holds for verdict in verdicts)
    if not sum(verdict.intents for verdict in verdicts):
        console.print("The ledger is empty: no customer has written yet.")
    elif holds:
        console.print("HOLDS: every acknowledged write is there, once.")
    for verdict in verdicts:
        if verdict.lost:
            names = ", ".join(str(key) for key in verdict.examples)
            console.print(
                f"VIOLATED: {verdict.lost:,} acknowledged rows of {verdict.table} are lost,"
                f" among them {names}"
            )
        if verdict.doubled:
            console.print(f"VIOLATED: {verdict.doubled:,} rows of {verdict.table} are there twice")
        if verdict.ghosts:
            console.print(
                f"VIOLATED: {verdict.ghosts:,} rows of {verdict.table} were refused or erased, and"
                " are there"
            )
    return holds
