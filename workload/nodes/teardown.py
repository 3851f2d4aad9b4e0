"""Remove a lab."""

from __future__ import annotations

import contextlib
import shutil

from workload.errors import LabError
from workload.lab import STATE_ENTRIES, Lab, read_json
from workload.nodes.docker import Engine
from workload.nodes.embedded import EmbeddedServer
from workload.wan import control


def remove(lab: Lab) -> list[str]:
    """Remove a lab in any state and return what was removed, for people to read.

    Goes by the labels of Docker objects and by the folders below the state folder, so it works
    half-provisioned, with a dead node, or after the inventory changed. Raises LabError where the
    lab has containers that cannot be reached, since they would be left behind unseen.
    """
    removed: list[str] = []
    if control.stop(lab):
        removed.append("the WAN's relay")
    begun = _begun_runtime(lab)
    try:
        removed += Engine().remove_lab(lab)
    except LabError as error:
        if begun == "docker":
            raise LabError(
                f"this lab runs in Docker and {error}: start the engine, then make teardown again"
            ) from None
    nodes = lab.home / "nodes"
    for base in sorted(nodes.iterdir()) if nodes.is_dir() else []:
        if base.is_dir() and EmbeddedServer(base).remove():
            removed.append(f"server {base.name}")
    for entry in STATE_ENTRIES:
        # Beside a file may lie what a killed run had not written to its end.
        for path in (lab.home / entry, *lab.home.glob(f".{entry}.[0-9]*")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
                removed.append(f"folder {path.name}")
            elif path.exists() or path.is_symlink():
                path.unlink()
                removed.append(f"file {path.name}")
    # The folder itself may be the user's own, with other things in it.
    with contextlib.suppress(OSError):
        lab.home.rmdir()
    return removed


def _begun_runtime(lab: Lab) -> str | None:
    try:
        return read_json(lab.home / "lab.json").get("runtime")
    except LabError:
        return None
