"""A PostgreSQL server without Docker: what it survives, and what it says where it does not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.fixtures.labs import CHECKOUT, eventually, free_ports, is_listening
from workload.errors import LabError
from workload.nodes import embedded
from workload.nodes.embedded import EmbeddedServer
from workload.sql import Login, connect

PASSWORD = "pass word's"

# Servers are meant to outlive the objects that started them.
pytestmark = [
    # Each test has a server of its own.
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


def bring_up(server: EmbeddedServer, timeout_s: float = 60) -> tuple[bool, bool]:
    """Do what the node role does; return whether initdb ran and whether the server was started."""
    with server.locked() as lock:
        created = server.initialise(PASSWORD, lock)
        if server.configure():
            server.stop()
        return created, server.start(timeout_s)


def session(server: EmbeddedServer) -> psycopg.Connection[tuple[object, ...]]:
    connection = connect(Login("127.0.0.1", server.port, "postgres", PASSWORD), 10)
    connection.autocommit = True
    return connection


def value(server: EmbeddedServer, statement: str) -> object:
    with session(server) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return row and row[0]


def execute(server: EmbeddedServer, statement: str) -> None:
    with session(server) as connection:
        connection.execute(statement.encode())


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs; a dead one may wait a while for its parent to notice."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(server: EmbeddedServer) -> None:
    postmaster = server.postmaster()
    assert postmaster
    os.kill(postmaster.pid, signal.SIGKILL)
    postmaster.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """Return a server that does not exist yet."""
    made = EmbeddedServer(
        tmp_path / "node", free_ports(), embedded.find_bin_dir(), {"shared_buffers": "16MB"}
    )
    yield made
    made.remove()


def test_first_start_and_a_second_one_that_changes_nothing(server: EmbeddedServer) -> None:
    assert not server.exists()
    assert server.postmaster() is None
    assert bring_up(server) == (True, True)
    postmaster = server.postmaster()
    assert postmaster
    assert server.listening_port() == server.port
    assert value(server, "SHOW data_checksums") == "on"
    assert bring_up(server) == (False, False)
    assert server.postmaster() == postmaster


def test_password_is_nowhere_in_the_folder(server: EmbeddedServer) -> None:
    bring_up(server)
    for path in server.base.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
    assert server.base.stat().st_mode & 0o077 == 0


def test_a_login_takes_the_password_even_on_this_machine(server: EmbeddedServer) -> None:
    bring_up(server)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(replace(login := _login(server), password="other").conninfo())
    psycopg.connect(login.conninfo()).close()


def _login(server: EmbeddedServer) -> Login:
    return Login("127.0.0.1", server.port, "postgres", PASSWORD)


def test_start_right_after_a_kill(server: EmbeddedServer) -> None:
    bring_up(server)
    execute(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    for _ in range(3):
        kill(server)
        assert bring_up(server) == (False, True)
        assert value(server, "SELECT answer FROM kept") == 42


def test_start_after_a_kill_waits_for_a_process_that_lives_on(server: EmbeddedServer) -> None:
    bring_up(server)

    def be_busy() -> None:
        # Counts in one go, so it does not notice at once that its postmaster is gone.
        with contextlib.suppress(psycopg.Error), session(server) as connection:
            connection.execute("SELECT count(*) FROM generate_series(1, 20000000)")

    client = threading.Thread(target=be_busy)
    client.start()
    eventually(
        lambda: (
            value(server, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate%s(1%'")
            == 2
        )  # This look itself is one.
    )
    kill(server)
    assert server.processes(), "no process outlived its postmaster: the test shows nothing"
    assert bring_up(server) == (False, True)
    client.join(30)
    assert value(server, "SELECT 1") == 1


def test_process_id_of_another_program_does_not_stop_a_start(server: EmbeddedServer) -> None:
    bring_up(server)
    pid_file = server.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    kill(server)
    eventually(lambda: not server.processes(), seen=server.processes)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        assert server.postmaster() is None
        assert bring_up(server) == (False, True)
        assert stranger.poll() is None
        assert server.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("text", ["", "x", "\n\n", "999999999\n"])
def test_garbage_in_the_pid_file_does_not_stop_a_start(server: EmbeddedServer, text: str) -> None:
    bring_up(server)
    kill(server)
    eventually(lambda: not server.processes(), seen=server.processes)
    (server.data / "postmaster.pid").write_text(text)
    assert bring_up(server) == (False, True)


def test_what_a_killed_initdb_left_is_cleaned(server: EmbeddedServer) -> None:
    left = server.base / "data.4711"
    (left / "base").mkdir(parents=True)
    (left / "PG_VERSION").write_text("17\n")
    secret = server.base / "data.4711.password"
    secret.write_text(PASSWORD)
    assert bring_up(server) == (True, True)
    assert [path.name for path in server.base.glob("data*")] == ["data"]


INITIALISE = """
import pathlib, sys
from workload.nodes.embedded import EmbeddedServer, find_bin_dir
server = EmbeddedServer(pathlib.Path(sys.argv[1]), bin_dir=find_bin_dir())
with server.locked() as lock:
    server.initialise("x", lock)
