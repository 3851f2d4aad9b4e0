"""Prove that every acknowledged write is in the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workload.ledger import KINDS, read
from workload.sql import connect
from workload.topology import Topology

OUTCOMES = """
WITH outcome AS (
  SELECT kind, id, bool_or(mark = 'A') AS acknowledged, bool_or(mark = 'F') AS refused
  FROM ledger GROUP BY kind, id
), present AS (
  SELECT 'c' AS kind, id, count(*) AS copies FROM customer GROUP BY id
  UNION ALL
  SELECT 'p', id, count(*) FROM purchase GROUP BY id
)
SELECT
  kind,
  count(*) AS intents,
  count(*) FILTER (WHERE acknowledged) AS acknowledged,
  count(*) FILTER (WHERE NOT acknowledged AND refused) AS refused,
  count(*) FILTER (WHERE NOT acknowledged AND NOT refused) AS unknown,
  count(*) FILTER (WHERE acknowledged AND copies IS NULL) AS lost,
  count(*) FILTER (WHERE copies > 1) AS doubled,
  count(*) FILTER (WHERE NOT acknowledged AND refused AND copies > 0) AS ghosts,
  (array_agg(id) FILTER (WHERE acknowledged AND copies IS NULL))[1:3] AS examples
FROM outcome LEFT JOIN present USING (kind, id)
GROUP BY kind ORDER BY kind
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
    #: Refused, yet present.
    ghosts: int = 0
    examples: list[Any] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Tell whether nothing was lost, doubled, or written against a refusal."""
        return not (self.lost or self.doubled or self.ghosts)


def verify(topology: Topology, password: str) -> list[Verdict]:
    """Compare the whole ledger with the database, and return a verdict for each table.

    The ledger is read before the tables, so this may run while customers write. Raises LabError
    where the node takes no login.
    """
    with (
        connect(topology.operator_login(topology.primary(), password)) as connection,
        connection.cursor(row_factory=psycopg.rows.dict_row) as cursor,
    ):
        cursor.execute('CREATE TEMP TABLE ledger (mark "char", kind text, id uuid) ON COMMIT DROP')
        with cursor.copy("COPY ledger FROM STDIN") as copy:
            for line in read(topology.lab.home / "ledger"):
                copy.write_row(line)
        rows = {row.pop("kind"): row for row in cursor.execute(OUTCOMES).fetchall()}
    verdicts = []
    for kind, table in KINDS.items():
        row = rows.get(kind, {})
        row["examples"] = row.get("examples") or []
        verdicts.append(Verdict(table=table, **row))
    return verdicts


def show(verdicts: list[Verdict], console: Console) -> bool:
    """Print the verdicts as a table; return whether all hold."""
    table = Table(
        title="Writes in the ledger against the database", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("table")
    for column in ("intents", "acknowledged", "refused", "unknown", "lost", "doubled"):
        table.add_column(column, justify="right")
    for verdict in verdicts:
        table.add_row(
            verdict.table,
            *(
                f"{getattr(verdict, name):,}"
                for name in ("intents", "acknowledged", "refused", "unknown", "lost", "doubled")
            ),
        )
    console.print(table)
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
                f"VIOLATED: {verdict.ghosts:,} rows of {verdict.table} were refused and are there"
            )
    return holds
