"""What an application of the start says goes on by the old names, on every node in both phases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors

from tests.fixtures.labs import LabUnderTest

pytestmark = pytest.mark.slow

NODES = {"eu": 0, "us": 2, "jp": 3}
#: A country of each region, another one of the same, and one of another region.
COUNTRIES = {"eu": ("uk", "de", "us"), "us": ("us", "mx", "jp"), "jp": ("jp", "jp", "uk")}
WRITES = 200
SIGN_UP = "INSERT INTO customer (id, email, country) VALUES (%s, %s, %s)"
BUY = "INSERT INTO purchase (id, customer_id, amount) VALUES (%s, %s, %s)"
Session = psycopg.Connection[Any]


class Loader:
    """A session that writes as pg_restore and bulk loaders do: the triggers of tables are off."""

    def __init__(self, lab: LabUnderTest) -> None:
        self.lab = lab
        self.customers: list[UUID] = []
        self.purchases: list[UUID] = []
        self.errors: list[str] = []
        self.until_done = threading.Event()

    def run(self) -> None:
        """Write until told that the road is walked, and WRITES customers at least."""
        with psycopg.connect(self.lab.login().conninfo(), autocommit=True) as session:
            session.execute("SET session_replication_role = replica")
            while not self.until_done.is_set() or len(self.customers) < WRITES:
                customer, purchase = uuid4(), uuid4()
                country = ("uk", "us", "jp")[len(self.customers) % 3]
                try:
                    session.execute(SIGN_UP, (customer, "loader@example.com", country))
                    self.customers.append(customer)
                    session.execute(BUY, (purchase, customer, 1))
                    self.purchases.append(purchase)
                except psycopg.Error as error:
                    self.errors.append(str(error))
                    return
                time.sleep(0.02)

    def lost(self) -> tuple[int, int]:
        """Return how many acknowledged customers and purchases the origin does not show."""
        with psycopg.connect(self.lab.login().conninfo()) as session:
            row = session.execute(
                "SELECT (SELECT count(*) FROM unnest(%s::uuid[]) AS k"
                " WHERE k NOT IN (SELECT id FROM customer)),"
                " (SELECT count(*) FROM unnest(%s::uuid[]) AS k"
                " WHERE k NOT IN (SELECT id FROM purchase))",
                (self.customers, self.purchases),
            ).fetchone()
        assert row
        return row[0], row[1]


@pytest.fixture(scope="module", params=["shard", "after"])
def lab(
    request: pytest.FixtureRequest, new_lab: Callable[..., LabUnderTest]
) -> Iterator[tuple[LabUnderTest, Loader]]:
    """Return a lab in each phase; a loader wrote by the old names on the way there."""
    made = new_lab("embedded")
    for phase in ("before", "expand_eu", "expand_world"):
        made.play_ok(phase)
    loader = Loader(made)
    at_work = threading.Thread(target=loader.run)
    at_work.start()
    try:
        made.play_ok(request.param)
    finally:
        loader.until_done.set()
        at_work.join(120)
    # What the statements do is the same at any distance, and a hundred of them go far.
    for link in ("us-eu", "jp-eu", "us-jp"):
        done = made.workload("wan", LINK=link, RTT="4")
        assert done.returncode == 0, done.stdout + done.stderr
    yield made, loader
    made.remove()


def session(lab: LabUnderTest, node: str) -> Session:
    return psycopg.connect(lab.login(NODES[node]).conninfo(), autocommit=True)


def test_a_loader_loses_nothing_on_the_way(lab: tuple[LabUnderTest, Loader]) -> None:
    made, loader = lab
    assert loader.errors == []
    assert len(loader.customers) >= WRITES
    assert loader.lost() == (0, 0)
    assert made.play_ok("shard").changed == 0


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("region", COUNTRIES)
def test_statements_of_an_application(
    lab: tuple[LabUnderTest, Loader], node: str, region: str
) -> None:
    country, neighbour, elsewhere = COUNTRIES[region]
    customer, purchase = uuid4(), uuid4()
    with session(lab[0], node) as s:
        with s.transaction():
            s.execute(SIGN_UP, (customer, "a@example.com", country))
            bought = s.execute(f"{BUY} RETURNING *", (purchase, customer, 1)).fetchall()
        assert bought == [(purchase, customer, 1)]
        # As an ORM saves a row.
        save = "UPDATE customer SET id = %s, email = %s, country = %s WHERE id = %s"
        assert s.execute(save, (customer, "b@example.com", country, customer)).rowcount == 1
        saved = s.execute(
            f"{save} RETURNING *", (customer, "c@example.com", neighbour, customer)
        ).fetchall()
        assert saved == [(customer, "c@example.com", neighbour)]
        followed = s.execute("SELECT country FROM global.purchase WHERE id = %s", (purchase,))
        assert followed.fetchall() == [(neighbour,)]
        with pytest.raises(errors.FeatureNotSupported) as refused:
            s.execute(save, (customer, "d@example.com", elsewhere, customer))
        message = str(refused.value.diag.message_primary)
        assert f"make move CUSTOMER={customer} COUNTRY={elsewhere}" in message
        with pytest.raises(errors.CheckViolation, match="at home in no region"):
            s.execute(save, (customer, "d@example.com", "xx", customer))
        assert s.execute(save, (uuid4(), "e@example.com", country, uuid4())).rowcount == 0
        changed = s.execute(
            "UPDATE purchase SET id = %s, customer_id = %s, amount = amount + 1 WHERE id = %s"
            " RETURNING amount",
            (purchase, customer, purchase),
        ).fetchall()
        assert changed == [(2,)]
        with s.transaction():
            assert (
                s.execute("DELETE FROM purchase WHERE customer_id = %s", (customer,)).rowcount == 1
            )
            gone = s.execute("DELETE FROM customer WHERE id = %s RETURNING *", (customer,))
            assert gone.fetchall() == [(customer, "c@example.com", neighbour)]
        with pytest.raises(errors.ForeignKeyViolation, match=str(customer)):
            s.execute(BUY, (purchase, customer, 1))


@pytest.mark.parametrize("node", NODES)
def test_as_a_replication_role_nothing_is_answered_and_dropped(
    lab: tuple[LabUnderTest, Loader], node: str
) -> None:
    ids = [uuid4() for _ in COUNTRIES]
    with session(lab[0], node) as s:
        s.execute("SET session_replication_role = replica")
        with s.cursor().copy("COPY customer (id, email, country) FROM STDIN") as copy:
            for key, (country, *_) in zip(ids, COUNTRIES.values(), strict=True):
                copy.write_row((key, "copied@example.com", country))
        for key in ids:
            s.execute(BUY, (key, key, 1))
        s.execute("RESET session_replication_role")
        for table in ("purchase", "customer"):
            kept = s.execute(f"SELECT id FROM {table} WHERE id = ANY(%s)", (ids,)).fetchall()
            assert {key for (key,) in kept} == set(ids)
            s.execute(f"DELETE FROM {table} WHERE id = ANY(%s)", (ids,))


@pytest.mark.parametrize("node", NODES)
def test_null_passes_where_no_row_is_stored(lab: tuple[LabUnderTest, Loader], node: str) -> None:
    with session(lab[0], node) as s:
        s.execute("DO $$ DECLARE c global.customer.country%TYPE; BEGIN c := 'uk'; END $$")
        for region in COUNTRIES:
            unmatched = s.execute(
                f"SELECT count(*), count(c.country) FROM {region}.purchase AS p"
                f" LEFT JOIN {region}.customer AS c ON c.id = p.id"
            ).fetchone()
            assert unmatched
            assert unmatched[0] > 0 == unmatched[1]
        with pytest.raises((errors.CheckViolation, errors.NotNullViolation)):
            s.execute(SIGN_UP, (uuid4(), "nowhere@example.com", None))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO customer (email) VALUES ('x') ON CONFLICT (id) DO NOTHING",
        "TRUNCATE customer",
        "COPY customer TO STDOUT",
        "CREATE TABLE mine (id uuid REFERENCES customer (id))",
        "CREATE INDEX ON customer (email)",
        "ALTER TABLE customer ADD COLUMN phone text",
        "SELECT ctid FROM customer",
        "ALTER TABLE customer ENABLE ROW LEVEL SECURITY",
        "CREATE PUBLICATION mine FOR TABLE customer",
    ],
)
def test_what_a_view_cannot_do_is_an_error(
    lab: tuple[LabUnderTest, Loader], statement: str
) -> None:
    with session(lab[0], "eu") as s, pytest.raises(psycopg.Error):
        s.execute(statement.encode())
