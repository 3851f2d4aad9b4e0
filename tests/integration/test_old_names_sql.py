"""The scripts of role shards on a real server: written once, and mended where they drift."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tests.fixtures.labs import eventually
from tests.integration.conftest import shards_scripts
from workload.sql import Login, apply

ID = "10000000-0000-4000-8000-000000000001"
SIGN_UP = f"INSERT INTO customer (id, email, country) VALUES ('{ID}', 'a@example.com', 'uk')"

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture
def node(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Return a node with the sharded schema, all leaves and no row."""
    return connection


def run(node: psycopg.Connection[Any], dry_run: bool = False) -> list[str]:
    return apply(node, shards_scripts(), dry_run)


def test_a_second_run_writes_nothing(node: psycopg.Connection[Any]) -> None:
    node.execute("CREATE TABLE untouched AS SELECT oid AS key, xmin AS version FROM pg_proc")
    try:
        assert run(node) == []
        assert run(node, dry_run=True) == []
        assert node.execute(
            "SELECT count(*) FROM pg_proc AS p JOIN untouched AS u ON u.key = p.oid"
            " WHERE p.xmin <> u.version"
        ).fetchone() == (0,)
    finally:
        node.execute("DROP TABLE untouched")


@pytest.mark.parametrize(
    ("drift", "script"),
    [
        ("DROP VIEW customer", "old_names.sql.j2"),
        ("DROP TRIGGER old_name ON purchase", "old_names.sql.j2"),
        ("UPDATE pg_trigger SET tgenabled = 'O' WHERE tgname = 'old_name'", "old_names.sql.j2"),
        ("ALTER VIEW customer ALTER country SET DEFAULT 'de'", "old_names.sql.j2"),
        (
            "CREATE OR REPLACE VIEW customer AS SELECT id, email, country::text AS country"
            " FROM global.customer WHERE email <> 'x'",
            "old_names.sql.j2",
        ),
        (
            "CREATE OR REPLACE FUNCTION lab.write_purchase() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RETURN NEW; END'",
            "old_names.sql.j2",
        ),
        (
            "CREATE OR REPLACE FUNCTION global.country_of(of_customer uuid) RETURNS text"
            " LANGUAGE sql AS $$ SELECT 'de' $$",
            "schema.sql.j2",
        ),
        ("ALTER FUNCTION lab.is_here SECURITY DEFINER", "files/lab.sql"),
        ("DROP TABLE lab.to_scrub", "files/lab.sql"),
        ("DELETE FROM global.home WHERE country = 'de'", "schema.sql.j2"),
        ("UPDATE global.home SET region = 'us' WHERE country = 'de'", "schema.sql.j2"),
        ("INSERT INTO global.home VALUES ('zz', 'eu')", "schema.sql.j2"),
        ("REVOKE INSERT ON purchase FROM customers", "grants.sql.j2"),
        ("REVOKE USAGE ON SCHEMA us FROM customers", "grants.sql.j2"),
        ("GRANT EXECUTE ON FUNCTION lab.offer_old_names TO PUBLIC", "grants.sql.j2"),
    ],
)
def test_drift_is_mended_and_told(node: psycopg.Connection[Any], drift: str, script: str) -> None:
    node.execute(drift.encode())
    changed = run(node)
    assert script in changed
    # A view that was dropped has no rights.
    assert set(changed) <= {script, "grants.sql.j2"}
    assert run(node) == []
    with node.transaction(force_rollback=True):
        node.execute("SET LOCAL session_replication_role = replica")
        node.execute("SET LOCAL ROLE customers")
        node.execute(SIGN_UP)
        node.execute(f"INSERT INTO purchase (customer_id, amount) VALUES ('{ID}', 1)")
        bought = node.execute(f"SELECT country FROM global.purchase WHERE customer_id = '{ID}'")
        assert bought.fetchall() == [("uk",)]


def test_columns_that_are_added_are_offered_by_the_old_names(
    node: psycopg.Connection[Any],
) -> None:
    node.execute(
        "ALTER TABLE global.customer ADD phone text DEFAULT 'none', ADD note json,"
        ' ADD shout text GENERATED ALWAYS AS (upper(email)) STORED, ADD "Nick Name" text'
    )
    node.execute("ALTER TABLE global.purchase ADD gift boolean NOT NULL DEFAULT false")
    assert run(node) == ["old_names.sql.j2"]
    assert run(node) == []
    signed_up = node.execute(
        'INSERT INTO customer (id, email, note, "Nick Name") VALUES'
        f" ('{ID}', 'a@b', '{{}}', 'a') RETURNING email, country, phone, shout, \"Nick Name\""
    ).fetchone()
    assert signed_up == ("a@b", "uk", "none", "A@B", "a")
    bought = node.execute(
        f"INSERT INTO purchase (customer_id, amount, gift) VALUES ('{ID}', 1, true) RETURNING gift"
    ).fetchone()
    assert bought == (True,)
    changed = node.execute(
        f"UPDATE customer SET phone = '1', note = '[]', email = 'c@d' WHERE id = '{ID}'"
        " RETURNING phone, note, shout"
    ).fetchone()
    assert changed == ("1", [], "C@D")
    node.execute("UPDATE purchase SET gift = false")
    assert node.execute("SELECT gift FROM global.purchase").fetchall() == [(False,)]


