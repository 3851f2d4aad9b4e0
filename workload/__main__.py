"""The commands behind the Makefile: python -m workload traffic | verify | report | wan | next."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from workload.errors import LabError
from workload.lab import Lab

if TYPE_CHECKING:
    from workload.topology import Topology


def _whole_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _rtt(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the parser; the environment gives the defaults, as make sets it."""
    found = argparse.ArgumentParser(prog="python -m workload", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True)
    traffic = commands.add_parser("traffic", help="let the customers trade")
    traffic.add_argument("--users", type=_whole_number, default=os.environ.get("USERS") or "20")
    traffic.add_argument("--spawn-rate", type=_rate, default=os.environ.get("SPAWN_RATE") or "10")
    traffic.add_argument(
        "--time", type=_whole_number, default=os.environ.get("TIME") or "30", metavar="SECONDS"
    )
    traffic.add_argument(
        "--headless", action="store_true", default=os.environ.get("HEADLESS", "") not in ("", "0")
    )
    traffic.add_argument(
        "--web-port", type=_whole_number, default=os.environ.get("WEB_PORT") or "8089"
    )
    commands.add_parser("verify", help="prove that every acknowledged write is there")
    commands.add_parser("report", help="print what the customers experienced, and write the page")
    wan = commands.add_parser("wan", help="show the WAN's RTTs, or change a link")
    wan.add_argument("--link", default=os.environ.get("LINK") or None, metavar="us-eu")
    wan.add_argument("--state", default=os.environ.get("STATE") or None, metavar="cut|reset|up")
    wan.add_argument(
        "--one-way", action="store_true", default=os.environ.get("ONE_WAY", "") not in ("", "0")
    )
    wan.add_argument(
        "--rtt", type=_rtt, default=os.environ.get("RTT") or None, metavar="MILLISECONDS"
    )
    commands.add_parser("next", help="say what to try next")
    return found


def main() -> int:
    """Run one command; return its exit status."""
    asked = parser().parse_args()
    lab = Lab.from_environment()
    if asked.command == "traffic":
        from workload import traffic

        return traffic.run(
            lab, asked.users, asked.spawn_rate, asked.time, asked.headless, asked.web_port
        )
    if asked.command == "verify":
        from rich.console import Console

        from workload import verify
        from workload.topology import Topology

        password = os.environ.get("LAB_PASSWORD") or "password"
        return 0 if verify.show(verify.verify(Topology.load(lab), password), Console()) else 1
    if asked.command == "report":
        from rich.console import Console

        from workload import report

        report.run(lab, Console())
    if asked.command == "wan":
        from workload.wan import front

        return front.run(lab, asked.link, asked.state, asked.one_way, asked.rtt)
    if asked.command == "next":
        from workload.topology import Topology

        print(next_steps(Topology.load(lab)))
    return 0


def next_steps(topology: Topology) -> str:
    """Return what a person may try in a lab that is up."""
    port = next(iter(topology.nodes.values()))["port"]
    return f"""
The lab is up ({topology.runtime}, phase {topology.phase}). What to try next:
  make traffic      customers on a web page, as many as you like
  .venv/bin/psql "postgres://postgres:password@localhost:{port}/?sslmode=disable"
  make verify       prove again that no acknowledged write was lost
  make teardown     remove it all"""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"lab: {error}")
