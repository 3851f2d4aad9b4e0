"""Residency in phase after: it holds whatever is done, and what breaks it is found."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from rich.console import Console

from tests.fixtures.after import (
    assert_held,
    strays,
)
from tests.fixtures.labs import LabUnderTest
from tests.fixtures.world import COUNTRIES, NODES
from workload.audit import canaries
from workload.audit.places import Place
from workload.audit.residency import Residency
from workload.audit.run import audit, run
from workload.topology import Topology


@pytest.fixture(scope="module")
def after(all_at_after: LabUnderTest) -> LabUnderTest:
    """Return a lab in phase after."""
    return all_at_after


def test_residency_holds_after_maintenance_sorts_and_errors(after: LabUnderTest) -> None:
    lab = after
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
            assert spilled[0] > 1000
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


def test_audit_leaves_no_traces_of_customers(after: LabUnderTest) -> None:
    """Although the servers log every statement, and keep all of them in memory."""
    lab = after
    everybody = {region: emails_of(lab, region, 100_000) for region in COUNTRIES}
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


def test_any_email_is_data(after: LabUnderTest) -> None:
    lab = after
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


def test_reference_data_is_nobodys(after: LabUnderTest) -> None:
    lab = after
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
def test_copied_customers_are_found_with_table_and_column(after: LabUnderTest, column: str) -> None:
    lab = after
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


def test_reference_data_with_a_customers_value_is_that_customers(after: LabUnderTest) -> None:
    lab = after
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


def test_sample_is_found_in_files_that_sql_does_not_show(after: LabUnderTest) -> None:
    lab = after
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
