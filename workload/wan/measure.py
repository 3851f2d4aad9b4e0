"""Configured against measured RTT, as PostgreSQL's clients feel it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psycopg

from workload import store
from workload.lab import Lab
from workload.sql import Login
from workload.wan.config import Config, Link
from workload.wan.control import load, running

SAMPLES = 7
#: How often the WAN is measured at most until it is as configured.
MEASUREMENTS = 5
#: What of a link's row is its measurement.
FIGURES = ("configured_ms", "measured_ms", "ok", "trouble", "error")
#: A link is off where its error exceeds both tolerances.
TOLERANCE_MS, TOLERANCE_SHARE = 2.0, 0.05
#: Times the RTT that a login may take (it is five), and seconds on top.
LOGIN_ROUND_TRIPS, PATIENCE_S = 10, 5.0


@dataclass(frozen=True)
class Measurement:
    """One link as it is; times in milliseconds."""

    source: str
    node: str
    configured_ms: float
    #: The p50, or None where the link is cut or nobody answers.
    measured_ms: float | None
    #: What is cut or slowed, in a word or two.
    trouble: str = ""
    #: Why there is no figure.
    error: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether the link is as configured."""
        return self.measured_ms is not None and is_within(self.configured_ms, self.measured_ms)

    def to_json(self) -> dict[str, Any]:
        """Return the row for reports."""
        return {
            "from": self.source,
            "node": self.node,
            "configured_ms": self.configured_ms,
            "measured_ms": self.measured_ms,
            "ok": self.ok,
            "trouble": self.trouble,
            "error": self.error,
        }


def is_within(configured_ms: float, measured_ms: float) -> bool:
    """Tell whether a measured RTT is what was configured."""
    allowed = max(TOLERANCE_MS, TOLERANCE_SHARE * configured_ms)
    return abs(measured_ms - configured_ms) <= allowed


def measure(lab: Lab, samples: int = SAMPLES, password: str | None = None) -> list[dict[str, Any]]:
    """Ping PostgreSQL through every link at once; return a row for each link.

    Rows: {from, node, configured_ms, measured_ms, ok, trouble, error}. A ping is an empty query on
    one connection a link; measured_ms is the p50, None where the link is cut or nobody answers.
    password is the superuser's, LAB_PASSWORD by default. Raises LabError where the lab has no WAN.
    """
    config = load(lab)
    if password is None:
        password = os.environ.get("LAB_PASSWORD") or "password"
    is_up = running(lab) is not None
    return [row.to_json() for row in asyncio.run(_measure(config, samples, password, is_up))]


async def _measure(config: Config, samples: int, password: str, is_up: bool) -> list[Measurement]:
    return await asyncio.gather(
        *(_measure_link(config, link, samples, password, is_up) for link in config.links)
    )


async def _measure_link(
    config: Config, link: Link, samples: int, password: str, is_up: bool
) -> Measurement:
    rtt_ms, trouble = config.rtt_ms(link), config.trouble(link)
    measured, error = None, ""
    if not is_up:
        error = "the relay is not running"
    elif not trouble or trouble == "slow":
        login = Login(config.listen[0], link.port, "postgres", password)
        try:
            measured = await _ping(login, samples, rtt_ms)
        except (TimeoutError, psycopg.Error) as caught:
            error = " ".join(str(caught).split()) or "no answer in time"
    return Measurement(link.source, link.node, rtt_ms, measured, trouble, error)


async def _ping(login: Login, samples: int, rtt_ms: float) -> float:
    patience_s = PATIENCE_S + LOGIN_ROUND_TRIPS * rtt_ms / 1e3
    # Neither offer of encryption, which would cost a round trip each.
    options: dict[str, Any] = {"sslmode": "disable", "gssencmode": "disable"}
    async with asyncio.timeout(patience_s):
        connection = await psycopg.AsyncConnection.connect(
            login.conninfo(), autocommit=True, **options
        )
    times = []
    try:
        async with asyncio.timeout(PATIENCE_S + samples * 2 * rtt_ms / 1e3):
            for _ in range(samples):
                started = time.perf_counter()
                await connection.execute("")
                times.append((time.perf_counter() - started) * 1e3)
    finally:
        await connection.close()
    return median(times)


def measure_settled(lab: Lab) -> list[dict[str, Any]]:
    """Return rows as measure() does; a link that is off is measured again, up to MEASUREMENTS.

    A machine that is busy for a moment is not a WAN that is off: that one stays so. Both are not
    on all links at once.
    """
    rows = measure(lab)
    for _ in range(MEASUREMENTS - 1):
        if all(row["ok"] or row["measured_ms"] is None for row in rows):
            break
        rows = [better(row, new) for row, new in zip(rows, measure(lab), strict=True)]
    return rows


def later_or_worse(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the later rows, each with the measurement of its link that is further off."""
    earlier = {(row["from"], row["node"]): row for row in before}
    return [worse(earlier.get((row["from"], row["node"]), row), row) for row in after]


def worse(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the later of two rows of a link, with the measurement that is further off."""
    return {**after, **_figures(max(before, after, key=_error_ms))}


def better(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the later of two rows of a link, with the nearer measurement where both have one."""
    if after["measured_ms"] is None:
        return dict(after)
    return {**after, **_figures(min(before, after, key=_error_ms))}


def _error_ms(row: Mapping[str, Any]) -> float:
    measured = row["measured_ms"]
    return float("inf") if measured is None else abs(measured - row["configured_ms"])


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in FIGURES}


def read_wan(lab: Lab) -> list[dict[str, Any]]:
    """Return what was measured of the WAN around each phase's traffic (reports/wan.json).

    [{phase, from, node, configured_ms, measured_ms, serves, looks}], where serves and looks tell
    whether the region's customers wrote, or read, over the link.
    """
    return store.load(lab, "wan")


def save_wan(lab: Lab, phase: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what was measured of the WAN in a phase, in place of what was there of it."""
    store.replace(lab, "wan", "phase", [{"phase": phase, **row} for row in rows], phase)
