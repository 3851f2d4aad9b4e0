"""The role that customers connect as: what it can do, and what it cannot."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tests.fixtures.labs import DOCKER_IN_SOAK, LabUnderTest
from workload.nodes.scram import verifier as scram_verifier
from workload.sql import Login
from workload.topology import Topology

pytestmark = DOCKER_IN_SOAK

Session = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def login(shared_lab: LabUnderTest) -> Login:
    topology = Topology.load(shared_lab.lab)
    return topology.customers_login(topology.regions[0])


@pytest.fixture
def customer(login: Login) -> Iterator[Session]:
    with psycopg.connect(login.conninfo(), autocommit=True) as connection:
        yield connection


def test_signs_up_buys_and_looks(customer: Session) -> None:
    key = uuid.uuid4()
    customer.execute("INSERT INTO customer (id, email) VALUES (%s, 'x@example.com')", (key,))
    customer.execute("INSERT INTO purchase (customer_id, amount) VALUES (%s, 9.99)", (key,))
    row = customer.execute(
        "SELECT email, amount FROM customer JOIN purchase ON customer_id = customer.id"
        " WHERE customer.id = %s",
        (key,),
    ).fetchone()
    assert row
    assert (row[0], str(row[1])) == ("x@example.com", "9.99")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE customer SET email = 'y'",
        "UPDATE purchase SET amount = 0",
        "DELETE FROM customer",
        "DELETE FROM purchase",
        "TRUNCATE customer, purchase",
        "DROP TABLE purchase",
        "ALTER TABLE customer ADD COLUMN note text",
        "CREATE TABLE mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE other",
        "COPY customer TO PROGRAM 'true'",
        "SELECT * FROM pg_authid",
    ],
)
def test_changes_deletes_and_makes_nothing(customer: Session, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        customer.execute(statement.encode())


def test_has_no_special_powers(shared_lab: LabUnderTest) -> None:
    (powers,) = shared_lab.query(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin"
        " FROM pg_roles WHERE rolname = 'customers'"
    )
    assert powers == (False, False, False, False, False, True)
    assert (
        shared_lab.query("SELECT roleid FROM pg_auth_members WHERE member = 'customers'::regrole")
        == []
    )


def test_password_is_generated_and_its_file_is_the_owners_alone(shared_lab: LabUnderTest) -> None:
    file = shared_lab.lab.secret_file("customers")
    assert len(file.read_text()) >= 24
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("password", ["", "password", "customers", "x" * 32])
def test_no_other_password_logs_in(login: Login, password: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(replace(login, password=password).conninfo())


def test_server_stores_the_verifier_and_not_the_password(
    shared_lab: LabUnderTest, login: Login
) -> None:
    ((stored,),) = shared_lab.query("SELECT rolpassword FROM pg_authid WHERE rolname = 'customers'")
    assert stored == scram_verifier(login.password, "customers")


def test_verifier_logs_in_with_its_own_password_alone(shared_lab: LabUnderTest) -> None:
    verifier = scram_verifier("first word's", "scram_test")
    shared_lab.query(f"CREATE ROLE scram_test LOGIN PASSWORD '{verifier}'")
    mine = replace(shared_lab.login(), user="scram_test", password="first word's")
    psycopg.connect(mine.conninfo()).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(replace(mine, password="first words").conninfo())
    shared_lab.query("DROP ROLE scram_test")


def test_lost_rights_and_password_come_back(shared_lab: LabUnderTest, login: Login) -> None:
    shared_lab.query("REVOKE INSERT ON purchase FROM customers")
    shared_lab.query("ALTER ROLE customers PASSWORD 'another'")
    # The role and its rights.
    assert shared_lab.play_ok("before").changed == 2
    ((granted,),) = shared_lab.query(
        "SELECT has_table_privilege('customers', 'purchase', 'INSERT')"
    )
    assert granted
    psycopg.connect(login.conninfo()).close()
    assert shared_lab.play_ok("before").changed == 0
