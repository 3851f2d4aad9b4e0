"""make audit on real servers: what it finds, what it must not miss, and when it must refuse."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from rich.console import Console

from tests.fixtures.labs import LabUnderTest
from workload import schemas
from workload.audit import canaries, places
from workload.audit.canaries import Canary, new_canary
from workload.audit.places import FILES, Where
from workload.audit.residency import Residency
from workload.audit.run import audit, run
from workload.errors import LabError
from workload.topology import Topology

PASSWORD = "password"


@pytest.fixture(scope="module")
def held(new_lab: Callable[..., LabUnderTest]) -> Iterator[LabUnderTest]:
    """Return a lab whose customers are all of its own region: nothing is violated in it."""
    lab = new_lab("embedded")
    lab.play_ok("before")
    lab.play_ok("expand_eu")
    lab.query(
        "INSERT INTO customer (email) SELECT 'e' || i || '@x.com' FROM generate_series(1,500) i"
    )
    lab.query("ANALYZE customer")
    yield lab
    lab.remove()


@pytest.fixture
def strangers(held: LabUnderTest) -> Iterator[list[Canary]]:
    """Return customers of a region that is not in the lab; each test has its own."""
    before = canaries.plant(held.lab, Topology.load(held.lab))
    made = [replace(new_canary("us", "us", "expand_eu"), planted=True) for _ in range(250)]
    canaries.save(held.lab, [*before, *made])
    yield made
    canaries.save(held.lab, before)


def look(lab: LabUnderTest) -> Residency:
    return audit(Topology.load(lab.lab), PASSWORD)


def foreign(residency: Residency) -> dict[str, dict[str, set[Where]]]:
    """Return where on each node something of another region is."""
    return {
        node.node: {region: set(where) for region, where in node.foreign().items()}
        for node in residency.nodes
        if node.foreign()
    }


@contextlib.contextmanager
def session(lab: LabUnderTest, offset: int = 0) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(lab.login(offset).conninfo(), autocommit=True) as connection:
        yield connection


def test_holds_where_all_customers_are_at_home(held: LabUnderTest) -> None:
    console = Console(file=io.StringIO(), width=80)
    assert run(held.lab, PASSWORD, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "HOLDS: no node" in text
    assert "VIOLATED" not in text
    assert all(len(line) <= 80 for line in text.splitlines()), text
    (entry,) = json.loads((held.lab.home / "reports/residency.json").read_text())
    assert (entry["phase"], entry["verdict"]) == ("expand_eu", "HOLDS")
    for node in ("eu", "eu_2"):
        assert entry["nodes"][node]["home_region"] == "eu"
        assert not entry["nodes"][node]["not_read"]
        read = {row["where"]: row["bytes"] for row in entry["nodes"][node]["read"]}
        assert set(read) == set(FILES)
        assert all(read.values()), read
        found = {row["where"]: row["hits"] for row in entry["nodes"][node]["found"]}
        assert found["logical"] == 500 + 2 * canaries.GENERATION
        # Of each canary: the marker; its id in the table, in its key, in the purchase and in the
        # index of that; the purchase's own id in its table and its key.
        assert found["heap"] == 7 * canaries.GENERATION
        assert found["statistics"] >= 101


def test_control_leaves_nothing_that_sql_shows(held: LabUnderTest) -> None:
    look(held)
    assert held.query("SELECT count(*) FROM pg_namespace WHERE nspname = 'lab_audit'") == [(0,)]
    assert held.query("SELECT count(*) FROM pg_stats WHERE schemaname = 'lab_audit'") == [(0,)]


def test_canaries_of_a_phase_are_planted_once(held: LabUnderTest) -> None:
    first = canaries.plant(held.lab, Topology.load(held.lab))
    assert canaries.plant(held.lab, Topology.load(held.lab)) == first
    ids = ", ".join(f"'{canary.id}'" for canary in first)
    assert held.query(f"SELECT count(*) FROM customer WHERE id IN ({ids})") == [(len(first),)]


def test_canary_that_a_killed_run_wrote_down_is_planted(held: LabUnderTest) -> None:
    planted = canaries.plant(held.lab, Topology.load(held.lab))
    # One is in the database and not marked as planted, the other in the file alone.
    unborn = new_canary("eu", "uk", "expand_eu")
    canaries.save(held.lab, [replace(planted[0], planted=False), *planted[1:], unborn])
    found = canaries.plant(held.lab, Topology.load(held.lab))
    assert all(canary.planted for canary in found)
    assert held.query(f"SELECT count(*) FROM purchase WHERE customer_id = '{unborn.id}'") == [(1,)]
    assert look(held).holds


def test_email_in_any_table_is_found_in_its_file(
    held: LabUnderTest, strangers: list[Canary]
) -> None:
    held.query("CREATE TABLE scratch (note text)")
    try:
        held.query(f"INSERT INTO scratch VALUES ('for {strangers[0].email}')")
        assert foreign(look(held)) == {
            node: {"us": {"logical", "heap", "wal"}} for node in ("eu", "eu_2")
        }
        # The rows that DELETE leaves behind are there still.
        held.query("DELETE FROM scratch")
        assert "heap" in foreign(look(held))["eu_2"]["us"]
    finally:
        held.query("DROP TABLE scratch")
    assert "heap" not in foreign(look(held)).get("eu", {}).get("us", set())


def test_id_alone_is_found(held: LabUnderTest, strangers: list[Canary]) -> None:
    held.query("CREATE TABLE scratch (id uuid, raw bytea)")
    try:
        held.query(f"INSERT INTO scratch VALUES ('{strangers[0].purchase}')")
        found = look(held)
        assert "heap" in foreign(found)["eu"]["us"]
        assert found.nodes[0].found["us", "heap"] == 1
    finally:
        held.query("DROP TABLE scratch")


def test_compressed_statistics_of_a_table_that_is_gone_are_found(
    held: LabUnderTest, strangers: list[Canary]
) -> None:
    with session(held) as connection:
        connection.execute("CREATE TABLE scratch (note text)")
        try:
            for stranger in strangers:
                connection.execute("INSERT INTO scratch VALUES (%s)", (stranger.email,))
            connection.execute("ANALYZE scratch")
            packed = connection.execute(
                "SELECT pg_column_compression(stavalues1) FROM pg_statistic"
                " WHERE starelid = 'scratch'::regclass"
            ).fetchone()
            assert packed == ("pglz",)
            found = {node.node: node.found["us", "statistics"] for node in look(held).nodes}
            # SQL shows 101; the file has parts of every marker that is not near others like it.
            assert found["eu"] >= 101
            assert found["eu_2"] >= 101
        finally:
            connection.execute("DROP TABLE scratch")
    for node in look(held).nodes:
        assert node.found["us", "statistics"] >= 50, node


def test_statistics_are_whose_customers_they_show(
    held: LabUnderTest, strangers: list[Canary]
) -> None:
    held.query("CREATE TABLE shown (note text, whose uuid)")
    try:
        # A value that most rows have stands alone and is not compressed.
        stranger = strangers[0]
        held.query(
            f"INSERT INTO shown SELECT '{stranger.email}', '{stranger.id}'"
            " FROM generate_series(1, 300)"
        )
        held.query("ANALYZE shown")
        assert all(node.found["us", "statistics"] >= 2 for node in look(held).nodes)
    finally:
        held.query("DROP TABLE shown")


def test_line_of_the_log_is_found_on_its_node_alone(
    held: LabUnderTest, strangers: list[Canary]
) -> None:
    held.query(f"DO $$ BEGIN RAISE LOG 'sold to {strangers[0].email}'; END $$", offset=1)
    held.query(f"DO $$ BEGIN RAISE LOG 'sold to {strangers[1].id}'; END $$", offset=1)
    found = look(held)
    assert foreign(found) == {"eu_2": {"us": {"log"}}}
    assert found.nodes[1].found["us", "log"] == 2


def test_temporary_file_is_found_while_it_is_there(
    held: LabUnderTest, strangers: list[Canary]
) -> None:
    with session(held, offset=1) as connection:
        connection.execute("SET work_mem = '64kB'")
        connection.execute(
            "DECLARE spill CURSOR WITH HOLD FOR"
            f" SELECT '{strangers[0].email}' || i FROM generate_series(1, 9000) i"
        )
        assert foreign(look(held)) == {"eu_2": {"us": {"temp"}}}
    assert foreign(look(held)) == {}


def test_temporary_table_is_found(held: LabUnderTest, strangers: list[Canary]) -> None:
    with session(held) as connection:
        connection.execute("SET temp_buffers = '800kB'")
        connection.execute(
            f"CREATE TEMP TABLE spill AS SELECT '{strangers[0].email}' || i AS email"
            " FROM generate_series(1, 40000) i"
        )
        assert foreign(look(held)) == {"eu": {"us": {"temp"}}}


def test_wal_record_is_found_wherever_the_wal_goes(
    held: LabUnderTest, strangers: list[Canary]
) -> None:
    held.query(f"SELECT pg_logical_emit_message(true, 'test', '{strangers[0].email}')")
    assert foreign(look(held)) == {node: {"us": {"wal"}} for node in ("eu", "eu_2")}


def test_rows_are_seen_in_another_database(held: LabUnderTest, strangers: list[Canary]) -> None:
    held.query("CREATE DATABASE elsewhere")
    try:
        with psycopg.connect(
            replace(held.login(), dbname="elsewhere").conninfo(), autocommit=True
        ) as connection:
            connection.execute("CREATE TABLE customer (id uuid, email text, country text)")
            connection.execute(
                "INSERT INTO customer VALUES (%s, %s, 'nowhere')",
                (strangers[0].id, strangers[0].email),
            )
        found = foreign(look(held))["eu"]
        assert found["unknown"] == {"logical"}
        assert "logical" in found["us"]
        assert "heap" in found["us"]
    finally:
        held.query("DROP DATABASE elsewhere WITH (FORCE)")


def test_foreign_rows_are_counted_where_they_are_and_their_statistics_where_these_are(
    held: LabUnderTest, strangers: list[Canary]
) -> None:
    """ANALYZE of a parent with a foreign leaf brings the leaf's e-mails here; reading does not."""
    near, far = (replace(held.login(), dbname=name).conninfo() for name in ("near", "far"))
    own = look(held).nodes[0].found["eu", "logical"]
    held.query("CREATE DATABASE near")
    held.query("CREATE DATABASE far")
    try:
        with psycopg.connect(far, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA us")
            connection.execute("CREATE TABLE us.customer (id uuid, email text, country text)")
            # Not analysed: what SQL shows of statistics is the other database's.
            connection.execute("ALTER TABLE us.customer SET (autovacuum_enabled = off)")
            for stranger in strangers:
                connection.execute(
                    "INSERT INTO us.customer VALUES (%s, %s, 'us')", (stranger.id, stranger.email)
                )
        with psycopg.connect(near, autocommit=True) as connection:
            connection.execute(
                "CREATE EXTENSION postgres_fdw;"
                "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS"
                f" (host '127.0.0.1', port '{held.port_base}', dbname 'far');"
                "CREATE USER MAPPING FOR postgres SERVER far OPTIONS"
                f" (user 'postgres', password '{PASSWORD}');"
                "CREATE SCHEMA eu; CREATE SCHEMA us;"
                "CREATE TABLE customer (id uuid, email text, country text)"
                " PARTITION BY LIST (country);"
                "CREATE TABLE eu.customer PARTITION OF customer FOR VALUES IN ('uk');"
                "CREATE FOREIGN TABLE us.customer PARTITION OF customer FOR VALUES IN ('us')"
                " SERVER far;"
                "INSERT INTO customer SELECT gen_random_uuid(), i || '@x.com', 'uk'"
                " FROM generate_series(1, 40) i;"
            )
            assert connection.execute("SELECT count(*) FROM customer").fetchone() == (290,)
            before = look(held).nodes[0].found
            # No region of this lab serves the country.
            assert before["unknown", "logical"] == 250
            assert before["eu", "logical"] == own + 40
            assert ("us", "statistics") not in before
            connection.execute("ANALYZE customer")
        for node in look(held).nodes:
            # About six of seven rows of the sample are the foreign leaf's, in two columns.
            assert node.found["us", "statistics"] > 101
            assert node.found["unknown", "logical"] == 250
    finally:
        held.query("DROP DATABASE near WITH (FORCE)")
        held.query("DROP DATABASE far WITH (FORCE)")


def test_canaries_that_two_plant_at_once_are_all_remembered(held: LabUnderTest) -> None:
    canaries.canaries_file(held.lab).rename(held.lab.home / "kept")
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(lambda _: canaries.plant(held.lab, Topology.load(held.lab)), range(4))
            )
        assert all(planted == found[0] for planted in found)
        assert canaries.load(held.lab) == found[0]
    finally:
        (held.lab.home / "kept").replace(canaries.canaries_file(held.lab))
        ids = ", ".join(f"'{canary.id}'" for canary in found[0])
        held.query(f"DELETE FROM purchase WHERE customer_id IN ({ids})")
        held.query(f"DELETE FROM customer WHERE id IN ({ids})")


