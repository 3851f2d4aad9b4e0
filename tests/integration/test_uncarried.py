"""What a person put on the tables of the start: carried to every leaf, or refused by its name."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.integration.conftest import PASSWORD, REGIONS, make_start
from workload.errors import LabError
from workload.nodes.embedded import EmbeddedServer
from workload.sharding.objects import Object, read
from workload.sharding.partition import partition
from workload.sql import Login

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

#: What cannot come along: what makes it, what takes it away, and how it is named.
REFUSED = (
    (
        "CREATE TRIGGER audit AFTER UPDATE ON customer FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "DROP TRIGGER audit ON customer",
        "trigger audit on public.customer",
    ),
    (
        "CREATE RULE keep AS ON DELETE TO purchase DO INSTEAD NOTHING",
        "DROP RULE keep ON purchase",
        "rule keep on public.purchase",
    ),
    (
        "ALTER TABLE customer ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE customer DISABLE ROW LEVEL SECURITY",
        "public.customer has row security",
    ),
    (
        "CREATE POLICY mine ON customer USING (true)",
        "DROP POLICY mine ON customer",
        "policy mine on public.customer",
    ),
    (
        "CREATE PUBLICATION feed FOR TABLE customer",
        "DROP PUBLICATION feed",
        "publication feed on public.customer",
    ),
    ("CREATE PUBLICATION all_of_it FOR ALL TABLES", "DROP PUBLICATION all_of_it", "all_of_it"),
    (
        "CREATE PUBLICATION place FOR TABLES IN SCHEMA public",
        "DROP PUBLICATION place",
        "publication place on public.purchase",
    ),
    (
        "CREATE VIEW spent AS SELECT sum(amount) FROM purchase",
        "DROP VIEW spent",
        "view public.spent on public.purchase",
    ),
    (
        "CREATE MATERIALIZED VIEW spent AS SELECT sum(amount) FROM purchase",
        "DROP MATERIALIZED VIEW spent",
        "materialized view public.spent on public.purchase",
    ),
    (
        "CREATE FUNCTION domain_of(c customer) RETURNS text LANGUAGE sql RETURN c.email",
        "DROP FUNCTION domain_of",
        "function public.domain_of(public.customer)",
    ),
    (
        "CREATE TABLE old (was customer)",
        "DROP TABLE old",
        "column of its row type public.old.was",
    ),
    (
        "CREATE TABLE note (customer_id uuid REFERENCES customer)",
        "DROP TABLE note",
        "foreign key note_customer_id_fkey of public.note",
    ),
    (
        "ALTER TABLE customer ADD friend uuid REFERENCES customer",
        "ALTER TABLE customer DROP friend",
        "foreign key customer_friend_fkey on public.customer",
    ),
    (
        "CREATE TABLE vip () INHERITS (customer)",
        "DROP TABLE vip",
        "inheritance public.vip from public.customer",
    ),
    (
        "ALTER TABLE purchase ADD number bigserial",
        "ALTER TABLE purchase DROP number",
        "sequence public.purchase_number_seq on public.purchase",
    ),
    (
        "ALTER TABLE purchase ADD number bigint GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE purchase DROP number",
        "column public.purchase.number is an identity",
    ),
    (
        "CREATE TYPE mood AS ENUM ('good'); ALTER TABLE customer ADD feels mood",
        "ALTER TABLE customer DROP feels; DROP TYPE mood",
        "column feels of table public.customer needs type public.mood",
    ),
    (
        "CREATE FUNCTION fine(text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN true;"
        " ALTER TABLE customer ADD CHECK (fine(email))",
        "ALTER TABLE customer DROP CONSTRAINT customer_email_check; DROP FUNCTION fine",
        "constraint customer_email_check on table public.customer needs function public.fine(text)",
    ),
    (
        "CREATE ROLE app; ALTER TABLE customer OWNER TO app",
        "ALTER TABLE customer OWNER TO postgres; DROP OWNED BY app; DROP ROLE app",
        "public.customer is owned by app",
    ),
    (
        "ALTER TABLE purchase SET UNLOGGED",
        "ALTER TABLE purchase SET LOGGED",
        "public.purchase is unlogged",
    ),
    (
        "ALTER TABLE customer REPLICA IDENTITY NOTHING",
        "ALTER TABLE customer REPLICA IDENTITY DEFAULT",
        "public.customer has no replica identity",
    ),
    (
        "ALTER TABLE customer ADD CONSTRAINT home CHECK (true)",
        "ALTER TABLE customer DROP CONSTRAINT home",
        "constraint home on public.customer",
    ),
    (
        "ALTER TABLE purchase ADD country text",
        "ALTER TABLE purchase DROP country",
        "column public.purchase.country",
    ),
)


def no_matter(line: str) -> None:
    """Hear how far a move is."""


@pytest.fixture
def start(login: Login, connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Return a connection to a node with the tables of the start, and parents without leaves."""
    make_start(connection)
    return connection


