"""Check the machine before anything is changed, and choose the runtime."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import psutil

from workload.errors import LabError
from workload.lab import Lab, write_atomically
from workload.nodes import embedded, identity
from workload.nodes.docker import Engine, Image
from workload.nodes.embedded import EmbeddedServer
from workload.nodes.server import Place, node_server
from workload.topology import PHASES, Node
from workload.wan import control
from workload.wan.config import PORTS_PER_REGION

RUNTIMES = ("auto", "docker", "embedded")
MINIMUM_MAJOR = embedded.MINIMUM_MAJOR
OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


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
    lab: Lab,
    runtime: str,
    images: list[str],
    bin_dir: str,
    nodes: list[Node],
    start_empty: Collection[str] | None = (),
) -> dict[str, Any]:
    """Return a Machine as a dict, or raise LabError with the first thing in the way.

    Changes nothing. images are candidates for a container, best first; bin_dir is a folder with a
    user's own PostgreSQL, or "". start_empty: the nodes that may begin with nothing where they have
    lost their data; None for a drill, which deals with lost nodes itself.
    """
    if runtime not in RUNTIMES:
        raise LabError(f"lab_runtime is '{runtime}': use one of {', '.join(RUNTIMES)}")
    check_home(lab)
    machine, engine = choose_runtime(lab, runtime, images, bin_dir)
    for node in nodes:
        if engine:
            engine.check_ownership(lab, node.container, node.container)
            engine.check_major(node.container, machine["image"])
        else:
            check_embedded_address(node)
        if start_empty is not None:
            check_data(lab, node, machine, start_empty)
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
    phase that it needs is not reached, or where it would start a node that a failover fenced.
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
            f"node {fenced[0]} is fenced since a failover: play playbooks/rejoin.yml first"
        )
    return False


def check_data(
    lab: Lab, node: Node, machine: Mapping[str, Any], start_empty: Collection[str]
) -> None:
    """Raise LabError where a node does not have the data that it joined with."""
    is_absent = machine["runtime"] == "docker" and not machine["image_present"]
    if identity.recorded(lab.home, node.name) is None or is_absent:
        if node.name in start_empty:
            raise LabError(f"lab_start_empty names {node.name}, which has not lost any data")
        return
    place = Place(
        lab=lab,
        runtime=machine["runtime"],
        node=node.name,
        host=node.host,
        port=node.port,
        container=node.container,
        network="",
        image=machine["image"],
        bin_dir=machine["bin_dir"],
    )
    identity.check(lab, node.name, node_server(place).identity(), node.name in start_empty)


def check_embedded_address(node: Node) -> None:
    """Raise LabError for an address on which a server process does not listen."""
    if node.host not in ("127.0.0.1", "localhost"):
        raise LabError(
            f"lab_address is {node.host}, and server processes of the embedded runtime listen on"
            " 127.0.0.1 alone: use that, or LAB_RUNTIME=docker"
        )


def begin(lab: Lab, machine: Mapping[str, Any], secrets: list[str], dry_run: bool) -> bool:
    """Record the lab's name and what it runs on, make its network, and generate missing passwords.

    Returns whether anything was missing.
    """
    begun = {"name": lab.name, **{key: machine[key] for key in ("runtime", "image", "bin_dir")}}
    missing = [name for name in secrets if not lab.secret_file(name).exists()]
    changed = lab.read_state() != begun or bool(missing)
    if machine["runtime"] == "docker":
        changed |= Engine().ensure_network(lab, lab.network, dry_run)
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
    runtime = begun or asked
    why = f"this lab was begun so ({lab.home})" if begun else "asked for"
    if runtime in ("docker", "auto"):
        try:
            engine = Engine()
            image = _usable(engine, engine.find_image(images), is_new=not begun)
        except LabError as error:
            if runtime == "docker":
                raise LabError(f"lab_runtime is 'docker', but {error}") from None
            why = str(error)
        else:
            if runtime == "auto":
                state = "is on this machine" if image.present else "can be pulled"
                why = f"a Docker engine answers and image {image.name} {state}"
            choice = {"image": image.name, "image_present": image.present, "bin_dir": ""}
            return {"runtime": "docker", "why": why, **choice}, engine
    programs = embedded.find_bin_dir(bin_dir)
    embedded.run_as()
    choice = {"image": "", "image_present": False, "bin_dir": str(programs)}
    return {"runtime": "embedded", "why": why, **choice}, None


def _usable(engine: Engine, image: Image, is_new: bool) -> Image:
    if image.postgres_major is not None and image.postgres_major < MINIMUM_MAJOR:
        raise LabError(
            f"image {image.name} holds PostgreSQL {image.postgres_major}: the lab needs"
            f" {MINIMUM_MAJOR} or newer; set lab_image to another one"
        )
    if is_new and image.present:
        engine.check_image(image.name)
    return image


def _exists(lab: Lab, node: Node, engine: Engine | None) -> bool:
    if engine is None:
        return EmbeddedServer(lab.node_dir(node.name)).exists()
    return bool(engine.client.containers.list(all=True, filters={"name": f"^/{node.container}$"}))


def _is_listening(lab: Lab, node: Node, engine: Engine | None) -> bool:
    if engine:
        return engine.publishes(node.container, node.port)
    server = EmbeddedServer(lab.node_dir(node.name))
    if server.postmaster():
        return server.listening_port() == node.port
    # One whose data directory was removed under it is still its own.
    return not server.exists() and bool(server.processes())


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


def port_warning(nodes: list[Node], regions: int) -> str:
    """Return a warning where ports of the lab are in the kernel's range of outgoing ones, or "".

    regions: how many will have customers in the end; the WAN listens for each.
    """
    try:
        low, high = map(int, OUTGOING_PORTS.read_text().split())
    except (OSError, ValueError):
        return ""
    first = nodes[0].port - nodes[0].port_offset
    last = first + PORTS_PER_REGION * (1 + regions) - 1
    if last < low or first > high:
        return ""
    return (
        f"warning: the lab's ports, {first} to {last}, are among those that the kernel gives to"
        f" outgoing connections ({low} to {high}), any of which may hold one of them: a"
        f" LAB_PORT_BASE below {low - PORTS_PER_REGION * (1 + regions)} is safe"
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