@pytest.mark.parametrize("how", ["dangling", "fifo", "file", "folder"])
def test_file_that_cannot_be_read_is_no_pass(held: LabUnderTest, how: str) -> None:
    path = held.server("eu_2").data / "base/9999"
    if how == "dangling":
        path.symlink_to("nowhere")
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "file":
        path.touch()
        path.chmod(0)
    else:
        path.mkdir()
        path.chmod(0)
    try:
        with pytest.raises(LabError, match=r"eu_2: \./base/9999 cannot be read"):
            look(held)
    finally:
        if how == "folder":
            path.rmdir()
        else:
            path.unlink()
    # It leaves nothing behind where it fails either.
    assert held.query("SELECT count(*) FROM pg_namespace WHERE nspname = 'lab_audit'") == [(0,)]


@pytest.mark.parametrize("missed", FILES)
def test_scan_that_misses_a_place_is_blind(
    held: LabUnderTest, monkeypatch: pytest.MonkeyPatch, missed: Where
) -> None:
    real = places.classify
    other: Where = "wal" if missed == "heap" else "heap"

    def broken(path: str, *arguments: Any) -> Where:
        where = real(path, *arguments)
        return other if where == missed else where

    monkeypatch.setattr(places, "classify", broken)
    with pytest.raises(LabError, match=rf"the audit is blind: on eu .* control in {missed}"):
        look(held)


