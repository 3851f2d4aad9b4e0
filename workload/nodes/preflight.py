"""Look at the machine before anything is changed: which runtime, and is the way free?"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from secrets import token_urlsafe
from typing import Any

import psutil

from workload.errors import LabError
from workload.lab import Lab, write_atomically
from workload.nodes import embedded
from workload.nodes.docker import Engine, Image
from workload.nodes.embedded import EmbeddedServer
from workload.topology import PHASES, Node
from workload.wan import control

RUNTIMES = ("auto", "docker", "embedded")
MINIMUM_MAJOR = embedded.MINIMUM_MAJOR


@dataclass(frozen=True)
class Machine:
    """What preflight found: the runtime, why, and what that runtime needs to know."""

    runtime: str
    why: str
    image: str
    image_present: bool
    bin_dir: str
    #: Nodes that stand already, whether or not their server runs now.
    existing: list[str]


def examine(
    lab: Lab, runtime: str, images: list[str], bin_dir: str, nodes: list[Node]
) -> dict[str, Any]:
    """Return a Machine as a dict, or raise LabError with the first thing in the way.

    Changes nothing. images are candidates for a container, best first; bin_dir is a folder with a
    user's own PostgreSQL, or "".
    """
    if runtime not in RUNTIMES:
        raise LabError(f"lab_runtime is '{runtime}': use one of {', '.join(RUNTIMES)}")
    check_home(lab)
    machine, engine = choose_runtime(lab, runtime, images, bin_dir)
    for node in nodes:
        if engine:
            engine.check_ownership(lab, node.container, node.container)
        if not _is_listening(lab, node, engine):
            check_port(node)
    return asdict(
        Machine(
            **machine,
            existing=[node.name for node in nodes if _exists(lab, node, engine)],
        )
    )


def check_road(lab: Lab, builds: str, needs: str, allows_fenced: bool) -> bool:
    """Return whether the lab is past the phase that a playbook builds, so that it has no work.

    builds and needs are phases, or "" for a drill and for the first. Raises LabError where the
    phase that it needs is not reached, or where it would start a node that a fail-over fenced.
    """
    phase = lab.read_phase()
    if phase is not None and phase not in PHASES:
        raise LabError(
            f"{lab.topology_file} has the phase '{phase}', which is not on the road: make teardown"
            " starts afresh"
        )
    reached = -1 if phase is None else PHASES.index(phase)
    if needs and reached < PHASES.index(needs):
        raise LabError(
            f"the lab is in phase {phase or '(none)'}, and this builds on {needs}: play"
            f" playbooks/{PHASES[reached + 1]}.yml first"
        )
    if builds and reached > PHASES.index(builds):
        return True
    fenced = [name for name, role in lab.read_roles().items() if role == "fenced"]
    if fenced and not allows_fenced:
        raise LabError(
            f"node {fenced[0]} is fenced since a fail-over: play playbooks/rejoin.yml first"
        )
    return False


def begin(lab: Lab, machine: Mapping[str, Any], secrets: list[str], dry_run: bool) -> bool:
    """Record the lab's name and what it runs on, make its network, and generate missing passwords.

    Returns whether anything was missing.
    """
    begun = {"name": lab.name, **{key: machine[key] for key in ("runtime", "image", "bin_dir")}}
    missing = [name for name in secrets if not lab.secret_file(name).exists()]
    changed = lab.read_state() != begun or bool(missing)
    if machine["runtime"] == "docker":
        changed |= Engine().have_network(lab, lab.network, dry_run)
    if changed and not dry_run:
        write_atomically(lab.home / "lab.json", json.dumps(begun) + "\n")
        for name in missing:
            write_atomically(lab.secret_file(name), token_urlsafe(24), mode=0o600)
    return changed


def revive_wan(lab: Lab, dry_run: bool) -> bool:
    """Start the relay of a lab that has a WAN and whose relay is dead; return whether it was.

    Raises LabError where one of its ports is taken.
    """
    return control.is_dead(lab) if dry_run else control.revive(lab)


def check_home(lab: Lab) -> None:
    """Raise LabError where the state folder cannot be written or is another lab's."""
    folder = lab.home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise LabError(f"state folder {lab.home}: {folder} is a file; set LAB_HOME to another one")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LabError(
            f"state folder {lab.home} is not writable ({error.strerror}): set LAB_HOME to one that"
            " is"
        ) from error
    name = lab.read_state().get("name", lab.name)
    if name != lab.name:
        raise LabError(
            f"state folder {lab.home} belongs to the lab '{name}', not '{lab.name}': set LAB_HOME"
            f" to another folder, or LAB_NAME={name}"
        )


def choose_runtime(
    lab: Lab, asked: str, images: list[str], bin_dir: str
) -> tuple[dict[str, Any], Engine | None]:
    """Return the choice and, for docker, the engine. A lab keeps the runtime it was begun with."""
    begun = lab.read_state().get("runtime")
    if begun and asked not in ("auto", begun):
        raise LabError(
            f"lab_runtime is '{asked}', but this lab was begun as '{begun}': make teardown first,"
            " or choose another LAB_NAME"
        )
    wanted = begun or asked
    why = f"this lab was begun so ({lab.home})" if begun else "asked for"
    if wanted in ("docker", "auto"):
        try:
            engine = Engine()
            image = _usable(engine.find_image(images))
        except LabError as error:
            if wanted == "docker":
                raise LabError(f"lab_runtime is 'docker', but {error}") from None
            why = str(error)
        else:
            if wanted == "auto":
                state = "is on this machine" if image.present else "can be pulled"
                why = f"a Docker engine answers and image {image.name} {state}"
            choice = {"image": image.name, "image_present": image.present, "bin_dir": ""}
            return {"runtime": "docker", "why": why, **choice}, engine
    found = embedded.find_bin_dir(bin_dir)
    embedded.run_as()
    choice = {"image": "", "image_present": False, "bin_dir": str(found)}
    return {"runtime": "embedded", "why": why, **choice}, None


def _usable(image: Image) -> Image:
    if image.postgres_major is not None and image.postgres_major < MINIMUM_MAJOR:
        raise LabError(
            f"image {image.name} holds PostgreSQL {image.postgres_major}: the lab needs"
            f" {MINIMUM_MAJOR} or newer; set lab_image to another one"
        )
    return image


def _exists(lab: Lab, node: Node, engine: Engine | None) -> bool:
    if engine is None:
        return EmbeddedServer(lab.node_dir(node.name)).exists()
    return bool(engine.client.containers.list(all=True, filters={"name": f"^/{node.container}$"}))


def _is_listening(lab: Lab, node: Node, engine: Engine | None) -> bool:
    if engine:
        return engine.publishes(node.container, node.port)
    server = EmbeddedServer(lab.node_dir(node.name))
    return server.postmaster() is not None and server.listening_port() == node.port


def check_port(node: Node) -> None:
    """Raise LabError where something else listens on a node's port."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, node.port)) == 0:
                raise LabError(
                    f"port {node.port}, which node {node.name} needs, is taken by"
                    f" {_listener(node.port)}: stop that, or set LAB_PORT_BASE"
                )


def _listener(port: int) -> str:
    # An ordinary user sees the owners of only its own sockets.
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "a process that this user may not look at" if os.geteuid() else "an unknown process"
