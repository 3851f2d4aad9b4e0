"""What the lab asks of a Docker engine; the node role makes the containers (community.docker)."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import docker
import docker.errors
import requests

from workload.errors import LabError
from workload.lab import LABEL_HOME, LABEL_NAME, Lab
from workload.processes import locked

#: An engine on this machine answers in milliseconds; a stale DOCKER_HOST never does.
ENGINE_TIMEOUT_S = 20
#: On the containers in which a script works on a node's data; a killed run leaves one behind.
LABEL_SCRIPT = "geo-sharding-lab.script"
#: The audit's scan and the copying of nodes need these of GNU.
TOOLS = r"""
{ find / -maxdepth 0 -ignore_readdir_race -printf '' && for tool in grep sed sort split xargs; do
  "$tool" --version | grep -q GNU; done && base64 --version && flock --version; } >/dev/null 2>&1
"""


@dataclass(frozen=True)
class Image:
    """An image by name; present is False for one that has to be pulled first."""

    name: str
    present: bool
    postgres_major: int | None


@dataclass(frozen=True)
class Layout:
    """Where an image keeps its data: the data directory, and where its volume is mounted."""

    data: str
    mount: str


class Engine:
    """A Docker engine that answered."""

    def __init__(self, timeout_s: int = ENGINE_TIMEOUT_S) -> None:
        """Connect as DOCKER_HOST says; raises LabError, with the reason, where none answers."""
        absent = ""
        with warnings.catch_warnings():
            # Where nobody listens, the SDK leaves its socket to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                self.client = docker.from_env(timeout=timeout_s)
                self.client.ping()
            except (docker.errors.DockerException, requests.RequestException) as error:
                absent = reason(error)
            if absent:
                gc.collect()
        if absent:
            raise LabError(f"no Docker engine answers ({absent})")

    def find_image(self, candidates: Sequence[str]) -> Image:
        """Return the first image that is here, else the first that its registry has.

        Raises LabError, naming make image, where there is neither.
        """
        for name in candidates:
            try:
                config = self.client.images.get(name).attrs["Config"]
            except docker.errors.ImageNotFound:
                continue
            return Image(name, True, _major(config.get("Env") or []))
        why = ""
        for name in candidates:
            try:
                self.client.images.get_registry_data(name)
                return Image(name, False, None)
            except (docker.errors.DockerException, requests.RequestException) as error:
                why = why or reason(error)
        raise LabError(
            f"image {candidates[0]} is not on this machine and cannot be pulled ({why}):"
            " make image builds a stand-in"
        )

    def layout(self, image: str) -> Layout:
        """Return where an image that is here keeps its data; raises LabError where it says nothing.

        Up to PostgreSQL 17 the official image has a volume at PGDATA itself, from 18 on a volume
        above it. A volume that stood elsewhere would stay empty, and the data would be in one
        without a name, which goes with the container.
        """
        try:
            config = self.client.images.get(image).attrs["Config"]
        except docker.errors.ImageNotFound as error:
            raise LabError(f"image {image} is not on this machine any more: pull it") from error
        data = _variable(config.get("Env") or [], "PGDATA")
        if not data:
            raise LabError(f"image {image} has no PGDATA: it is no image of PostgreSQL")
        volumes = [PurePosixPath(path) for path in config.get("Volumes") or {}]
        above = [path for path in volumes if PurePosixPath(data).is_relative_to(path)]
        return Layout(data, str(max(above, key=lambda path: len(path.parts), default=data)))

    def check_image(self, image: str) -> None:
        """Raise LabError where an image that is here has no PGDATA or no GNU tools."""
        self.layout(image)
        try:
            self.client.containers.run(
                image, ["-c", TOOLS], entrypoint="/bin/sh", network_mode="none", remove=True
            )
        except docker.errors.ContainerError:
            raise LabError(
                f"image {image} has not the GNU tools that the audit reads files with (find, grep,"
                " split; Alpine's images have none): set LAB_IMAGE to one on Debian, such as"
                " postgres:16"
            ) from None
        except docker.errors.APIError as error:
            raise LabError(f"image {image} does not run: {reason(error)}") from error

    def check_major(self, container: str, image: str) -> None:
        """Raise LabError where a node's container holds data of another major than an image's."""
        try:
            config = self.client.containers.get(container).attrs["Config"]
            major = _major(config.get("Env") or [])
            other = _major(self.client.images.get(image).attrs["Config"].get("Env") or [])
        except docker.errors.NotFound:
            return
        if None not in (major, other) and major != other:
            raise LabError(
                f"container {container} holds data of PostgreSQL {major}, which image {image} with"
                f" PostgreSQL {other} cannot read: set LAB_IMAGE to {config['Image']}, or make"
                " teardown"
            )

    def check_ownership(self, lab: Lab, container: str, volume: str) -> None:
        """Raise LabError where a node's container or volume is not this lab's to use."""
        advice = "choose another LAB_NAME, or remove it"
        try:
            labels = self.client.containers.get(container).labels
            if not is_ours(lab, labels):
                raise LabError(f"container {container} belongs to {owner(labels)}: {advice}")
        except docker.errors.NotFound:
            pass
        users = self.client.containers.list(
            all=True, filters={"volume": volume}, ignore_removed=True
        )
        for user in users:
            # A killed run may have left the container in which its script worked on the data.
            is_script = LABEL_SCRIPT in user.labels and is_ours(lab, user.labels)
            if user.name != container and not is_script:
                raise LabError(
                    f"volume {volume} is in use by container {user.name} ({user.status}): two"
                    f" servers on one volume destroy its data; {advice}"
                )
        try:
            labels = self.client.volumes.get(volume).attrs.get("Labels") or {}
            if not is_ours(lab, labels):
                raise LabError(f"volume {volume} belongs to {owner(labels)}: {advice}")
        except docker.errors.NotFound:
            pass

    def has_volume(self, name: str) -> bool:
        """Tell whether there is a volume of a name."""
        try:
            self.client.volumes.get(name)
        except docker.errors.NotFound:
            return False
        return True

    def publishes(self, container: str, port: int) -> bool:
        """Tell whether a running container is the one that publishes a port of this machine."""
        try:
            running = self.client.containers.get(container)
        except docker.errors.NotFound:
            return False
        ports: dict[str, list[dict[str, str]] | None] = running.ports
        return running.status in ("running", "paused") and any(
            binding["HostPort"] == str(port) for bound in ports.values() for binding in bound or []
        )

    def ensure_network(self, lab: Lab, name: str, dry_run: bool = False) -> bool:
        """Ensure exactly one network of a name; return whether anything had to be done for it.

        Raises LabError where one is not this lab's, or where the engine can make none.
        """
        # An engine would make a second one of the same name: one run at a time.
        with contextlib.nullcontext() if dry_run else locked(lab.home):
            twins = self.client.networks.list(names=[name])
            twins = [network for network in twins if network.name == name]
            for network in twins:
                labels = network.attrs.get("Labels") or {}
                if not is_ours(lab, labels):
                    raise LabError(
                        f"network {name} belongs to {owner(labels)}: choose another LAB_NAME, or"
                        " remove it"
                    )
            if len(twins) == 1 or dry_run:
                return len(twins) != 1
            for network in twins:
                network.reload()
            twins.sort(key=lambda network: not network.attrs["Containers"])
            try:
                for twin in twins[1:]:
                    twin.remove()
                if not twins:
                    self.client.networks.create(name, labels=lab.labels)
            except docker.errors.APIError as error:
                raise LabError(f"network {name} cannot be made: {reason(error)}") from error
            return True

    def gateway(self, network: str) -> str:
        """Return the address of this machine on a network; raises LabError where there is none."""
        try:
            config = self.client.networks.get(network).attrs["IPAM"]["Config"]
        except docker.errors.NotFound as error:
            raise LabError(f"there is no network {network}: play the phase's playbook") from error
        return str(config[0]["Gateway"])

    def remove_lab(self, lab: Lab) -> list[str]:
        """Remove every container, network and volume of a lab; return what was removed."""
        ours: dict[str, str | list[str] | bool] = {
            "label": [f"{key}={value}" for key, value in lab.labels.items()]
        }
        removed = []
        for container in self.client.containers.list(all=True, filters=ours, ignore_removed=True):
            container.remove(force=True, v=True)
            removed.append(f"container {container.name}")
        for network in self.client.networks.list(filters=ours):
            network.remove()
            removed.append(f"network {network.name}")
        for volume in self.client.volumes.list(filters=ours):
            volume.remove()
            removed.append(f"volume {volume.name}")
        return removed


def is_ours(lab: Lab, labels: dict[str, str]) -> bool:
    """Tell whether an object's labels are this lab's."""
    return {key: labels.get(key) for key in lab.labels} == lab.labels


def owner(labels: dict[str, str]) -> str:
    """Say whose an object is that is not ours."""
    if LABEL_HOME in labels:
        return f"the lab '{labels.get(LABEL_NAME)}' in {labels[LABEL_HOME]}"
    return "something that is no lab"


def reason(error: Exception) -> str:
    """Return the innermost cause of a Docker error, which is the one that helps."""
    if isinstance(error, docker.errors.APIError) and error.explanation:
        return str(error.explanation).strip().splitlines()[0]
    cause: Any = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def _major(env: Sequence[str]) -> int | None:
    value = _variable(env, "PG_MAJOR")
    return int(value) if value.isdigit() else None


def _variable(env: Sequence[str], name: str) -> str:
    return next((entry.partition("=")[2] for entry in env if entry.startswith(f"{name}=")), "")