def test_views_wait_beside_the_tables_of_the_start(node: psycopg.Connection[Any]) -> None:
    node.execute("DROP VIEW customer, purchase")
    node.execute("CREATE TABLE customer (id uuid, email text, phone text, country text)")
    node.execute("CREATE TABLE purchase (id uuid, customer_id uuid, amount numeric)")
    assert run(node) == ["old_names.sql.j2", "grants.sql.j2"]
    assert run(node) == []
    node.execute("ALTER TABLE global.customer ADD phone text")
    assert run(node)[0] == "old_names.sql.j2"
    columns = node.execute(
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = 'lab.customer'::regclass AND attnum > 0"
    ).fetchone()
    # A prepared SELECT * returns the same as before.
    assert columns == (["id", "email", "phone", "country"],)
    node.execute("DROP TABLE customer, purchase")
    run(node)
    assert run(node) == []
    node.execute(SIGN_UP)


def test_an_update_that_another_one_overtook_is_refused_not_lost(
    node: psycopg.Connection[Any], login: Login
) -> None:
    node.execute("ALTER TABLE global.customer ADD visits int NOT NULL DEFAULT 0")
    run(node)
    node.execute(SIGN_UP)
    visit = f"UPDATE customer SET visits = visits + 1 WHERE id = '{ID}'"
    outcomes: list[object] = []

    def second() -> None:
        with psycopg.connect(login.conninfo()) as other:
            try:
                outcomes.append(other.execute(visit.encode()).rowcount)
            except errors.SerializationFailure as error:
                outcomes.append(error)

    with node.transaction():
        node.execute(visit.encode())
        waiting = threading.Thread(target=second)
        waiting.start()
        with psycopg.connect(login.conninfo(), autocommit=True) as watcher:
            waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')"
            eventually(lambda: watcher.execute(waits).fetchone() == (True,))
    waiting.join(30)
    assert [type(outcome) for outcome in outcomes] == [errors.SerializationFailure]
    assert "changed by another session" in str(outcomes[0])
    assert node.execute("SELECT visits FROM customer").fetchall() == [(1,)]
    # A row that is gone is no row that was changed.
    with node.transaction():
        node.execute("DELETE FROM customer")
        assert node.execute(visit.encode()).rowcount == 0


def test_customers_cannot_use_the_labs_functions_for_themselves(
    node: psycopg.Connection[Any],
) -> None:
    run(node)
    open_to_all = node.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc AS p"
        " WHERE pronamespace = 'lab'::regnamespace"
        " AND has_function_privilege('public', oid, 'EXECUTE')"
    ).fetchall()
    assert open_to_all == []
    assert (
        node.execute(
            "SELECT oid::regprocedure::text FROM pg_proc WHERE prosecdef"
            " AND pronamespace IN ('lab'::regnamespace, 'global'::regnamespace)"
            " AND proconfig IS NULL"
        ).fetchall()
        == []
    )
    with node.transaction(force_rollback=True):
        node.execute("SET LOCAL ROLE customers")
        with pytest.raises(errors.InsufficientPrivilege):
            node.execute("SELECT lab.offer_old_names()")


def test_a_person_s_role_on_an_old_name_may_go_on_to_the_parent(
    node: psycopg.Connection[Any],
) -> None:
    node.execute("CREATE ROLE app")
    try:
        node.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON customer, purchase TO app")
        assert run(node) == ["grants.sql.j2"]
        assert run(node) == []
        with node.transaction(force_rollback=True):
            node.execute("SET LOCAL ROLE app")
            node.execute(SIGN_UP)
            node.execute(f"INSERT INTO purchase (customer_id, amount) VALUES ('{ID}', 1)")
            assert node.execute("UPDATE customer SET country = 'de'").rowcount == 1
            assert node.execute("UPDATE purchase SET amount = 2").rowcount == 1
            assert node.execute("SELECT country FROM global.purchase").fetchall() == [("de",)]
            assert node.execute("DELETE FROM purchase").rowcount == 1
            assert node.execute("DELETE FROM customer").rowcount == 1
    finally:
        node.execute("DROP OWNED BY app; DROP ROLE app")
