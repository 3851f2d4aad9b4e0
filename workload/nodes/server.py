"""A node's server and files as drills see them, whichever runtime it is in.

Everything that is done to a data directory is a shell script with PostgreSQL's programs on its path
and PGDATA set, run as the server's own user: below the state folder, or in a container that has the
node's volume. So a standby is seeded, fenced and rewound by the same lines in both runtimes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker.errors
from docker.models.containers import Container

from workload.errors import LabError, WrongPasswordError
from workload.lab import Lab
from workload.nodes import identity
from workload.nodes.docker import LABEL_SCRIPT, Engine, Layout
from workload.nodes.embedded import (
    EmbeddedServer,
    fatal_line,
    last_line,
    quoted,
    run_as,
    system_identifier,
)
from workload.nodes.settings import arguments as settings_arguments
from workload.nodes.settings import merged
from workload.sql import Login, connect
from workload.topology import Topology

#: Seconds for one script; a base backup of the largest lab takes a tenth of it.
SCRIPT_TIMEOUT_S = 600
#: Where a script in a container finds its standard input: the API has no simple way to send one.
STDIN = "/tmp/lab-stdin"

#: In a container nobody else is on the socket or on loopback; the health check goes there.
HBA = """\
# Written by the lab; the same on every node, since a base backup brings the primary's.
local all         all              trust
host  all         all 127.0.0.1/32 trust
host  all         all ::1/128      trust
host  all         all all          scram-sha-256
host  replication all all          scram-sha-256
"""

# Input: the superuser's password. PGDATA cannot be renamed where it is a volume's mount point; so
# initdb works inside it, and PG_VERSION, which marks a whole cluster, moves last. The lock is for
# the script of a killed run, which the engine lets run to its end.
#
# The server checks its settings and loads its libraries for the sake of a value that it computes
# from them, and needs no more of a data directory for that than its version and control file.
PREPARE = r"""
mkdir -p "$PGDATA"
exec 8<"$PGDATA"
flock 8
if ! [ -e "$PGDATA/PG_VERSION" ]; then
  cd "$PGDATA"
  find . -mindepth 1 -delete
  chmod 0700 .
  initdb --pgdata=.incoming --pwfile=/dev/stdin --username=postgres --auth=scram-sha-256 \
    --data-checksums >/dev/null
  cd .incoming
  find . -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv {} .. \;
  mv PG_VERSION ..
  cd ..
  rmdir .incoming
  echo created