"""


def test_initdb_that_is_killed_leaves_no_cluster(server: EmbeddedServer) -> None:
    """The run dies with its initdb at several moments; the next one makes the cluster anew."""
    for moment_s in (0, 0.05, 0.1, 0.2):
        command = [sys.executable, "-c", INITIALISE, str(server.base)]
        run = subprocess.Popen(command, cwd=CHECKOUT, start_new_session=True)
        eventually(lambda: list(server.base.glob("data.*/*")))
        time.sleep(moment_s)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait(10)
        if server.exists():  # A fast machine.
            break
    is_new = not server.exists()
    assert bring_up(server) == (is_new, True)
    assert value(server, "SELECT 1") == 1
    assert [path.name for path in server.base.glob("data*")] == ["data"]


def test_foreign_data_folder_is_not_touched(server: EmbeddedServer) -> None:
    server.data.mkdir(parents=True)
    (server.data / "mine.txt").write_text("mine")
    with pytest.raises(LabError, match="holds no PostgreSQL cluster: move it away"):
        bring_up(server)
    assert (server.data / "mine.txt").read_text() == "mine"


def test_changed_settings_restart_the_server_and_keep_the_data(server: EmbeddedServer) -> None:
    bring_up(server)
    execute(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    other = replace(server, settings={"shared_buffers": "24MB", "work_mem": "5MB"})
    assert bring_up(other) == (False, True)
    assert value(other, "SHOW shared_buffers") == "24MB"
    assert value(other, "SHOW work_mem") == "5MB"
    assert value(other, "SELECT answer FROM kept") == 42
    assert bring_up(other) == (False, False)


def test_changed_port_moves_the_server(server: EmbeddedServer) -> None:
    bring_up(server)
    moved = replace(server, port=server.port + 1)
    assert bring_up(moved) == (False, True)
    assert moved.listening_port() == moved.port
    assert not is_listening(server.port)
    assert value(moved, "SELECT 1") == 1


def test_setting_with_a_quote_and_a_backslash_arrives_whole(server: EmbeddedServer) -> None:
    odd = replace(server, settings={"cluster_name": r"it's a \ test"})
    bring_up(odd)
    assert value(odd, "SHOW cluster_name") == r"it's a \ test"


def test_stop_is_clean_and_says_whether_anything_ran(server: EmbeddedServer) -> None:
    bring_up(server)
    assert server.stop()
    assert not server.processes()
    assert "database system is shut down" in server.log.read_text().splitlines()[-1]
    assert not server.stop()


@pytest.mark.parametrize("which", ["postmaster", "every process"])
def test_stop_ends_a_server_that_was_paused(server: EmbeddedServer, which: str) -> None:
    bring_up(server)
    postmaster = server.postmaster()
    assert postmaster
    for process in [postmaster] if which == "postmaster" else server.processes():
        process.suspend()
    started = time.monotonic()
    assert server.stop(timeout_s=20)
    assert time.monotonic() - started < 20
    assert not server.processes()
    assert "database system is shut down" in server.log.read_text().splitlines()[-1]


def test_stop_ends_orphans_too(server: EmbeddedServer) -> None:
    bring_up(server)
    children = [p for p in server.processes() if p != server.postmaster()]
    for process in children:
        process.suspend()  # So that they cannot notice.
    kill(server)
    assert server.processes()
    assert server.stop(timeout_s=5)
    assert not server.processes()
    assert not any(is_alive(process) for process in children)


def test_remove_leaves_nothing(server: EmbeddedServer) -> None:
    bring_up(server)
    processes = server.processes()
    assert server.remove()
    assert not server.base.exists()
    assert not any(is_alive(process) for process in processes)
    assert not is_listening(server.port)
    assert not server.remove()


def test_bad_setting_is_told_as_the_server_tells_it(server: EmbeddedServer) -> None:
    bring_up(server)
    bad = replace(server, settings={"shared_buffers": "lots"})
    with pytest.raises(LabError, match="does not start") as caught:
        bring_up(bad)
    message = str(caught.value)
    assert 'invalid value for parameter "shared_buffers": "lots"' in message
    assert "\n" not in message
    assert not bad.processes()
    assert bring_up(server) == (False, True)


def test_taken_port_is_told_as_the_server_tells_it(server: EmbeddedServer) -> None:
    bring_up(server)
    second = replace(server, base=server.base.with_name("second"))
    try:
        with pytest.raises(LabError, match=r"FATAL:.*TCP/IP") as caught:
            bring_up(second)
        assert str(second.base) in str(caught.value)
        assert not second.processes()
    finally:
        second.remove()


def test_folder_with_a_space_below_one_that_only_its_owner_enters(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    private = tmp_path / "only mine"
    private.mkdir(mode=0o700)
    inside = replace(server, base=private / "it's a lab" / "node")
    try:
        assert bring_up(inside) == (True, True)
        assert value(inside, "SELECT 1") == 1
        kill(inside)
        assert bring_up(inside) == (False, True)
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        inside.remove()


def test_path_longer_than_a_sockets_may_be(server: EmbeddedServer, tmp_path: Path) -> None:
    deep = replace(server, base=tmp_path / ("d" * 100) / ("e" * 100) / "node")
    try:
        assert bring_up(deep) == (True, True)
        assert value(deep, "SELECT 1") == 1
    finally:
        deep.remove()


def test_second_server_on_one_data_directory_is_refused(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    bring_up(server)
    rival = replace(server, base=tmp_path / "rival", port=server.port + 1)
    rival.base.mkdir()
    for path, text in rival.configuration().items():
        path.write_text(text.replace(str(rival.data), str(server.data)))
    program = [*embedded.run_as(), str(server.bin_dir / "postgres")]
    done = subprocess.run(
        [*program, "-c", f"config_file={rival.base / 'postgresql.conf'}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert 'lock file "postmaster.pid" already exists' in done.stderr
    assert not is_listening(rival.port)
    assert value(server, "SELECT 1") == 1


def test_two_runs_at_once_take_turns(server: EmbeddedServer) -> None:
    results: list[tuple[bool, bool]] = []
    runs = [threading.Thread(target=lambda: results.append(bring_up(server))) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert sorted(results) == [(False, False), (False, False), (True, True)]


def test_lock_that_is_not_let_go_is_named(server: EmbeddedServer) -> None:
    with (
        server.locked(),
        pytest.raises(LabError, match="another run of this lab") as caught,
        server.locked(timeout_s=0.2),
    ):
        pass
    assert str(server.base) in str(caught.value)


# -- the programs ------------------------------------------------------------------------------


def fake_bin_dir(folder: Path, says: str, status: int = 0) -> Path:
    folder.mkdir()
    (folder / "postgres").write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    (folder / "postgres").chmod(0o755)
    return folder


def test_the_wheels_server_is_found_and_new_enough() -> None:
    found = embedded.find_bin_dir()
    assert embedded.server_version(found)[0] >= embedded.MINIMUM_MAJOR
    assert (found / "initdb").exists()


def test_old_server_is_refused_with_both_versions(tmp_path: Path) -> None:
    folder = fake_bin_dir(tmp_path / "bin", "postgres (PostgreSQL) 14.9")
    with pytest.raises(LabError, match=r"PostgreSQL 14 .* needs 15 or newer") as caught:
        embedded.find_bin_dir(str(folder))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("says", ["postgres (PostgreSQL) 15.0", "postgres (PostgreSQL) 18beta1"])
def test_new_enough_server_is_taken(tmp_path: Path, says: str) -> None:
    folder = fake_bin_dir(tmp_path / "bin", says)
    assert embedded.find_bin_dir(str(folder)) == folder


def test_folder_without_postgres_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no program named postgres") as caught:
        embedded.find_bin_dir(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_postgres_that_does_not_run_is_named(tmp_path: Path) -> None:
    folder = fake_bin_dir(tmp_path / "bin", "", status=127)
    with pytest.raises(LabError, match="does not run") as caught:
        embedded.find_bin_dir(str(folder))
    assert str(folder) in str(caught.value)
