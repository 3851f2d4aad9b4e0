"""Prove that every acknowledged write is in the database."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from rich.console import Console

from workload.output import table
from workload.sharding.leaves import own_tables
from workload.sql import Login, connect
from workload.topology import Topology
from workload.traffic.ledger import KINDS, read

#: How often each id of the ledger is in a node's own tables: a foreign table's rows are another's.
PRESENT = """
SELECT kind, id, count(*) AS copies FROM ({tables}) AS present (kind, id)
WHERE (kind, id) IN (SELECT kind, id FROM ledger) GROUP BY kind, id
"""
#: All ids of a node's customers in ascending order, in one value: 16 bytes each.
CUSTOMER_IDS = """
SELECT coalesce(string_agg(uuid_send(id), ''::bytea ORDER BY id), '')
FROM (SELECT id FROM {leaf} ORDER BY id LIMIT {limit}) AS customer
"""
ID_BYTES = 16
#: Ids that are named of those that several regions have.
NAMED = 3


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
        # Its size alone: statistics, and with them the WAL, would keep ids of every region here.
        for column in ("kind", "id"):
            connection.execute(f"ALTER TABLE ledger ALTER {column} SET STATISTICS 0")
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


def shared_ids(topology: Topology, password: str) -> dict[UUID, tuple[str, ...]]:
    """Return the ids that customers of several regions have, with these regions.

    An id is unique within a region only. One that two regions have makes move, forget and find ask
    for the region. Before phase after there is one home alone, and nothing to compare. Costs one
    query for each primary, and 16 bytes of memory for each customer. Raises LabError where a node
    takes no login.
    """

    def compared() -> dict[UUID, tuple[str, ...]]:
        ids = {}
        for node in topology.primaries():
            with connect(topology.operator_login(node, password)) as connection:
                ids[str(topology.nodes[node]["region"])] = customer_ids(connection)
        return in_several_regions(ids)

    shared = compared() if topology.phase == "after" else {}
    # A customer who moves between the reads of two nodes is in both once, and not a second time.
    return dict(shared.items() & compared().items()) if shared else {}


def customer_ids(connection: psycopg.Connection[Any], limit: int | None = None) -> bytes:
    """Return the ids of the customers whose home a node is, ascending, 16 bytes each.

    limit: how many of them, None for all. PostgreSQL refuses a value of more than 1 GB, which is 67
    million customers.
    """
    ids = b""
    for leaf in own_tables(connection, "customer"):
        statement = sql.SQL(CUSTOMER_IDS).format(leaf=leaf, limit=sql.Literal(limit))
        row = connection.execute(statement, binary=True).fetchone()
        ids += row[0] if row else b""
    return ids


def in_several_regions(ids: Mapping[str, bytes]) -> dict[UUID, tuple[str, ...]]:
    """Return the ids that are in more than one of {region: what customer_ids() gives}."""

    def keyed(region: str, packed: bytes) -> Iterator[tuple[bytes, str]]:
        for start in range(0, len(packed), ID_BYTES):
            yield packed[start : start + ID_BYTES], region

    by_id = itemgetter(0)
    merged = heapq.merge(*(keyed(region, packed) for region, packed in ids.items()), key=by_id)
    shared = {}
    for key, entries in itertools.groupby(merged, key=by_id):
        regions = tuple(region for _, region in entries)
        if len(regions) > 1:
            shared[UUID(bytes=key)] = regions
    return shared


def name_shared(shared: Mapping[UUID, tuple[str, ...]]) -> Iterator[str]:
    """Yield a line with the way out for each of the first ids that several regions have."""
    for key, regions in itertools.islice(shared.items(), NAMED):
        yield (
            f"customers of {' and '.join(regions)} have one id, {key}: make find CUSTOMER={key}"
            f" shows them; move and forget need a region, as in make forget CUSTOMER={key}"
            f" REGION={regions[-1]}"
        )
    if len(shared) > NAMED:
        yield f"{len(shared) - NAMED:,} more ids are those of customers of several regions"


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
