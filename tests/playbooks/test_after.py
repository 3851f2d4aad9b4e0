"""Phase after, played for real: cut over under traffic, and life with every region at home.

One lab walks through it in order, the tests of a module share it.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from rich.console import Console

from tests.fixtures.labs import CHECKOUT, LabUnderTest, Play, eventually
from tests.fixtures.traffic import (
    NOISE_MS,
    acknowledged,
    customers,
    experience,
    lost,
    move_somebody,
    play_traffic,
    traffic,
)
from tests.fixtures.writers import Writer, at_work, beyond_a_warm_one, writers
from workload.audit import canaries
from workload.audit.places import Place, Where
from workload.audit.residency import Residency
from workload.audit.run import audit, run
from workload.proof.verify import verify
from workload.sharding import cutover, foreign
from workload.sharding.access import Setup, point_servers
from workload.sharding.leaves import leaves_of
from workload.topology import Topology
from workload.wan import control

pytestmark = pytest.mark.slow

NODES = {"eu": 0, "eu_2": 1, "us": 2, "jp": 3}
HOMES = {"eu": "de", "us": "us", "jp": "jp"}
TABLES = ("customer", "purchase", "test")
RTTS_MS = {"us": 80, "jp": 230}
INSERT = "INSERT INTO global.customer (email, country) VALUES (%s, %s)"


# -- what the tests do ---------------------------------------------------------------------------


def session(lab: LabUnderTest, node: str = "eu", **options: Any) -> psycopg.Connection[Any]:
    """Return a customer's session on a node, next door."""
    topology = Topology.load(lab.lab)
    password = (lab.lab.home / topology.password_file).read_text()
    return psycopg.connect(
        host="127.0.0.1", port=lab.port_base + NODES[node], user=topology.user, password=password,
        dbname=topology.dbname, autocommit=True, prepare_threshold=0, **options,
    )  # fmt: skip


@dataclass
class Reader:
    """A session on one region's node that reads another region's rows now and then.

    Not all the time: each of its transactions holds locks on eu for some round trips.
    """

    lab: LabUnderTest
    node: str
    region: str
    looks: int = 0
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Read until stopped."""
        statement = "SELECT email FROM global.customer WHERE country = %s LIMIT 1"
        with session(self.lab, self.node) as connection:
            while not self.stop.wait(0.7):
                try:
                    connection.execute(statement, (HOMES[self.region],)).fetchall()
                    self.looks += 1
                except psycopg.Error as error:
                    self.errors.append(str(error))
                    return


def assert_whole(lab: LabUnderTest) -> None:
    """Assert that nothing is lost or doubled, by the lab's own word and by its code's."""
    done = lab.workload("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout
    assert all(verdict.holds for verdict in verify(Topology.load(lab.lab), "password"))


def strays(lab: LabUnderTest) -> dict[str, dict[str, dict[Where, int]]]:
    """Return what the audit finds on each node of other regions."""
    found = audit(Topology.load(lab.lab), "password")
    return {node.node: node.foreign() for node in found.nodes if node.foreign()}


def assert_held(lab: LabUnderTest) -> None:
    """Assert that the audit's playbook says HOLDS."""
    play = lab.play("audit")
    assert play.status == 0, play.output + play.errors
    assert "HOLDS: no node" in " ".join(play.output.split())


def kinds(lab: LabUnderTest, node: str) -> dict[str, str]:
    """Return what each leaf is on a node: r a table, f a foreign table."""
    rows = lab.query(
        "SELECT n.nspname || '.' || c.relname, c.relkind::text FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind <> 'p' AND n.nspname IN ('eu', 'us', 'jp')",
        NODES[node],
    )
    return dict(rows)


def assert_not_begun(lab: LabUnderTest, region: str) -> None:
    """Assert that a region's rows are where they were, and that customers can write them."""
    found = kinds(lab, "eu")
    assert {found[f"{region}.{table}"] for table in TABLES} == {"r"}
    topology = Topology.load(lab.lab)
    assert topology.primary_of(region) is None
    assert topology.region(region).warm_up == ""
    with closing(session(lab)) as connection:
        connection.execute(INSERT, ("after-all@example.com", HOMES[region]))


