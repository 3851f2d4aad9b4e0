"""Whose data a node has: PostgreSQL's system identifier, recorded when the node joins.

initdb makes the identifier and a base backup keeps it, so the nodes of a pair share one. A data
directory that is empty, or another's, is not the node that joined: whatever is run on it would
seem to work, and the node's rows would be gone without a word.
"""

from __future__ import annotations

import json
from pathlib import Path

from workload.errors import LabError
from workload.lab import Lab, read_json, write_atomically
from workload.processes import locked
from workload.topology import set_roles

#: Below the state folder: {node: identifier}.
FILE = "identities.json"


def recorded(home: Path, node: str) -> int | None:
    """Return the identifier that a node joined with, None for one that never has."""
    identity = read_json(home / FILE).get(node)
    return None if identity is None else int(identity)


def record(home: Path, node: str, identity: int | None) -> None:
    """Record the identifier that a node has now, below the state folder; None forgets the node."""
    if recorded(home, node) == identity:
        return
    with locked(home):
        identities = {**read_json(home / FILE), node: identity}
        known = {name: value for name, value in identities.items() if value is not None}
        write_atomically(home / FILE, json.dumps(known) + "\n")


def loss(lab: Lab, node: str, identity: int | None) -> str:
    """Return what is wrong with the data that a node has now, "" where it is the node's own.

    identity: the system identifier of its data directory, None for an empty one.
    """
    joined = recorded(lab.home, node)
    if joined is None or joined == identity:
        return ""
    if identity is None:
        return f"node {node} has lost its data: its data directory is empty"
    return (
        f"node {node} has another database's data: system identifier {identity}, and it joined as"
        f" {joined}"
    )


def remedy(lab: Lab, node: str) -> str:
    """Return what can be done about a node that has lost its data, and what it costs."""
    nodes = read_json(lab.topology_file).get("nodes", {})
    phase = lab.read_phase()
    region = nodes.get(node, {}).get("region")
    standbys = [
        name
        for name, other in nodes.items()
        if name != node and other["region"] == region and other["role"] == "standby"
    ]
    if nodes.get(node, {}).get("role") == "standby":
        return "its primary has all rows: make rejoin copies them"
    if standbys:
        return f"{standbys[0]} has all rows: make failover, then make rejoin"
    if phase in (None, "before"):
        cost = "all customers and purchases would be lost"
    elif region == next(iter(nodes.values()))["region"]:
        return "no other node has its rows: put its data back, or make teardown starts afresh"
    elif phase == "shard":
        cost = "the origin has a copy of all rows but those that were written to this node alone"
    else:
        cost = f"the rows of region {region} are nowhere else, and would be lost"
    return f"put its data back, or -e lab_start_empty={node} starts it empty ({cost})"


def check(lab: Lab, node: str, identity: int | None, start_empty: bool = False) -> None:
    """Raise LabError where a node's data is not what it joined with, with what can be done.

    start_empty: a person's word that the node is to begin with nothing. It is refused where there
    is data, or where nothing has to be lost.
    """
    problem = loss(lab, node, identity)
    if start_empty and identity is not None:
        raise LabError(
            f"lab_start_empty names {node}, whose data directory is not empty: move it away first"
        )
    if problem:
        way_out = remedy(lab, node)
        if not (start_empty and "lab_start_empty" in way_out):
            raise LabError(f"{problem}; {way_out}")


def start_empty(lab: Lab, node: str) -> None:
    """Forget the data that a node joined with; the home of a region is to be made again."""
    record(lab.home, node, None)
    if lab.read_phase() == "after" and lab.read_roles().get(node) == "primary":
        set_roles(lab, {node: "joining"})
