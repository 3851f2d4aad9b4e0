"""What sharding costs: the move into partitions, and the first copy to a replica."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from psycopg import sql

from bench.copies import (
    PASSWORD,
    ROUNDS,
    SCHEMA,
    SLOT,
    USERS,
    count,
    definitions_at,
    empty,
    release,
    seed,
)
from bench.labs import BenchLab, bench_lab
from bench.rows import Row, timed
from workload.nodes.embedded import find_bin_dir
from workload.schemas import publication
from workload.sharding import replicas
from workload.sharding.definition import Definition
from workload.sharding.leaves import Leaf, leaves_of
from workload.sql import Login, connect
from workload.topology import Topology

LONGEST_S = 600


def rows() -> Iterator[Row]:
    """Measure the road to phase shard with many rows, then copies between two of its nodes."""
    with bench_lab("embedded") as lab:
        for phase in ("before", "expand_eu", "expand_world"):
            lab.play(phase)
        seed(lab)
        topology = Topology.load(lab.lab)
        size = _tables_size(topology.operator_login(topology.primary(), PASSWORD))
        with lab.customers(USERS):
            lab.play("shard")
        yield from _move(lab, Topology.load(lab.lab), size)
        yield from _copies(Topology.load(lab.lab))


def _move(lab: BenchLab, topology: Topology, size: int) -> Iterator[Row]:
    found = json.loads((lab.lab.home / "reports" / "partition.json").read_text())
    farthest = max(region.rtt_ms for region in topology.regions)
    yield Row(
        "shard.yml, write pause", found["write_pause_ms"], "ms", 250 + farthest,
        "lower",
    )  # fmt: skip
    # The rows twice and their keys once more, while the old tables stand.
    yield Row("shard.yml, disk meanwhile", found["extra_bytes"] / 1e6, "MB", 2, "lower", size / 1e6)


def _copies(topology: Topology) -> Iterator[Row]:
    """Compare ways to fill a node with the same rows, in turns; their keys are there in the end."""
    origin = topology.primary()
    node = next(name for name, entry in topology.nodes.items() if entry["role"] == "replica")
    source = topology.operator_login(origin, PASSWORD)
    target = topology.operator_login(node, PASSWORD)
    leaves = leaves_of(topology.countries(), schema=SCHEMA)
    definitions = definitions_at(source, topology.origin())
    total = count(source, leaves)
    release(source, target, node)

    def lab() -> float:
        return timed(
            lambda: replicas.load(
                source, target, target, SLOT, leaves, definitions, lambda line: None
            )
        )

    def psql() -> float:
        return timed(lambda: _psql(source, target, leaves, definitions))

    def subscription() -> float:
        return _subscription(topology, origin, target)

    ways: Sequence[Callable[[], float]] = (lab, psql, subscription)
    found: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            empty(target, leaves, definitions)
            found[way.__name__].append(total / way())
            arrived = count(target, leaves, at_home=way is subscription)
            if arrived != total:
                raise RuntimeError(f"{way.__name__}: {arrived} of {total} rows arrived")
            with connect(source) as connection:
                connection.autocommit = True
                replicas.drop_slot(connection, SLOT)
    for name, goal in (("psql", 0.7), ("subscription", 2.0)):
        yield Row(
            f"first copy, beside {name}", median(found["lab"]) / 1e3, "k rows/s", goal, "higher",
            median(found[name]) / 1e3,
        )  # fmt: skip


def _psql(
    source: Login, target: Login, leaves: Sequence[Leaf], definitions: Mapping[str, Definition]
) -> None:
    """Copy as a person would: a pipe for each table, then its keys."""
    psql = str(find_bin_dir() / "psql")

    def command(login: Login, statement: sql.Composable) -> list[str]:
        return [psql, login.conninfo(), "-qc", statement.as_string(None)]

    for leaf in leaves:
        columns = definitions[leaf.table].column_list()
        copy_out = sql.SQL("COPY {} ({}) TO STDOUT (FORMAT binary)").format(
            sql.Identifier(leaf.region, leaf.table), columns
        )
        copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
            leaf.identifier(), columns
        )
        with subprocess.Popen(command(source, copy_out), stdout=subprocess.PIPE) as reader:
            subprocess.run(command(target, copy_in), stdin=reader.stdout, check=True)
        if reader.returncode:
            raise RuntimeError(f"{leaf.name}: psql failed")
    for statements in (Definition.keys, Definition.references):
        for leaf in leaves:
            for statement in statements(definitions[leaf.table], leaf):
                subprocess.run(command(target, statement), check=True)


def _subscription(topology: Topology, origin: str, target: Login) -> float:
    """Return the seconds that a subscription takes to copy the same rows into tables with keys."""
    own = leaves_of(topology.countries())
    # Next door, as the other ways go. The copy reads as the role that it logs in as.
    conninfo = topology.operator_login(origin, PASSWORD).conninfo()
    publications = sql.SQL(", ").join(
        sql.Identifier(publication(region)) for region in topology.countries()
    )
    with connect(target) as connection:
        connection.autocommit = True
        tables = sql.SQL(", ").join(leaf.identifier() for leaf in own)
        connection.execute(sql.SQL("TRUNCATE {}").format(tables))
        started = time.perf_counter()
        connection.execute(
            sql.SQL(
                "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH (slot_name = {})"
            ).format(sql.Identifier(SLOT), sql.Literal(conninfo), publications, sql.Literal(SLOT))
        )
        while connection.execute(
            "SELECT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')"
        ).fetchone() != (False,):
            if time.perf_counter() - started > LONGEST_S:
                raise RuntimeError("the subscription's copy does not end: see the replica's log")
            time.sleep(0.05)
        took = time.perf_counter() - started
        connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(SLOT)))
    return took


def _tables_size(login: Login) -> int:
    with connect(login) as connection:
        row: Any = connection.execute(
            "SELECT pg_total_relation_size('public.customer')"
            " + pg_total_relation_size('public.purchase')"
        ).fetchone()
        return int(row[0])