def dump(server: EmbeddedServer) -> list[str]:
    """Return the whole catalogue as pg_dump has it."""
    dumped = subprocess.run(
        [
            server.bin_dir / "pg_dump", "--schema-only", f"--port={server.port}",
            "--host=127.0.0.1", "--username=postgres", "postgres",
        ],
        env={"PGPASSWORD": PASSWORD}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [line for line in dumped.stdout.splitlines() if not re.match(r"\\|--", line)]


@pytest.mark.parametrize(("make", "drop", "name"), REFUSED, ids=[name for *_, name in REFUSED])
def test_what_cannot_come_along_is_refused_by_its_name(
    start: psycopg.Connection[Any],
    login: Login,
    server: EmbeddedServer,
    make: str,
    drop: str,
    name: str,
) -> None:
    start.execute(make.encode())
    try:
        before = dump(server)
        with pytest.raises(LabError, match=re.escape(name)):
            partition(login, REGIONS, no_matter)
        assert dump(server) == before
    finally:
        start.execute(drop.encode())


def test_all_of_it_is_in_one_message(start: psycopg.Connection[Any], login: Login) -> None:
    together = [entry for entry in REFUSED if "MATERIALIZED" not in entry[0]][:9]
    for make, _, _ in together:
        start.execute(make.encode())
    try:
        with pytest.raises(LabError) as error:
            partition(login, REGIONS, no_matter)
        for _, _, name in together:
            assert name in str(error.value)
    finally:
        for _, drop, _ in together:
            start.execute(drop.encode())


#: What comes along, as a person puts it on the tables of the start.
CARRIED = (
    "ALTER TABLE customer ADD phone text COLLATE \"C\" DEFAULT 'none' NOT NULL",
    "ALTER TABLE customer ADD notes json, ADD tags text[]",
    "ALTER TABLE purchase ADD tax numeric GENERATED ALWAYS AS (amount * 0.2) STORED",
    "ALTER TABLE customer ALTER email TYPE varchar(200)",
    "ALTER TABLE customer ALTER email SET DEFAULT 'nobody@example.com'",
    "ALTER TABLE customer ALTER email SET STATISTICS 500, ALTER phone SET STORAGE EXTERNAL,"
    " ALTER email SET (n_distinct = -0.5), ALTER email SET COMPRESSION pglz",
    "ALTER TABLE customer SET (fillfactor = 90, toast.autovacuum_enabled = false)",
    'CREATE UNIQUE INDEX "Low USING" ON customer (lower(email)) INCLUDE (phone)'
    " WHERE phone <> 'x'",
    "COMMENT ON INDEX \"Low USING\" IS 'it''s an index'",
    "CREATE INDEX by_country ON customer (country, email DESC)",
    "ALTER TABLE customer CLUSTER ON customer_pkey",
    "ALTER TABLE customer ADD CONSTRAINT short CHECK (length(email) < 100) NOT VALID",
    "ALTER TABLE customer ADD CONSTRAINT once UNIQUE (phone, id) WITH (fillfactor = 70)"
    " DEFERRABLE INITIALLY DEFERRED",
    "ALTER TABLE purchase ADD CONSTRAINT paid CHECK (amount >= 0)",
    "ALTER TABLE purchase ADD EXCLUDE USING btree (id WITH =) WHERE (amount > 1000)",
    "COMMENT ON CONSTRAINT once ON customer IS 'a constraint'",
    "CREATE STATISTICS mine (dependencies) ON email, country FROM customer",
    "COMMENT ON TABLE customer IS 'a table'",
    "COMMENT ON COLUMN customer.phone IS 'a column'",
    "ALTER TABLE purchase REPLICA IDENTITY FULL",
)


def described(objects: list[Object]) -> dict[tuple[str, str], tuple[str, Any]]:
    """Return what is to be the same on a table of the start and on its leaves."""
    found = {}
    for each in objects:
        if each.kind in ("grant", "inheritance") or each.name in ("home",):
            continue
        detail = dict(each.detail)
        for key in ("number", "schema", "refers_to", "is_superusers"):
            detail.pop(key, None)
        definition = re.sub(r"(REFERENCES )\w+\.", r"\1", each.definition)
        found[each.kind, each.name] = (definition, detail)
    return found


def test_all_that_can_come_along_is_on_every_leaf(
    start: psycopg.Connection[Any], login: Login
) -> None:
    start.execute("DROP ROLE IF EXISTS reporter; CREATE ROLE reporter")
    for statement in CARRIED:
        start.execute(statement.encode())
    start.execute("GRANT SELECT ON customer TO reporter WITH GRANT OPTION")
    start.execute("GRANT UPDATE (phone) ON customer TO reporter")
    start.execute(
        "INSERT INTO customer (email, country, phone, notes, tags)"
        " SELECT i || '@example.com', (ARRAY['uk', 'us'])[1 + i % 2], i, '{\"a\": 1}', '{x,y}'"
        " FROM generate_series(1, 40) AS i"
    )
    start.execute("INSERT INTO purchase (customer_id, amount) SELECT id, 5 FROM customer")
    tables = ("customer", "purchase")
    wanted = read(start, {table: sql.Identifier("public", table) for table in tables})
    rows = [
        start.execute(f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY id".encode()).fetchall()
        for table in tables
    ]
    partition(login, REGIONS, no_matter)
    for region in REGIONS:
        leaves = read(start, {table: sql.Identifier(region, table) for table in tables})
        for table in tables:
            expected, actual = described(wanted[table]), described(leaves[table])
            expected.pop(("column", "country"), None)
            actual.pop(("column", "country"))
            assert actual == expected
    # By the old names too, with the columns in their order, their defaults and the rights.
    assert [
        start.execute(f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY id".encode()).fetchall()
        for table in tables
    ] == rows
    start.execute("INSERT INTO customer (country) VALUES ('us')")
    row = start.execute("SELECT email, phone FROM us.customer ORDER BY email DESC LIMIT 1")
    assert row.fetchone() == ("nobody@example.com", "none")
    start.execute("SET ROLE reporter")
    assert start.execute("SELECT count(*) FROM customer").fetchone() == (41,)
    start.execute("RESET ROLE")