fi
scratch=$(mktemp -d)
mkdir "$scratch/global"
cp "$PGDATA/PG_VERSION" "$scratch"
cp "$PGDATA/global/pg_control" "$scratch/global"
printf '%s' "$CONF" >"$scratch/postgresql.conf"
: >"$scratch/postgresql.auto.conf"
postgres -C shared_memory_size -D "$scratch" >/dev/null
printf '%s' "$HBA" | cmp -s - "$PGDATA/pg_hba.conf" || printf '%s' "$HBA" >"$PGDATA/pg_hba.conf"
"""


@dataclass(frozen=True)
class Place:
    """Where a node stands, as the inventory and preflight say."""

    lab: Lab
    runtime: str
    node: str
    host: str
    port: int
    container: str
    network: str
    image: str
    bin_dir: str


class NodeServer(ABC):
    """A node's server process and data directory."""

    def __init__(self, place: Place) -> None:
        """Remember where the node stands."""
        self.place = place

    @abstractmethod
    def address_for_peers(self) -> tuple[str, int]:
        """Return host and port by which the lab's other nodes in its region reach it."""

    @abstractmethod
    def is_running(self) -> bool:
        """Tell whether any of its processes is left, be it stopped by a signal."""

    @abstractmethod
    def kill(self) -> None:
        """End all its processes at once, and return when they are gone."""

    @abstractmethod
    def run(
        self, script: str, environ: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> bytes:
        """Run a script on the data directory and return its output.

        In Docker a byte of it that is not UTF-8 is lost. Raises LabError with what it said last.
        """

    @abstractmethod
    def log_file(self) -> Path | None:
        """Return the server's log where scripts can read it as a file, None elsewhere."""

    @abstractmethod
    def log_bytes(self) -> bytes | None:
        """Return all of the server's log that there is, None where nothing has kept one."""

    def shell(self, script: str, environ: Mapping[str, str] | None = None) -> str:
        """Run a script on the data directory; raises LabError with what it said last."""
        return self.run(script, environ).decode(errors="replace")

    @abstractmethod
    def identity(self) -> int | None:
        """Return PostgreSQL's system identifier of the data directory, None where it is empty."""

    def has_data(self) -> bool:
        """Tell whether the data directory holds a whole cluster."""
        return self.shell('if [ -e "$PGDATA/PG_VERSION" ]; then echo yes; fi').strip() == "yes"


class EmbeddedNode(NodeServer):
    """A server process below the state folder."""

    @property
    def server(self) -> EmbeddedServer:
        """The process."""
        base = self.place.lab.node_dir(self.place.node)
        return EmbeddedServer(base, port=self.place.port, bin_dir=Path(self.place.bin_dir))

    def address_for_peers(self) -> tuple[str, int]:
        """Return the address that everyone uses."""
        return self.place.host, self.place.port

    def is_running(self) -> bool:
        """Look for processes in the data directory."""
        return bool(self.server.processes())

    def kill(self) -> None:
        """SIGKILL every process in the data directory; one that is stopped dies too."""
        self.server.kill()

    def run(
        self, script: str, environ: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> bytes:
        """Run a script as the user that PostgreSQL agrees to run as."""
        self.server.base.mkdir(parents=True, exist_ok=True, mode=0o700)
        process = subprocess.run(
            [*run_as(), "/bin/sh", "-eu", "-c", script],
            env={
                **os.environ,
                "PATH": f"{self.place.bin_dir}:{os.environ.get('PATH', '/usr/bin:/bin')}",
                "PGDATA": str(self.server.data),
                **(environ or {}),
            },
            input=stdin,
            capture_output=True,
            check=False,
            timeout=SCRIPT_TIMEOUT_S,
        )
        if process.returncode:
            output = (process.stderr or process.stdout).decode(errors="replace")
            raise LabError(f"{self.place.node}: {last_line(output)}")
        return process.stdout

    def identity(self) -> int | None:
        """Read the control file."""
        return self.server.identity()

    def log_file(self) -> Path | None:
        """Return the log beside the data directory."""
        return self.server.log if self.server.log.exists() else None

    def log_bytes(self) -> bytes | None:
        """Read the log beside the data directory."""
        path = self.log_file()
        return None if path is None else path.read_bytes()


class DockerNode(NodeServer):
    """A container and its volume."""

    def __init__(self, place: Place) -> None:
        """Connect to the engine; raises LabError where none answers."""
        super().__init__(place)
        self.engine = Engine(timeout_s=SCRIPT_TIMEOUT_S)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the image keeps its data."""
        return self.engine.layout(self.place.image)

    def address_for_peers(self) -> tuple[str, int]:
        """Return the container's name on the lab's network."""
        return self.place.container, 5432

    def is_running(self) -> bool:
        """Ask for the container's state."""
        with contextlib.suppress(docker.errors.NotFound):
            state = self.engine.client.containers.get(self.place.container).attrs["State"]
            return bool(state["Running"])
        return False

    def kill(self) -> None:
        """SIGKILL the container; one that is paused is woken by that."""
        with contextlib.suppress(docker.errors.NotFound):
            container = self.engine.client.containers.get(self.place.container)
            for step in (container.unpause, container.kill):
                with contextlib.suppress(docker.errors.APIError):  # It is not paused; not running.
                    step()
            container.wait(condition="not-running")

    def run(
        self, script: str, environ: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> bytes:
        """Run a script as postgres in a container of its own that has the node's volume."""
        container = self._throw_away(f"exec <{STDIN}\n{script}" if stdin else script, environ)
        try:
            if stdin:
                container.put_archive("/", archive(STDIN, stdin))
            container.start()
            status = container.wait(timeout=SCRIPT_TIMEOUT_S)["StatusCode"]
            output: bytes = container.logs(stdout=True, stderr=False)
            if status:
                complaint = container.logs(stdout=False, stderr=True) or output
                raise LabError(
                    f"{self.place.node}: {fatal_line(complaint.decode(errors='replace'))}"
                )
            return output
        finally:
            container.remove(force=True, v=True)

    def _throw_away(self, script: str, environ: Mapping[str, str] | None = None) -> Container:
        labels = self.place.lab.node_labels(self.place.node)
        self.engine.client.volumes.create(self.place.container, labels=labels)
        return self.engine.client.containers.create(
            self.place.image,
            ["-eu", "-c", script],
            entrypoint="/bin/sh",
            user="postgres",
            environment=dict(environ or {}),
            volumes=[f"{self.place.container}:{self.layout.mount}"],
            network=self.place.network,
            labels={**labels, LABEL_SCRIPT: "yes"},
        )

    def prepare(
        self, password: str, settings: Mapping[str, object], dry_run: bool = False
    ) -> dict[str, Any]:
        """Make the data directory where there is none, and have the server accept its settings.

        Only where the container is missing or would be replaced; a running one is not touched.
        Returns command and mount, with which the container is to run, and changed. Raises LabError
        with what the server says of a setting.
        """
        command = ["postgres", "-c", "listen_addresses=*", *settings_arguments(settings)]
        result = {"command": command, "mount": self.layout.mount, "changed": False}
        if dry_run or self._runs(command):
            return result
        conf = "".join(f"{name} = {quoted(value)}\n" for name, value in merged(settings).items())
        # The image may have come after preflight, which could not look into the volume then.
        identity.check(self.place.lab, self.place.node, self.identity())
        environ = {"CONF": conf, "HBA": HBA}
        output = self.run(PREPARE, environ, f"{password}\n".encode())
        return {**result, "changed": output.strip() == b"created"}

    def _runs(self, command: list[str]) -> bool:
        try:
            attributes = self.engine.client.containers.get(self.place.container).attrs
        except docker.errors.NotFound:
            return False
        image = self.engine.client.images.get(self.place.image)
        return bool(attributes["Config"]["Cmd"] == command and attributes["Image"] == image.id)

    def await_login(self, login: Login, timeout_s: float) -> None:
        """Wait until the server takes logins; raises LabError, at once where the container ended.

        The message is the last line of its log, then.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                connect(login).close()
                return
            except WrongPasswordError:
                raise
            except LabError as error:
                if not self.is_running():
                    log = (self.log_bytes() or b"").decode(errors="replace")
                    raise LabError(
                        f"container {self.place.container} ended: {fatal_line(log)}"
                    ) from None
                if time.monotonic() > deadline:
                    raise LabError(f"{error} (after {timeout_s:.0f} s)") from None
                time.sleep(0.05)

    def identity(self) -> int | None:
        """Read the control file through the engine; no process is started for it."""
        containers = self.engine.client.containers
        own = None
        try:
            container = containers.get(self.place.container)
        except docker.errors.NotFound:
            if not self.engine.has_volume(self.place.container):
                return None
            container = own = self._throw_away("")
        try:
            chunks, _ = container.get_archive(f"{self.layout.data}/global/pg_control")
            packed = io.BytesIO(b"".join(chunks))
        except docker.errors.NotFound:
            return None
        finally:
            if own is not None:
                own.remove(v=True)
        with tarfile.open(fileobj=packed) as tar:
            file = tar.extractfile(tar.next() or "")
            return system_identifier(file.read() if file else b"")

    def log_file(self) -> Path | None:
        """Return nothing: the engine has the log."""
        return None

    def log_bytes(self) -> bytes | None:
        """Ask the engine for what the container has said."""
        try:
            output: bytes = self.engine.client.containers.get(self.place.container).logs()
        except docker.errors.NotFound:
            return None
        except docker.errors.APIError as error:
            raise LabError(f"{self.place.node}: its log cannot be read: {error}") from error
        return output


def archive(path: str, content: bytes, mode: int = 0o644) -> bytes:
    """Return a tar archive with one file, which all may read."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.size, entry.mode = len(content), mode
        tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def node_server(place: Place) -> NodeServer:
    """Return a node's server in the lab's runtime."""
    return DockerNode(place) if place.runtime == "docker" else EmbeddedNode(place)


def server_of(topology: Topology, name: str) -> NodeServer:
    """Return a node's server process and data directory."""
    node = topology.nodes[name]
    return node_server(
        Place(
            lab=topology.lab,
            runtime=topology.runtime,
            node=name,
            host=node["host"],
            port=int(node["port"]),
            container=node["container"],
            network=topology.servers["network"],
            image=topology.servers["image"],
            bin_dir=topology.servers["bin_dir"],
        )
    )
