"""A customer's connection on gevent's loop, and the outcome of each operation on it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

import gevent

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from workload.errors import LabError
from workload.traffic.ledger import Mark
from workload.traffic.market import Market
from workload.traffic.statements import OLD, statements_for

#: Seconds until a customer gives up on an operation. TCP cannot see a link that went silent.
OPERATION_TIMEOUT_S = 5.0
CONNECT_OPTIONS: dict[str, Any] = {
    "sslmode": "disable",
    "gssencmode": "disable",
    "connect_timeout": int(OPERATION_TIMEOUT_S),
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
}
#: Seconds between attempts to reconnect, doubled each time.
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 1.0
#: Customers open their sessions' connections to a new home within this many round trips.
WARM_UP_ROUND_TRIPS = 20
TOO_MANY = "too many clients"
#: What is kept of a client's message: the rest has addresses in it, ids and times.
KNOWN = (
    "refused", "starting up", "shutting down", "timeout expired", "timed out", TOO_MANY,
    "closed the connection", "reset by peer", "socket closed", "terminating connection",
)  # fmt: skip


class HubConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits on gevent's loop itself.

    psycopg would wait by select.poll, which gevent emulates with a fresh set of watchers on each
    call: a sixth to a quarter of a client's whole CPU time.
    """

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        """Run a libpq conversation to its end, leaving the process to others meanwhile."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        hub = gevent.get_hub()
        watchers: dict[int, Any] = {}
        try:
            event = next(gen)
            while True:
                watcher = watchers.get(event)
                if watcher is None:
                    # psycopg's flags are libev's: 1 to read, 2 to write.
                    watcher = watchers[event] = hub.loop.io(self.pgconn.socket, int(event))
                hub.wait(watcher)
                event = gen.send(event)
        except StopIteration as end:
            return end.value
        finally:
            for watcher in watchers.values():
                watcher.close()


class DatabaseError(Exception):
    """An error by its kind, so that Locust counts one row for each and not one for each id."""

    def __init__(self, error: BaseException) -> None:
        """Name the kind of an error."""
        state = getattr(error, "sqlstate", None)
        text = " ".join(str(error).split())
        what = next((words for words in KNOWN if words in text), text[:60] if state else "")
        # What a server keeps for superusers is all that is free then.
        if "remaining connection slots" in text:
            what = TOO_MANY
        if isinstance(error, gevent.Timeout):
            what = f"no answer in {OPERATION_TIMEOUT_S:g} s"
        super().__init__(" ".join(part for part in (type(error).__name__, state, what) if part))

    def __eq__(self, other: object) -> bool:
        """Compare by kind."""
        return isinstance(other, DatabaseError) and str(self) == str(other)

    def __hash__(self) -> int:
        """Hash by kind."""
        return hash(str(self))


class Owner(Protocol):
    """The customer whose session it is."""

    region: str
    market: Market
    random: random.Random
    environment: Any

    def follow(self) -> bool:
        """Find this customer's home and use it from now on; return whether it has changed."""


