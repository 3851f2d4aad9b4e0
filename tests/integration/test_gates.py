"""Leaves, bounds and gates on a real server: what is read, what is refused, what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.integration.conftest import KNOWN, REGIONS
from workload.sharding.gates import (
    add_bound_checks,
    drop_bound_checks,
    gate_of,
    put_in,
    put_up,
    rebound,
    stands,
    take_down,
    take_out,
)
from workload.sharding.leaves import TABLES, Leaf, leaves_of

INSERT = "INSERT INTO us.customer (email, country) VALUES ('a', %s)"

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture
def us() -> list[Leaf]:
    return leaves_of(REGIONS, ["us"])


def run(connection: psycopg.Connection[Any], statements: Sequence[sql.Composed]) -> None:
    for statement in statements:
        connection.execute(statement)


def checks(connection: psycopg.Connection[Any], leaf: Leaf) -> set[str]:
    rows = connection.execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = %s::regclass",
        (leaf.identifier().as_string(connection),),
    )
    return {row[0] for row in rows}


def attach_again(connection: psycopg.Connection[Any], leaves: Sequence[Leaf]) -> list[str]:
    """Return what the server says while leaves are taken out and put back."""
    said: list[str] = []

    def listen(diagnostic: psycopg.errors.Diagnostic) -> None:
        said.append(diagnostic.message_primary or "")

    connection.add_notice_handler(listen)
    for leaf in leaves:
        run(connection, take_out(connection, leaf))
        run(connection, put_in(leaf, stands(connection, leaf)))
    connection.remove_notice_handler(listen)
    return [line for line in said if "implied by existing constraints" in line]


def test_attach_of_a_proven_leaf_reads_no_row(
    connection: psycopg.Connection[Any], us: list[Leaf]
) -> None:
    assert attach_again(connection, us) == []
    add_bound_checks(connection, us, 5)
    found = attach_again(connection, us)
    for table in TABLES:
        assert any(f'"{table}"' in line for line in found), found
    assert [checks(connection, leaf) for leaf in us] == [set()] * 3


def test_proof_that_was_not_needed_goes(
    connection: psycopg.Connection[Any], us: list[Leaf]
) -> None:
    for _ in range(2):
        add_bound_checks(connection, us, 5)
    assert [checks(connection, leaf) for leaf in us] == [{"home"}] * 3
    for _ in range(2):
        drop_bound_checks(connection, us, 5)
    assert [checks(connection, leaf) for leaf in us] == [set()] * 3


@pytest.mark.parametrize("country", ["uk", "u", "uss", "us|mx", "us mx", "us\n", "xzy", "US", ""])
def test_leaf_refuses_strangers_by_itself(
    connection: psycopg.Connection[Any], us: list[Leaf], country: str
) -> None:
    connection.execute("ALTER DOMAIN global.country DROP CONSTRAINT known")
    with pytest.raises(psycopg.errors.CheckViolation, match="partition constraint"):
        connection.execute(INSERT, (country,))
    add_bound_checks(connection, us, 5)
    run(connection, take_out(connection, us[0]))
    with pytest.raises(psycopg.errors.CheckViolation, match='"home"'):
        connection.execute(INSERT, (country,))
    for own in REGIONS["us"]:
        connection.execute(INSERT, (own,))


def parent_of(connection: psycopg.Connection[Any], leaf: Leaf) -> str | None:
    row = connection.execute(
        "SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = %s::regclass",
        (leaf.identifier().as_string(connection),),
    ).fetchone()
    return row[0] if row else None


def test_gates_go_up_and_down_from_anywhere(
    connection: psycopg.Connection[Any], us: list[Leaf]
) -> None:
    connection.execute(INSERT, ("us",))
    assert take_down(connection, us, 5) == 0
    for _ in range(2):
        put_up(connection, us, 5)
        assert [parent_of(connection, leaf) for leaf in us] == [
            f"gate_us.{table}" for table in TABLES
        ]
        assert [checks(connection, leaf) for leaf in us] == [set()] * 3
    assert put_up(connection, us, 5) == 0
    # A run that was killed left one of them out, and one without its gate.
    run(connection, take_out(connection, us[0]))
    run(connection, take_out(connection, us[1]))
    connection.execute(sql.SQL("DROP TABLE {}").format(gate_of(us[1])))
    put_up(connection, us, 5)
    connection.execute("INSERT INTO global.customer (email, country) VALUES ('b', 'mx')")
    run(connection, take_out(connection, us[2]))
    for _ in range(2):
        take_down(connection, us, 5)
        assert [parent_of(connection, leaf) for leaf in us] == [
            f"global.{table}" for table in TABLES
        ]
    row = connection.execute(
        "SELECT count(*), to_regnamespace('gate_us') IS NULL FROM global.customer"
    ).fetchone()
    assert row == (2, True)


@pytest.mark.parametrize("has_gates", [False, True])
def test_country_comes_and_goes(
    connection: psycopg.Connection[Any], us: list[Leaf], has_gates: bool
) -> None:
    if has_gates:
        put_up(connection, us, 5)
    grown = leaves_of(KNOWN)
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(INSERT, ("br",))
    assert rebound(connection, grown, "r", 5)
    assert not rebound(connection, grown, "r", 5)
    connection.execute(INSERT, ("br",))
    assert checks(connection, us[0]) == set()
    # A killed run wanted it gone again, and then it was thought better of.
    connection.execute(
        "ALTER TABLE us.customer ADD CONSTRAINT home CHECK (country <> 'br') NOT VALID"
    )
    assert not rebound(connection, grown, "r", 5)
    connection.execute(INSERT, ("br",))
    # Back again only when nobody is there.
    with pytest.raises(psycopg.errors.CheckViolation):
        rebound(connection, us, "r", 5)
    connection.execute(INSERT, ("br",))
    connection.execute("DELETE FROM global.customer")
    assert rebound(connection, us, "r", 5)
    assert [checks(connection, leaf) for leaf in us] == [set()] * 3
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(INSERT, ("br",))


def test_proof_of_a_leaf_with_a_stranger_is_refused(
    connection: psycopg.Connection[Any], us: list[Leaf]
) -> None:
    run(connection, take_out(connection, us[0]))
    connection.execute(INSERT, ("uk",))
    with pytest.raises(psycopg.errors.CheckViolation, match='"home"'):
        add_bound_checks(connection, us, 5)
    connection.execute(INSERT, ("uk",))
