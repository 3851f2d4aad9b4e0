"""Failures count by their kind: Locust keeps a row for each distinct error."""

from __future__ import annotations

import subprocess
import sys

from workload.lab import CHECKOUT

# In a process of its own: workload.traffic.customer needs Locust imported before psycopg.
SCRIPT = """
import gevent
from workload.traffic.customer import DatabaseError, _is_refusal
import psycopg
from psycopg import errors
{code}
"""


def says(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(code=code)],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_same_kind_is_equal_though_ids_ports_and_times_differ() -> None:
    assert says("""
def refused(port):
    return DatabaseError(psycopg.OperationalError(
        f'connection to server at "127.0.0.1", port {port} failed: Connection refused'))
one, other = refused(5432), refused(61234)
print(one == other, hash(one) == hash(other), str(one))
timeouts = [DatabaseError(gevent.Timeout(seconds)) for seconds in (5, 5.0)]
print(timeouts[0] == timeouts[1], str(timeouts[0]))
""") == ["True True OperationalError refused", "True Timeout no answer in 5 s"]


def test_kinds_that_differ_are_told_apart() -> None:
    assert says("""
kinds = {DatabaseError(error) for error in (
    psycopg.OperationalError("Connection refused"),
    psycopg.OperationalError("server closed the connection unexpectedly"),
    errors.AdminShutdown("terminating connection due to administrator command"),
    errors.UniqueViolation("duplicate key"),
    psycopg.InterfaceError("x"),
    gevent.Timeout(5),
)}
print(len(kinds), DatabaseError(psycopg.InterfaceError("x")) == "InterfaceError")
""") == ["6 False"]


def test_sqlstate_is_named() -> None:
    assert says("""
print(DatabaseError(errors.UniqueViolation("duplicate key value")))
print(DatabaseError(errors.CannotConnectNow("the database system is starting up")))
""") == ["UniqueViolation 23505 duplicate key value", "CannotConnectNow 57P03 starting up"]


def test_only_a_plain_no_counts_as_a_refusal() -> None:
    """After all else the write may be there: a lost connection, a shutdown, no answer."""
    assert says("""
for state in ("23505", "23503", "42501", "25006", None, "", "08006", "57P01", "57014", "40003"):
    print(state, _is_refusal(state))
""") == [
        "23505 True", "23503 True", "42501 True", "25006 True", "None False", " False",
        "08006 False", "57P01 False", "57014 False", "40003 False",
    ]  # fmt: skip
