"""Failures count by their kind: Locust keeps a row for each distinct error."""

from __future__ import annotations

import gevent

import psycopg
import pytest
from psycopg import errors

from workload.traffic.session import DatabaseError, is_refusal


def refused(port: int) -> DatabaseError:
    return DatabaseError(
        psycopg.OperationalError(
            f'connection to server at "127.0.0.1", port {port} failed: Connection refused'
        )
    )


def test_same_kind_is_equal_though_ids_ports_and_times_differ() -> None:
    one, other = refused(5432), refused(61234)
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "OperationalError refused"
    timeouts = [DatabaseError(gevent.Timeout(seconds)) for seconds in (5, 5.0)]
    assert timeouts[0] == timeouts[1]
    assert str(timeouts[0]) == "Timeout no answer in 5 s"


def test_kinds_that_differ_are_told_apart() -> None:
    kinds = {
        DatabaseError(error)
        for error in (
            psycopg.OperationalError("Connection refused"),
            psycopg.OperationalError("server closed the connection unexpectedly"),
            errors.AdminShutdown("terminating connection due to administrator command"),
            errors.UniqueViolation("duplicate key"),
            psycopg.InterfaceError("x"),
            gevent.Timeout(5),
        )
    }
    assert len(kinds) == 6
    assert DatabaseError(psycopg.InterfaceError("x")) != "InterfaceError"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            errors.UniqueViolation("duplicate key value"),
            "UniqueViolation 23505 duplicate key value",
        ),
        (
            errors.CannotConnectNow("the database system is starting up"),
            "CannotConnectNow 57P03 starting up",
        ),
        # What libpq says where no connection is to be had; it has no SQLSTATE.
        (
            psycopg.OperationalError("FATAL:  sorry, too many clients already"),
            "OperationalError too many clients",
        ),
        (
            psycopg.OperationalError(
                "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER"
            ),
            "OperationalError too many clients",
        ),
    ],
)
def test_what_is_known_is_named(error: psycopg.Error, kind: str) -> None:
    assert str(DatabaseError(error)) == kind


@pytest.mark.parametrize("state", ["23505", "23503", "42501", "25006"])
def test_a_plain_no_counts_as_a_refusal(state: str) -> None:
    assert is_refusal(state)


@pytest.mark.parametrize("state", [None, "", "08006", "57P01", "57014", "40003"])
def test_after_all_else_the_write_may_be_there(state: str | None) -> None:
    """A lost connection, a shutdown, no answer."""
    assert not is_refusal(state)
