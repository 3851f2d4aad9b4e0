"""A lab's identity: its name, its state folder, and how its Docker objects are marked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload.errors import LabError

CHECKOUT = Path(__file__).resolve().parent.parent
DEFAULT_NAME = "lab"
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,30}")

#: Labels on every container, volume and network that a lab makes. Teardown selects by them alone.
LABEL_NAME = "geo-sharding-lab.name"
LABEL_HOME = "geo-sharding-lab.home"
LABEL_NODE = "geo-sharding-lab.node"

#: All that a lab writes below its state folder; a teardown removes these and nothing else.
STATE_ENTRIES = (
    "lab.json",
    "topology.json",
    "identities.json",
    "canaries.json",
    "purge-due",
    "secrets",
    "nodes",
    "ledger",
    "reports",
    "wan",
)


@dataclass(frozen=True)
class Lab:
    """A lab by name and state folder.

    The folder is the identity: two checkouts may both use the default name, and only the folder
    tells which lab a container is of.
    """

    name: str
    home: Path

    def __post_init__(self) -> None:
        """Raise LabError for a name that cannot be a part of a container's name."""
        if not NAME_PATTERN.fullmatch(self.name):
            raise LabError(
                f"LAB_NAME is '{self.name}': use up to 31 characters of a-z 0-9 _ -, a letter first"
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Lab:
        """Return the lab that LAB_NAME and LAB_HOME name, as inventory/lab derives it."""
        name = environ.get("LAB_NAME") or DEFAULT_NAME
        suffix = "" if name == DEFAULT_NAME else f"-{name}"
        home = environ.get("LAB_HOME") or CHECKOUT / f".lab{suffix}"
        return cls(name, Path(home).expanduser().absolute())

    @classmethod
    def at(cls, home: Path) -> Lab:
        """Return the lab that was begun in a state folder; on a dry run there may be none yet."""
        return cls(read_json(home / "lab.json").get("name", DEFAULT_NAME), home)

    @property
    def network(self) -> str:
        """The Docker network on which its containers reach each other."""
        return f"{self.name}-network"

    @property
    def labels(self) -> dict[str, str]:
        """The labels that mark a Docker object as this lab's."""
        return {LABEL_NAME: self.name, LABEL_HOME: str(self.home)}

    def node_labels(self, node: str) -> dict[str, str]:
        """Return the labels of a node's container and volume."""
        return {**self.labels, LABEL_NODE: node}

    @property
    def topology_file(self) -> Path:
        """The file with the phase, the regions and their addresses."""
        return self.home / "topology.json"

    def node_dir(self, node: str) -> Path:
        """Return the folder of an embedded node."""
        return self.home / "nodes" / node

    def secret_file(self, name: str) -> Path:
        """Return the file that holds a generated password."""
        return self.home / "secrets" / name

    def read_state(self) -> dict[str, Any]:
        """Return lab.json ({name, runtime, image, bin_dir}), or {} where no lab was begun here."""
        return read_json(self.home / "lab.json")

    def read_roles(self) -> dict[str, str]:
        """Return each node's role, primary, standby or fenced, as topology.json says."""
        nodes = read_json(self.topology_file).get("nodes", {})
        return {name: str(node["role"]) for name, node in nodes.items()}

    def read_phase(self) -> str | None:
        """Return the phase that topology.json says was reached, or None."""
        phase = read_json(self.topology_file).get("phase")
        return None if phase is None else str(phase)


def home_path(text: str) -> Path:
    """Return a state folder as every label and message names it: whole, without a last slash.

    Raises LabError for a relative one: Ansible looks such a path up below its playbooks, not in the
    folder that the person who set it is in.
    """
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise LabError(f"state folder '{text}' is a relative path: set LAB_HOME to a whole one")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is no file.

    Raises LabError where the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read: {error}; make teardown starts afresh") from error
    if not isinstance(value, dict):
        raise LabError(f"{path} holds no JSON object; make teardown starts afresh")
    return value


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
