"""How the lab is: nodes, links, replication, what a killed run left, and the last audit.

Every node is asked at once and on a thread of its own, and none is waited for beyond TIMEOUT_S: a
server that is paused takes the connection and never says a word.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psutil
import psycopg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workload.audit import residency
from workload.errors import LabError
from workload.sql import Login
from workload.topology import Topology
from workload.wan import control
from workload.wan.config import Config

#: Seconds for a login, for a statement, and for a node in all.
CONNECT_S, STATEMENT_S, TIMEOUT_S = 2, 2, 5.0
#: Bytes that a follower may be behind before that is an illness.
LAG_BYTES = 64 << 20
#: Schemas that stand while rows are on their way, and no longer.
PASSING = ("retired", "staged", "incoming", "rewritten")
#: What prepared transactions of moves begin with, and seconds that a move may take.
MOVE, MOVE_S = "lab_move_", 10.0
#: Seconds in which millions of rows are written anew.
REWRITE_S = 120.0

_NODE = """
SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS in_recovery,
  (SELECT count(*) FROM pg_stat_activity
   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS connections,
  current_setting('max_connections')::int AS max_connections,
  EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted
          AND (classid::bigint << 32) | objid::bigint = hashtext('geo-sharding-lab')) AS at_work
"""
_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s) ORDER BY 1"
_CAPTURE = "SELECT to_regclass('lab.changed') IS NOT NULL"
_HAS_DELETED = "SELECT to_regclass('lab.to_scrub') IS NOT NULL"
_DELETED = "SELECT extract(epoch FROM clock_timestamp() - min(since))::float8 FROM lab.to_scrub"
_PREPARED = """
SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts
WHERE database = current_database() ORDER BY prepared
"""
_SUBSCRIPTIONS = """
SELECT s.subname, s.subenabled, bool_or(w.pid IS NOT NULL) FROM pg_subscription s
LEFT JOIN pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL
WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY 1, 2
"""
#: On a node that takes writes: who follows it, by slot, and how far behind each is.
_FOLLOWERS = """
SELECT s.slot_name, s.slot_type, s.active, coalesce(r.state, ''), coalesce(r.sync_state, ''),
  pg_wal_lsn_diff(pg_current_wal_lsn(),
    coalesce(r.replay_lsn, s.confirmed_flush_lsn, s.restart_lsn))::bigint,
  extract(epoch FROM coalesce(r.replay_lag, '0'))::float8 * 1e3, coalesce(s.wal_status, '')
FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
WHERE NOT s.temporary ORDER BY 1
"""


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


@dataclass(frozen=True)
class Seen:
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
    #: (name, enabled, running)
    subscriptions: Sequence[tuple[str, bool, bool]] = ()
    followers: Sequence[Follower] = ()
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
    nodes: Mapping[str, Seen]
    #: None where the lab has no WAN yet.
    wan: Config | None = None
    #: Why the relay carries nothing, "" where it works.
    relay: str = ""
    audits: Sequence[Mapping[str, Any]] = ()
    #: What could not be read of the lab's own files.
    unreadable: Sequence[str] = field(default_factory=tuple)

    @property
    def at_work(self) -> bool:
        """Tell whether a playbook or a move is at work just now."""
        return any(seen.at_work for seen in self.nodes.values())


def collect(topology: Topology, password: str, timeout_s: float = TIMEOUT_S) -> Status:
    """Ask all nodes at once, and return what is known when timeout_s is over."""
    schemas = [f"{stem}_{region}" for stem in PASSING for region in _regions(topology)]
    schemas.append("retired")
    found: dict[str, Seen] = {}

    def ask(node: str) -> None:
        found[node] = look(topology.operator_login(node, password), schemas)

    # Daemons: one that is stuck must not keep this process from ending.
    threads = [threading.Thread(target=ask, args=(node,), daemon=True) for node in topology.nodes]
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = Seen(trouble="silent", error=f"no answer in {timeout_s:g} s")
    nodes = {node: found.get(node, silent) for node in topology.nodes}
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
    return Status(topology, nodes, wan, relay, audits, unreadable)


def look(login: Login, schemas: Sequence[str]) -> Seen:
    """Ask one node; what keeps it from answering is part of the answer."""
    try:
        with psycopg.connect(
            login.conninfo(),
            autocommit=True,
            connect_timeout=CONNECT_S,
            options=f"-c statement_timeout={STATEMENT_S * 1000}",
        ) as connection:
            return _look(connection, schemas)
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        if "password authentication failed" in text:
            return Seen(trouble="refuses", error="it refuses LAB_PASSWORD")
        is_silent = "timeout" in text or "timed out" in text
        return Seen(trouble="silent" if is_silent else "down", error=text)


def _look(connection: psycopg.Connection[Any], schemas: Sequence[str]) -> Seen:
    def rows(statement: LiteralString, *values: Any) -> list[Any]:
        return connection.execute(statement, values or None).fetchall()

    version, in_recovery, connections, most, at_work = rows(_NODE)[0]
    return Seen(
        version=version.split()[0],
        in_recovery=in_recovery,
        connections=connections,
        max_connections=most,
        at_work=at_work,
        schemas=[name for (name,) in rows(_SCHEMAS, list(schemas))],
        is_captured=bool(rows(_CAPTURE)[0][0]),
        # A standby has its primary's word.
        deleted_s=rows(_DELETED)[0][0] if not in_recovery and rows(_HAS_DELETED)[0][0] else None,
        prepared=[(gid, age) for gid, age in rows(_PREPARED)],
        # A standby shows its primary's, which do nothing here.
        subscriptions=[] if in_recovery else [tuple(row) for row in rows(_SUBSCRIPTIONS)],
        followers=[] if in_recovery else [Follower(*row) for row in rows(_FOLLOWERS)],
    )


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


# -- what is wrong, and what to do --------------------------------------------------------------


def illnesses(status: Status) -> Iterable[str]:
    """Yield a line for each thing that is wrong, with what to do about it."""
    topology = status.topology
    again = f"make {topology.phase}"
    for name, seen in status.nodes.items():
        yield from _of_node(status, name, seen, again)
    moved = [
        name for name in topology.primaries() if topology.nodes[name]["region"] != topology.origin()
    ]
    if moved and topology.phase != "after" and not status.at_work:
        names = ", ".join(moved)
        yield f"{names} took over a region's rows, and phase after is not reached: make after"
    yield from _of_replication(status, again)
    for name, seen in status.nodes.items():
        if not seen.in_recovery:
            yield from _of_left_overs(status, name, seen, again)
    if status.relay:
        yield f"the WAN's relay is {status.relay}: no link carries anything; {again}"
    elif status.wan is not None:
        for start, end in status.wan.pairs():
            state = link_state(status.wan, start, end)
            if state != "up":
                yield f"link {start}-{end} is {state}: make wan LINK={start}-{end} STATE=up"
    yield from status.unreadable
    if topology.phase == "after":
        for entry in status.audits:
            if entry["phase"] == "after" and entry["verdict"] != "HOLDS":
                yield (
                    f"the last audit ({moment(entry)}) found data of a region on a node that is not"
                    " its home: make audit says where it is now"
                )


def _of_node(status: Status, name: str, seen: Seen, again: str) -> Iterable[str]:
    topology = status.topology
    role, region = topology.nodes[name]["role"], topology.nodes[name]["region"]
    if role == "fenced":
        yield (
            f"node {name} is fenced since a fail-over, and {region} has no standby: make rejoin"
            " brings it back as one"
        )
        return
    if role == "joining" and not status.at_work:
        yield (
            f"node {name} has joined and serves nobody, so a run was cut short: make shard (or make"
            " after, whichever it was)"
        )
    if seen.trouble == "refuses":
        yield f"node {name} refuses LAB_PASSWORD: set it to what the lab was made with"
    elif not seen.is_up:
        what = (
            f"is down ({_first(seen.error)})"
            if seen.trouble == "down"
            else f"takes connections and does not answer ({_first(seen.error)})"
        )
        remedy = f"{again} starts it again"
        if seen.trouble == "silent":
            remedy = "continue its processes (kill -CONT, or docker unpause)"
        has_standby = any(
            node["region"] == region and node["role"] == "standby" and status.nodes[other].is_up
            for other, node in topology.nodes.items()
            if other != name
        )
        if role == "primary" and has_standby:
            remedy = f"make failover lets its standby take over, or {remedy}"
        yield f"node {name} {what}: {remedy}"
    elif seen.in_recovery != (role == "standby"):
        found = "a standby" if seen.in_recovery else "no standby"
        yield f"node {name} is {found} and topology.json has it as {role}: {again}"


def _of_replication(status: Status, again: str) -> Iterable[str]:
    topology = status.topology
    for name, node in topology.nodes.items():
        if node["role"] not in ("standby", "replica") or not status.nodes[name].is_up:
            continue
        source = _source_of(topology, name)
        if source is None or not status.nodes[source].is_up:
            continue
        kind = "physical" if node["role"] == "standby" else "logical"
        found = _follower(topology, status, name)
        if found is None:
            yield f"{name} has no slot on {source}, so nothing reaches it: {again}"
        elif found.wal_status == "lost":
            yield f"{name} is too far behind, {source} no longer has its WAL: {again}"
        elif not found.active or found.state != "streaming":
            wait = "; writes wait for it" if kind == "physical" else "; its rows grow old"
            yield (
                f"{name} does not follow {source} ({found.state or 'nobody reads its slot'})"
                f"{wait}: {again}"
            )
        elif found.lag_bytes > LAG_BYTES:
            yield (
                f"{name} is {size(found.lag_bytes)} behind {source}: look at the link with make wan"
            )
    for name, seen in status.nodes.items():
        for subscription, enabled, running in seen.subscriptions:
            if not enabled:
                yield f"subscription {subscription} on {name} is disabled: {again}"
            elif not running and not status.at_work:
                yield f"subscription {subscription} on {name} has no worker: {again}"


def _of_left_overs(status: Status, name: str, seen: Seen, again: str) -> Iterable[str]:
    if status.at_work:
        return  # What a run at work has made for the time being is no left-over.
    for schema in seen.schemas:
        yield f"schema {schema} on {name} is left of a run that was cut short: {_player(schema)}"
    if seen.is_captured:
        is_after = status.topology.phase == "after"
        what = "writing the leaves anew" if is_after else "partitioning"
        yield f"{what} on {name} was cut short: make {'after' if is_after else 'shard'}"
    if seen.deleted_s is not None and seen.deleted_s > REWRITE_S:
        yield (
            f"bytes of rows that were deleted {seen.deleted_s:,.0f} s ago are in the files of"
            f" {name} yet: make after removes them"
        )
    for gid, age in seen.prepared:
        if not gid.startswith(MOVE):
            yield (
                f"prepared transaction '{gid}' on {name} has held locks for {age:,.0f} s: COMMIT"
                f" PREPARED or ROLLBACK PREPARED it, in make psql NODE={name}"
            )
        elif age > MOVE_S:
            yield (
                f"a move of a customer to {name} was interrupted {age:,.0f} s ago ('{gid}'): the"
                " next make move, of whomever, or make after finishes it or undoes it"
            )
    if status.topology.phase == "after":
        for follower in seen.followers:
            if follower.kind == "logical":
                yield f"slot {follower.slot} on {name} keeps WAL and nobody needs it: {again}"


def _player(schema: str) -> str:
    """Return what ends what was begun with a schema."""
    if schema == "retired":
        return "make shard"
    return "make shard, or make after" if schema.startswith("incoming") else "make after"


def link_state(config: Config, start: str, end: str) -> str:
    """Return what a pair of regions' link is: up, cut, cut one way, reset or slow."""
    links = [link for link in config.links if {link.source, link.region} == {start, end}]
    troubles = [trouble for link in links if (trouble := config.trouble(link))]
    return troubles[0] if troubles else "up"


