"""Change tables that customers use, with short exclusive locks on all of them, or not at all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from workload.errors import LabError
from workload.sql import describe, together

#: On a deadlock with a client's transaction this session is to be the victim, so its
#: deadlock_timeout is the shorter one.
DEADLOCK_TIMEOUT_MS = 10
#: Every statement that comes after a try for locks queues behind it: for this long at first, longer
#: with each try up to a limit, since clients far away keep their locks for several round trips.
LOCK_TIMEOUT_MS, GROWTH = 30.0, 1.1
LONGEST_MS = 50.0
#: Seconds until a change that gets no moment is given up.
LOCKS_S = 60.0
#: Seconds between two tries, in which the statements that queued are served.
PAUSE_S = (0.05, 0.25)


class PostponedError(Exception):
    """Raised by the work itself: not now, with the locks let go and taken again later."""


@dataclass(frozen=True)
class LockOutcome:
    """What a change under locks took."""

    #: The longest time in ms for which a try blocked others, from asking for locks to the commit.
    blocked_ms: float
    attempts: int


def exclusively(
    connection: psycopg.Connection[Any],
    tables: Sequence[sql.Composable],
    work: Sequence[sql.Composable] | Callable[[], None],
    timeout_s: float,
    before: Callable[[], object] = lambda: None,
    longest_ms: float = LONGEST_MS,
) -> LockOutcome:
    """Lock tables in their order and do work in the same transaction, trying again until timeout_s.

    Without tables, the work's own locks are those that are waited for. Work that is statements is
    sent together with the lock: on a busy machine it is the turns between this process and the
    server that customers would wait for.

    before runs ahead of each try, without locks. Raises LabError where it could not be done in
    time; nothing is changed then. longest_ms is what one try may wait for locks at most.
    """
    connection.execute(f"SET deadlock_timeout = {DEADLOCK_TIMEOUT_MS}")
    deadline = time.monotonic() + timeout_s
    statements: list[sql.Composable] = []
    if tables:
        lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables))
        statements += [lock, sql.SQL("SET LOCAL statement_timeout = 0")]
    if not callable(work):
        statements += work
    blocked_ms, attempts = 0.0, 0
    while True:
        before()
        attempts += 1
        started = time.perf_counter()
        try:
            timeout_ms = min(longest_ms, LOCK_TIMEOUT_MS * GROWTH**attempts)
            connection.execute(f"SET lock_timeout = {int(timeout_ms)}")
            with connection.transaction():
                if tables:
                    # lock_timeout is for each lock; this is for all of them.
                    connection.execute(f"SET LOCAL statement_timeout = {int(timeout_ms)}")
                if statements:
                    connection.execute(together(statements))
                if callable(work):
                    work()
            blocked_ms = max(blocked_ms, (time.perf_counter() - started) * 1e3)
            connection.execute("SET lock_timeout = 0")
            return LockOutcome(blocked_ms, attempts)
        except (
            errors.LockNotAvailable, errors.QueryCanceled, errors.DeadlockDetected, PostponedError,
        ) as error:  # fmt: skip
            blocked_ms = max(blocked_ms, (time.perf_counter() - started) * 1e3)
            if time.monotonic() > deadline:
                connection.execute("SET lock_timeout = 0")
                why = describe(error) if isinstance(error, psycopg.Error) else str(error)
                raise LabError(
                    f"no moment without a long transaction in {timeout_s:.0f} s ({attempts} tries):"
                    f" {why}"
                ) from None
            time.sleep(random.uniform(*PAUSE_S))
