"""A customer as a Locust user: one connection, one statement an operation, a ledger of writes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar
from uuid import UUID, uuid4

import gevent
from locust import User, task

import psycopg

from workload.errors import LabError
from workload.traffic.ledger import Kind, Mark
from workload.traffic.market import Market
from workload.traffic.session import OPERATION_TIMEOUT_S, Session
from workload.traffic.statements import FIND, OLD, SIGN_UP_WITH_COUNTRY, Statements

#: Seconds for a customer who is being moved to appear at their new home.
MOVE_S = 2.0

# psycopg waits in C, holding up every customer of the process, unless it finds the sockets patched
# when it is imported.
if psycopg.waiting.wait is psycopg.waiting.wait_c:
    raise ImportError("import locust before psycopg, or one slow query stops every customer")


class Customer(User):
    """Signs up once, then about once a second buys something or reads their purchases.

    Outlives every database error. Writes go to the primary; where the region has a standby at
    home, reads go to that.
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
        self.writer = Session(self, reads=False)
        self.reader = Session(self, reads=True)
        self.customer_id: UUID | None = None
        #: None for one who signed up before customers had a country.
        self.country: str | None = None
        self.last_purchase: UUID | None = None

    def on_stop(self) -> None:
        """Close the connections."""
        self.writer.drop()
        self.reader.drop()

    def wait_time(self) -> float:
        """Return the seconds until the next operation: the think time, give or take a half."""
        return self.random.uniform(0.5, 1.5) * self.market.think_time_s

    def stop(self, force: bool = False) -> bool:
        """End after the operation that is under way.

        Locust kills a user that waits at once; the kill is delivered late, inside the next query,
        which may then commit without being counted.
        """
        if force or self._state is None:
            return bool(super().stop(force))
        self._state = "stopping"
        return False

    @task
    def trade(self) -> None:
        """Do one thing; after half of the purchases, read at once whether it is there."""
        chance = self.random.random()
        if self.customer_id is None:
            self.sign_up()
        elif chance < 0.1:
            self.fill_basket()
        elif chance < 0.5:
            self.buy()
            if chance < 0.3:
                self.read()
        else:
            self.read()
        self.writer.warm_up()

    def sign_up(self) -> None:
        """Become a customer; after a sign-up of unknown outcome, sign up again under another id."""
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
        # Sent once by each customer: preparing it would cost a round trip and save none.
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
        # Once more where the first attempt showed that their home has changed.
        for _ in range(2):
            if self.customer_id is None or not self.writer.is_connected(name):
                return
            statements, home = self.statements(self.writer), self.home
            # Not from the seed: a second run would repeat the first one's ids.
            keys = [uuid4() for _ in range(count)]
            country = (self.country,) if statements.has_country else ()
            rows = [
                (
                    statements.buy,
                    (key, self.customer_id, self.random.randint(0, 10_000) / 100, *country),
                )
                for key in keys
            ]
            if self.write(name, "p", keys, rows):
                self.last_purchase = keys[-1]
            if self.home == home:
                return

    def amount(self) -> float:
        """Return what a purchase costs: 0 to 100, in cents."""
        return self.random.randint(0, 10_000) / 100

    @property
    def home(self) -> tuple[str | None, str]:
        """Their country, and the region that they are in."""
        return self.country, self.region

    def statements(self, session: Session) -> Statements:
        """Return this customer's statements; one without a country goes on as at the start."""
        return OLD if self.country is None else session.statements

    def read(self) -> None:
        """Read one's purchases; a read that misses one's own last purchase is stale."""
        session = self.reader if self.reads_elsewhere() else self.writer
        if not session.is_connected("read"):
            return
        statements = self.statements(session)
        country = (self.country,) if statements.has_country else ()
        row = session.run(
            "read", statements.read, (self.last_purchase, self.customer_id, *country)
        )[1]
        if row is None or self.last_purchase is None or row[2]:
            return
        if not self.follow():
            stale = self.market.stale_reads
            stale[self.region, "read"] = stale.get((self.region, "read"), 0) + 1

    def follow(self) -> bool:
        """Find this customer's home and use it from now on; return whether it has changed.

        An operator may have moved them to another country. A customer with no home was erased, and
        signs up again.
        """
        try:
            if self.market.topology().tables != "home" or self.writer.connection is None:
                return False
            deadline = time.monotonic() + MOVE_S
            while True:
                with gevent.Timeout(OPERATION_TIMEOUT_S):
                    home = self.writer.execute(FIND, (self.customer_id,), prepare=False)
                if home or time.monotonic() > deadline:
                    break
                # Between the two homes, for a round trip.
                gevent.sleep(0.1)
        except LabError:
            return False
        except (psycopg.Error, gevent.Timeout):
            self.writer.drop()
            return False
        # One who signed up before customers had a country does not know theirs.
        if home and home == (self.country or home[0], self.region):
            return False
        self.last_purchase = None
        if home is None:
            self.customer_id = self.country = None
        else:
            self.country, self.region = home
        self.writer.drop()
        self.reader.drop()
        return True

    def reads_elsewhere(self) -> bool:
        """Tell whether the region's customers read from another node than they write to."""
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
            # A greenlet that is killed comes through here too; its write stays unknown.
            for key in keys:
                ledger.write(mark, kind, key, self.region)
        if mark == "A":
            self.market.note_ack(self.region)
        return mark == "A"


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
