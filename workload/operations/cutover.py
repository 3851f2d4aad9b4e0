"""Every region's cutover in turn, each with its receipt from the customers' ledger."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from workload import store
from workload.errors import LabError
from workload.lab import Lab
from workload.processes import Say
from workload.proof.verify import verify
from workload.sharding.access import Setup, point_servers, setup_of
from workload.sharding.cutover import cut_over, open_gates, receipt
from workload.topology import Topology
from workload.traffic.ledger import failures_since


def cut_over_all(lab: Lab, password: str, timeout_s: float, say: Say, dry_run: bool) -> bool:
    """Make each region's own node the home of its rows; return whether anything was to do.

    Writes a receipt for each to cutover.json, and says it. Raises LabError where a region cannot be
    cut over, or where an acknowledged write is lost: all is still there to examine then.
    """
    topology = Topology.load(lab)
    away = [
        name
        for name in topology.countries()
        if name != topology.origin() and topology.primary_of(name) is None
    ]
    if dry_run:
        return bool(away)
    receipts = [
        row
        for region in away
        if (row := _cut_over(setup_of(Topology.load(lab), password), region, timeout_s, say))
    ]
    # Long transactions on the origin are only of customers who are at home there now.
    pause_ms = open_gates(setup_of(Topology.load(lab), password), say)
    for row in receipts:
        row["others_pause_ms"] = max(row["others_pause_ms"], pause_ms)
        store.replace(lab, "cutover", "region", [row])
        say(
            f"{row['region']} is at home on its own node: {row['rows']:,} rows, its customers"
            f" could not write for {row['write_pause_ms']:.0f} ms (RTT {row['rtt_ms']:g} ms),"
            f" others for {row['others_pause_ms']:.0f} ms; {row['failed']:,} writes failed,"
            f" 0 of {row['acknowledged']:,} acknowledged ones are lost"
        )
    return bool(away or pause_ms)


def _cut_over(setup: Setup, region: str, timeout_s: float, say: Say) -> dict[str, Any] | None:
    """Cut over a region; return its receipt, or None where it was at home already."""
    lab = setup.topology.lab
    began = time.time()
    figures = cut_over(setup, region, say, timeout_s)
    topology = Topology.load(lab)
    # The others' servers went to the origin for these rows until now.
    point_servers(replace(setup, topology=topology))
    if figures is None:
        return None
    verdicts = verify(topology, setup.password)
    lost = sum(verdict.lost for verdict in verdicts)
    doubled = sum(verdict.doubled for verdict in verdicts)
    acknowledged = sum(verdict.acknowledged for verdict in verdicts)
    copied = store.load_by_name(lab, "replicas").get(str(topology.primary_of(region)), {})
    failed = failures_since(lab.home / "ledger", began)
    row = receipt(figures, copied, acknowledged, failed, lost, doubled)
    store.replace(lab, "cutover", "region", [row])
    if lost or doubled:
        raise LabError(
            f"{region} is at home on its own node, and of {acknowledged:,} acknowledged writes"
            f" {lost:,} are lost and {doubled:,} doubled: make verify names some"
        )
    return row
