"""A customer as a Locust user: one connection, one statement an operation, a ledger of writes."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import gevent
from locust import User, task

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from workload.errors import LabError
from workload.lab import Lab
from workload.topology import Topology
from workload.traffic.ledger import Kind, Ledger, Mark
from workload.traffic.statements import FIND, OLD, SIGN_UP_WITH_COUNTRY, Statements, statements_for

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

#: Seconds between two looks at topology.json for a change.
TOPOLOGY_S = 0.05
#: Customers open their sessions' connections to a new home within this many round trips.
WARM_UP_ROUND_TRIPS = 20
#: Seconds for a customer who is being moved to appear at their new home.
MOVE_S = 2.0

# psycopg waits in C, holding up every customer of the process, unless it finds the sockets patched
# when it is imported.
if psycopg.waiting.wait is psycopg.waiting.wait_c:
    raise ImportError("import locust before psycopg, or one slow query stops every customer")


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
            wanted = next(gen)
            while True:
                watcher = watchers.get(wanted)
                if watcher is None:
                    # psycopg's flags are libev's: 1 to read, 2 to write.
                    watcher = watchers[wanted] = hub.loop.io(self.pgconn.socket, int(wanted))
                hub.wait(watcher)
                wanted = gen.send(wanted)
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
        known = (
            "refused", "starting up", "shutting down", "timeout expired", "timed out",
            "closed the connection", "reset by peer", "socket closed", "terminating connection",
        )  # fmt: skip
        what = next((words for words in known if words in text), text[:60] if state else "")
        if isinstance(error, gevent.Timeout):
            what = f"no answer in {OPERATION_TIMEOUT_S:g} s"
        super().__init__(" ".join(part for part in (type(error).__name__, state, what) if part))

    def __eq__(self, other: object) -> bool:
        """Compare by kind."""
        return isinstance(other, DatabaseError) and str(self) == str(other)

    def __hash__(self) -> int:
        """Hash by kind."""
        return hash(str(self))


@dataclass
class Market:
    """What the customers of one process share."""

    lab: Lab
    seed: int = 0
    think_time_s: float = 1.0
    stale_reads: dict[tuple[str, str], int] = field(default_factory=dict)
    last_ack: dict[str, float] = field(default_factory=dict)
    longest_gap_s: dict[str, float] = field(default_factory=dict)
    spawned: int = 0
    _ledger: Ledger | None = None
    _topology: Topology | None = None
    _topology_mark: tuple[int, int] = (0, 0)
    _topology_due: float = 0.0

    def topology(self) -> Topology:
        """Return the lab's topology as it is now, read again when the file has changed.

        Raises LabError where there is no lab.
        """
        now = time.monotonic()
        if self._topology is None or now >= self._topology_due:
            self._topology_due = now + TOPOLOGY_S
            with contextlib.suppress(OSError):
                found = self.lab.topology_file.stat()
                mark = (found.st_mtime_ns, found.st_ino)
                if self._topology is not None and mark == self._topology_mark:
                    return self._topology
                self._topology_mark = mark
            self._topology = Topology.load(self.lab)
        return self._topology

    @property
    def ledger(self) -> Ledger:
        """The ledger, opened when first written: a forked worker must not share its file."""
        if self._ledger is None:
            self._ledger = Ledger(Path(self.lab.home) / "ledger")
        return self._ledger

    def note_ack(self, region: str) -> None:
        """Note that a region's write was acknowledged, and how long the one before it is past."""
        now = time.monotonic()
        gap = now - self.last_ack.get(region, now)
        self.last_ack[region] = now
        if gap > self.longest_gap_s.get(region, 0):
            self.longest_gap_s[region] = gap


