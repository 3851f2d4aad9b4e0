"""Life in phase after: find, count, stay at home, move, forget, and grow, all on one lab."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.fixtures.labs import CHECKOUT, LabUnderTest, eventually
from tests.fixtures.traffic import customers, new_customer, play_traffic
from tests.fixtures.world import HOMES
from workload import schemas
from workload.audit import canaries
from workload.errors import LabError
from workload.operations import people, traces
from workload.topology import Topology

EU, US, JP = 0, 2, 3
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def after(all_at_after: LabUnderTest) -> LabUnderTest:
    """Return a lab in phase after."""
    return all_at_after


def topology(lab: LabUnderTest) -> Topology:
    return Topology.load(lab.lab)


@pytest.fixture(scope="module")
def sessions(after: LabUnderTest) -> Iterator[dict[int, psycopg.Connection[Any]]]:
    """Return a session on each node that keeps its connections to the others."""
    with ExitStack() as stack:
        yield {
            offset: stack.enter_context(
                psycopg.connect(after.login(offset).conninfo(), autocommit=True)
            )
            for offset in (EU, US, JP)
        }


def homes(lab: LabUnderTest, customer: str) -> list[tuple[str, int]]:
    """Return (region, purchases) of every visible copy, asked at each home directly."""
    found = []
    for region, offset in HOMES.items():
        if lab.query(f"SELECT 1 FROM {region}.customer WHERE id = '{customer}'", offset):
            rows = lab.query(
                f"SELECT count(*) FROM {region}.purchase WHERE customer_id = '{customer}'", offset
            )
            found.append((region, rows[0][0]))
    return found


def audit(lab: LabUnderTest) -> None:
    done = lab.workload("audit")
    assert done.returncode == 0, done.stdout + done.stderr


# -- the whole, from any node ----------------------------------------------------------------------


def test_customer_is_found_by_id_alone_from_every_node(
    after: LabUnderTest, sessions: dict[int, psycopg.Connection[Any]]
) -> None:
    wanted = "SELECT id::text, country, region, found FROM global.find_customer(%s)"
    for country, region in (("de", "eu"), ("mx", "us"), ("sg", "jp")):
        key = new_customer(after, country, purchases=0)
        for offset, session in sessions.items():
            found = "at home" if offset == HOMES[region] else f"in {region}"
            rows = session.execute(wanted, (key,)).fetchall()
            assert rows == [(key, country, region, found)]
    assert sessions[JP].execute(wanted, (uuid4(),)).fetchall() == []


def test_count_from_any_node_is_the_sum_of_the_homes(
    after: LabUnderTest, sessions: dict[int, psycopg.Connection[Any]]
) -> None:
    for table in ("customer", "purchase"):
        at_home = {
            (region, country, rows)
            for region, offset in HOMES.items()
            for country, rows in after.query(
                f"SELECT country::text, count(*) FROM {region}.{table} GROUP BY 1", offset
            )
        }
        for session in sessions.values():
            counted = session.execute("SELECT * FROM global.count_by_country(%s)", (table,))
            assert set(counted.fetchall()) == at_home


def test_count_of_something_else_is_refused(after: LabUnderTest) -> None:
    with pytest.raises(psycopg.Error, match="no 'x' to count: use customer, purchase or test"):
        after.query("SELECT global.count_by_country('x')", US)


def test_connection_that_broke_is_made_anew(
    after: LabUnderTest, sessions: dict[int, psycopg.Connection[Any]]
) -> None:
    count = "SELECT sum(rows) FROM global.count_by_country()"
    before = sessions[US].execute(count.encode()).fetchone()
    ended = after.query(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE usename = 'foreign_operator'",
        JP,
    )
    assert ended[0][0] >= 1
    assert sessions[US].execute(count.encode()).fetchone() == before


def test_role_at_home_works_at_home_and_cannot_leave(after: LabUnderTest) -> None:
    own, other = new_customer(after, "us"), new_customer(after, "de")
    password = after.lab.secret_file("customers").read_text()
    login = f"host=127.0.0.1 port={after.port_base + US} user=customers password={password}"
    with psycopg.connect(f"{login} dbname=postgres", autocommit=True) as connection:
        row = connection.execute(f"SELECT found FROM global.find_customer('{other}')").fetchone()
        assert row == ("in eu",)
        connection.execute("SET ROLE at_home")
        connection.execute(
            "INSERT INTO global.purchase (customer_id, amount, country) VALUES (%s, 1, 'us')",
            (own,),
        )
        row = connection.execute(f"SELECT found FROM global.find_customer('{own}')").fetchone()
        assert row == ("at home",)
        for statement in (
            f"SELECT FROM global.find_customer('{other}')",
            "SELECT FROM global.count_by_country()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="does not leave home"):
                connection.execute(statement.encode())
        for statement in (
            "SELECT FROM global.customer WHERE country = 'de'",
            "SELECT count(*) FROM global.customer",
            "INSERT INTO global.customer (email, country) VALUES ('x@y', 'jp')",
        ):
            with pytest.raises(psycopg.Error, match="user mapping not found"):
                connection.execute(statement.encode())


# -- moving ----------------------------------------------------------------------------------------


def test_move_takes_all_purchases_along_and_leaves_no_trace(after: LabUnderTest) -> None:
    key = new_customer(after, "us", purchases=5)
    done = after.workload("move", CUSTOMER=key, COUNTRY="sg")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with 5 purchases, and is at home on jp" in done.stdout
    assert "Traces left on eu, eu_2, us: none" in done.stdout
    assert homes(after, key) == [("jp", 5)]
    assert "of sg, at home in jp" in after.workload("find", CUSTOMER=key).stdout
    audit(after)


def test_move_within_a_region_changes_the_country_everywhere(after: LabUnderTest) -> None:
    key = new_customer(after, "us")
    assert after.workload("move", CUSTOMER=key, COUNTRY="mx").returncode == 0
    assert homes(after, key) == [("us", 3)]
    rows = after.query(
        f"SELECT DISTINCT country::text FROM us.purchase WHERE customer_id = '{key}'", US
    )
    assert rows == [("mx",)]


def test_canary_that_moves_is_looked_for_at_its_new_home(after: LabUnderTest) -> None:
    canary = next(c for c in canaries.load(after.lab) if c.region == "us")
    assert after.workload("move", CUSTOMER=canary.id, COUNTRY="de").returncode == 0
    audit(after)
    assert next(c for c in canaries.load(after.lab) if c.id == canary.id).region == "eu"


def test_new_home_that_is_killed_while_it_has_a_prepared_copy_still_has_it(
    after: LabUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_customer(after, "de")

    def kill(step: str) -> None:
        if step == "move.decided":
            after.server("us").kill()

    monkeypatch.setattr(people, "reached", kill)
    try:
        with pytest.raises(LabError, match="was not moved"):
            people.move(topology(after), "password", UUID(key), "us")
        assert after.query(f"SELECT 1 FROM eu.customer WHERE id = '{key}'") == []
    finally:
        after.play_ok("after")
    people.resolve(topology(after), "password")
    assert homes(after, key) == [("us", 3)]


@pytest.mark.parametrize(
    ("customer", "country", "message"),
    [
        ("x", "us", "CUSTOMER is 'x': give the id of one, a UUID"),
        (NOBODY, "us", "there is no customer"),
        (NOBODY, "US", "country 'US' is at home in no region"),
    ],
)
def test_bad_moves_are_refused_in_one_line(
    after: LabUnderTest, customer: str, country: str, message: str
) -> None:
    done = after.workload("move", CUSTOMER=customer, COUNTRY=country)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]


# -- forgetting ------------------------------------------------------------------------------------


def test_erased_customer_is_nowhere_and_not_taken_for_lost(after: LabUnderTest) -> None:
    play_traffic(after, seconds=3, users=12)
    (row,) = after.query(
        "SELECT customer_id::text FROM jp.purchase GROUP BY 1 ORDER BY count(*) DESC LIMIT 1", JP
    )
    done = after.workload("forget", CUSTOMER=row[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no trace in the files of eu, eu_2, us, jp" in done.stdout
    assert homes(after, row[0]) == []
    verified = after.workload("verify")
    assert verified.returncode == 0, verified.stdout
    audit(after)


def trading(lab: LabUnderTest, region: str) -> str:
    """Return a customer of a region who trades now."""
    statement = (
        f"SELECT customer_id::text FROM {region}.purchase p JOIN {region}.customer c"
        f" ON c.id = customer_id WHERE email ~ '^{region}_[0-9a-f]{{12}}@'"
        " GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
    )
    eventually(lambda: lab.query(statement, HOMES[region]))
    return str(lab.query(statement, HOMES[region])[0][0])


def test_those_who_are_moved_or_erased_while_they_trade_go_on(after: LabUnderTest) -> None:
    """Nobody fails: who was moved buys at the new home, who was erased signs up anew."""
    # Whoever traded before is no more.
    for region, offset in HOMES.items():
        rows = f"UPDATE {region}.customer SET email = 'gone' WHERE email ~ '^{region}_'"
        after.query(f"{rows} AND email ~ '_[0-9a-f]{{12}}@' RETURNING 1", offset)
    with customers(after, users=12):
        moved = trading(after, "us")
        bought = f"SELECT count(*) FROM jp.purchase WHERE customer_id = '{moved}'"
        erased = trading(after, "eu")
        for done in (
            after.workload("move", CUSTOMER=moved, COUNTRY="jp"),
            after.workload("forget", CUSTOMER=erased),
        ):
            assert done.returncode == 0, done.stdout + done.stderr
        ((before,),) = after.query(bought, JP)
        eventually(lambda: after.query(bought, JP)[0][0] > before + 2, 30)
    assert [region for region, _ in homes(after, moved)] == ["jp"]
    assert homes(after, erased) == []
    verified = after.workload("verify")
    assert verified.returncode == 0, verified.stdout


def test_move_that_was_killed_is_finished_by_the_playbook(after: LabUnderTest) -> None:
    key = new_customer(after, "de")
    # By the e-mail too: bytes of an id may be some that a scan cannot look for.
    person = people.find(topology(after), "password", UUID(key))
    with psycopg.connect(after.login().conninfo(), autocommit=True) as connection:
        # As it stands when the run is killed between the deletion and the rewriting.
        connection.execute(f"DELETE FROM eu.purchase WHERE customer_id = '{key}'".encode())
        connection.execute(f"DELETE FROM eu.customer WHERE id = '{key}'".encode())
        connection.execute("INSERT INTO lab.to_scrub DEFAULT VALUES")
        connection.execute(schemas.create("rewritten_eu"))
        connection.execute("CHECKPOINT")
    found = traces.find(topology(after), "password", person, list(HOMES))
    assert found["eu"].startswith("heap"), found
    assert after.play_ok("after").changed == 1
    assert traces.find(topology(after), "password", person, list(HOMES)) == {}
    assert after.query("SELECT to_regnamespace('rewritten_eu')") == [(None,)]
    assert after.play_ok("after").changed == 0


def test_canary_is_not_forgotten(after: LabUnderTest) -> None:
    done = after.workload("forget", CUSTOMER=canaries.load(after.lab)[0].id)
    assert done.returncode == 1
    assert "is a canary of the audit" in done.stderr


# -- growing ---------------------------------------------------------------------------------------


def grown(folder: Path) -> Path:
    """Return an inventory with a country more in the US, and a region more with its node."""
    inventory = folder / "lab"
    shutil.copytree(CHECKOUT / "inventory/lab", inventory)
    regions = inventory / "group_vars/all/regions.yml"
    text = regions.read_text().replace("us, mx, ca, br,", "us, mx, ca, br, jm,")
    regions.write_text(text + "  au:\n    countries: [au, nz]\n")
    wan = inventory / "group_vars/all/wan.yml"
    rtt = "  us: {jp: 155}\n"
    wan.write_text(wan.read_text().replace(rtt, f"{rtt}  au: {{eu: 280, us: 200, jp: 105}}\n"))
    hosts = inventory / "hosts.yml"
    node = "node_region: au\n          node_port_offset: 4\n          node_container: au_db\n"
    hosts.write_text(hosts.read_text() + f"        au:\n          {node}")
    return inventory


def test_country_that_has_customers_is_not_taken_from_its_region(
    after: LabUnderTest, tmp_path: Path
) -> None:
    new_customer(after, "br")
    inventory = grown(tmp_path)
    regions = inventory / "group_vars/all/regions.yml"
    regions.write_text(
        regions.read_text().replace("ca, br,", "ca,").replace("[au, nz]", "[au, nz, br]")
    )
    play = after.play("after", "-i", str(inventory))
    assert play.status != 0
    assert "takes 'br' from region us, which has" in play.error
    assert after.play_ok("after").changed == 0


def test_country_and_region_come_online(after: LabUnderTest, tmp_path: Path) -> None:
    inventory = str(grown(tmp_path))
    with customers(after, users=30):
        after.play_ok("after", "-i", inventory)
    verified = after.workload("verify")
    assert verified.returncode == 0, verified.stdout
    for offset in (EU, US, 4):
        rows = after.query(
            "INSERT INTO global.customer (email, country) VALUES ('a@x', 'jm'), ('b@x', 'nz')"
            " RETURNING country::text",
            offset,
        )
        assert rows == [("jm",), ("nz",)]
    assert after.query("SELECT count(*) FROM us.customer WHERE country = 'jm'", 4) == [(3,)]
    assert after.query("SELECT count(*) FROM au.customer WHERE country = 'nz'", EU) == [(3,)]
    assert after.play_ok("after", "-i", inventory).changed == 0
    play_traffic(after, seconds=4, users=8, REGIONS="au")
    audit(after)


# -- ids decide ------------------------------------------------------------------------------------


def person_with(
    lab: LabUnderTest, region: str, email: str, country: str = "", key: str | None = None
) -> str:
    """Sign up a customer with an e-mail of our own, with a purchase."""
    key = key or str(uuid4())
    with psycopg.connect(lab.login(HOMES[region]).conninfo(), autocommit=True) as connection:
        values = (key, email, country or region)
        connection.execute(f"INSERT INTO {region}.customer VALUES (%s, %s, %s)".encode(), values)
        connection.execute(
            f"INSERT INTO {region}.purchase (customer_id, amount, country) VALUES (%s, 1, %s)"
            .encode(), (key, country or region),
        )  # fmt: skip
    return key


def test_what_somebody_else_has_is_told_apart(after: LabUnderTest) -> None:
    email = f"ann{uuid4().hex}@example.com"
    ann, joann, other, far = (
        person_with(after, region, text)
        for region, text in (("us", email), ("us", f"jo{email}"), ("us", email), ("jp", email))
    )
    for key, command in ((ann, "forget"), (far, "forget"), (other, "move")):
        done = after.workload(command, CUSTOMER=key, COUNTRY="jp")
        assert done.returncode == 0, done.stdout + done.stderr
    assert homes(after, ann) == homes(after, far) == []
    assert homes(after, joann) == [("us", 1)]
    assert homes(after, other) == [("jp", 1)]
    again = after.workload("forget", CUSTOMER=ann)
    assert again.returncode == 0
    assert "was erased before; no trace of the id in the files of" in again.stdout


@pytest.mark.parametrize(
    "email",
    ["x\nlab: HEALTHY", "'e'", "\x1b[31m[/x] [bold]", "q" * 1_000_000],
    ids=["line feed", "short", "escape", "long"],
)
def test_any_text_is_data(after: LabUnderTest, email: str) -> None:
    key = person_with(after, "us", email)
    found = after.workload("find", CUSTOMER=key)
    assert found.returncode == 0
    assert len(found.stdout.splitlines()) == 1
    assert len(found.stdout) < 250
    assert found.stdout.strip().isprintable()
    for command in ("move", "forget"):
        done = after.workload(command, CUSTOMER=key, COUNTRY="de")
        assert done.returncode == 0, done.stdout + done.stderr
    assert homes(after, key) == []


def test_an_id_in_two_regions_is_shown_twice_and_has_a_way_out(after: LabUnderTest) -> None:
    key = person_with(after, "us", "one@example.com")
    person_with(after, "jp", "two@example.com", key=key)
    found = after.workload("find", CUSTOMER=key)
    assert found.returncode == 1
    assert "one@example.com, of us, at home in us" in found.stdout
    assert "two@example.com, of jp, at home in jp" in found.stdout
    for command in ("move", "forget"):
        done = after.workload(command, CUSTOMER=key, COUNTRY="de")
        assert done.returncode == 1
        assert f"make forget CUSTOMER={key} REGION=jp" in done.stderr
    assert len(homes(after, key)) == 2
    way_out = f"make forget CUSTOMER={key} REGION="
    proof = after.workload("verify")
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert f"WARNING: customers of us and jp have one id, {key}" in " ".join(proof.stdout.split())
    assert way_out in " ".join(proof.stdout.split())
    status = after.workload("status")
    assert status.returncode == 1
    assert f"WRONG: customers of us and jp have one id, {key}" in " ".join(status.stdout.split())
    done = after.workload("forget", CUSTOMER=key, REGION="jp")
    assert done.returncode == 0, done.stdout + done.stderr
    for command in ("verify", "status"):
        assert "one id" not in " ".join(after.workload(command).stdout.split())
    assert homes(after, key) == [("us", 1)]
    assert after.workload("verify").returncode == 0
    assert after.workload("move", CUSTOMER=key, COUNTRY="jp").returncode == 0
    assert homes(after, key) == [("jp", 1)]


def test_bytes_that_stay_are_named_with_the_table_and_a_second_call_finishes(
    after: LabUnderTest,
) -> None:
    key = person_with(after, "us", f"{uuid4().hex}@example.com")
    with psycopg.connect(after.login(JP).conninfo(), autocommit=True) as connection:
        connection.execute("CREATE TABLE newsletter (customer text)")
        try:
            connection.execute("INSERT INTO newsletter VALUES (%s)", (key,))
            connection.execute("CHECKPOINT")
            done = after.workload("forget", CUSTOMER=key)
            assert done.returncode == 1
            assert "jp: heap (1)" in done.stderr
            assert "in public.newsletter (1 rows)" in done.stderr
            assert homes(after, key) == []
            # make status has it too, once it is not just being done.
            assert after.query("SELECT count(*) FROM lab.to_scrub", JP) == [(1,)]
        finally:
            connection.execute("DROP TABLE newsletter")
    again = after.workload("forget", CUSTOMER=key)
    assert again.returncode == 0, again.stdout + again.stderr
    assert after.query("SELECT count(*) FROM lab.to_scrub", JP) == [(0,)]


def test_a_refused_purchase_leaves_nothing_in_the_files(after: LabUnderTest) -> None:
    """Its bytes are in the old home's new leaf, which the move has just rewritten."""
    key = person_with(after, "us", f"{uuid4().hex}@example.com")
    statement = "INSERT INTO us.purchase (customer_id, amount, country) VALUES (%s, 1, 'us')"
    person = people.find(topology(after), "password", UUID(key))
    assert after.workload("move", CUSTOMER=key, COUNTRY="de").returncode == 0
    with psycopg.connect(after.login(US).conninfo(), autocommit=True) as connection:
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute(statement, (key,))
        connection.execute("CHECKPOINT")
    assert "us" in traces.find(topology(after), "password", person, ["us"])
    done = after.workload("move", CUSTOMER=key, COUNTRY="de")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is of de and at home on eu already" in done.stdout
    assert traces.find(topology(after), "password", person, ["us", "jp"]) == {}
