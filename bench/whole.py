"""The pauses of a cutover and of an online rewrite, and counting the whole from one node.

A pause is what a region's writers wait for while it changes its home; beyond one RTT it may take
100 ms, and for everybody else 100 ms in all. The first statement that then crosses the WAN may take
a round trip more than the later ones. The count is held against the slowest region's own over the
same link. An online rewrite, as after a move or an erasure, may block nobody either.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import psycopg

from bench.labs import bench_lab
from bench.rows import Row
from tests.fixtures.writers import beyond_a_warm_one, writers
from workload.sharding.rewrite import rewrite
from workload.topology import Topology

ROUNDS = 15
CUSTOMERS = 30_000
USERS = 60
HOMES = {"us": "us", "jp": "jp"}
#: Seconds in which those far away go on after it.
LATER_S = 5
COUNT = "SELECT * FROM global.count_by_country()"
OWN = 'SELECT country, count(*) FROM "{region}".customer GROUP BY country'


def rows() -> Iterator[Row]:
    """Cut over with customers of all regions trading; then alternate the two counts."""
    with bench_lab("embedded") as lab:
        for phase in ("before", "expand_eu", "expand_world"):
            lab.play(phase)
        lab.run(sys.executable, "-m", "workload", "seed", f"--customers={CUSTOMERS}")
        with lab.customers(USERS), writers(lab.lab, HOMES, "bench.example") as found:
            lab.play("after")
            time.sleep(LATER_S)
        receipts = json.loads((lab.lab.home / "reports" / "cutover.json").read_text())
        for receipt in receipts:
            beyond = receipt["write_pause_ms"] - receipt["rtt_ms"]
            yield Row(
                f"cutover of {receipt['region']}: writers' pause beyond 1 RTT", beyond, "ms", 100,
                "lower",
            )  # fmt: skip
            yield Row(
                f"first INSERT after it from eu to {receipt['region']}, beyond a warm one",
                beyond_a_warm_one(found[receipt["region"]], receipt), "ms", receipt["rtt_ms"],
                "lower",
            )  # fmt: skip
        others = max(receipt["others_pause_ms"] for receipt in receipts)
        yield Row("cutovers: everybody else's pause", others, "ms", 100, "lower")
        topology = Topology.load(lab.lab)
        origin = topology.region(topology.origin())
        here = topology.operator_login(origin.node, "password")
        farthest = max(origin.ways, key=lambda way: way["rtt_ms"])
        there = replace(here, host=farthest["host"], port=farthest["port"])
        region = topology.nodes[farthest["node"]]["region"]
        whole, own = [], []
        with (
            psycopg.connect(here.conninfo(), autocommit=True) as near,
            psycopg.connect(there.conninfo(), autocommit=True) as far,
        ):
            near.execute(COUNT.encode()).fetchall()
            for _ in range(ROUNDS):
                own.append(_milliseconds(far, OWN.format(region=region)))
                whole.append(_milliseconds(near, COUNT))
        home = topology.operator_login(farthest["node"], "password")
        with lab.customers(USERS):
            rewritten = rewrite(home, topology.countries(), region)
    yield Row(
        f"count by country from {origin.node}, {region}'s own beside",
        median(whole), "ms", 1.25, "lower", median(own),
    )  # fmt: skip
    yield Row(f"{region}'s leaves rewritten online: pause", rewritten.pause_ms, "ms", 100, "lower")


def _milliseconds(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> float:
    started = time.perf_counter()
    connection.execute(statement.encode()).fetchall()
    return (time.perf_counter() - started) * 1e3
