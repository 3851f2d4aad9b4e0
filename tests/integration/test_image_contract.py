"""The contract of the official PostgreSQL image, as far as the lab leans on it.

LAB_TEST_IMAGE names the image. Nothing here is true of the stand-in only, so that a run with
LAB_TEST_IMAGE=postgres:17 tells whether the stand-in still resembles the original.
"""

from __future__ import annotations

import gzip
import lzma
from typing import NamedTuple

import docker
import pytest
from docker.models.containers import Container

from tests.fixtures.docker import IMAGE, Containers, File, eventually, exit_status, log, run

pytestmark = [pytest.mark.docker, pytest.mark.soak]

PGDATA = "/var/lib/postgresql/data"
WAL = "/var/lib/postgresql/wal"
INIT = "/docker-entrypoint-initdb.d"
SECRETS = "/run/lab-secrets"
ENTRYPOINT = "docker-entrypoint.sh"
PASSWORD = "pass word's"


def _note(step: str) -> str:
    return f"INSERT INTO trace (step) VALUES ('{step}');\n"


def _zstd(text: str) -> bytes:
    """Wrap a short text in a zstd frame without compressing it (the format allows that)."""
    data = text.encode()
    block = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x20" + bytes([len(data)]) + block + data


_NOTE_WHO_RUNS = """\
psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --quiet \
  --command "INSERT INTO trace (step) VALUES ('shell: $(basename "$0")')"
"""

# In the order of en_US: byte by byte, B would come before the table is there.
INIT_FILES = {
    f"{INIT}/a.sql": File(
        "CREATE TABLE trace (id int GENERATED ALWAYS AS IDENTITY, step text);\n" + _note("sql")
    ),
    f"{INIT}/B.sql.gz": File(gzip.compress(_note("gz").encode())),
    f"{INIT}/c.sql.xz": File(lzma.compress(_note("xz").encode())),
    f"{INIT}/D.sql.zst": File(_zstd(_note("zst"))),
    f"{INIT}/e.sh": File(_NOTE_WHO_RUNS),
    f"{INIT}/F.sh": File("#!/bin/sh\n" + _NOTE_WHO_RUNS, mode=0o755),
    f"{INIT}/g.txt": File("no kind that is known"),
    # Holds the first start back until the test has looked.
    f"{INIT}/z.sh": File(
        "#!/bin/sh\ntouch /tmp/at-gate\nuntil [ -e /tmp/go ]; do sleep 0.05; done\n", mode=0o755
    ),
}
TRACE = ["sql", "gz", "xz", "zst", f"shell: {ENTRYPOINT}", "shell: F.sh"]

# Root's alone: whoever reads them must do it before becoming somebody else.
SECRET_FILES = {
    f"{SECRETS}/user": File("lab\n", mode=0o600),
    f"{SECRETS}/password": File(f"{PASSWORD}\n", mode=0o600),
    f"{SECRETS}/db": File("Geo\n", mode=0o600),
    f"{SECRETS}/args": File("--data-checksums --set 'cluster_name=two words'\n", mode=0o600),
}


class Served(NamedTuple):
    """A container that went through its first start, and how it looked half-way."""

    container: Container
    socket_during_init: bool
    tcp_during_init: bool


def _accepts(container: Container, host: str = "127.0.0.1") -> bool:
    return run(container, "pg_isready", "--quiet", f"--host={host}").status == 0


def _query(container: Container, sql: str, user: str = "lab", db: str = "Geo") -> list[str]:
    command = ("psql", "-XAtw", f"--username={user}", f"--dbname={db}", f"--command={sql}")
    status, output = run(container, *command)
    assert status == 0, output
    return output.splitlines()


def _first_process(container: Container) -> dict[str, str]:
    status, output = run(container, "cat", "/proc/1/status")
    assert status == 0, output
    fields = (line.partition(":") for line in output.splitlines())
    return {name: value.strip() for name, _, value in fields}


def _network_rules(container: Container) -> list[str]:
    status, output = run(
        container, "grep", "-E", r"^host\s+all\s+all\s+all\s", f"{PGDATA}/pg_hba.conf"
    )
    assert status == 0, output
    return [" ".join(line.split()) for line in output.splitlines()]


@pytest.fixture(scope="module")
def idle(containers: Containers) -> Container:
    """Start a container that runs no server, to look around in."""
    return containers.start(["sleep", "600"])