def _source_of(topology: Topology, name: str) -> str | None:
    """Return the node that a standby or a replica follows."""
    node = topology.nodes[name]
    if node["role"] == "standby":
        return topology.primary_of(node["region"])
    return next(iter(topology.primaries()), None)


def _follower(topology: Topology, status: Status, name: str) -> Follower | None:
    source = _source_of(topology, name)
    if source is None:
        return None
    is_standby = topology.nodes[name]["role"] == "standby"
    slot = name.replace("-", "_") if is_standby else f"lab_{name.replace('-', '_')}"
    return next((x for x in status.nodes[source].followers if x.slot == slot), None)


# -- print ------------------------------------------------------------------------------------


def show(status: Status, console: Console) -> bool:
    """Print the tables and what is wrong in 80 columns; return whether nothing is."""
    topology = status.topology
    console.print(
        f"Lab {topology.lab.name}: phase {topology.phase}, {topology.runtime} runtime"
        + (", a run is at work" if status.at_work else ""),
        highlight=False,
    )
    console.print(str(topology.lab.home), soft_wrap=True, highlight=False)
    _show_nodes(status, console)
    _show_replication(status, console)
    if status.wan is not None:
        _show_links(status, status.wan, console)
    _show_audits(status, console)
    found = list(illnesses(status))
    for line in found:
        console.print(f"WRONG: {line}", markup=False, highlight=False)
    if not found:
        console.print("HEALTHY: nothing is wrong.", highlight=False)
    return not found


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _show_nodes(status: Status, console: Console) -> None:
    table = _table("Nodes")
    for column in ("node", "region", "role", "port", "state", "PostgreSQL"):
        table.add_column(column)
    table.add_column("connections", justify="right")
    for name, node in status.topology.nodes.items():
        seen = status.nodes[name]
        table.add_row(
            name,
            node["region"],
            node["role"],
            str(node["port"]),
            seen.trouble or "up",
            seen.version,
            f"{seen.connections:,} of {seen.max_connections:,}" if seen.is_up else "",
        )
    console.print(table)


