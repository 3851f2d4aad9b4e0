"""The road in one go: each phase and its customers, then the proof and the report."""

from __future__ import annotations

import os
import subprocess
import sys

from rich.console import Console

from workload.audit import run as audit
from workload.lab import CHECKOUT, Lab
from workload.proof import verify
from workload.report import steps, terminal
from workload.topology import PHASES, Topology
from workload.traffic import run as traffic

#: What an audit is to say in the phases that end with one.
HOLDS = {"shard": False, "after": True}


def run(lab: Lab, password: str, users: int, spawn_rate: float, run_time_s: int) -> int:
    """Play every phase with customers, and show the proofs; return 0 where all was verified.

    They trade while a phase is reached, and then in it. A phase that the lab has passed is not
    played again, and gets no customers: what they would feel is the later phase. Raises LabError
    where a step cannot be taken.
    """
    console = Console()
    status = 0
    for phase in PHASES:
        if _has_customers_before(lab, phase):
            with traffic.meanwhile(lab, phase, users, spawn_rate) as customers:
                played = _play(phase)
            status |= customers.returncode
            print(flush=True)
            steps.show([row for row in steps.load(lab) if row.phase == phase], console)
        else:
            played = _play(phase)
            print(flush=True)
        if played:
            return played
        if Topology.load(lab).phase == phase:
            status |= traffic.run(
                lab, password, users, spawn_rate, run_time_s, headless=True, web_port=0
            )
            if phase in HOLDS:
                status |= _audit(lab, password, phase, console)
    if not verify.show(verify.verify(Topology.load(lab), password), console):
        return 1
    terminal.run(lab, console)
    print(next_steps(Topology.load(lab)))
    return status


def _has_customers_before(lab: Lab, phase: str) -> bool:
    """Tell whether a lab is up that has not come to a phase yet."""
    return lab.topology_file.exists() and not Topology.load(lab).has_reached(phase)


def _play(phase: str) -> int:
    playbook = CHECKOUT / "playbooks" / f"{phase}.yml"
    return subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", str(playbook)],
        cwd=CHECKOUT,
        env=os.environ,
        check=False,
    ).returncode


def _audit(lab: Lab, password: str, phase: str, console: Console) -> int:
    """Show where the data is in a phase; return 0 where that is what the phase is to be."""
    console.print(f"\nWhere is the data in phase {phase}?", style="bold")
    holds = audit.run(lab, password, console)
    if phase == "shard" and not holds:
        console.print("This is the ISSUE of phase shard: all data is on all nodes.", style="bold")
    return 0 if holds == HOLDS[phase] else 1


def next_steps(topology: Topology) -> str:
    """Return what a person may try in a lab that is up."""
    node = list(topology.nodes)[-1]
    region, origin = topology.nodes[node]["region"], topology.origin()
    cut = f"make wan LINK={region}-{origin} STATE=cut"
    return f"""
The lab is up ({topology.runtime}, phase {topology.phase}). What to try next:
  make status             nodes, links, replication, and what is wrong
  make psql NODE={node:<8} psql on a node, SQL="SELECT 1" for one statement
  make traffic            customers on a web page, as many as you like
  make source_tests       the source document's two tests
  make failover rejoin    lose the EU's primary while they trade, bring it back
  {cut}
                          cut an ocean; STATE=up heals it
  make audit              where each region's data is, down to the bytes
  make find CUSTOMER=id   where a customer is at home; also make move, forget
  make teardown           remove it all"""
