"""How the lab's nodes reach each other: next door in their own region, across the WAN elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg

from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.docker import Engine
from workload.nodes.server import server_of
from workload.nodes.standby import REPLICATION_ROLE
from workload.topology import Topology


def address_between(topology: Topology, start: str, end: str) -> tuple[str, int]:
    """Return host and port by which a node reaches another one.

    Raises LabError where the WAN has no link for the two.
    """
    region = topology.nodes[start]["region"]
    if topology.nodes[end]["region"] == region:
        return server_of(topology, end).address_for_peers()
    try:
        way = topology.region(region).way_to(end)
    except StopIteration:
        raise LabError(
            f"the WAN has no link from {region} to {end}: play the phase again"
        ) from None
    host = way["host"]
    if topology.runtime == "docker":
        host = Engine().gateway(topology.servers["network"])
    return str(host), int(way["port"])


def conninfo_for(
    topology: Topology, start: str, ends: Iterable[str], user: str, password: str, name: str
) -> str:
    """Return a connection string by which a node reaches whichever of others takes writes."""
    addresses = [address_between(topology, start, end) for end in ends]
    return psycopg.conninfo.make_conninfo(
        host=",".join(host for host, _ in addresses),
        port=",".join(str(port) for _, port in addresses),
        dbname=topology.dbname,
        user=user,
        password=password,
        application_name=name,
        connect_timeout=5,
        # A link that goes silent is noticed by the operating system alone.
        keepalives_idle=5,
        keepalives_interval=5,
        keepalives_count=3,
        target_session_attrs="read-write",
    )


def replication_password(lab: Lab) -> str:
    """Return the password of the role that copies of data are streamed as; raises LabError."""
    try:
        return lab.secret_file(REPLICATION_ROLE).read_text()
    except OSError as error:
        raise LabError(
            f"the replication password is not readable ({error}): play the phase again"
        ) from None