class Session:
    """One connection of a customer; after it breaks, reconnects with growing pauses.

    Each operation is one event for Locust, whether it was answered, refused, or could not be sent
    since there was no connection to be had; a connection made is an event of its own.
    """

    def __init__(self, customer: Owner, reads: bool) -> None:
        """Belong to a customer; it is for writing, or only for reading."""
        self.customer = customer
        self.reads = reads
        self.connection: HubConnection | None = None
        self.cursor: psycopg.Cursor[tuple[Any, ...]] | None = None
        self.node = ""
        self.backoff_s = 0.0
        self.not_before = 0.0
        self.doubtful_commit = False
        self.served: object = None
        self.warmed_up = ""
        self.warm_up_due: float | None = None
        self.statements = OLD

    def is_connected(self, name: str) -> bool:
        """Connect where needed; a failed attempt is one failure of the operation it was for.

        Reconnects where topology.json sends the region's customers to another node by now.
        """
        if self.connection is not None:
            with contextlib.suppress(LabError):
                topology = self.customer.market.topology()
                served = topology.region(self.customer.region).served
                if (topology.tables, served) != self.served:
                    self.drop()
        if self.connection is not None:
            return True
        gevent.sleep(max(0.0, self.not_before - time.monotonic()))
        started = time.perf_counter()
        try:
            topology = self.customer.market.topology()
            region = topology.region(self.customer.region)
            self.node = region.node
            self.connection = HubConnection.connect(
                topology.customers_login(region, self.reads).conninfo(),
                autocommit=True,
                prepare_threshold=0,
                target_session_attrs="prefer-standby" if self.reads else "read-write",
                application_name=f"customers of {region.name}",
                **CONNECT_OPTIONS,
            )
        except (psycopg.Error, LabError) as error:
            self.backoff_s = min(LONGEST_BACKOFF_S, self.backoff_s * 2 or FIRST_BACKOFF_S)
            pause = self.backoff_s * self.customer.random.uniform(0.5, 1)
            self.not_before = time.monotonic() + pause
            self.record(name, started, error)
            return False
        self.connection.add_notice_handler(self.on_notice)
        self.cursor = self.connection.cursor()
        self.served = (topology.tables, region.served)
        self.warm_up_due = None
        self.warmed_up = ""
        self.statements = statements_for(topology.tables, region.name, topology.is_home(region))
        self.node = region.node_at(self.connection.info.port)
        self.backoff_s = 0.0
        self.record("connect", started, None)
        return True

    def run(
        self, name: str, statement: str, values: Any, prepare: bool = True
    ) -> tuple[Mark, tuple[Any, ...] | None]:
        """Run one statement on a connection that is there; return its outcome and its row."""
        return self.attempt(name, lambda: self.execute(statement, values, prepare))

    def execute(self, statement: str, values: Any, prepare: bool = True) -> tuple[Any, ...] | None:
        """Run one statement and return its row, if it has one; raises psycopg.Error."""
        assert self.cursor is not None
        self.cursor.execute(statement, values, prepare=prepare)
        return self.cursor.fetchone() if self.cursor.description else None

    def attempt(
        self, name: str, work: Callable[[], tuple[Any, ...] | None]
    ) -> tuple[Mark, tuple[Any, ...] | None]:
        """Do one operation on a connection that is there; return its outcome and its row."""
        assert self.connection is not None
        self.doubtful_commit = False
        error: BaseException | None = None
        mark: Mark = "U"
        row = None
        is_orphan = False
        timeout = gevent.Timeout.start_new(OPERATION_TIMEOUT_S)
        started = time.perf_counter()
        try:
            row = work()
            mark = "U" if self.doubtful_commit else "A"
        except psycopg.Error as caught:
            error = caught
            if is_refusal(caught.sqlstate):
                mark = "F"
            is_orphan = isinstance(caught, psycopg.errors.ForeignKeyViolation)
        except gevent.Timeout as caught:
            if caught is not timeout:
                raise
            error = caught
        finally:
            timeout.close()
            if error is not None or mark != "A":
                connection = self.connection
                if connection.closed or connection.pgconn.transaction_status != _IDLE:
                    self.drop()
        # A purchase refused because the customer was moved or erased meanwhile is no failure.
        if not (is_orphan and self.customer.follow()):
            self.record(name, started, error)
        return mark, row

    def warm_up(self) -> None:
        """Do what the topology asks for in an idle moment, once on each connection.

        Before a region's home moves: a server opens a session's connection to the new home on first
        use, and that takes a dozen round trips. The customers of a region do it one after the
        other, so that they do not all pause at once.
        """
        with contextlib.suppress(LabError):
            region = self.customer.market.topology().region(self.customer.region)
            if self.connection is None or region.warm_up in ("", self.warmed_up):
                return
            now = time.monotonic()
            if self.warm_up_due is None:
                spread_s = WARM_UP_ROUND_TRIPS * region.rtt_ms / 1e3
                self.warm_up_due = now + self.customer.random.uniform(0, spread_s)
            if now < self.warm_up_due:
                return
            self.warmed_up = region.warm_up
            try:
                with gevent.Timeout(OPERATION_TIMEOUT_S):
                    self.connection.execute(region.warm_up.encode(), prepare=False)
            except (psycopg.Error, gevent.Timeout):
                self.drop()

    def on_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        """Note the warning with which PostgreSQL acknowledges a commit that no standby has."""
        if "synchronous replication" in (notice.message_primary or ""):
            self.doubtful_commit = True

    def drop(self) -> None:
        """Close the connection, whatever state it is in."""
        if self.connection is not None:
            self.connection.close()
            self.connection = self.cursor = None

    def record(self, name: str, started: float, error: BaseException | None) -> None:
        """Report one request to Locust: milliseconds, and the kind of error."""
        self.customer.environment.events.request.fire(
            request_type=self.node,
            name=f"{self.customer.region}: {name}",
            response_time=(time.perf_counter() - started) * 1e3,
            response_length=0,
            context={},
            exception=DatabaseError(error) if error is not None else None,
        )


_IDLE = TransactionStatus.IDLE


def is_refusal(sqlstate: str | None) -> bool:
    """Tell whether the server said no, so that the write is surely absent.

    Not so where the connection broke (08), the server was stopped (57), or it says itself that the
    completion is unknown (40003).
    """
    return bool(sqlstate) and sqlstate[:2] not in ("08", "57") and sqlstate != "40003"  # type: ignore[index]
