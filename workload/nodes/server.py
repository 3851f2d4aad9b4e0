"""A node's server and files as drills see them, whichever runtime it is in.

Everything that is done to a data directory is a shell script with PostgreSQL's programs on its path
and PGDATA set, run as the server's own user: below the state folder, or in a container that has the
node's volume. So a standby is seeded, fenced and rewound by the same lines in both runtimes.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import docker.errors

from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.docker import Engine
from workload.nodes.embedded import EmbeddedServer, last_line, run_as
from workload.topology import Topology

#: Seconds for one script; a base backup of the largest lab takes a tenth of it.
SCRIPT_TIMEOUT_S = 600
#: Where a script in a container finds its standard input: the API has no simple way to send one.
STDIN = "/tmp/lab-stdin"


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
    def start(self, timeout_s: float) -> None:
        """Start the server as it was last configured; raises LabError where it does not start."""

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

    def start(self, timeout_s: float) -> None:
        """Start the process with the configuration beside the data directory."""
        with self.server.locked():
            self.server.start(timeout_s)

    def run(
        self, script: str, environ: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> bytes:
        """Run a script as the user that PostgreSQL agrees to run as."""
        self.server.base.mkdir(parents=True, exist_ok=True, mode=0o700)
        done = subprocess.run(
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
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace")
            raise LabError(f"{self.place.node}: {last_line(said)}")
        return done.stdout

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

    def start(self, timeout_s: float) -> None:
        """Start the container that the node role made."""
        try:
            self.engine.client.containers.get(self.place.container).start()
        except docker.errors.DockerException as error:
            raise LabError(f"container {self.place.container} does not start: {error}") from error

    def run(
        self, script: str, environ: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> bytes:
        """Run a script as postgres in a container of its own that has the node's volume."""
        client = self.engine.client
        labels = self.place.lab.node_labels(self.place.node)
        client.volumes.create(self.place.container, labels=labels)
        container = client.containers.create(
            self.place.image,
            ["-eu", "-c", f"exec <{STDIN}\n{script}" if stdin else script],
            entrypoint="/bin/sh",
            user="postgres",
            environment=dict(environ or {}),
            volumes=[f"{self.place.container}:/var/lib/postgresql/data"],
            network=self.place.network,
            labels=labels,
        )
        try:
            if stdin:
                container.put_archive("/", archive(STDIN, stdin))
            container.start()
            status = container.wait(timeout=SCRIPT_TIMEOUT_S)["StatusCode"]
            said: bytes = container.logs(stdout=True, stderr=False)
            if status:
                complaint = container.logs(stdout=False, stderr=True) or said
                raise LabError(
                    f"{self.place.node}: {last_line(complaint.decode(errors='replace'))}"
                )
            return said
        finally:
            container.remove(force=True)

    def log_file(self) -> Path | None:
        """Return nothing: the engine has the log."""
        return None

    def log_bytes(self) -> bytes | None:
        """Ask the engine for what the container has said."""
        try:
            said: bytes = self.engine.client.containers.get(self.place.container).logs()
        except docker.errors.NotFound:
            return None
        except docker.errors.APIError as error:
            raise LabError(f"{self.place.node}: its log cannot be read: {error}") from error
        return said


def archive(path: str, content: bytes) -> bytes:
    """Return a tar archive with one file that all may read."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.size, entry.mode = len(content), 0o644
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
