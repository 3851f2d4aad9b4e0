"""Start Locust on the lab's populations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from workload.lab import Lab
from workload.topology import Topology
from workload.traffic import capacity
from workload.traffic.ledger import last_acknowledgement
from workload.wan.measure import later_or_worse, measure_settled, save_wan

#: Seconds for customers of each region to have written before a step is taken, for a step at most,
#: and for them to leave after it.
ARRIVE_S, STEP_S, LEAVE_S = 15, 1800, 20
LOCUSTFILE = Path(__file__).parent / "locustfile.py"


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
    lab: Lab,
    password: str,
    users: int,
    spawn_rate: float,
    run_time_s: int,
    headless: bool,
    web_port: int,
) -> int:
    """Run Locust and return its exit status, 1 where a request failed.

    Without the web page, the WAN that the customers cross is measured before and after, since
    figures over a WAN that is off mean nothing. password is the superuser's. Raises LabError where
    no lab is running, and where its servers have not the connections for as many customers.
    """
    topology = Topology.load(lab)
    regions = ", ".join(region.name for region in topology.regions)
    environment = {**os.environ, "LAB_NAME": lab.name, "LAB_HOME": str(lab.home)}
    arguments = command(users, spawn_rate, run_time_s, headless, web_port)
    room = capacity.check(topology, password, users)
    if not headless:
        print(
            f"Customers of {regions} wait at http://127.0.0.1:{web_port} (Ctrl-C ends them);"
            f" WEB_PORT= and USERS= change port and number. {room}",
            flush=True,
        )
        os.execve(arguments[0], arguments, environment)
    print(
        f"{users} customers of {regions} for {run_time_s} s, in phase {topology.phase}.\n{room}:",
        flush=True,
    )
    before = _measure_wan(topology)
    status = run_to_its_end(arguments, environment)
    # The phase that the run ended in is what its figures go by.
    ended = Topology.load(lab)
    save_wan(lab, ended.phase, later_or_worse(before, _measure_wan(ended)))
    return status


@contextmanager
def meanwhile(
    lab: Lab, phase: str, users: int, spawn_rate: float
) -> Iterator[subprocess.Popen[bytes]]:
    """Let customers trade while a phase is reached in the block, which begins when all do.

    What they go through is in steps.json afterwards, and the process's status is 1 where a request
    failed.
    """
    topology = Topology.load(lab)
    regions = [region.name for region in topology.regions]
    print(
        f"\n{users} customers of {', '.join(regions)} trade while {phase} is reached:", flush=True
    )
    environment = {
        **os.environ, "LAB_NAME": lab.name, "LAB_HOME": str(lab.home), "LAB_REACHING": phase,
    }  # fmt: skip
    began = time.time()
    arguments = command(users, spawn_rate, STEP_S, True, 0)

    def leave(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    # A termination of this process ends the customers too.
    before = signal.signal(signal.SIGTERM, leave)
    process = subprocess.Popen(arguments, env=environment, start_new_session=True)
    try:
        while (
            process.poll() is None
            and time.time() < began + ARRIVE_S
            and not all(
                last_acknowledgement(lab.home / "ledger", began, regions=[region])
                for region in regions
            )
        ):
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        signal.signal(signal.SIGTERM, before)


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


def _measure_wan(topology: Topology) -> list[dict[str, Any]]:
    """Return what the WAN's links take now, [] where all customers are at home."""
    if not any(region.rtt_ms for region in topology.regions):
        return []
    writes = {(region.name, region.node) for region in topology.regions}
    reads = {
        (region.name, region.reads[0]["node"] if region.reads else region.node)
        for region in topology.regions
    }
    return [
        {
            **row,
            "serves": (row["from"], row["node"]) in writes,
            "looks": (row["from"], row["node"]) in reads,
        }
        for row in measure_settled(topology.lab)
    ]
