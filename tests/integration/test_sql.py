"""Scripts on a real server: an honest "changed", one line for an error, and patience."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.labs import free_ports
from tests.integration.conftest import PASSWORD
from workload.errors import LabError, WrongPasswordError
from workload.nodes import embedded
from workload.nodes.embedded import EmbeddedServer
from workload.sql import Login, apply, connect

CREATE = {"name": "create.sql", "text": "CREATE TABLE IF NOT EXISTS thing (id int)"}
FILL = {"name": "fill.sql", "text": "INSERT INTO thing SELECT 1 WHERE NOT EXISTS (TABLE thing)"}
LOOK = {"name": "look.sql", "text": "SELECT count(*) FROM pg_class; SELECT 1"}

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture
def login(server: EmbeddedServer) -> Login:
    """Return a login to a database without any tables."""
    operator = Login("127.0.0.1", server.port, "postgres", PASSWORD)
    with psycopg.connect(operator.conninfo(), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS scripts WITH (FORCE)")
        connection.execute("CREATE DATABASE scripts")
    return replace(operator, dbname="scripts")


def tables(login: Login) -> set[str]:
    with psycopg.connect(login.conninfo()) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchall()
    return {str(row[0]) for row in rows}


def run(login: Login, *scripts: dict[str, str], dry_run: bool = False) -> list[str]:
    with connect(login) as connection:
        return apply(connection, scripts, dry_run)


def test_changed_are_those_scripts_that_wrote(login: Login) -> None:
    assert run(login, CREATE, LOOK, FILL) == ["create.sql", "fill.sql"]
    assert run(login, CREATE, LOOK, FILL) == []
    assert tables(login) == {"thing"}


def test_one_script_may_have_several_statements_and_blocks(login: Login) -> None:
    text = """
    -- A semicolon; in a comment.
    CREATE TABLE IF NOT EXISTS thing (note text DEFAULT 'a;b%s');
    DO $$ BEGIN PERFORM 1; END $$;
    INSERT INTO thing DEFAULT VALUES;
    """
    assert run(login, {"name": "all.sql", "text": text}) == ["all.sql"]
    with psycopg.connect(login.conninfo()) as connection:
        assert connection.execute("TABLE thing").fetchall() == [("a;b%s",)]


def test_dry_run_tells_the_same_and_keeps_nothing(login: Login) -> None:
    # The second needs what the first would have made.
    assert run(login, CREATE, FILL, dry_run=True) == ["create.sql", "fill.sql"]
    assert tables(login) == set()
    run(login, CREATE)
    assert run(login, CREATE, FILL, dry_run=True) == ["fill.sql"]
    with psycopg.connect(login.conninfo()) as connection:
        assert connection.execute("TABLE thing").fetchall() == []


def test_error_names_script_and_sqlstate_and_undoes_that_script_alone(login: Login) -> None:
    broken = {"name": "broken.sql", "text": "CREATE TABLE other (id int); SELECT 1/0"}
    with pytest.raises(LabError) as caught:
        run(login, CREATE, broken, FILL)
    assert str(caught.value) == "broken.sql: ERROR 22012: division by zero"
    assert tables(login) == {"thing"}


def test_error_shows_the_detail_in_the_same_line(login: Login) -> None:
    run(login, CREATE)
    text = "CREATE UNIQUE INDEX one ON thing (id); INSERT INTO thing VALUES (7), (7)"
    with pytest.raises(LabError) as caught:
        run(login, {"name": "twice.sql", "text": text})
    message = str(caught.value)
    assert message.startswith("twice.sql: ERROR 23505: ")
    assert "(id)=(7)" in message
    assert "\n" not in message


def test_server_that_ends_in_the_middle_names_the_script(login: Login) -> None:
    text = "SELECT pg_terminate_backend(pg_backend_pid())"
    with pytest.raises(LabError, match=r"^end\.sql: ") as caught:
        run(login, {"name": "end.sql", "text": text})
    assert "\n" not in str(caught.value)


def test_two_runs_at_once_take_turns(login: Login) -> None:
    """Without that, each would find the table missing, and all but one would fail."""
    text = """DO $$ BEGIN
      IF to_regclass('thing') IS NULL THEN
        PERFORM pg_sleep(0.2);
        CREATE TABLE thing (id int);
      END IF;
    END $$"""
    changes: list[list[str]] = []

    def play() -> None:
        changes.append(run(login, {"name": "slow.sql", "text": text}))

    runs = [threading.Thread(target=play) for _ in range(3)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join(30)
    assert sorted(changes) == [[], [], ["slow.sql"]]


def test_run_that_holds_up_the_others_is_named(login: Login) -> None:
    with connect(login) as other, connect(login) as connection:
        other.execute("SELECT pg_advisory_lock(hashtext('geo-sharding-lab'))")
        with pytest.raises(LabError, match="another run of this lab is at work"):
            apply(connection, [CREATE], timeout_s=0.2)


def test_wrong_password_is_told_at_once(login: Login) -> None:
    started = time.monotonic()
    with pytest.raises(WrongPasswordError, match="LAB_PASSWORD") as caught:
        connect(replace(login, password="another"), 30)
    assert time.monotonic() - started < 5
    assert f"127.0.0.1:{login.port}" in str(caught.value)
    assert "another" not in str(caught.value)


def test_no_server_is_told_after_the_timeout_with_what_was_seen() -> None:
    port = free_ports()
    started = time.monotonic()
    with pytest.raises(LabError, match=r"no login at .* in 1 s") as caught:
        connect(Login("127.0.0.1", port, "postgres", PASSWORD), 1)
    assert 1 <= time.monotonic() - started < 10
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "refused" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_connect_waits_for_a_server_that_starts_later(tmp_path: Path) -> None:
    later = EmbeddedServer(tmp_path / "node", free_ports(), embedded.find_bin_dir())
    login = Login("127.0.0.1", later.port, "postgres", PASSWORD)
    answers: list[Any] = []

    def wait() -> None:
        try:
            with connect(login, 60) as connection:
                answers.append(connection.execute("SELECT 1").fetchone())
        except LabError as error:
            answers.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        with later.locked() as lock:
            later.initialise(PASSWORD, lock)
        assert answers == []
        later.configure()
        later.start()
        waiting.join(60)
        assert answers == [(1,)]
    finally:
        later.remove()
        waiting.join(60)