@pytest.fixture(scope="module")
def served(containers: Containers) -> Served:
    """Start a server with everything that a first start can be told."""
    container = containers.start(
        ["-c", "max_connections=37"],
        env={
            "POSTGRES_USER_FILE": f"{SECRETS}/user",
            "POSTGRES_PASSWORD_FILE": f"{SECRETS}/password",
            "POSTGRES_DB_FILE": f"{SECRETS}/db",
            "POSTGRES_INITDB_ARGS_FILE": f"{SECRETS}/args",
            "POSTGRES_INITDB_WALDIR": WAL,
        },
        files=INIT_FILES | SECRET_FILES,
    )

    def at_gate() -> bool:
        container.reload()
        assert container.status == "running", log(container)
        return run(container, "test", "-e", "/tmp/at-gate").status == 0

    eventually(at_gate, "the last init script runs")
    by_socket = _accepts(container, "/var/run/postgresql")
    by_tcp = _accepts(container)
    run(container, "touch", "/tmp/go")
    eventually(lambda: _accepts(container), "the server takes TCP connections")
    return Served(container, by_socket, by_tcp)


def test_image_settings(docker_client: docker.DockerClient) -> None:
    config = docker_client.images.get(IMAGE).attrs["Config"]
    env = dict(entry.split("=", 1) for entry in config["Env"])
    assert config["Entrypoint"] == [ENTRYPOINT]
    assert config["Cmd"] == ["postgres"]
    assert config["StopSignal"] == "SIGINT"
    assert not config.get("Healthcheck")
    assert not config["User"]
    assert list(config["Volumes"]) == [PGDATA]
    assert list(config["ExposedPorts"]) == ["5432/tcp"]
    assert env["PG_MAJOR"] == "17"
    assert env["PG_VERSION"].startswith("17.")
    assert env["PGDATA"] == PGDATA
    assert env["LANG"] == "en_US.utf8"
    assert "/usr/lib/postgresql/17/bin" in env["PATH"].split(":")


def test_any_other_command_runs_as_it_is(idle: Container) -> None:
    process = _first_process(idle)
    assert process["Name"] == "sleep"
    assert process["Uid"].split()[0] == "0"
    assert run(idle, "ls", "-A", PGDATA).output == ""


def test_files_and_owners(idle: Container) -> None:
    account = run(idle, "getent", "passwd", "postgres").output.split(":")
    assert account[2:4] == ["999", "999"]
    assert account[5] == "/var/lib/postgresql"
    assert run(idle, "getent", "group", "postgres").output.split(":")[2] == "999"
    assert run(idle, "stat", "-c", "%u:%g %a", PGDATA).output == "999:999 1777"
    assert run(idle, "stat", "-c", "%u:%g", "/var/run/postgresql").output == "999:999"
    assert run(idle, "sh", "-c", "ls -A /etc/postgresql 2>/dev/null").output == ""
    assert "en_US.utf8" in run(idle, "locale", "-a").output.splitlines()
    sample = run(idle, "cat", "/usr/share/postgresql/17/postgresql.conf.sample").output
    assert "\nlisten_addresses = '*'" in sample


@pytest.mark.parametrize("command", [["postgres", "--version"], ["--version"]])
def test_a_question_needs_no_password(idle: Container, command: list[str]) -> None:
    status, output = run(idle, ENTRYPOINT, *command)
    assert (status, output.split()[:2]) == (0, ["postgres", "(PostgreSQL)"])


@pytest.mark.parametrize("name", ["USER", "PASSWORD", "DB", "INITDB_ARGS"])
def test_variable_and_file_together_are_an_error(idle: Container, name: str) -> None:
    variable = f"POSTGRES_{name}"
    status, output = run(
        idle, ENTRYPOINT, "postgres", env={variable: "x", f"{variable}_FILE": "/etc/hostname"}
    )
    assert status == 1
    assert f"both {variable} and {variable}_FILE are set" in output


def test_no_password_is_an_error(containers: Containers) -> None:
    container = containers.start()
    assert exit_status(container) == 1
    assert "POSTGRES_PASSWORD" in log(container)
    assert "POSTGRES_HOST_AUTH_METHOD=trust" in log(container)


