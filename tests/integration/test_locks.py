"""Tables locked for a moment on a real server: what is done then, and what where there is none."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.labs import eventually
from workload.errors import LabError
from workload.sharding.leaves import parents
from workload.sharding.locks import LONGEST_MS, LockOutcome, PostponedError, exclusively
from workload.sql import Login

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

MAKE = sql.SQL("CREATE TABLE lab.made ()")
MADE = "SELECT to_regclass('lab.made') IS NOT NULL"


def test_work_takes_as_long_as_it_takes(connection: psycopg.Connection[Any]) -> None:
    """What ends a wait for locks does not end what is done with them."""
    slow = sql.SQL("SELECT pg_sleep({})").format(sql.Literal(4 * LONGEST_MS / 1e3))
    outcome = exclusively(connection, parents(), [slow, MAKE], 5)
    assert outcome.blocked_ms > 4 * LONGEST_MS
    assert outcome.attempts == 1
    assert connection.execute(MADE).fetchone() == (True,)


def test_all_or_nothing(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        exclusively(connection, parents(), [MAKE, sql.SQL("SELECT 1 / 0")], 5)
    assert connection.execute(MADE).fetchone() == (False,)


@pytest.mark.parametrize("sent", ["together", "by itself"])
def test_gives_up_with_nothing_done(
    connection: psycopg.Connection[Any], login: Login, sent: str
) -> None:
    def work() -> None:
        connection.execute(MAKE)

    with psycopg.connect(login.conninfo()) as other:
        other.execute("SELECT FROM global.customer")
        with pytest.raises(LabError, match=r"no moment without a long transaction in 1 s \(\d+ tr"):
            exclusively(connection, parents(), [MAKE] if sent == "together" else work, 1)
    assert connection.execute(MADE).fetchone() == (False,)
    assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
    assert connection.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_waits_for_its_moment(connection: psycopg.Connection[Any], login: Login) -> None:
    """And those who come meanwhile are served between its tries."""
    done: list[LockOutcome] = []
    statement = "SELECT FROM global.customer"
    with psycopg.connect(login.conninfo()) as other, psycopg.connect(login.conninfo()) as third:
        other.execute(statement)
        thread = threading.Thread(
            target=lambda: done.append(exclusively(connection, parents(), [MAKE], 30))
        )
        thread.start()
        waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"
        eventually(lambda: bool(other.execute(waiting).fetchone() == (True,)))
        for _ in range(20):
            third.execute(statement)
            third.rollback()
        assert not done
        other.rollback()
        thread.join(30)
    assert done[0].attempts > 1
    assert connection.execute(MADE).fetchone() == (True,)


def test_work_that_is_put_off_is_done_again(connection: psycopg.Connection[Any]) -> None:
    """As often as it takes psycopg to prepare what it sends, which several statements cannot be."""
    put_off = iter(range(8))

    def work() -> None:
        connection.execute(MAKE)
        if next(put_off, None) is not None:
            raise PostponedError("not yet")

    assert exclusively(connection, parents(), work, 30).attempts == 9
    assert connection.execute(MADE).fetchone() == (True,)
