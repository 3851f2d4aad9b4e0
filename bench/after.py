"""What life with every region at home costs, and the way there."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
from workload.sharding import replicas
from workload.sharding.bulk import Part, pump
from workload.sharding.definition import Definition
from workload.sharding.leaves import Leaf, leaves_of
from workload.sql import Login, connect
from workload.topology import Topology

#: Where rows are at home that are written and read next door; it has no standby to wait for.
HOME, COUNTRY = "us", "us"
KEY = "00000000-0000-4000-8000-000000000001"
SECONDS = 4
#: Rows of the INSERT ... SELECT; each is a round trip, so a few tell its rate.
FEW = 100
WORKLOAD = (sys.executable, "-m", "workload")
STATEMENTS = {
    "INSERT": "INSERT INTO {} (id, email, country) VALUES (gen_random_uuid(), :email, :country)",
    "SELECT": "SELECT * FROM {} WHERE id = :key AND country = :country",
    "UPDATE": "UPDATE {} SET email = :email WHERE id = :key AND country = :country",
}
#: Of the plain table's rate: what goes by the parent is planned and routed once more.
GOALS = {
    # What customers at home say.
    ("INSERT", "global"): 0.95,
    ("SELECT", "global"): 0.55,
    ("UPDATE", "global"): 0.55,
    ("INSERT", "leaf"): 0.90,
    ("SELECT", "leaf"): 0.95,
    ("UPDATE", "leaf"): 0.95,
}


def rows() -> Iterator[Row]:
    """Measure the whole road, life at its end, and the move of many rows."""
    world: dict[tuple[str, str], float] = {}
    with bench_lab("embedded") as lab:
        for phase in ("before", "expand_eu", "expand_world"):
            lab.play(phase)
        world = _p50(lab, "expand_world")
        seed(lab)
        lab.play("shard")
        yield from _move(lab)
    with bench_lab("embedded") as lab:
        took = timed(lambda: lab.play("site"))
        yield Row("site.yml, cold lab, embedded", took, "s", 150, "lower")
        yield from _at_home(_p50(lab, "after"), world)
        yield from _local(lab)


def _p50(lab: BenchLab, phase: str) -> dict[tuple[str, str], float]:
    """Return the p50 of each region's operations in ms."""
    lab.run(*WORKLOAD, "traffic", "--headless", "--time=10", "--users=30", "--spawn-rate=30")
    found = json.loads((lab.lab.home / "reports" / "experience.json").read_text())
    return {
        (row["region"], row["operation"]): row["p50_ms"] for row in found if row["phase"] == phase
    }


def _at_home(
    found: dict[tuple[str, str], float], world: dict[tuple[str, str], float]
) -> Iterator[Row]:
    for region in sorted({region for region, _ in found} - {"eu"}):
        for operation in ("buy", "read"):
            own = found[region, operation]
            at_most = 1.2 * found["eu", operation] + 1
            yield Row(f"{region}: {operation} at home, p50", own, "ms", round(at_most, 2), "lower")
        # The EU's customers served everybody before.
        yield Row(
            f"{region}: buy, p50 beside expand_world", found[region, "buy"], "ms", 0.1, "lower",
            world[region, "buy"],
        )  # fmt: skip


def _local(lab: BenchLab) -> Iterator[Row]:
    """Compare the lab's tables with a plain one beside them, in turns within one run."""
    login = Topology.load(lab.lab).operator_login(HOME, PASSWORD)
    tables = {"plain": "bench.customer", "global": "global.customer", "leaf": f"{HOME}.customer"}
    with connect(login) as connection:
        connection.autocommit = True
        connection.execute("CREATE SCHEMA bench")
        connection.execute(
            "CREATE TABLE bench.customer (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),"
            " email text NOT NULL, country text NOT NULL)"
        )
        for table in ("bench.customer", tables["leaf"]):
            connection.execute(
                f"INSERT INTO {table} SELECT gen_random_uuid(), i || '@example.com', '{COUNTRY}'"
                " FROM generate_series(1, 100000) i".encode()
            )
            values = f"('{KEY}', 'hot@example.com', '{COUNTRY}')"
            connection.execute(f"INSERT INTO {table} VALUES {values}".encode())
            connection.execute(f"VACUUM ANALYZE {table}".encode())
    for operation, statement in STATEMENTS.items():
        ms: dict[str, list[float]] = {name: [] for name in tables}
        for _ in range(ROUNDS):
            texts = [statement.format(table) for table in tables.values()]
            for name, value in zip(tables, _pgbench(lab, login, texts), strict=True):
                ms[name].append(value)
        plain = 1e3 / median(ms["plain"])
        for name in ("global", "leaf"):
            # By rounds: in each, all had the same machine.
            ratio = median(a / b for a, b in zip(ms["plain"], ms[name], strict=True))
            yield Row(
                f"{operation} at home, {name} beside plain", ratio * plain, "/s",
                GOALS[operation, name], "higher", plain,
            )  # fmt: skip