def test_server_is_the_first_process_and_has_its_arguments(served: Served) -> None:
    process = _first_process(served.container)
    assert process["Name"] == "postgres"
    assert set(process["Uid"].split()) == set(process["Gid"].split()) == {"999"}
    assert process["CapEff"].strip("0") == ""
    assert _query(served.container, "SHOW max_connections") == ["37"]
    assert run(served.container, "stat", "-c", "%u:%g %a", PGDATA).output == "999:999 700"


def test_no_tcp_before_the_init_scripts_are_done(served: Served) -> None:
    assert served.socket_during_init
    assert not served.tcp_during_init


def test_init_scripts_run_in_locale_order(served: Served) -> None:
    assert _query(served.container, "SELECT step FROM trace ORDER BY id") == TRACE
    assert f"ignoring {INIT}/g.txt" in log(served.container)


def test_user_database_and_initdb_arguments(served: Served) -> None:
    roles = "SELECT rolname, rolsuper FROM pg_roles WHERE rolname !~ '^pg_'"
    assert _query(served.container, roles) == ["lab|t"]
    databases = "SELECT datname, datcollate FROM pg_database WHERE NOT datistemplate ORDER BY 1"
    assert _query(served.container, databases) == ["Geo|en_US.utf8", "postgres|en_US.utf8"]
    assert _query(served.container, "SHOW data_checksums") == ["on"]
    assert _query(served.container, "SHOW cluster_name") == ["two words"]
    assert run(served.container, "readlink", f"{PGDATA}/pg_wal").output == WAL


def test_password_is_asked_for_from_outside_only(served: Served) -> None:
    assert _network_rules(served.container) == ["host all all all scram-sha-256"]
    login = 'psql -XAtw -U lab -d Geo -c "SELECT 1" -h '
    # The address that others reach is the one without a "trust" line.
    outside = login + '"$(hostname -i)"'
    right = run(served.container, "sh", "-c", outside, env={"PGPASSWORD": PASSWORD})
    assert right == (0, "1")
    wrong = run(served.container, "sh", "-c", outside, env={"PGPASSWORD": "wrong"})
    assert wrong.status != 0
    assert "password authentication failed" in wrong.output
    assert run(served.container, "sh", "-c", login + "127.0.0.1") == (0, "1")


def test_stop_is_clean_and_a_restart_skips_the_init(served: Served) -> None:
    container = served.container
    container.stop(timeout=20)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0
    assert "received fast shutdown request" in log(container).rsplit("listening on", 1)[1]
    before = len(log(container))
    container.start()
    eventually(lambda: _accepts(container), "the server takes TCP connections again")
    assert "skipping initialization" in log(container)[before:].lower()
    assert _query(container, "SELECT step FROM trace ORDER BY id") == TRACE
    assert len(_network_rules(container)) == 1


def test_failing_init_script_ends_the_start(containers: Containers) -> None:
    container = containers.start(
        # A user id without a name, too: it may start a server in a directory of its own.
        user="12345",
        env={"POSTGRES_HOST_AUTH_METHOD": "trust", "PGDATA": f"{PGDATA}/own"},
        files={
            f"{INIT}/1.sql": File("SELECT 1/0;\nSELECT 'went on in the file';\n"),
            f"{INIT}/2.sh": File("echo went on with the next file\n"),
        },
    )
    assert exit_status(container) not in (0, 1)
    assert "division by zero" in log(container)
    assert "went on" not in log(container)


def test_hardened_start_on_an_empty_volume(containers: Containers) -> None:
    container = containers.start(
        ["postgres", "-c", "password_encryption=md5"],
        env={"POSTGRES_PASSWORD": PASSWORD},
        user="999:999",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        read_only=True,
        tmpfs={"/run/postgresql": "uid=999,gid=999,mode=3775", "/tmp": ""},
        volumes={containers.volume(): {"bind": PGDATA}},
        pids_limit=256,
        mem_limit="256m",
    )
    eventually(lambda: _accepts(container), "the server takes TCP connections")
    process = _first_process(container)
    assert (process["Name"], process["NoNewPrivs"]) == ("postgres", "1")
    assert process["CapEff"].strip("0") == ""
    assert _query(container, "SELECT current_user", "postgres", "postgres") == ["postgres"]
    # The rule follows the server's own options.
    assert _network_rules(container) == ["host all all all md5"]
