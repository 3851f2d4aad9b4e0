"""Every step of the source document's "Before" works as it is written there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.labs import DOCKER_IN_SOAK, LabUnderTest

pytestmark = DOCKER_IN_SOAK

COLUMNS = """
SELECT column_name, data_type, is_nullable = 'YES', column_default
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name = '{}' ORDER BY ordinal_position
"""
CONSTRAINTS = """
SELECT contype::text, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = 'public.{}'::regclass AND contype <> 'n' ORDER BY 1
"""


def psql(lab: LabUnderTest, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run the source document's own command line, but for the port."""
    program = Path(sys.executable).with_name("psql")
    url = f"postgres://postgres:password@localhost:{lab.port_base}/?sslmode=disable"
    arguments = [part for command in commands for part in ("-c", command)]
    return subprocess.run(
        [program, url, "-X", "-t", "-A", *arguments], capture_output=True, text=True, check=False
    )


def test_table_customer_is_the_sources(shared_lab: LabUnderTest) -> None:
    assert shared_lab.query(COLUMNS.format("customer")) == [
        ("id", "uuid", False, "gen_random_uuid()"),
        ("email", "text", False, None),
    ]
    assert shared_lab.query(CONSTRAINTS.format("customer")) == [("p", "PRIMARY KEY (id)")]


def test_table_purchase_is_the_sources(shared_lab: LabUnderTest) -> None:
    assert shared_lab.query(COLUMNS.format("purchase")) == [
        ("id", "uuid", False, "gen_random_uuid()"),
        ("customer_id", "uuid", False, None),
        ("amount", "numeric", False, None),
    ]
    assert shared_lab.query(CONSTRAINTS.format("purchase")) == [
        ("f", "FOREIGN KEY (customer_id) REFERENCES customer(id)"),
        ("p", "PRIMARY KEY (id)"),
    ]


def test_amount_has_no_limit_of_its_own(shared_lab: LabUnderTest) -> None:
    precision = (
        "SELECT numeric_precision, numeric_scale FROM information_schema.columns"
        " WHERE table_name = 'purchase' AND column_name = 'amount'"
    )
    assert shared_lab.query(precision) == [(None, None)]


def test_nothing_else_is_in_the_database(shared_lab: LabUnderTest) -> None:
    relations = (
        "SELECT relname, relkind::text FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    assert shared_lab.query(relations) == [
        ("customer", "r"),
        ("customer_pkey", "i"),
        ("purchase", "r"),
        # The lab's one addition: roles/shop/files/tables.sql says why.
        ("purchase_customer_id", "i"),
        ("purchase_pkey", "i"),
    ]
    databases = "SELECT datname FROM pg_database WHERE NOT datistemplate"
    assert shared_lab.query(databases) == [("postgres",)]


def test_psql_line_and_old_statements_work(shared_lab: LabUnderTest) -> None:
    done = psql(
        shared_lab,
        "INSERT INTO customer (email) VALUES ('uk_a@gmail.com')",
        "INSERT INTO purchase (customer_id, amount)"
        " SELECT id, 12.5 FROM customer WHERE email = 'uk_a@gmail.com'",
        "SELECT email, amount FROM purchase JOIN customer ON customer.id = customer_id"
        " WHERE email = 'uk_a@gmail.com'",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["INSERT 0 1", "INSERT 0 1", "uk_a@gmail.com|12.5"]


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("INSERT INTO customer DEFAULT VALUES", 'null value in column "email"'),
        ("INSERT INTO purchase (amount) VALUES (1)", 'null value in column "customer_id"'),
        (
            "INSERT INTO purchase (customer_id, amount) VALUES (gen_random_uuid(), 1)",
            "violates foreign key constraint",
        ),
    ],
)
def test_what_the_sources_tables_refuse_is_refused(
    shared_lab: LabUnderTest, statement: str, what: str
) -> None:
    done = psql(shared_lab, statement)
    assert done.returncode == 1
    assert what in done.stderr