def _show_replication(status: Status, console: Console) -> None:
    table = _table("Replication")
    for column in ("node", "follows", "kind", "state"):
        table.add_column(column)
    for column in ("behind", "ms"):
        table.add_column(column, justify="right")
    for name, node in status.topology.nodes.items():
        if node["role"] not in ("standby", "replica"):
            continue
        source = _source_of(status.topology, name)
        found = _follower(status.topology, status, name)
        kind = "physical" if node["role"] == "standby" else "logical"
        if found is None or not found.active:
            unknown = source is None or not status.nodes[source].is_up
            table.add_row(name, source or "?", kind, "unknown" if unknown else "away", "", "")
            continue
        state = f"{found.state}, {found.sync}" if kind == "physical" else found.state
        behind = size(max(0, found.lag_bytes))
        table.add_row(name, source, kind, state, behind, f"{found.lag_ms:,.1f}")
    if table.rows:
        console.print(table)


def _show_links(status: Status, config: Config, console: Console) -> None:
    table = _table("Links of the WAN")
    table.add_column("link")
    table.add_column("state")
    table.add_column("RTT", justify="right")
    for start, end in config.pairs():
        rtt = max(
            config.rtt_ms(link)
            for link in config.links
            if {link.source, link.region} == {start, end}
        )
        state = f"relay {status.relay}" if status.relay else link_state(config, start, end)
        table.add_row(f"{start}-{end}", state, f"{rtt:g} ms")
    console.print(table)


def _show_audits(status: Status, console: Console) -> None:
    current = [entry for entry in status.audits if entry["phase"] == status.topology.phase]
    if not current:
        console.print(f"Audit: none in phase {status.topology.phase} yet (make audit)")
        return
    (entry,) = current[-1:]
    expected = (
        ""
        if entry["verdict"] == "HOLDS" or status.topology.phase == "after"
        else f", which is what phase {status.topology.phase} is"
    )
    console.print(
        f"Audit: {entry['verdict']} at {moment(entry)}{expected}", markup=False, highlight=False
    )


def moment(entry: Mapping[str, Any]) -> str:
    """Return when an audit was made."""
    return str(entry.get("at", "an unknown time")).replace("T", " ").replace("+00:00", " UTC")


def size(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} B"


def _first(text: str) -> str:
    """Return the kernel of a client's message: it may name the address twice."""
    for words in ("Connection refused", "starting up", "shutting down", "no answer", "timeout"):
        if words in text:
            return words.lower() if words != "timeout" else f"no login in {CONNECT_S} s"
    return text[:60]
