"""Sessions on the origin that write one region's rows before, in and after its cut-over."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import psycopg

from workload.lab import Lab
from workload.topology import Topology

INSERT = "INSERT INTO customer (email, country) VALUES (%s, %s)"
#: Round trips of such an insert once the row is at home far away: a transaction there is begun, the
#: statement prepared, sent and forgotten, and the transaction committed. It is five; half of one is
#: left out, to tell them from those at home.
FAR_ROUND_TRIPS = 4.5


class Session(Protocol):
    """What has a thread of its own and an event that ends it."""

    stop: threading.Event

    def run(self) -> None:
        """Work until stopped."""


@dataclass
class Writer:
    """A customer's session that inserts by one prepared statement, all the time.

    By the name that a customer's row has had from the start on.
    """

    lab: Lab
    region: str
    country: str
    #: Of the e-mails that it inserts.
    domain: str
    #: Beginning (s, perf_counter) and duration (ms) of each insert.
    took: list[tuple[float, float]] = field(default_factory=list)
    emails: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Insert until stopped; warm up where the topology asks for it, as customers do."""
        topology = Topology.load(self.lab)
        login = topology.customers_login(topology.region(topology.origin()))
        warm = ""
        with psycopg.connect(
            login.conninfo(), application_name=f"customers of {self.region}",
            target_session_attrs="read-write", autocommit=True, prepare_threshold=0,
        ) as connection:  # fmt: skip
            # Whose rows are far away now leaves the others time in which nobody has a lock.
            while not self.stop.wait(0.005 + 2 * (self.took[-1][1] / 1e3 if self.took else 0)):
                email = f"{self.region}{len(self.emails)}@{self.domain}"
                try:
                    wanted = Topology.load(self.lab).region(self.region).warm_up
                    if wanted not in ("", warm):
                        connection.execute(wanted.encode(), prepare=False)
                    warm = wanted
                    began = time.perf_counter()
                    connection.execute(INSERT, (email, self.country))
                    self.took.append((began, (time.perf_counter() - began) * 1e3))
                    self.emails.append(email)
                except psycopg.Error as error:
                    self.errors.append(str(error))
                    return

    def first_far(self, rtt_ms: float) -> tuple[float, list[float]]:
        """Return what the first insert across the WAN took and what each later one did, in ms.

        Those that cross it are all after the last that did not: one before may have been held up.
        Raises ValueError where an insert failed, or fewer than two crossed it.
        """
        if self.errors:
            raise ValueError(f"an insert of {self.region} failed: {self.errors[0]}")
        took = [ms for _, ms in self.took]
        near = [place for place, ms in enumerate(took) if ms <= FAR_ROUND_TRIPS * rtt_ms]
        far = took[near[-1] + 1 if near else 0 :]
        if len(far) < 2:
            raise ValueError(f"{len(far)} of {len(took)} inserts of {self.region} crossed the WAN")
        return far[0], far[1:]


@contextmanager
def at_work(sessions: Collection[Session]) -> Iterator[None]:
    """Have sessions do their work for the time of the block."""
    threads = [threading.Thread(target=found.run) for found in sessions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for found in sessions:
            found.stop.set()
        for thread in threads:
            thread.join(30)


@contextmanager
def writers(lab: Lab, homes: Mapping[str, str], domain: str) -> Iterator[dict[str, Writer]]:
    """Have a writer for each region, {name: country}, for the time of the block."""
    found = {region: Writer(lab, region, country, domain) for region, country in homes.items()}
    with at_work(list(found.values())):
        yield found


def beyond_a_warm_one(writer: Writer, receipt: Mapping[str, Any]) -> float:
    """Return what the first insert after a cut-over took beyond its pause and a warm one, in ms."""
    first, later = writer.first_far(receipt["rtt_ms"])
    return float(first - receipt["write_pause_ms"] - median(later))
