"""What a lab has left on this machine."""

from __future__ import annotations

from typing import Any

from tests.fixtures.labs import LabUnderTest, is_listening
from workload.errors import LabError
from workload.nodes.docker import Engine


def traces(lab: LabUnderTest) -> list[str]:
    """Return all that there is of a lab: files, containers, volumes, networks, a server."""
    home = lab.lab.home
    found = [str(home)] if home.exists() else []
    found += [str(path) for path in sorted(home.rglob("*"))]
    found += [f"port {lab.port_base}"] if is_listening(lab.port_base) else []
    try:
        client = Engine().client
    except LabError:
        return found
    things: list[Any] = client.containers.list(all=True, ignore_removed=True)
    things += [*client.volumes.list(), *client.networks.list()]
    for thing in things:
        labels = thing.attrs.get("Labels") or thing.attrs.get("Config", {}).get("Labels") or {}
        if thing.name.startswith(lab.lab.name) or lab.lab.name in labels.values():
            found.append(f"{type(thing).__name__} {thing.name}")
    return found
