"""How much of pgbench's load one Locust process drives: same statement, same client count."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psycopg

from bench.labs import PORT_BASE, BenchLab, bench_lab
from bench.rows import Row
from workload.nodes.embedded import find_bin_dir
from workload.sql import Login

ROUNDS = 3
CLIENTS = 16
SECONDS = 5
BUY = "INSERT INTO purchase (id, customer_id, amount) VALUES (gen_random_uuid(), :customer, 50.25)"


def rows() -> Iterator[Row]:
    """Measure with synchronous_commit off, so that clients and not the disk set the pace."""
    with bench_lab("embedded") as lab:
        lab.play("before")
        login = Login("127.0.0.1", PORT_BASE, "postgres", "password")
        with psycopg.connect(login.conninfo(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_commit = off")
            connection.execute("SELECT pg_reload_conf()")
            row = connection.execute(
                "INSERT INTO customer (email) VALUES ('pgbench@example.com') RETURNING id"
            ).fetchone()
        assert row
        pgbench, locust = [], []
        for _ in range(ROUNDS):
            pgbench.append(_pgbench(lab, str(row[0])))
            locust.append(_locust(lab))
    yield Row(
        "one Locust process, purchases", median(locust), "/s", 0.25, "higher", median(pgbench)
    )


def _pgbench(lab: BenchLab, customer: str) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(BUY)
        script.flush()
        output = lab.run(
            find_bin_dir() / "pgbench", "--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}",
            f"--time={SECONDS}", f"--define=customer={customer}", f"--file={script.name}",
            f"postgres://postgres:password@127.0.0.1:{PORT_BASE}/postgres",
        )  # fmt: skip
    found = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    assert found, output
    return float(found[1])


def _locust(lab: BenchLab) -> float:
    lab.run(
        sys.executable, "-m", "locust", "-f", "bench/buyers.py", "--headless",
        f"--users={CLIENTS}", f"--spawn-rate={CLIENTS}", f"--run-time={SECONDS}s",
        "--think-time=0", "--loglevel=ERROR", "Buyer",
    )  # fmt: skip
    experience = json.loads(Path(lab.lab.home / "reports" / "experience.json").read_text())
    return float(sum(row["requests"] for row in experience if row["operation"] == "buy") / SECONDS)