def test_scan_without_windows_is_blind(held: LabUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "windows", lambda marker: [])
    with pytest.raises(LabError, match="control in statistics"):
        look(held)


def test_canary_that_is_not_at_home_makes_the_audit_blind(held: LabUnderTest) -> None:
    planted = canaries.plant(held.lab, Topology.load(held.lab))
    lost = replace(new_canary("eu", "uk", "expand_eu"), planted=True)
    canaries.save(held.lab, [*planted, lost])
    try:
        with pytest.raises(LabError, match=f"the audit is blind: canary {lost.id} of region eu"):
            look(held)
    finally:
        canaries.save(held.lab, planted)


def test_what_a_failed_audit_left_is_no_matter(held: LabUnderTest) -> None:
    held.query(schemas.create("lab_audit").as_string(None))
    held.query("CREATE TABLE lab_audit.control (country text)")
    held.query("INSERT INTO lab_audit.control VALUES ('us')")
    assert look(held).holds


def test_wrong_password_is_one_line(held: LabUnderTest) -> None:
    with pytest.raises(LabError, match="LAB_PASSWORD"):
        audit(Topology.load(held.lab), "another")


def test_no_lab_is_one_line(embedded_lab: LabUnderTest) -> None:
    with pytest.raises(LabError, match="no lab is running"):
        run(embedded_lab.lab, PASSWORD, Console(file=io.StringIO()))


