"""Ask the lab how it is: nodes, links, replication, what a killed run left, the last audit.

Every node is asked at once and on a thread of its own, and none is waited for beyond TIMEOUT_S: a
server that is paused takes the connection and never answers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from typing import Any
from uuid import UUID

import psutil
import psycopg

from workload.audit import residency
from workload.errors import LabError
from workload.nodes import identity
from workload.nodes.server import server_of
from workload.proof.verify import ID_BYTES, customer_ids, in_several_regions
from workload.schemas import GATE, OLD, TRANSITIONAL, slot
from workload.sharding import conflicts
from workload.sharding.conflicts import Conflict
from workload.sql import Login
from workload.topology import Topology
from workload.wan import control
from workload.wan.config import Config

#: Seconds for a login, for a statement, and for a node in all.
CONNECT_S, STATEMENT_S, TIMEOUT_S = 2, 2, 5.0
#: How often, and after how many seconds, a slot that is being read is tried again: a replica that
#: fails at each attempt reads it for a moment of every five seconds.
ATTEMPTS, ATTEMPT_S = 3, 0.4
#: Customers of a region up to which ids are compared with those of other regions.
COMPARED = 100_000
#: Schemas that stand while rows are on their way, and no longer; gates stay until after.
PASSING = tuple(name for name in TRANSITIONAL if name != GATE)

_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s) ORDER BY 1"
_CAPTURE = "SELECT to_regclass('lab.changed') IS NOT NULL"
_HAS_DELETED = "SELECT to_regclass('lab.to_scrub') IS NOT NULL"
_DELETED = "SELECT extract(epoch FROM clock_timestamp() - min(since))::float8 FROM lab.to_scrub"


@dataclass(frozen=True)
class Follower:
    """A slot, and who reads from it."""

    slot: str
    kind: str
    active: bool
    state: str
    sync: str
    lag_bytes: int
    lag_ms: float
    wal_status: str
    #: WAL that the server keeps for it.
    kept_bytes: int = 0


@dataclass(frozen=True)
class Subscription:
    """A subscription of a node."""

    name: str
    enabled: bool
    running: bool
    #: How often its worker has failed since statistics were reset.
    errors: int = 0


@dataclass(frozen=True)
class NodeState:
    """What a node says of itself."""

    version: str = ""
    in_recovery: bool = False
    connections: int = 0
    max_connections: int = 0
    #: A playbook or a move holds the lock that runs take turns by.
    at_work: bool = False
    schemas: Sequence[str] = ()
    #: Triggers note which rows change.
    is_captured: bool = False
    #: Seconds since rows were deleted whose bytes are in the files yet.
    deleted_s: float | None = None
    #: (gid, age in seconds)
    prepared: Sequence[tuple[str, float]] = ()
    subscriptions: Sequence[Subscription] = ()
    #: The row that stops its replication, None where none is known.
    conflict: Conflict | None = None
    #: (region, table, relkind): r a table of this node, f a foreign one, "" where it is missing.
    leaves: Sequence[tuple[str, str, str]] = ()
    followers: Sequence[Follower] = ()
    #: In phase after, of a primary: the ids of its customers, at most COMPARED + 1 of them.
    customer_ids: bytes = b""
    #: Why it says nothing: down or silent, and the server's or the client's words.
    trouble: str = ""
    error: str = ""

    @property
    def is_up(self) -> bool:
        """Tell whether it answered."""
        return not self.trouble


@dataclass(frozen=True)
class Status:
    """The lab as it was seen."""

    topology: Topology
    nodes: Mapping[str, NodeState]
    #: None where the lab has no WAN yet.
    wan: Config | None = None
    #: Why the relay carries nothing, "" where it works.
    relay: str = ""
    audits: Sequence[Mapping[str, Any]] = ()
    #: What could not be read of the lab's own files.
    unreadable: Sequence[str] = field(default_factory=tuple)
    #: What became of a node's data, and what can be done about it.
    lost_data: Mapping[str, str] = field(default_factory=dict)

    @property
    def at_work(self) -> bool:
        """Tell whether a playbook or a move is at work just now."""
        return any(state.at_work for state in self.nodes.values())

    @cached_property
    def shared_ids(self) -> dict[UUID, tuple[str, ...]] | None:
        """The ids of customers of several regions, None where a region has too many customers."""
        ids = {
            str(self.topology.nodes[name]["region"]): state.customer_ids
            for name, state in self.nodes.items()
            if state.customer_ids
        }
        if any(len(packed) > COMPARED * ID_BYTES for packed in ids.values()):
            return None
        return in_several_regions(ids)


def collect(topology: Topology, password: str, timeout_s: float = TIMEOUT_S) -> Status:
    """Ask all nodes at once, and return what is known when timeout_s is over."""
    schemas = [name.format(region=region) for name in PASSING for region in _regions(topology)]
    schemas.append(OLD)
    regions = _regions(topology)
    answers: dict[str, NodeState] = {}

    homes = topology.primaries() if topology.phase == "after" else []

    def ask(node: str) -> None:
        login = topology.operator_login(node, password)
        answers[node] = ask_node(login, schemas, regions, is_home=node in homes)

    # Daemons: one that is stuck must not keep this process from ending.
    threads = [threading.Thread(target=ask, args=(node,), daemon=True) for node in topology.nodes]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = NodeState(trouble="silent", error=f"no answer in {timeout_s:g} s")
    nodes = {node: answers.get(node, silent) for node in topology.nodes}
    nodes = _with_conflicts(topology, password, nodes)
    unreadable = []
    wan, relay = None, ""
    audits: Sequence[Mapping[str, Any]] = ()
    try:
        if topology.has_reached("expand_world"):
            wan = control.load(topology.lab)
            relay = _relay_trouble(topology)
    except LabError as error:
        unreadable.append(str(error))
    try:
        audits = residency.load(topology.lab)
    except LabError as error:
        unreadable.append(str(error))
    return Status(topology, nodes, wan, relay, audits, unreadable, _lost_data(topology))


def _lost_data(topology: Topology) -> dict[str, str]:
    """Return what became of nodes' data; not of a fenced one's, which a rejoin gives it anew."""
    lost = {}
    for name, node in topology.nodes.items():
        with contextlib.suppress(LabError):  # Its engine does not answer, as its state says.
            data = server_of(topology, name).identity()
            problem = identity.loss(topology.lab, name, data)
            if problem and node["role"] != "fenced":
                lost[name] = f"{problem}; {identity.remedy(topology.lab, name)}"
    return lost


def ask_node(
    login: Login, schemas: Sequence[str], regions: Sequence[str], is_home: bool = False
) -> NodeState:
    """Ask one node; what keeps it from answering is part of the answer.

    is_home: whether the ids of its customers are to be compared with those of other regions.
    """
    try:
        with psycopg.connect(
            login.conninfo(),
            autocommit=True,
            connect_timeout=CONNECT_S,
            options=f"-c statement_timeout={STATEMENT_S * 1000}",
        ) as connection:
            return _ask(connection, schemas, regions, is_home)
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        if "password authentication failed" in text:
            return NodeState(trouble="refuses", error="it refuses LAB_PASSWORD")
        if "too many clients" in text or "remaining connection slots" in text:
            return NodeState(trouble="full", error="too many clients")
        is_silent = "timeout" in text or "timed out" in text
        return NodeState(trouble="silent" if is_silent else "down", error=text)


def _ask(
    connection: psycopg.Connection[Any],
    schemas: Sequence[str],
    regions: Sequence[str],
    is_home: bool,
) -> NodeState:
    def rows(statement: str, *values: Any) -> list[Any]:
        return connection.execute(statement.encode(), values or None).fetchall()

    version, in_recovery, connections, max_connections, at_work = rows(_text("node"))[0]
    return NodeState(
        version=version.split()[0],
        in_recovery=in_recovery,
        connections=connections,
        max_connections=max_connections,
        at_work=at_work,
        schemas=[name for (name,) in rows(_SCHEMAS, list(schemas))],
        is_captured=bool(rows(_CAPTURE)[0][0]),
        # A standby repeats its primary's.
        deleted_s=rows(_DELETED)[0][0] if not in_recovery and rows(_HAS_DELETED)[0][0] else None,
        prepared=[(gid, age) for gid, age in rows(_text("prepared"))],
        # A standby shows its primary's, which do nothing here.
        subscriptions=[]
        if in_recovery
        else [Subscription(*row) for row in rows(_text("subscriptions"))],
        followers=[] if in_recovery else [Follower(*row) for row in rows(_text("followers"))],
        leaves=[tuple(row) for row in rows(_text("leaves"), list(regions))],
        customer_ids=customer_ids(connection, COMPARED + 1) if is_home else b"",
    )


def _text(name: str) -> str:
    return (files("workload.operations") / "sql" / f"{name}.sql").read_text()


def _with_conflicts(
    topology: Topology, password: str, nodes: Mapping[str, NodeState]
) -> dict[str, NodeState]:
    """Return the nodes, each with the row that stops its replication, where one does."""
    origin = topology.primaries()[:1]
    if not origin or not nodes[origin[0]].is_up:
        return dict(nodes)
    current = {
        each.slot for each in nodes[origin[0]].followers if each.active and not each.lag_bytes
    }
    states = dict(nodes)
    for name, state in nodes.items():
        if slot(name) in current or not any(each.errors for each in state.subscriptions):
            continue
        for _ in range(ATTEMPTS):
            try:
                states[name] = replace(state, conflict=conflicts.find(topology, password, name))
                break
            except psycopg.errors.ObjectInUse:
                time.sleep(ATTEMPT_S)
            except (LabError, psycopg.Error):
                break
    return states


def _regions(topology: Topology) -> list[str]:
    """Return all regions, also those whose customers do not trade yet."""
    return list(
        dict.fromkeys(
            [region.name for region in topology.regions]
            + [str(node["region"]) for node in topology.nodes.values()]
        )
    )


def _relay_trouble(topology: Topology) -> str:
    process = control.running(topology.lab)
    if process is None:
        return "not running"
    try:
        return "paused" if process.status() == psutil.STATUS_STOPPED else ""
    except psutil.Error:
        return "not running"