class Session:
    """One connection of a customer, made again with a growing pause whenever it breaks.

    Each operation is one event for Locust, whether it was answered, refused, or could not be sent
    since there was no connection to be had; a connection made is an event of its own.
    """

    def __init__(self, customer: Customer, looks: bool) -> None:
        """Belong to a customer; it is for writing, or only for looking."""
        self.customer = customer
        self.looks = looks
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

        Connects anew where the region's customers are served elsewhere by now.
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
                topology.customers_login(region, self.looks).conninfo(),
                autocommit=True,
                prepare_threshold=0,
                target_session_attrs="prefer-standby" if self.looks else "read-write",
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
            if _is_refusal(caught.sqlstate):
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
        # Refused for want of the customer, who was moved or erased meanwhile: that is no failure.
        if not (is_orphan and self.customer.follow()):
            self.record(name, started, error)
        return mark, row

    def warm_up(self) -> None:
        """Do what the topology asks for in an idle moment, once on each connection.

        Before a region's home moves: a server opens a session's connection to the new one on first
        use, which is a dozen round trips that nobody should wait for then. Spread over a while: a
        region whose customers all did it at once would be silent for so long.
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
        """Hear the warning by which PostgreSQL acknowledges a commit that no standby has."""
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


class Customer(User):
    """Signs up once, then about once a second buys something or looks at their purchases.

    Outlives every database error. Writes go to the primary; where the region has a standby at
    home, looks go to that.
    """

    abstract = True
    _state: str | None
    #: Where they are; the class has it for those who were never moved.
    region: str
    market: ClassVar[Market]

    def on_start(self) -> None:
        """Start unconnected: a server that is away must not end the customer."""
        market = self.market
        market.spawned += 1
        self.random = random.Random(f"{market.seed}/{self.region}/{market.spawned}")
        self.writer = Session(self, looks=False)
        self.reader = Session(self, looks=True)
        self.customer_id: UUID | None = None
        #: None for one who signed up before customers had a country.
        self.country: str | None = None
        self.last_purchase: UUID | None = None

    def on_stop(self) -> None:
        """Leave in peace."""
        self.writer.drop()
        self.reader.drop()

    def wait_time(self) -> float:
        """Return the seconds until the next operation: the think time, give or take a half."""
        return self.random.uniform(0.5, 1.5) * self.market.think_time_s

    def stop(self, force: bool = False) -> bool:
        """Let a customer finish what they are at.

        Locust kills a user that waits at once; the kill is delivered late, inside the next query,
        which may then commit without being counted.
        """
        if force or self._state is None:
            return bool(super().stop(force))
        self._state = "stopping"
        return False

    @task
    def trade(self) -> None:
        """Do one thing; after half of the purchases, look at once whether it is there."""
        chance = self.random.random()
        if self.customer_id is None:
            self.sign_up()
        elif chance < 0.1:
            self.fill_basket()
        elif chance < 0.5:
            self.buy()
            if chance < 0.3:
                self.look()
        else:
            self.look()
        self.writer.warm_up()

    def sign_up(self) -> None:
        """Become a customer; one whose sign-up is in doubt signs up anew."""
        if not self.writer.is_connected("sign up"):
            return
        key = uuid4()
        values: tuple[Any, ...] = (key, f"{self.region}_{key.hex[:12]}@example.com")
        statement, country = self.writer.statements.sign_up, None
        topology = self.market.topology()
        if topology.has_reached("expand_world"):
            if not self.writer.statements.has_country:
                statement = SIGN_UP_WITH_COUNTRY
            country = self.random.choice(topology.region(self.region).countries)
            values = (*values, country)
        # Said once in a customer's life: preparing it would be a round trip for nothing.
        if self.write("sign up", "c", [key], [(statement, values)], prepare=False):
            self.customer_id, self.country = key, country

    def buy(self) -> None:
        """Make a purchase of 0 to 100."""
        self.purchase("buy", 1)

    def fill_basket(self) -> None:
        """Make two purchases in one transaction: four round trips with its BEGIN and COMMIT."""
        self.purchase("basket", 2)

    def purchase(self, name: str, count: int) -> None:
        """Make some purchases, all or none."""
        # A second time where they turn out to be at home elsewhere by now.
        for _ in range(2):
            if self.customer_id is None or not self.writer.is_connected(name):
                return
            said, home = self.said(self.writer), self.home
            # Not from the seed: a second run would repeat the first one's ids.
            keys = [uuid4() for _ in range(count)]
            country = (self.country,) if said.has_country else ()
            rows = [
                (said.buy, (key, self.customer_id, self.random.randint(0, 10_000) / 100, *country))
                for key in keys
            ]
            if self.write(name, "p", keys, rows):
                self.last_purchase = keys[-1]
            if self.home == home:
                return

    @property
    def home(self) -> tuple[str | None, str]:
        """Their country, and the region that they are in."""
        return self.country, self.region

    def said(self, session: Session) -> Statements:
        """Return what this customer says; one without a country goes on as at the start."""
        return OLD if self.country is None else session.statements

    def look(self) -> None:
        """Look at one's purchases; a look that misses one's own last purchase is stale."""
        session = self.reader if self.looks_elsewhere() else self.writer
        if not session.is_connected("look"):
            return
        said = self.said(session)
        country = (self.country,) if said.has_country else ()
        row = session.run("look", said.look, (self.last_purchase, self.customer_id, *country))[1]
        if row is None or self.last_purchase is None or row[2]:
            return
        if not self.follow():
            stale = self.market.stale_reads
            stale[self.region, "look"] = stale.get((self.region, "look"), 0) + 1

    def follow(self) -> bool:
        """Find out where one is at home now, and go there; return whether that is elsewhere.

        An operator may have moved them to another country. Who is nowhere was erased, and signs up
        anew.
        """
        try:
            if self.market.topology().tables != "home" or self.writer.connection is None:
                return False
            deadline = time.monotonic() + MOVE_S
            while True:
                with gevent.Timeout(OPERATION_TIMEOUT_S):
                    found = self.writer.execute(FIND, (self.customer_id,), prepare=False)
                if found or time.monotonic() > deadline:
                    break
                # Between the two homes, for a round trip.
                gevent.sleep(0.1)
        except LabError:
            return False
        except (psycopg.Error, gevent.Timeout):
            self.writer.drop()
            return False
        # One who signed up before customers had a country does not know theirs.
        if found and found == (self.country or found[0], self.region):
            return False
        self.last_purchase = None
        if found is None:
            self.customer_id = self.country = None
        else:
            self.country, self.region = found
        self.writer.drop()
        self.reader.drop()
        return True

    def looks_elsewhere(self) -> bool:
        """Tell whether the region's customers look at another node than they write to."""
        try:
            return bool(self.market.topology().region(self.region).reads)
        except LabError:
            return False

    def write(
        self,
        name: str,
        kind: Kind,
        keys: Sequence[UUID],
        statements: Sequence[tuple[str, Any]],
        prepare: bool = True,
    ) -> bool:
        """Write rows by their keys, several in one transaction; return whether they count.

        Each has its lines in the ledger. The connection is there.
        """

        def work() -> None:
            assert self.writer.connection is not None
            whole = self.writer.connection.transaction() if len(statements) > 1 else nullcontext()
            with whole:
                for statement, values in statements:
                    self.writer.execute(statement, values, prepare)

        ledger = self.market.ledger
        for key in keys:
            ledger.write("I", kind, key, self.region)
        mark: Mark = "U"
        try:
            mark = self.writer.attempt(name, work)[0]
        finally:
            # A kill of the greenlet passes through here too, and leaves the write unknown.
            for key in keys:
                ledger.write(mark, kind, key, self.region)
        if mark == "A":
            self.market.note_ack(self.region)
        return mark == "A"


_IDLE = TransactionStatus.IDLE


def _is_refusal(sqlstate: str | None) -> bool:
    """Tell whether the server said no, so that the write is surely absent.

    Not so where the connection broke (08), the server was stopped (57), or it says itself that the
    completion is unknown (40003).
    """
    return bool(sqlstate) and sqlstate[:2] not in ("08", "57") and sqlstate != "40003"  # type: ignore[index]


def population(region: str, market: Market) -> type[Customer]:
    """Return the user class of one region's customers."""
    name = f"{region.capitalize()}Customer"
    return type(
        name,
        (Customer,),
        {
            "region": region,
            "market": market,
            "abstract": False,
            "host": "the lab",
            "__module__": __name__,
        },
    )
