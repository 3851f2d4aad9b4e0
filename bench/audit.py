"""How fast the residency audit reads a node's files, beside one plain search of the same files."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import psycopg

from bench.labs import PORT_BASE, bench_lab
from bench.rows import Row
from workload.audit.canaries import new_canary, new_marker
from workload.audit.scan import scan
from workload.nodes.server import server_of
from workload.sql import Login
from workload.topology import Topology

ROUNDS = 3
MB = 1_000_000
#: About 300 MB of tables, indexes and WAL.
CUSTOMERS = 900_000
#: What four phases of three regions and a control come to.
CANARIES = 25
#: The least MB/s, or half the rate of the plain search where that is less.
LEAST = 200


def rows() -> Iterator[Row]:
    """Measure one node of the embedded runtime whose files are in memory already."""
    with bench_lab("embedded") as lab:
        lab.play("before")
        _fill()
        server = server_of(Topology.load(lab.lab), "eu")
        canaries = [new_canary("eu", "uk", "before") for _ in range(CANARIES)]
        scanned, plain = [], []
        for number in range(ROUNDS + 1):
            baseline = _plain(lab.lab.node_dir("eu") / "data")
            found = scan(server, canaries)
            # The first round fetches the files from the disk.
            if number:
                plain.append(baseline)
                scanned.append(sum(found.read.values()) / MB / found.seconds)
    value, beside = median(scanned), median(plain)
    yield Row(
        "audit of node files", value, "MB/s", round(min(0.5, LEAST / beside), 2), "higher", beside
    )


def _fill() -> None:
    login = Login("127.0.0.1", PORT_BASE, "postgres", "password")
    with psycopg.connect(login.conninfo(), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute(
            "INSERT INTO customer (email)"
            " SELECT gen_random_uuid() || '@example.com' FROM generate_series(1, %s)",
            (CUSTOMERS,),
        )
        connection.execute("INSERT INTO purchase (customer_id, amount) SELECT id, 1 FROM customer")
        connection.execute("CHECKPOINT")


def _plain(data: Path) -> float:
    """Return the MB/s of one grep that counts one string in all files of a folder."""
    files = [path for path in data.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    names = b"\0".join(os.fsencode(path) for path in files)
    started = time.perf_counter()
    subprocess.run(
        ["xargs", "-0", "grep", "-c", "-F", new_marker()],
        input=names,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    return size / MB / (time.perf_counter() - started)