# -- the lab -------------------------------------------------------------------------------------


@dataclass
class After:
    """A lab in phase after, and what was seen while it went there."""

    lab: LabUnderTest
    play: Play
    writers: dict[str, Writer]
    readers: list[Reader]

    def receipt(self, region: str) -> dict[str, Any]:
        """Return a region's row of cutover.json."""
        rows = json.loads((self.lab.lab.home / "reports" / "cutover.json").read_text())
        (found,) = [row for row in rows if row["region"] == region]
        return dict(found)


@pytest.fixture(scope="module")
def sharded(new_lab: Callable[..., LabUnderTest]) -> Iterator[LabUnderTest]:
    """Return a lab in phase shard."""
    lab = new_lab("embedded")
    lab.play_ok("before")
    early = lab.play("after")
    assert early.status != 0
    assert "builds on expand_world" in early.error
    for phase in ("expand_eu", "expand_world"):
        lab.play_ok(phase)
    seeded = lab.workload("seed", "--customers=3000", "--purchases-each=2")
    assert seeded.returncode == 0, seeded.stdout + seeded.stderr
    lab.play_ok("shard")
    yield lab
    lab.remove()


@pytest.fixture(scope="module")
def after(sharded: LabUnderTest) -> After:
    """Return the lab in phase after; nobody failed while it went there."""
    if Topology.load(sharded.lab).primary_of("us"):
        pytest.fail("the region is at home already")
    readers = [
        Reader(sharded, "jp", "us"),
        Reader(sharded, "us", "jp"),
    ]
    with (
        customers(sharded),
        writers(sharded.lab, HOMES, "writer.example") as found,
        at_work(readers),
    ):
        connected = "SELECT count(*) >= 50 FROM pg_stat_activity WHERE usename = 'customers'"
        eventually(lambda: sharded.query(connected)[0][0])
        play = sharded.play_ok("after")
        time.sleep(2)
    return After(sharded, play, found, readers)


# -- before it: what is given up -----------------------------------------------------------------


def test_check_run_before_it_changes_nothing(sharded: LabUnderTest) -> None:
    before = sharded.lab.topology_file.read_text()
    assert sharded.play_ok("after", "--check").changed > 0
    assert sharded.lab.topology_file.read_text() == before
    assert set(kinds(sharded, "us").values()) == {"r"}


def test_gives_up_where_a_long_transaction_keeps_the_locks(sharded: LabUnderTest) -> None:
    with closing(session(sharded)) as connection, connection.transaction():
        connection.execute(INSERT, ("long@example.com", "us"))
        given_up = sharded.play("after", "-e", "cutover_timeout_s=3")
        assert given_up.status != 0
        assert "long transaction in 3 s" in given_up.error
        assert "no moment without a long transaction" in given_up.error
    assert_not_begun(sharded, "us")
    assert sharded.query("SELECT count(*) FROM us.customer WHERE email LIKE 'long@%'") == [(1,)]


