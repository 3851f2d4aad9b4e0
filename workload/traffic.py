"""Start Locust on the lab's populations."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from workload.lab import Lab
from workload.topology import Topology

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
) -> None:
    """Become Locust: its exit status, 1 where a request failed, is this program's.

    Raises LabError where no lab is running.
    """
    topology = Topology.load(lab)
    regions = ", ".join(region.name for region in topology.regions)
    if headless:
        print(f"{users} customers of {regions} for {run_time_s} s, in phase {topology.phase}:")
    else:
        print(
            f"Customers of {regions} wait at http://127.0.0.1:{web_port} (Ctrl-C ends them);"
            " WEB_PORT= and USERS= change port and number"
        )
    sys.stdout.flush()
    environment = {**os.environ, "LAB_NAME": lab.name, "LAB_HOME": str(lab.home)}
    arguments = command(users, spawn_rate, run_time_s, headless, web_port)
    os.execve(arguments[0], arguments, environment)