def test_servers_that_are_down(at_expand_eu: LabUnderTest) -> None:
    """A standby is read as bytes; without a region's primary there is no audit, in one line."""
    lab = at_expand_eu
    stranger = replace(new_canary("us", "us", "expand_eu"), planted=True)
    canaries.save(lab.lab, [*canaries.plant(lab.lab, Topology.load(lab.lab)), stranger])
    lab.query(f"SELECT pg_logical_emit_message(true, 'test', '{stranger.email}')")
    look(lab)
    assert lab.server("eu_2").stop()
    # The primary waits for its standby to acknowledge; the audit must not.
    residency = look(lab)
    assert foreign(residency)["eu_2"] == {"us": {"wal"}}
    standby = residency.nodes[1]
    assert standby.not_read == ["tables and statistics by SQL (its server is not running)"]
    assert standby.unproved == list(FILES)
    assert residency.nodes[0].not_read == []

    lab.server("eu").stop()
    with pytest.raises(LabError, match=r"eu, where region eu writes, does not answer .*failover"):
        look(lab)
    canaries.canaries_file(lab.lab).unlink()
    with pytest.raises(LabError, match="no canary of region eu can be planted on eu") as caught:
        look(lab)
    assert "\n" not in str(caught.value)
    # It is written down all the same.
    assert {canary.planted for canary in canaries.load(lab.lab)} == {False}