@pytest.mark.parametrize("state", ["cut", "slow"])
def test_gives_up_where_the_last_rows_do_not_arrive(sharded: LabUnderTest, state: str) -> None:
    """The link fails when the copy is up to date and the customers warm up."""
    topology_file = sharded.lab.topology_file
    # One who never warms up is waited for.
    with closing(session(sharded, application_name="customers of us")):
        run = subprocess.Popen(
            sharded.command("after", "-e", "cutover_timeout_s=2"), cwd=CHECKOUT,
            env=sharded.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        eventually(lambda: '"staged_us' in topology_file.read_text().replace("\\", ""), 60)
        if state == "cut":
            control.set_state(sharded.lab, "us-eu", "cut")
        else:
            control.set_state(sharded.lab, "us-eu", "up", rtt_ms=700)
        try:
            _, said = run.communicate(timeout=90)
        finally:
            control.set_state(sharded.lab, "us-eu", "up")
    assert run.returncode != 0
    errors = [line for line in said.splitlines() if line.startswith("ERROR ")]
    assert len(errors) == 1, said
    assert ("us's node did not have the last row" if state == "slow" else "cut-over of us") in said
    assert_not_begun(sharded, "us")


#: Whether the swap has its locks: it has entered, and made the schema for what it takes out. And
#: how many of the tables of all regions are locked meanwhile, or are to be.
SWAPPING = """
SELECT to_regnamespace('retired_us') IS NOT NULL
    AND coalesce(bool_or(relation = to_regclass('gate_us.customer') AND granted), false),
  count(*) FILTER (WHERE relation IN (
    'global.customer'::regclass, 'global.purchase'::regclass, 'global.test'::regclass))
FROM pg_locks WHERE mode = 'AccessExclusiveLock'
"""


def test_link_that_is_cut_inside_the_swap_holds_nobody_for_long(sharded: LabUnderTest) -> None:
    """The locks are let go at once, try after try, until the run gives up."""
    lab = sharded.lab
    rtt_ms = RTTS_MS["us"]
    operator = psycopg.connect(sharded.login().conninfo(), autocommit=True)
    with closing(operator) as looking, writers(sharded.lab, HOMES, "cut.example") as found:
        run = subprocess.Popen(
            sharded.command("after", "-e", "cutover_timeout_s=3"), cwd=CHECKOUT,
            env=sharded.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (seen := looking.execute(SWAPPING).fetchone() or (False, 0))[0]:
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
        assert seen == (True, 0), "the swap locks what customers of all regions use"
        began = time.perf_counter()
        control.set_state(lab, "us-eu", "cut")
        try:
            _, said = run.communicate(timeout=90)
        finally:
            control.set_state(lab, "us-eu", "up")
    assert run.returncode != 0
    assert "cut-over of us" in said
    assert_not_begun(sharded, "us")
    for region, writer in found.items():
        assert writer.errors == []
        waited = [ms for at, ms in writer.took if at + ms / 1e3 > began]
        assert waited
        # A round trip and what is allowed beyond it, then one more in which an answer may come.
        longest = 2 * rtt_ms + cutover.SLACK_MS if region == "us" else 0
        assert max(waited) < longest + 100 + NOISE_MS, region
        emails = sharded.query(
            f"SELECT count(*) FROM global.customer WHERE email LIKE '{region}%@cut.example'"
        )
        assert emails == [(len(writer.emails),)]


# -- the cut-over --------------------------------------------------------------------------------


def test_nobody_failed_and_nothing_is_lost_or_doubled(after: After) -> None:
    lab = after.lab
    assert_whole(lab)
    for region, writer in after.writers.items():
        assert writer.errors == []
        ((rows, different),) = lab.query(
            f"SELECT count(*), count(DISTINCT email) FROM {region}.customer"
            " WHERE email LIKE '%@writer.example'",
            NODES[region],
        )
        assert rows == different == len(writer.emails) > 100
    for reader in after.readers:
        assert reader.errors == []
        assert reader.looks > 5
    assert acknowledged(lab) > 0
    rows = experience(lab, "after")
    assert rows["jp", "basket"]["requests"] > 0
    assert sum(row["failures"] for row in rows.values()) == 0


@pytest.mark.parametrize("region", RTTS_MS)
def test_pauses_are_short(after: After, region: str) -> None:
    found = after.receipt(region)
    assert found["rtt_ms"] == RTTS_MS[region]
    assert found["rtt_ms"] * 0.9 <= found["write_pause_ms"] <= found["rtt_ms"] + 100 + NOISE_MS
    assert 0 < found["others_pause_ms"] <= 100 + NOISE_MS
    assert (found["failed"], found["lost"], found["doubled"]) == (0, 0, 0)
    assert found["rows"] > 0
    assert f"could not write for {found['write_pause_ms']:.0f} ms" in " ".join(
        after.play.output.split()
    )
    # As others felt it.
    assert max(ms for _, ms in after.writers["eu"].took) <= 100 + NOISE_MS


@pytest.mark.parametrize("region", RTTS_MS)
def test_prepared_statements_go_on_warm(after: After, region: str) -> None:
    """Across the WAN an insert takes five round trips; the first one pays the pause besides.

    A cold connection would take a dozen more: to jp three times what a busy machine may add.
    """
    rtt_ms = RTTS_MS[region]
    writer = after.writers[region]
    _, later = writer.first_far(rtt_ms)
    near = [ms for _, ms in writer.took[: -len(later) - 1]]
    assert statistics.median(near) < rtt_ms
    assert beyond_a_warm_one(writer, after.receipt(region)) <= rtt_ms + NOISE_MS
    assert later[0] <= statistics.median(later) + rtt_ms + NOISE_MS


def test_second_run_changes_nothing(after: After) -> None:
    lab = after.lab
    assert lab.play_ok("after").changed == 0
    assert lab.play_ok("after", "--check").changed == 0
    earlier = lab.play_ok("shard")
    assert "past shard: nothing to do" in " ".join(earlier.output.split())


def test_residency_holds(after: After) -> None:
    assert_held(after.lab)


# -- the state -----------------------------------------------------------------------------------


def test_own_leaves_are_tables_and_others_are_foreign(after: After) -> None:
    for node in NODES:
        home = node.removesuffix("_2")
        assert kinds(after.lab, node) == {
            f"{region}.{table}": "r" if region == home else "f"
            for region in HOMES
            for table in TABLES
        }
        left = after.lab.query(
            "SELECT nspname FROM pg_namespace WHERE nspname ~ '^(moving|staged|retired|incoming)_'"
            " UNION ALL SELECT subname FROM pg_subscription"
            " UNION ALL SELECT pubname FROM pg_publication"
            " UNION ALL SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'",
            NODES[node],
        )
        assert left == []
        for region in HOMES:
            rows = f"SELECT count(*) FROM {region}.customer"
            assert after.lab.query(rows, NODES[node]) == after.lab.query(rows, NODES[region])


def test_foreign_sessions_use_tls_with_few_rights(after: After) -> None:
    lab = after.lab
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


def test_who_passes_by_the_origin_goes_on_to_the_end_of_their_transaction(after: After) -> None:
    """As on the way to after: a session from elsewhere is there already when servers turn."""
    lab = after.lab
    topology = Topology.load(lab.lab)
    setup = Setup(topology, "password", topology.countries(), topology.user)
    secrets = {role: lab.lab.secret_file(role).read_text() for role in foreign.SECRETS}
    with setup.connect("eu") as operator:
        foreign.let_through(operator, leaves_of(setup.regions, ["us"]), "us", secrets)
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
    after: After, option: str, value: str, message: str
) -> None:
    def one_address(key: str) -> str:
        row = after.lab.query(
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
    secret = after.lab.lab.secret_file("foreign_operator").read_text()
    with psycopg.connect(after.lab.login(NODES["us"]).conninfo()) as connection:
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


def test_stranger_is_refused_by_the_home_itself(after: After) -> None:
    for region in HOMES:
        stranger = "us" if region != "us" else "de"
        for node in ("eu", "us", "jp"):
            with pytest.raises(psycopg.errors.CheckViolation):
                after.lab.query(
                    f"INSERT INTO {region}.customer (email, country) VALUES ('a', '{stranger}')",
                    NODES[node],
                )
    for node in ("eu", "us", "jp"):
        for country in ("'xx'", "'US'", "NULL", "''"):
            with pytest.raises(psycopg.errors.CheckViolation, match="at home in no region"):
                after.lab.query(
                    f"INSERT INTO global.customer (email, country) VALUES ('a', {country})",
                    NODES[node],
                )


def test_old_statements_work_on_every_node(after: After) -> None:
    lab = after.lab
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


def test_source_tests_land_at_home_and_are_seen_everywhere(after: After) -> None:
    done = after.lab.workload("source_tests")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every node sees all of them." in done.stdout
    assert "diverges" not in done.stdout
    for region in HOMES:
        rows = after.lab.query(f"SELECT count(*) FROM ONLY {region}.test", NODES[region])
        assert rows[0][0] > 0


def test_customers_are_at_home_and_as_fast_there_as_in_the_eu(after: After) -> None:
    play_traffic(after.lab)
    topology = Topology.load(after.lab.lab)
    for served in topology.regions:
        assert topology.is_home(served)
        assert served.rtt_ms == 0
    rows = experience(after.lab, "after")
    for region in ("us", "jp"):
        for operation in ("buy", "read", "basket"):
            eu_ms = rows["eu", operation]["p50_ms"]
            # Twice: figures of three seconds on a machine that others use.
            assert rows[region, operation]["p50_ms"] <= 2 * (1.2 * eu_ms + 1)


def test_nobody_at_home_needs_the_others(after: After) -> None:
    """All links are cut; what is done at home goes on, and what is not says so."""
    lab = after.lab.lab
    links = ("us-eu", "jp-eu", "us-jp")
    for link in links:
        control.set_state(lab, link, "cut")
    try:
        play_traffic(after.lab, 5)
        for region, node in (("eu", "eu"), ("us", "us"), ("jp", "jp")):
            with closing(session(after.lab, node, options="-c statement_timeout=2s")) as own:
                country = HOMES[region]
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
    assert lost(after.lab) == 0


# -- residency, whatever is done -----------------------------------------------------------------


def test_residency_holds_after_maintenance_sorts_and_errors(after: After) -> None:
    lab = after.lab
    known = {canary.region: canary for canary in canaries.load(lab.lab)}
    for node in ("eu", "us", "jp"):
        lab.query("ANALYZE", NODES[node])
        lab.query("VACUUM", NODES[node])
    lab.query("ANALYZE global.customer, eu.customer, us.customer, jp.customer", NODES["us"])
    for node in ("eu_2", "us"):
        with psycopg.connect(lab.login(NODES[node]).conninfo(), autocommit=True) as connection:
            connection.execute("SET work_mem = '64kB'")
            spilled = connection.execute(
                "SELECT count(*) FROM (SELECT * FROM global.customer ORDER BY email OFFSET 0) s"
            ).fetchone()
            assert spilled
            assert spilled[0] > 3000
            for region, canary in known.items():
                for statement in (
                    f"SELECT * FROM global.customer WHERE id = '{canary.email}'",
                    f"SELECT '{canary.email}'::int",
                    f"SELECT {canary.marker} FROM global.customer",
                    f"INSERT INTO {region}.customer (id, email, country)"
                    f" VALUES ('{canary.id}', '{canary.email}', '{canary.country}')",
                    f"SELECT 1 / length(email) * 0 / 0 FROM {region}.customer"
                    f" WHERE email = '{canary.email}'",
                ):
                    with pytest.raises(psycopg.Error):
                        connection.execute(statement.encode())
    assert strays(lab) == {}


def test_residency_holds_after_an_hours_traffic(after: After) -> None:
    """As many operations as the twenty customers of a demo make in an hour, one a second each."""
    hour, done, deadline = 20 * 3600, 0, time.monotonic() + 300
    while done < hour:
        assert time.monotonic() < deadline, f"{done:,} operations"
        play_traffic(after.lab, 15, users=30, LAB_THINK_TIME="0")
        rows = experience(after.lab, "after").values()
        done += sum(row["requests"] for row in rows)
        assert {row["failures"] for row in rows} == {0}
    assert_whole(after.lab)
    assert_held(after.lab)


# -- the audit's sample, and what is nobody's data ------------------------------------------------


@contextlib.contextmanager
def tables_of_a_person(lab: LabUnderTest, node: str, dbname: str = "postgres") -> Iterator[Any]:
    """Yield a connection to a node; what is made in schema own is dropped."""
    login = replace(lab.login(NODES[node]), dbname=dbname)
    with psycopg.connect(login.conninfo(), autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS own CASCADE; CREATE SCHEMA own")
        try:
            yield connection
        finally:
            connection.execute("DROP SCHEMA own CASCADE")


def emails_of(lab: LabUnderTest, region: str, count: int) -> list[tuple[str, str]]:
    """Return (id, e-mail) of customers of a region, read at their home; no canaries."""
    return lab.query(
        f"SELECT id::text, email FROM {region}.customer WHERE email NOT LIKE '%@canary.example'"
        f" ORDER BY id DESC LIMIT {count}",
        NODES[region],
    )


def found_of(residency: Residency, node: str, region: str) -> list[Place]:
    (finds,) = (finds for finds in residency.nodes if finds.node == node)
    return [place for place in finds.foreign_places() if place.region == region]


def test_audit_leaves_no_traces_of_customers(after: After) -> None:
    """Although the servers log every statement, and keep all of them in memory."""
    lab = after.lab
    everybody = {region: emails_of(lab, region, 100_000) for region in HOMES}
    settings = ("log_statement = 'all'", "log_min_duration_statement = 0", "work_mem = '64kB'")
    names = ("log_statement", "log_min_duration_statement", "work_mem")
    try:
        for node in NODES:
            for setting in settings:
                lab.query(f"ALTER SYSTEM SET {setting}", NODES[node])
            lab.query("SELECT pg_reload_conf()", NODES[node])
        logs = {node: lab.server(node).log.stat().st_size for node in NODES}
        for _ in range(2):
            assert_held(lab)
        assert lab.play_ok("audit")
        for node, start in logs.items():
            text = lab.server(node).log.read_bytes()[start:].decode()
            assert "md5" in text  # It does log what the audit asks.
            for region, people in everybody.items():
                if region != node.removesuffix("_2"):
                    assert not [email for _, email in people if email in text]
                    assert not [key for key, _ in people if key in text]
        reports = (lab.lab.home / "reports/residency.json").read_text()
        assert not [
            email for people in everybody.values() for _, email in people if email in reports
        ]
    finally:
        for node in NODES:
            for name in names:
                lab.query(f"ALTER SYSTEM RESET {name}", NODES[node])
            lab.query("SELECT pg_reload_conf()", NODES[node])


HOSTILE = (
    "a",
    "x\n@y.example",
    "'e'@\"x\"",
    "\x1b[31m@red.example",
    "[/x]@m.example",
    "b" * 1_000_000,
)


def test_any_email_is_data(after: After) -> None:
    lab = after.lab
    with psycopg.connect(lab.login(NODES["us"]).conninfo(), autocommit=True) as home:
        with home.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO us.customer (email, country) VALUES (%s, 'us')",
                [(e,) for e in HOSTILE],
            )
        try:
            assert_held(lab)
            with tables_of_a_person(lab, "eu") as connection:
                connection.execute('CREATE TABLE own."[/x]\n\x1b[31m" (note text)')
                with connection.cursor() as cursor:
                    cursor.executemany(
                        'INSERT INTO own."[/x]\n\x1b[31m" VALUES (%s)', [(e,) for e in HOSTILE]
                    )
                console = Console(file=io.StringIO(), width=80)
                assert not run(lab.lab, "password", console, 100_000)
            assert isinstance(console.file, io.StringIO)
            printed = console.file.getvalue()
            assert "6 values in logical, postgres.own.[/x]\\n\\x1b[31m" in " ".join(printed.split())
            assert "\x1b" not in printed
            assert all(len(line) <= 80 for line in printed.splitlines())
        finally:
            home.execute("DELETE FROM us.customer WHERE email = ANY(%s)", (list(HOSTILE),))


def test_reference_data_is_nobodys(after: After) -> None:
    lab = after.lab
    with tables_of_a_person(lab, "eu") as connection:
        connection.execute(
            "CREATE TABLE own.country_name (country text, name text);"
            "INSERT INTO own.country_name VALUES ('de', 'Germany'), ('us', 'United States');"
            "CREATE TABLE own.vat (country text, rate numeric) PARTITION BY LIST (country);"
            "CREATE TABLE own.vat_jp PARTITION OF own.vat FOR VALUES IN ('jp');"
            "INSERT INTO own.vat VALUES ('jp', 10);"
            "CREATE TABLE own.phone (region text, land text, prefix text);"
            "INSERT INTO own.phone VALUES ('us', 'us', '+1');"
            "CREATE MATERIALIZED VIEW own.names AS SELECT * FROM own.country_name;"
            "CREATE TABLE own.news (email text); INSERT INTO own.news VALUES ('no@customer.net');"
        )
        assert strays(lab) == {}


def test_planted_violations_are_found(after: After) -> None:
    lab = after.lab
    stranger = next(canary for canary in canaries.load(lab.lab) if canary.region == "eu")
    with psycopg.connect(lab.login(NODES["us"]).conninfo(), autocommit=True) as connection:
        connection.execute("CREATE TABLE scratch (email text, country text)")
        connection.execute(
            "INSERT INTO scratch SELECT %s, %s FROM generate_series(1, 300)",
            (stranger.email, stranger.country),
        )
        connection.execute("ANALYZE scratch")
        connection.execute(f"DO $$ BEGIN RAISE LOG '{stranger.email}'; END $$".encode())
        connection.execute("SET work_mem = '64kB'")
        connection.execute(
            "DECLARE spilled CURSOR WITH HOLD FOR SELECT email || md5(i::text)"
            " FROM scratch, generate_series(1, 50) i"
        )
        try:
            found = strays(lab)
            assert set(found) == {"us"}
            assert set(found["us"]["eu"]) == {
                "logical", "heap", "wal", "statistics", "log", "temp",
            }  # fmt: skip
            refused = lab.play("audit")
            assert refused.status != 0
            assert "VIOLATED" in refused.error
        finally:
            connection.execute("CLOSE spilled")
            connection.execute("DROP TABLE scratch")


def test_purge_that_was_killed_is_finished(after: After) -> None:
    """What was planted is gone by its table, as copies are, and its traces are not scrubbed yet."""
    lab = after.lab
    assert {"wal", "statistics"} <= set(strays(lab)["us"]["eu"])
    (lab.lab.home / "purge-due").touch()
    lab.play_ok("after")
    assert not (lab.lab.home / "purge-due").exists()
    # A log is no copy of the lab's making: it keeps the line that the test wrote.
    assert set(strays(lab)["us"]["eu"]) == {"log"}


def test_foreign_servers_follow_a_failover(after: After) -> None:
    lab = after.lab
    with traffic(lab, 120, users=30):
        lab.kill_server("eu")
        lab.play_ok("failover")
        with closing(session(lab, "us")) as connection:
            connection.execute(INSERT, ("from-us@example.com", "de"))
            assert connection.execute("SELECT count(*) > 0 FROM eu.customer").fetchone() == (True,)
        lab.play_ok("rejoin")
        already = acknowledged(lab)
        eventually(lambda: acknowledged(lab) > already + 50)
    assert lab.query("SELECT count(*) FROM eu.customer WHERE email LIKE 'from-us@%'", 1) == [(1,)]
    assert lost(lab) == 0
    lab.play_ok("after")
    assert lab.play_ok("after").changed == 0
    # The planted violation's traces were in the log and the WAL of us alone.
    assert set(strays(lab)) <= {"us"}


# -- other roads ---------------------------------------------------------------------------------


# Embedded, test_after_interrupted.py goes that way.
@pytest.mark.docker
def test_straight_from_expand_world_under_traffic(docker_lab: LabUnderTest) -> None:
    lab = docker_lab
    for phase in ("before", "expand_eu", "expand_world"):
        lab.play_ok(phase)
    with customers(lab):
        lab.play_ok("after")
    assert_whole(lab)
    rows = json.loads((lab.lab.home / "reports" / "cutover.json").read_text())
    assert {row["region"] for row in rows} == set(RTTS_MS)
    for row in rows:
        assert row["write_pause_ms"] <= row["rtt_ms"] + 100 + NOISE_MS
        assert row["others_pause_ms"] <= 100 + NOISE_MS
        assert (row["failed"], row["lost"], row["doubled"]) == (0, 0, 0)
    move_somebody(lab)
    assert_held(lab)
    assert lab.play_ok("after").changed == 0


# What a person may do with twenty e-mails of another region, and in which column they end.
COPIES = {
    "note": "CREATE TABLE own.mails AS SELECT unnest(%(emails)s::text[]) AS note",
    "words": "CREATE TABLE own.mails AS SELECT 'to: <' || upper(e) || '>.' AS words"
    " FROM unnest(%(emails)s::text[]) AS e",
    "doc": "CREATE TABLE own.mails AS SELECT jsonb_build_object('to', jsonb_build_array(e)) AS doc"
    " FROM unnest(%(emails)s::text[]) AS e",
    "list": "CREATE TABLE own.mails AS SELECT ARRAY[e, 'x'] AS list"
    " FROM unnest(%(emails)s::text[]) AS e",
    "raw": "CREATE TABLE own.mails AS SELECT convert_to(e, 'UTF8') AS raw"
    " FROM unnest(%(emails)s::text[]) AS e",
    "who": "CREATE TABLE own.mails AS SELECT unnest(%(ids)s::uuid[]) AS who",
    "seen": "CREATE MATERIALIZED VIEW own.mails AS SELECT unnest(%(emails)s::text[]) AS seen",
    "deep": "CREATE TABLE own.parts (deep text, n int) PARTITION BY LIST (n);"
    "CREATE TABLE own.mails PARTITION OF own.parts FOR VALUES IN (1);"
    "INSERT INTO own.parts SELECT unnest(%(emails)s::text[]), 1",
    "data": "SELECT lo_from_bytea(4711, convert_to(array_to_string(%(emails)s::text[], ' '),"
    " 'UTF8'))",
}


@pytest.mark.parametrize("column", COPIES)
def test_copied_customers_are_found_with_table_and_column(after: After, column: str) -> None:
    lab = after.lab
    people = emails_of(lab, "us", 20)
    assert len(people) == 20
    values = {"ids": [key for key, _ in people], "emails": [email for _, email in people]}
    with tables_of_a_person(lab, "eu") as connection:
        try:
            with psycopg.ClientCursor(connection) as cursor:
                cursor.execute(COPIES[column].encode(), values)
            # The comparison is no sample: none is drawn.
            residency = audit(Topology.load(lab.lab), "password", 0)
        finally:
            if column == "data":
                connection.execute("SELECT lo_unlink(4711)")
                connection.execute("VACUUM pg_largeobject")
    assert not residency.holds
    table = "pg_largeobject" if column == "data" else "mails"
    for node in ("eu", "eu_2"):
        (place,) = (p for p in found_of(residency, node, "us") if p.where == "logical")
        assert (place.database, place.table, place.column) == ("postgres", table, column)
        assert place.hits == 20
    assert not found_of(residency, "jp", "us")


def test_reference_data_with_a_customers_value_is_that_customers(after: After) -> None:
    lab = after.lab
    with tables_of_a_person(lab, "eu") as connection:
        connection.execute("CREATE TABLE own.country_name (country text, name text)")
        (_, email), *_ = emails_of(lab, "us", 1)
        connection.execute("INSERT INTO own.country_name VALUES ('de', %s)", (email,))
        (place,) = (
            place
            for place in found_of(audit(Topology.load(lab.lab), "password", 0), "eu", "us")
            if place.where == "logical"
        )
        assert (place.table, place.column, place.hits) == ("country_name", "name", 1)


def test_sample_is_found_in_files_that_sql_does_not_show(after: After) -> None:
    lab = after.lab
    people = emails_of(lab, "us", 5000)
    with tables_of_a_person(lab, "eu", "template1") as connection:
        connection.execute("CREATE TABLE own.gone (note text)")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO own.gone VALUES (%s)", [(e,) for _, e in people])
        connection.execute("DELETE FROM own.gone")
        residency = audit(Topology.load(lab.lab), "password", 50)
    places = found_of(residency, "eu", "us")
    assert {place.where for place in places} == {"heap", "wal"}
    (heap,) = (place for place in places if place.where == "heap")
    assert (heap.database, heap.schema, heap.table) == ("template1", "own", "gone")
    (bound,) = (b for node in residency.nodes if node.node == "eu" for b in node.bounds
                if b.region == "us")  # fmt: skip
    assert (bound.sampled, bound.found) == (50, 50)
