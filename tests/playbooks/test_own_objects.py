"""A person's own objects on the road from the start to after: carried, or refused by name."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.fixtures.labs import LabUnderTest, refused
from workload.nodes import embedded
from workload.topology import Topology

pytestmark = pytest.mark.slow

EU, US, JP = 0, 2, 3
CARRIED = (
    "ALTER TABLE customer ADD COLUMN phone text NOT NULL DEFAULT 'none'",
    "ALTER TABLE purchase ADD COLUMN tags text[]",
    "CREATE UNIQUE INDEX customer_email_key ON customer (email)",
    "CREATE INDEX lower_email ON customer (lower(email)) WHERE email <> ''",
    "ALTER TABLE purchase ADD CONSTRAINT paid CHECK (amount >= 0)",
    "ALTER TABLE customer ALTER email SET STATISTICS 321",
    "ALTER TABLE customer SET (fillfactor = 85)",
    "CREATE STATISTICS mine (dependencies) ON email, country FROM customer",
    "COMMENT ON TABLE customer IS 'people'",
    "COMMENT ON COLUMN purchase.amount IS 'money'",
    "CREATE ROLE reporter LOGIN; GRANT SELECT ON customer, purchase TO reporter",
)
#: Names of a table's objects, without the schema.
OBJECTS = """
SELECT unnest(ARRAY(
  SELECT 'column ' || attname || ' ' || attnotnull FROM pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
  UNION ALL SELECT 'index ' || relname FROM pg_index JOIN pg_class i ON i.oid = indexrelid
    WHERE indrelid = c.oid
  UNION ALL SELECT 'constraint ' || conname FROM pg_constraint
    WHERE conrelid = c.oid AND contype IN ('c', 'f', 'p', 'u')
  UNION ALL SELECT 'target ' || attname || ' ' || attstattarget FROM pg_attribute
    WHERE attrelid = c.oid AND attstattarget > 0
  UNION ALL SELECT 'statistics ' || stxname FROM pg_statistic_ext WHERE stxrelid = c.oid
  UNION ALL SELECT 'option ' || unnest(c.reloptions)
  UNION ALL SELECT 'comment ' || description FROM pg_description WHERE objoid = c.oid))
FROM pg_class AS c WHERE c.oid = '{}.{}'::regclass
"""


def dump(lab: LabUnderTest) -> list[str]:
    """Return the origin's whole catalogue as pg_dump has it."""
    dumped = subprocess.run(
        [
            embedded.find_bin_dir() / "pg_dump", "--schema-only", "--host=127.0.0.1",
            f"--port={lab.port_base}", "--username=postgres", "postgres",
        ],
        env={"PGPASSWORD": "password"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [line for line in dumped.stdout.splitlines() if not re.match(r"\\|--", line)]


def objects(lab: LabUnderTest, region: str, table: str, offset: int) -> set[str]:
    return {row[0] for row in lab.query(OBJECTS.format(region, table), offset)}


def test_what_is_in_the_way_is_told_at_once_and_nothing_is_changed(
    at_expand_world: LabUnderTest,
) -> None:
    lab = at_expand_world
    for statement in (
        "CREATE SCHEMA us",
        "CREATE TABLE us.customer (id int); INSERT INTO us.customer VALUES (1)",
        "CREATE SCHEMA retired",
        "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER audit AFTER INSERT ON customer FOR EACH ROW EXECUTE FUNCTION log()",
        "CREATE PUBLICATION feed FOR TABLE purchase",
        "ALTER TABLE customer ENABLE ROW LEVEL SECURITY",
        "INSERT INTO customer (email, country) VALUES ('x', 'xx')",
        "SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')",
    ):
        lab.query(statement)
    before = dump(lab)
    for playbook in ("shard", "after"):
        refused(
            lab.play(playbook),
            "schema us on eu, with customer,",
            "schema retired on eu",
            "trigger audit on public.customer",
            "publication feed on public.purchase",
            "public.customer has row security",
            "1 in 'xx'",
            *(["slot debezium on eu holds WAL from"] if playbook == "after" else []),
        )
    assert dump(lab) == before
    assert lab.query("SELECT * FROM us.customer") == [(1,)]
    assert Topology.load(lab.lab).phase == "expand_world"
    assert not (lab.lab.home / "nodes" / "us").exists()


def test_objects_go_along_to_every_leaf_on_every_node(at_expand_world: LabUnderTest) -> None:
    lab = at_expand_world
    for statement in CARRIED:
        lab.query(statement)
    lab.query("UPDATE customer SET phone = 'p' || id WHERE country = 'us'")
    lab.query("SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')")
    wanted = {table: objects(lab, "public", table, EU) for table in ("customer", "purchase")}
    # Its customer's.
    wanted["purchase"].add("column country true")
    output = lab.play_ok("shard").output
    for words in ("customer_email_key", "within each region", "role reporter", "slot debezium"):
        assert words in " ".join(output.split()), output
    for region in ("eu", "us", "jp"):
        for offset in (EU, US, JP):
            for table, expected in wanted.items():
                assert objects(lab, region, table, offset) == expected, (region, offset)
    lab.query("SELECT pg_drop_replication_slot('debezium')")
    lab.query("SET ROLE reporter; SELECT count(*), min(phone) FROM customer")
    # Added on every node between two phases.
    for offset in (EU, US, JP):
        lab.query("ALTER TABLE global.customer ADD COLUMN since date", offset)
    lab.play_ok("after")
    wanted["customer"].add("column since false")
    for table, expected in wanted.items():
        for region, offset in (("eu", EU), ("us", US), ("jp", JP)):
            assert objects(lab, region, table, offset) == expected, region
    (key,) = lab.query(
        "INSERT INTO customer (email, phone, country) VALUES ('a', '+49', 'de') RETURNING id::text"
    )[0]
    lab.query(f"UPDATE eu.customer SET since = '2026-01-02' WHERE id = '{key}'")
    moved = lab.workload("move", CUSTOMER=key, COUNTRY="us")
    assert moved.returncode == 0, moved.stderr
    row = f"SELECT email, phone, since::text FROM us.customer WHERE id = '{key}'"
    assert lab.query(row, US) == [("a", "+49", "2026-01-02")]
    assert lab.play_ok("after").changed == 0
    lab.query("ALTER TABLE global.customer ADD COLUMN odd int", JP)
    refused(lab.play("after"), "column global.customer.odd is not the same on eu and jp")