# -- the world: a violation ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(runtime: str, new_lab: Callable[..., LabUnderTest]) -> Iterator[LabUnderTest]:
    """Return a lab that serves every region from the EU, audited in each phase."""
    lab = new_lab(runtime)
    for phase in ("before", "expand_eu"):
        lab.play_ok(phase)
        assert run(lab.lab, PASSWORD, Console(file=io.StringIO()))
    lab.play_ok("expand_world")
    yield lab
    lab.remove()


def test_world_served_from_the_eu_is_a_violation(world: LabUnderTest) -> None:
    console = Console(file=io.StringIO(), width=80)
    assert not run(world.lab, PASSWORD, console)
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "VIOLATED: eu holds 4 rows of us" in text
    assert "VIOLATED: eu_2 holds 4 rows of jp" in text
    entries = json.loads((Path(world.lab.home) / "reports/residency.json").read_text())
    assert [(entry["phase"], entry["verdict"]) for entry in entries] == [
        ("before", "HOLDS"),
        ("expand_eu", "HOLDS"),
        ("expand_world", "VIOLATED"),
    ]
    for node in entries[-1]["nodes"].values():
        found = {(row["region"], row["where"]): row["hits"] for row in node["found"]}
        for region in ("us", "jp"):
            # A customer and a purchase each: the purchase has its country through its customer.
            assert found[region, "logical"] == 2 * canaries.GENERATION
            assert found[region, "heap"] == 7 * canaries.GENERATION
            assert found[region, "wal"] >= 2 * canaries.GENERATION
        # Those of three phases.
        assert found["eu", "heap"] == 3 * 7 * canaries.GENERATION


def test_canaries_are_ordinary_customers(world: LabUnderTest) -> None:
    planted = [c for c in canaries.load(world.lab) if c.region == "jp"]
    for canary in planted:
        assert world.query(f"SELECT email, country FROM customer WHERE id = '{canary.id}'") == [
            (canary.email, "jp")
        ]
    assert len(planted) == canaries.GENERATION
    assert all(UUID(canary.id).version == 4 for canary in planted)
