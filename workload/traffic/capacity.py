"""Do as many customers fit? Each holds a connection to where it writes, and one to where it reads.

A server takes max_connections at most, some of them superusers' alone; a customer who comes after
that is refused: "too many clients".
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workload.errors import LabError
from workload.sql import connect
from workload.topology import Topology

#: Connections that are left to operators, to other nodes' servers and to replication.
SPARE = 10
_FREE = """
SELECT setting.most, setting.most - setting.kept - (
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())
FROM (SELECT current_setting('max_connections')::int,
        current_setting('superuser_reserved_connections')::int
        + coalesce(current_setting('reserved_connections', true)::int, 0)) AS setting (most, kept)
"""


@dataclass(frozen=True)
class Room:
    """Connections of a node: those that customers may have, and all."""

    free: int
    most: int


def check(topology: Topology, password: str, users: int) -> str:
    """Return how many customers fit, in a sentence; raises LabError where that is fewer than users.

    A node that does not answer is not counted: traffic may be about just that.
    """
    rooms = {}
    for node in needed(topology, len(topology.regions)):
        with contextlib.suppress(LabError):
            rooms[node] = _room(topology, password, node)
    if not rooms:
        return ""
    most = fits(topology, rooms)
    need = needed(topology, max(users, most + 1))
    tightest = min(rooms, key=lambda node: rooms[node].free - need[node])
    room = rooms[tightest]
    if users > most:
        raise LabError(
            f"{users:,} customers need {need[tightest]:,} connections to {tightest}, which has"
            f" {room.free:,} of its {room.most:,} free: USERS={most} at most, or raise"
            f" max_connections (node_settings in the inventory, then make {topology.phase})"
        )
    return f"Up to {most:,} fit: {tightest} has {room.free:,} of its {room.most:,} connections free"


def needed(topology: Topology, users: int) -> Counter[str]:
    """Return how many connections customers hold to each node; Locust shares them out evenly."""
    need: Counter[str] = Counter()
    each, rest = divmod(users, len(topology.regions))
    for place, region in enumerate(topology.regions):
        count = each + (place < rest)
        need[region.node] += count
        if region.reads:
            need[str(region.reads[0]["node"])] += count
    return need


def fits(topology: Topology, rooms: Mapping[str, Room]) -> int:
    """Return the most customers of whom each has its connections."""
    users = 0
    step = 1 << sum(room.free for room in rooms.values()).bit_length()
    while step:
        need = needed(topology, users + step)
        if all(need[node] <= room.free for node, room in rooms.items()):
            users += step
        step >>= 1
    return users


def _room(topology: Topology, password: str, node: str) -> Room:
    with connect(topology.operator_login(node, password), 5) as connection:
        row: Any = connection.execute(_FREE).fetchone()
    return Room(max(0, int(row[1]) - SPARE), int(row[0]))
