"""The road in one go: each phase and its customers, then the proof and the report."""

from __future__ import annotations

import os
import subprocess
import sys

from rich.console import Console

from workload import report, traffic, verify
from workload.lab import CHECKOUT, Lab
from workload.topology import PHASES, Topology


def run(lab: Lab, password: str, users: int, spawn_rate: float, run_time_s: int) -> int:
    """Play every phase that there is a playbook for; return 0 where all was done and verified.

    A phase that the lab has passed is not played again, and gets no customers: what they would
    feel is the later phase. Raises LabError where a step cannot be taken.
    """
    console = Console()
    status = 0
    for phase in PHASES:
        playbook = CHECKOUT / "playbooks" / f"{phase}.yml"
        if not playbook.exists():
            break
        played = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", str(playbook)],
            cwd=CHECKOUT,
            env=os.environ,
            check=False,
        ).returncode
        if played:
            return played
        if Topology.load(lab).phase == phase:
            print(flush=True)
            status |= traffic.run(lab, users, spawn_rate, run_time_s, headless=True, web_port=0)
    if not verify.show(verify.verify(Topology.load(lab), password), console):
        return 1
    report.run(lab, console)
    print(next_steps(Topology.load(lab)))
    return status


def next_steps(topology: Topology) -> str:
    """Return what a person may try in a lab that is up."""
    port = topology.nodes[topology.primary()]["port"]
    return f"""
The lab is up ({topology.runtime}, phase {topology.phase}). What to try next:
  make traffic            customers on a web page, as many as you like
  make failover rejoin    lose the EU's primary while they trade, bring it back
  make wan LINK=us-eu STATE=cut      cut an ocean; STATE=up heals it
  .venv/bin/psql "postgres://postgres:password@localhost:{port}/?sslmode=disable"
  make teardown           remove it all"""
