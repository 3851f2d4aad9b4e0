"""The Locust file: a class of customers for each region that trades in the lab's phase."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import gevent
import locust.stats
from locust import events
from locust.stats import StatsEntry

from rich.console import Console

from workload.errors import LabError
from workload.lab import Lab
from workload.report import experience, steps
from workload.report.experience import Experience
from workload.topology import Topology
from workload.traffic.customer import Customer, population
from workload.traffic.market import Market

#: Seconds between two lines of progress without the web page.
PROGRESS_S = 5
LAG_SAMPLE_S = 0.05


def three_digits(response_time: float) -> float:
    """Return a time's bucket: Locust's own are whole milliseconds, too coarse for a query."""
    if response_time < 10:
        return round(response_time, 2)
    return round(response_time, 1) if response_time < 100 else float(round(response_time))


locust.stats.bucket_response_time = three_digits
locust.stats.PERCENTILES_TO_STATISTICS = [0.95, 0.99]

try:
    topology = Topology.load(Lab.from_environment())
except LabError as error:
    sys.exit(f"traffic: {error}")
market = Market(topology.lab)
#: The phase that is being reached while they trade; without one, their figures are the phase's own.
REACHING = os.environ.get("LAB_REACHING", "")
lag_ms: list[float] = []


def _classes() -> dict[str, type[Customer]]:
    asked = [name for name in os.environ.get("REGIONS", "").replace(",", " ").split() if name]
    known = [region.name for region in topology.regions]
    for name in asked:
        if name not in known:
            sys.exit(
                f"traffic: REGIONS names {name}, whose customers do not trade in phase"
                f" {topology.phase}: use {', '.join(known)}"
            )
    classes = (population(name, market) for name in asked or known)
    return {customers.__name__: customers for customers in classes}


globals().update(_classes())


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add the lab's own options to the command line and the web form."""
    parser.add_argument(
        "--think-time", type=float, default=1.0, env_var="LAB_THINK_TIME",
        help="Seconds between a customer's operations, on average",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, env_var="LAB_SEED",
        help="Seed of what the customers choose; the same seed makes the same choices",
    )  # fmt: skip


@events.init.add_listener
def hush(environment: Any, **_: Any) -> None:
    """Keep Locust's tables off the terminal: they are 160 columns wide, finish() prints 80."""
    logging.getLogger("locust.stats_logger").setLevel(logging.WARNING)


@events.init.add_listener
def heed_ctrl_c(environment: Any, **_: Any) -> None:
    """Take Ctrl-C as the request to end that SIGTERM is; a second one ends it at once.

    As KeyboardInterrupt it is raised in whatever runs just then, and where that is a callback of
    the event loop it is lost: the page goes on as if nobody had asked.
    """

    def end() -> None:
        handler.cancel()
        os.kill(os.getpid(), signal.SIGTERM)

    handler = gevent.signal_handler(signal.SIGINT, end)


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    """Take over the options, and watch how late this process itself is."""
    options = environment.parsed_options
    market.think_time_s, market.seed = options.think_time, options.seed
    market.stale_reads.clear()
    market.last_ack.clear()
    market.longest_gap_s.clear()
    lag_ms.clear()
    gevent.spawn(_watch_lag, environment.runner)
    if options.headless and not REACHING:
        gevent.spawn(_tell_progress, environment)


def _watch_lag(runner: Any) -> None:
    while runner.state not in ("stopped", "stopping", "cleanup"):
        started = time.perf_counter()
        gevent.sleep(LAG_SAMPLE_S)
        lag_ms.append((time.perf_counter() - started - LAG_SAMPLE_S) * 1e3)


def _tell_progress(environment: Any) -> None:
    started = time.monotonic()
    while environment.runner.state not in ("stopped", "stopping", "cleanup"):
        gevent.sleep(PROGRESS_S)
        total = environment.stats.total
        print(
            f"  {time.monotonic() - started:4.0f} s  {environment.runner.user_count} customers,"
            f" {total.num_requests:,} requests, {total.num_failures:,} failed",
            flush=True,
        )


def by_name(entries: Mapping[tuple[str, str], Any]) -> list[Any]:
    """Return one entry for each name: after a failover an operation went to two nodes."""
    merged: dict[str, Any] = {}
    for (name, _), entry in entries.items():
        if name not in merged:
            merged[name] = StatsEntry(entry.stats, name, "", False)
        merged[name].extend(entry)
    return list(merged.values())


@events.quitting.add_listener
def finish(environment: Any, **_: Any) -> None:
    """Write experience.json and print it with the longest silence of each region.

    While a phase is reached, write steps.json instead, and print failures only.
    """
    if not environment.stats.entries:
        return
    console = Console()
    entries = by_name(environment.stats.entries)
    if REACHING:
        regions = [region.name for region in topology.regions]
        steps.save(topology.lab, steps.collect(REACHING, regions, entries))
    else:
        phase = Topology.load(topology.lab).phase
        rows = experience.collect(phase, entries, market.stale_reads)
        experience.save(topology.lab, rows)
        _show(rows, console)
    for failure in environment.stats.errors.values():
        console.print(f"Failed {failure.occurrences:,} x {failure.name}: {failure.error}")


def _show(rows: list[Experience], console: Console) -> None:
    experience.show(rows, console)
    for region, gap in sorted(market.longest_gap_s.items()):
        console.print(
            f"Longest time without an acknowledged write in {region}: {gap * 1e3:,.0f} ms."
        )
    if lag_ms:
        late = sorted(lag_ms)[int(len(lag_ms) * 0.95)]
        console.print(f"The measuring process itself was late by {late:.1f} ms (p95).")
