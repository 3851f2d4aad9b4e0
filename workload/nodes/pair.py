"""Primary and standby pairs, by what topology.json says of their nodes."""

from __future__ import annotations

from workload.errors import LabError
from workload.nodes.server import server_of
from workload.nodes.standby import Member
from workload.topology import Topology


def pair_of(topology: Topology, password: str, region: str) -> tuple[Member, Member]:
    """Return a region's primary and the other node of its pair; raises LabError without one."""
    names = [name for name, node in topology.nodes.items() if node["region"] == region]
    names.sort(key=lambda name: topology.nodes[name]["role"] != "primary")
    if len(names) < 2 or topology.nodes[names[0]]["role"] != "primary":
        raise LabError(f"region {region} has no primary and standby: its nodes are {names}")
    primary, other = (
        Member(name, server_of(topology, name), topology.operator_login(name, password))
        for name in names[:2]
    )
    return primary, other