def _pgbench(lab: BenchLab, login: Login, statements: Sequence[str]) -> list[float]:
    """Return the ms that each statement takes a client that sends them in random order."""
    with tempfile.TemporaryDirectory(prefix="geo-lab-bench-") as folder:
        files = []
        for number, statement in enumerate(statements):
            path = Path(folder) / f"{number}.sql"
            path.write_text(statement + ";\n")
            files.append(f"--file={path}")
        output = lab.run(
            find_bin_dir() / "pgbench", "--no-vacuum", "--protocol=prepared", "--client=1",
            f"--time={SECONDS}", f"--define=country={COUNTRY}", f"--define=key={KEY}",
            "--define=email=new@example.com", *files, login.conninfo(),
        )  # fmt: skip
    found = re.findall(r"^ - latency average = ([\d.]+) ms", output, re.MULTILINE)
    if len(found) != len(statements):
        raise RuntimeError(output)
    return [float(value) for value in found]


def _move(lab: BenchLab) -> Iterator[Row]:
    """Compare ways to bring the same rows from the EU to another region, while customers write."""
    topology = Topology.load(lab.lab)
    source = topology.operator_login(topology.primary(), PASSWORD)
    target = topology.operator_login(HOME, PASSWORD)
    across = replicas.across_the_wan(topology, target, HOME)
    leaves = leaves_of(topology.countries(), schema=SCHEMA)
    definitions = definitions_at(source, topology.origin())
    release(source, target, HOME)
    ours, raw = [], []
    with lab.customers(USERS):
        for _ in range(ROUNDS):
            empty(target, leaves, definitions)
            # The rows that the copy counts itself: there are more each second.
            ours.append(
                replicas.load(
                    source, target, across, SLOT, leaves, definitions, lambda line: None
                ).rows_per_s
            )
            with connect(source) as connection:
                connection.autocommit = True
                replicas.drop_slot(connection, SLOT)
            empty(target, leaves, definitions)
            took = timed(lambda: _pipe(source, target, across, leaves, definitions))
            raw.append(count(target, leaves, at_home=False) / took)
        empty(target, leaves, definitions)
        plain = _insert_select(source, target, across, leaves, definitions)
    for name, goal, beside in (
        ("a COPY pipe", 0.7, median(raw)),
        (f"INSERT ... SELECT of {FEW} rows", 5, plain),
    ):
        yield Row(
            f"rows moved, beside {name}", median(ours) / 1e3, "k rows/s", goal, "higher",
            beside / 1e3,
        )  # fmt: skip


def _pipe(
    source: Login,
    target: Login,
    across: Login,
    leaves: Sequence[Leaf],
    definitions: Mapping[str, Definition],
) -> None:
    """Copy rows table by table through one binary pipe across the WAN; their keys come after.

    One connection each, opened once, and the lab's own pump: two psql would open some ten round
    trips a table, and psycopg's Copy sends each row by itself. bench/sharding.py has psql.
    """
    with connect(source) as reader, connect(across) as writer:
        for leaf in leaves:
            columns = definitions[leaf.table].column_list()
            query = sql.SQL("SELECT {} FROM {}").format(
                columns, sql.Identifier(leaf.region, leaf.table)
            )
            into = sql.SQL("{} ({})").format(leaf.identifier(), columns)
            pump(reader, writer, Part(leaf.name, query, into), lambda rows: None)
    with connect(target) as connection:
        for statements in (Definition.keys, Definition.references):
            for leaf in leaves:
                for statement in statements(definitions[leaf.table], leaf):
                    connection.execute(statement)


def _insert_select(
    source: Login,
    target: Login,
    across: Login,
    leaves: Sequence[Leaf],
    definitions: Mapping[str, Definition],
) -> float:
    """Return the rows a second of an INSERT ... SELECT into a foreign table, all by default.

    From FEW rows and none of the connection's opening: each row takes its round trip whatever their
    number, so a million would take as long as this says.
    """
    leaf = next(leaf for leaf in leaves if leaf.table == "customer")
    with connect(target) as connection:
        connection.autocommit = True
        for statement in definitions[leaf.table].keys(leaf):
            connection.execute(statement)
    with connect(source) as connection:
        connection.autocommit = True
        connection.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
        try:
            connection.execute(
                sql.SQL(
                    "CREATE SERVER bench FOREIGN DATA WRAPPER postgres_fdw"
                    " OPTIONS (host {}, port {}, dbname {})"
                ).format(
                    sql.Literal(across.host), sql.Literal(str(across.port)), sql.Literal("postgres")
                )
            )
            connection.execute(
                sql.SQL(
                    "CREATE USER MAPPING FOR postgres SERVER bench OPTIONS (user {}, password {})"
                ).format(sql.Literal(across.user), sql.Literal(across.password))
            )
            connection.execute(
                sql.SQL(
                    "CREATE FOREIGN TABLE bench_target (id uuid, email text, country text)"
                    " SERVER bench OPTIONS (schema_name {}, table_name {})"
                ).format(sql.Literal(leaf.schema), sql.Literal(leaf.table))
            )
            connection.execute("SELECT FROM bench_target LIMIT 1")
            started = time.perf_counter()
            inserted: Any = connection.execute(
                sql.SQL(
                    "INSERT INTO bench_target SELECT id, email, country FROM {} LIMIT {}"
                ).format(sql.Identifier(leaf.region, leaf.table), sql.Literal(FEW))
            )
            return float(inserted.rowcount / (time.perf_counter() - started))
        finally:
            connection.execute("DROP SERVER IF EXISTS bench CASCADE")
