"""Run SQL files on a node: wait for a real login, one transaction, and an honest "changed"."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from workload.errors import LabError, WrongPasswordError


@dataclass(frozen=True)
class Login:
    """Where and as whom to connect; host and port may be lists, as libpq takes them."""

    host: str
    port: int | str
    user: str
    password: str
    dbname: str = "postgres"

    @property
    def where(self) -> str:
        """The address as a person would name it."""
        return f"{self.host}:{self.port}"

    def conninfo(self) -> str:
        """Return a libpq connection string."""
        return psycopg.conninfo.make_conninfo(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=self.dbname,
            connect_timeout=5,
            application_name="geo-sharding-lab",
        )


def connect(login: Login, timeout_s: float = 0) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection, waiting up to timeout_s for the server to take logins.

    A real login over TCP is the only sign of readiness that does not lie: a first start has a
    server that answers on its own socket only, and pg_isready knows neither user nor database.
    Raises LabError with the address and what was last seen.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return psycopg.connect(login.conninfo())
        except psycopg.OperationalError as error:
            text = " ".join(str(error).split())
            if "password authentication failed" in text:
                # Without the word itself: it is the default's value too, which Ansible masks.
                raise WrongPasswordError(
                    f"user '{login.user}' is refused at {login.where}: LAB_PASSWORD is not what"
                    " this node's data was made with; set it to that, or make teardown"
                ) from None
            if time.monotonic() > deadline:
                raise LabError(f"no login at {login.where} in {timeout_s:.0f} s: {text}") from None
            time.sleep(0.05)


def apply(
    connection: psycopg.Connection[tuple[object, ...]],
    scripts: Sequence[Mapping[str, Any]],
    dry_run: bool = False,
    lock_timeout_ms: int = 0,
    timeout_s: float = 60,
) -> list[str]:
    """Run scripts ({name, text}) in a transaction each; return the names of those that changed.

    A script changed something exactly where its transaction was given a transaction id: PostgreSQL
    assigns one on the first write, and CREATE ... IF NOT EXISTS on a thing that exists writes
    nothing. A dry run rolls all of them back together, since a later script may need an earlier
    one. One that is "recorded" leaves its fingerprint in lab.script, and is not run
    again while it stays the same: for those that write even where nothing changes.

    With lock_timeout_ms a script gives up waiting for a lock after that time, since everyone who
    comes after it waits behind it, and tries again until timeout_s. Raises LabError with the
    script's name and the server's message.
    """
    changed = []
    connection.autocommit = True
    outer = connection.transaction(force_rollback=True) if dry_run else contextlib.nullcontext()
    with outer:
        take_turns(connection, timeout_s)
        connection.execute(f"SET lock_timeout = {int(lock_timeout_ms)}")
        for script in scripts:
            deadline = time.monotonic() + (timeout_s if lock_timeout_ms and not dry_run else 0)
            while True:
                try:
                    if _run(connection, script):
                        changed.append(script["name"])
                    break
                except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
                    if time.monotonic() > deadline:
                        raise LabError(f"{script['name']}: {describe(error)}") from None
                    # Let those through who queued behind the attempt.
                    time.sleep(0.05)
                except psycopg.Error as error:
                    raise LabError(f"{script['name']}: {describe(error)}") from None
    return changed


def take_turns(connection: psycopg.Connection[tuple[object, ...]], timeout_s: float) -> None:
    """Wait for other runs' scripts to end: CREATE ... IF NOT EXISTS fails beside its like.

    What a killed playbook left at work is another run too. The lock ends with the connection.
    """
    connection.execute(f"SET lock_timeout = {int(timeout_s * 1e3)}")
    try:
        connection.execute("SELECT pg_advisory_lock(hashtext('geo-sharding-lab'))")
    except errors.LockNotAvailable:
        raise LabError(
            f"another run of this lab is at work on this node for more than {timeout_s:.0f} s"
        ) from None


def together(statements: Iterable[sql.Composable]) -> sql.Composed:
    """Return statements as one message to the server."""
    return sql.SQL("; ").join(statements)


def _run(connection: psycopg.Connection[tuple[object, ...]], script: Mapping[str, Any]) -> bool:
    with connection.transaction():
        if script.get("recorded") and not _record(connection, script):
            return False
        connection.execute(script["text"].encode())
        row = connection.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
        return bool(row and row[0])


def _record(connection: psycopg.Connection[tuple[object, ...]], script: Mapping[str, Any]) -> bool:
    """Leave a script's fingerprint; return whether it was another one, or none."""
    key = (script["name"], hashlib.sha256(script["text"].encode()).hexdigest())
    if connection.execute("SELECT to_regclass('lab.script') IS NULL").fetchone() == (True,):
        connection.execute(
            "CREATE SCHEMA IF NOT EXISTS lab;"
            " CREATE TABLE lab.script (name text PRIMARY KEY, fingerprint text NOT NULL)"
        )
    found = connection.execute(
        "SELECT FROM lab.script WHERE (name, fingerprint) = (%s, %s)", key
    ).fetchone()
    if found is not None:
        return False
    connection.execute(
        "INSERT INTO lab.script VALUES (%s, %s)"
        " ON CONFLICT (name) DO UPDATE SET fingerprint = EXCLUDED.fingerprint",
        key,
    )
    return True


def describe(error: psycopg.Error) -> str:
    """Return a server's error as one line with its SQLSTATE and detail."""
    if isinstance(error, errors.OperationalError) and not error.sqlstate:
        return " ".join(str(error).split())
    detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
    return f"{error.diag.severity} {error.sqlstate}: {error.diag.message_primary}{detail}"
