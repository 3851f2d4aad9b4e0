"""Start Locust on the lab's populations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from workload.lab import Lab
from workload.report import save_wan
from workload.topology import Topology
from workload.wan.measure import measure

#: How often the WAN is measured at most until it is as configured.
MEASUREMENTS = 3
LOCUSTFILE = Path(__file__).parent / "locustfiles" / "populations.py"


def command(
    users: int, spawn_rate: float, run_time_s: int, headless: bool, web_port: int
) -> list[str]:
    """Return Locust's command line, with a web page or without."""
    arguments = [
        "-f", str(LOCUSTFILE), f"--users={users}", f"--spawn-rate={spawn_rate:g}",
        # A customer leaves after the operation at hand; an operation may take this long.
        "--stop-timeout=6",
    ]  # fmt: skip
    if headless:
        arguments += ["--headless", f"--run-time={run_time_s}s", "--loglevel=WARNING"]
    else:
        arguments += ["--web-host=127.0.0.1", f"--web-port={web_port}", "--loglevel=WARNING"]
    return [sys.executable, "-m", "locust", *arguments]


def run(
    lab: Lab, users: int, spawn_rate: float, run_time_s: int, headless: bool, web_port: int
) -> int:
    """Run Locust and return its exit status, 1 where a request failed.

    Without the web page, the WAN that the customers cross is measured before and after, since
    figures over a WAN that is off mean nothing. Raises LabError where no lab is running.
    """
    topology = Topology.load(lab)
    regions = ", ".join(region.name for region in topology.regions)
    environment = {**os.environ, "LAB_NAME": lab.name, "LAB_HOME": str(lab.home)}
    arguments = command(users, spawn_rate, run_time_s, headless, web_port)
    if not headless:
        print(
            f"Customers of {regions} wait at http://127.0.0.1:{web_port} (Ctrl-C ends them);"
            " WEB_PORT= and USERS= change port and number",
            flush=True,
        )
        os.execve(arguments[0], arguments, environment)
    print(
        f"{users} customers of {regions} for {run_time_s} s, in phase {topology.phase}:", flush=True
    )
    before = measure_wan(topology)
    status = run_to_its_end(arguments, environment)
    # The phase that the run ended in is what its figures go by.
    ended = Topology.load(lab)
    earlier = {(row["from"], row["node"]): row for row in before}
    save_wan(
        lab,
        ended.phase,
        [worse(earlier.get((row["from"], row["node"]), row), row) for row in measure_wan(ended)],
    )
    return status


def run_to_its_end(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a program, handing Ctrl-C and a termination on, and return its exit status.

    It has a session of its own: a Ctrl-C would reach it twice otherwise, and at the second one
    Locust ends without a word.
    """
    started: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    # Before it starts: a shell's background job ignores SIGINT, and would have it ignore it too.
    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        started.append(subprocess.Popen(arguments, env=environment, start_new_session=True))
        return started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def measure_wan(topology: Topology) -> list[dict[str, Any]]:
    """Return what the WAN's links take now, [] where all customers are at home."""
    if not any(region.rtt_ms for region in topology.regions):
        return []
    used = {(region.name, region.node) for region in topology.regions}
    looked = {
        (region.name, region.reads[0]["node"] if region.reads else region.node)
        for region in topology.regions
    }
    # A machine that is busy for a moment is not a WAN that is off: that one stays so.
    for _ in range(MEASUREMENTS):
        rows = measure(topology.lab)
        if all(row["ok"] or row["measured_ms"] is None for row in rows):
            break
    return [
        {
            **row,
            "serves": (row["from"], row["node"]) in used,
            "looks": (row["from"], row["node"]) in looked,
        }
        for row in rows
    ]


def worse(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the later of two rows of a link, with the measurement that is further off."""

    def off(row: dict[str, Any]) -> float:
        found = row["measured_ms"]
        return float("inf") if found is None else abs(found - row["configured_ms"])

    measured = ("configured_ms", "measured_ms", "ok", "trouble", "error")
    return {**after, **{name: max(before, after, key=off)[name] for name in measured}}
