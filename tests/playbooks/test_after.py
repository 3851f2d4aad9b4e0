"""Life with every region at home: what stands where, who may do what, and what the audit finds."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.fixtures.after import (
    INSERT,
    assert_held,
    kinds,
    session,
)
from tests.fixtures.labs import LabUnderTest
from tests.fixtures.traffic import (
    lost,
    play_traffic,
)
from tests.fixtures.world import COUNTRIES, NODES, TABLES
from workload.sharding import foreign
from workload.sharding.access import Setup, point_servers
from workload.sharding.leaves import leaves_of
from workload.topology import Topology
from workload.wan import control


@pytest.fixture(scope="module")
def after(all_at_after: LabUnderTest) -> LabUnderTest:
    """Return a lab in phase after."""
    return all_at_after


def test_second_run_changes_nothing(after: LabUnderTest) -> None:
    lab = after
    assert lab.play_ok("after").changed == 0
    assert lab.play_ok("after", "--check").changed == 0
    earlier = lab.play_ok("shard")
    assert "past shard: nothing to do" in " ".join(earlier.output.split())


def test_residency_holds(after: LabUnderTest) -> None:
    assert_held(after)


# -- the state -----------------------------------------------------------------------------------


def test_own_leaves_are_tables_and_others_are_foreign(after: LabUnderTest) -> None:
    for node in NODES:
        home = node.removesuffix("_2")
        assert kinds(after, node) == {
            f"{region}.{table}": "r" if region == home else "f"
            for region in COUNTRIES
            for table in TABLES
        }
        left = after.query(
            "SELECT nspname FROM pg_namespace WHERE nspname ~ '^(moving|staged|retired|incoming)_'"
            " UNION ALL SELECT subname FROM pg_subscription"
            " UNION ALL SELECT pubname FROM pg_publication"
            " UNION ALL SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'",
            NODES[node],
        )
        assert left == []
        for region in COUNTRIES:
            rows = f"SELECT count(*) FROM {region}.customer"
            assert after.query(rows, NODES[node]) == after.query(rows, NODES[region])


def test_foreign_sessions_use_tls_with_few_rights(after: LabUnderTest) -> None:
    lab = after
    with closing(session(lab, "us")) as connection:
        connection.execute("SELECT count(*) FROM eu.customer")
        rows = lab.query(
            "SELECT a.usename, s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)"
            " WHERE a.application_name = 'us for eu' AND a.usename = 'foreign_customers'"
        )
        assert rows
        assert set(rows) == {("foreign_customers", True)}
        for statement in (
            "UPDATE global.customer SET email = 'x' WHERE country = 'de'",
            "DELETE FROM eu.customer WHERE country = 'de'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    secret = lab.lab.secret_file("foreign_customers").read_text()
    login: dict[str, Any] = {
        "host": "127.0.0.1", "port": lab.port_base, "user": "foreign_customers",
        "password": secret, "dbname": "postgres", "autocommit": True,
    }  # fmt: skip
    with psycopg.connect(**login) as connection:
        connection.execute("SELECT count(*) FROM eu.customer")
        for statement in (
            "UPDATE eu.customer SET email = 'x'",
            "DELETE FROM eu.customer",
            "TRUNCATE eu.customer",
            "SELECT * FROM global.customer",
            "SELECT * FROM us.customer",
            "SELECT * FROM public.customer",
            "SELECT * FROM lab.marker",
            "SELECT rolpassword FROM pg_authid",
            "SELECT umoptions FROM pg_user_mapping",
            "CREATE TABLE eu.mine (id int)",
            "CREATE TABLE public.mine (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    # Who came to the origin for rows that were leaving went on from there; nobody does any more.
    assert lab.query(
        "SELECT count(*) FROM pg_user_mappings WHERE usename IN ('foreign_customers',"
        " 'foreign_operator')"
    ) == [(0,)]
    # Customers see no password of the next hop.
    with closing(session(lab, "us")) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_user_mappings WHERE umoptions IS NOT NULL"
            " AND umoptions::text LIKE %s",
            (f"%{lab.lab.secret_file('foreign_operator').read_text()}%",),
        ).fetchone()
        assert row == (0,)


def test_who_passes_by_the_origin_goes_on_to_the_end_of_their_transaction(
    after: LabUnderTest,
) -> None:
    """As on the way to after: a session from elsewhere is there already when servers turn."""
    lab = after
    topology = Topology.load(lab.lab)
    setup = Setup(topology, "password", topology.countries(), topology.user)
    secrets = {role: lab.lab.secret_file(role).read_text() for role in foreign.SECRETS}
    with setup.connect("eu") as operator:
        foreign.allow_forwarding(operator, leaves_of(setup.regions, ["us"]), "us", secrets)
    login = replace(lab.login(), user="foreign_customers", password=secrets["foreign_customers"])
    done = threading.Event()

    def turn() -> None:
        point_servers(setup)
        done.set()

    turning = threading.Thread(target=turn)
    with psycopg.connect(login.conninfo()) as passing:
        passing.execute("SELECT 1")
        turning.start()
        # More than the round trip in which somebody may be on the way.
        assert not done.wait(1)
        assert passing.execute("SELECT count(*) > 0 FROM us.customer").fetchone() == (True,)
        passing.rollback()
        assert done.wait(30)
        turning.join()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            passing.execute("SELECT count(*) FROM us.customer")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("host", "us.geo-sharding-lab.invalid", "does not match host name"),
        ("sslrootcert", "tls/server.crt", "certificate verify failed"),
    ],
)
def test_foreign_server_checks_whom_it_speaks_to(
    after: LabUnderTest, option: str, value: str, message: str
) -> None:
    def one_address(key: str) -> str:
        row = after.query(
            "SELECT split_part(option_value, ',', 1) FROM pg_foreign_server s,"
            f" pg_options_to_table(srvoptions) WHERE srvname = 'eu' AND option_name = '{key}'",
            NODES["us"],
        )
        return str(row[0][0])

    found = {
        key: one_address(key)
        for key in ("host", "hostaddr", "port", "dbname", "sslmode", "sslrootcert")
    }
    found[option] = value
    options = ", ".join(f"{key} '{text}'" for key, text in found.items())
    secret = after.lab.secret_file("foreign_operator").read_text()
    with psycopg.connect(after.login(NODES["us"]).conninfo()) as connection:
        connection.execute(
            f"CREATE SERVER wrong FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({options})".encode()
        )
        connection.execute(
            "CREATE USER MAPPING FOR postgres SERVER wrong"
            f" OPTIONS (user 'foreign_operator', password '{secret}')".encode()
        )
        connection.execute(
            "CREATE FOREIGN TABLE pg_temp.wrong (id uuid) SERVER wrong"
            " OPTIONS (schema_name 'eu', table_name 'customer')"
        )
        with pytest.raises(psycopg.Error, match=message):
            connection.execute("SELECT count(*) FROM pg_temp.wrong")
        connection.rollback()


def test_stranger_is_refused_by_the_home_itself(after: LabUnderTest) -> None:
    for region in COUNTRIES:
        stranger = "us" if region != "us" else "de"
        for node in ("eu", "us", "jp"):
            with pytest.raises(psycopg.errors.CheckViolation):
                after.query(
                    f"INSERT INTO {region}.customer (email, country) VALUES ('a', '{stranger}')",
                    NODES[node],
                )
    for node in ("eu", "us", "jp"):
        for country in ("'xx'", "'US'", "NULL", "''"):
            # Outer joins and variables have NULLs, so the type takes them: the column does not.
            said = "no partition|not-null" if country == "NULL" else "at home in no region"
            with pytest.raises(psycopg.errors.IntegrityError, match=said):
                after.query(
                    f"INSERT INTO global.customer (email, country) VALUES ('a', {country})",
                    NODES[node],
                )


def test_old_statements_work_on_every_node(after: LabUnderTest) -> None:
    lab = after
    for number, node in enumerate(("eu", "us", "jp")):
        customer = f"00000000-0000-0000-0000-00000000000{number}"
        with closing(session(lab, node)) as connection:
            connection.execute(
                "INSERT INTO customer (id, email) VALUES (%s, %s)", (customer, "old@example.com")
            )
            connection.execute(
                "INSERT INTO purchase (customer_id, amount) VALUES (%s, 50.25)", (customer,)
            )
            for name in ("SELECT * FROM us.customer LIMIT 1", "SELECT * FROM jp.test LIMIT 1"):
                connection.execute(name.encode())
        (country,) = lab.query(f"SELECT country FROM eu.customer WHERE id = '{customer}'")[0]
        assert country == "uk"
        rows = lab.query(
            f"SELECT amount, country FROM eu.purchase WHERE customer_id = '{customer}'"
        )
        assert [(str(amount), home) for amount, home in rows] == [("50.25", "uk")]


def test_source_tests_land_at_home_and_are_seen_everywhere(after: LabUnderTest) -> None:
    done = after.workload("source_tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every node sees all of them." in done.stdout
    assert "diverges" not in done.stdout
    for region in COUNTRIES:
        rows = after.query(f"SELECT count(*) FROM ONLY {region}.test", NODES[region])
        assert rows[0][0] > 0


def test_nobody_at_home_needs_the_others(after: LabUnderTest) -> None:
    """All links are cut; what is done at home goes on, and what is not says so."""
    lab = after.lab
    links = ("us-eu", "jp-eu", "us-jp")
    for link in links:
        control.set_state(lab, link, "cut")
    try:
        play_traffic(after, 5)
        for region, node in (("eu", "eu"), ("us", "us"), ("jp", "jp")):
            with closing(session(after, node, options="-c statement_timeout=2s")) as own:
                country = COUNTRIES[region]
                own.execute(INSERT, (f"alone@{region}.example", country))
                found = own.execute(
                    "SELECT count(*) FROM global.customer WHERE country = %s AND email = %s",
                    (country, f"alone@{region}.example"),
                ).fetchone()
                assert found
                assert found[0] > 0
    finally:
        for link in links:
            control.set_state(lab, link, "up")
    assert lost(after) == 0
