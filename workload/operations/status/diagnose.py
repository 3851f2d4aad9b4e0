"""What is wrong with a lab, and what to do about it: a line for each problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workload.operations.status.collect import CONNECT_S, Follower, NodeState, Status
from workload.output import size
from workload.proof.verify import name_shared
from workload.schemas import slot
from workload.topology import Topology
from workload.wan.config import Config

#: Lag above which a follower is a problem, and WAL kept for a slot that is not the lab's.
LAG_BYTES = 64 << 20
#: What prepared transactions of moves begin with, and seconds that a move may take.
MOVE, MOVE_S = "lab_move_", 10.0
#: Seconds in which files are usually rewritten.
REWRITE_S = 30.0


def problems(status: Status) -> Iterable[str]:
    """Yield a line for each thing that is wrong, with what to do about it."""
    topology = status.topology
    again = f"make {topology.phase}"
    for name, state in status.nodes.items():
        yield from _of_node(status, name, state, again)
    moved = [
        name for name in topology.primaries() if topology.nodes[name]["region"] != topology.origin()
    ]
    if moved and topology.phase != "after" and not status.at_work:
        names = ", ".join(moved)
        yield f"{names} took over a region's rows, and phase after is not reached: make after"
    yield from _of_replication(status, again)
    for name, state in status.nodes.items():
        yield from _of_leaves(status, name, state, again)
    for name, state in status.nodes.items():
        if not state.in_recovery:
            yield from _of_leftovers(status, name, state, again)
    if status.relay:
        yield f"the WAN's relay is {status.relay}: no link carries anything; {again}"
    elif status.wan is not None:
        for start, end in status.wan.pairs():
            link = link_state(status.wan, start, end)
            if link != "up":
                yield f"link {start}-{end} is {link}: make wan LINK={start}-{end} STATE=up"
    if not status.at_work:  # A customer who is being moved may have been read on both nodes.
        yield from name_shared(status.shared_ids or {})
    yield from status.unreadable
    if topology.phase == "after":
        for entry in status.audits:
            if entry["phase"] == "after" and entry["verdict"] != "HOLDS":
                yield (
                    f"the last audit ({moment(entry)}) found data of a region on a node that is not"
                    " its home: make audit says where it is now"
                )


def _of_node(status: Status, name: str, state: NodeState, again: str) -> Iterable[str]:
    topology = status.topology
    role, region = topology.nodes[name]["role"], topology.nodes[name]["region"]
    if role == "fenced":
        yield (
            f"node {name} is fenced since a failover, and {region} has no standby: make rejoin"
            " brings it back as one"
        )
        return
    if name in status.lost_data:
        yield status.lost_data[name]
        return
    if role == "joining" and not status.at_work:
        yield (
            f"node {name} has joined and serves nobody, so a run was cut short: make shard (or make"
            " after, whichever it was)"
        )
    if state.trouble == "full":
        yield f"node {name} has no connection left (too many clients): end some of its sessions"
    elif state.trouble == "refuses":
        yield f"node {name} refuses LAB_PASSWORD: set it to what the lab was made with"
    elif not state.is_up:
        what = (
            f"is down ({_first(state.error)})"
            if state.trouble == "down"
            else f"takes connections and does not answer ({_first(state.error)})"
        )
        remedy = f"{again} starts it again"
        if state.trouble == "silent":
            remedy = "continue its processes (kill -CONT, or docker unpause)"
        has_standby = any(
            node["region"] == region and node["role"] == "standby" and status.nodes[other].is_up
            for other, node in topology.nodes.items()
            if other != name
        )
        if role == "primary" and has_standby:
            remedy = f"make failover lets its standby take over, or {remedy}"
        yield f"node {name} {what}: {remedy}"
    elif state.in_recovery != (role == "standby"):
        actual = "a standby" if state.in_recovery else "no standby"
        yield f"node {name} is {actual} and topology.json has it as {role}: {again}"


def _of_replication(status: Status, again: str) -> Iterable[str]:
    topology = status.topology
    stopped = {name for name, state in status.nodes.items() if state.conflict is not None}
    for name, node in topology.nodes.items():
        if node["role"] not in ("standby", "replica") or not status.nodes[name].is_up:
            continue
        source = source_of(topology, name)
        if source is None or not status.nodes[source].is_up or name in stopped:
            continue
        kind = "physical" if node["role"] == "standby" else "logical"
        follower = follower_of(status, name)
        if follower is None:
            yield f"{name} has no slot on {source}, so nothing reaches it: {again}"
        elif follower.wal_status == "lost":
            yield f"{name} is too far behind, {source} no longer has its WAL: {again}"
        elif not follower.active or follower.state != "streaming":
            wait = "; writes wait for it" if kind == "physical" else "; its rows grow old"
            yield (
                f"{name} does not follow {source} ({follower.state or 'nobody reads its slot'})"
                f"{wait}: {again}"
            )
        elif follower.lag_bytes > LAG_BYTES:
            yield (
                f"{name} is {size(follower.lag_bytes)} behind {source}: make wan shows whether the"
                " link is as it should be"
            )
    for name, state in status.nodes.items():
        if state.conflict is not None:
            yield state.conflict.sentence
            continue
        for each in state.subscriptions:
            if not each.enabled:
                yield f"subscription {each.name} on {name} is disabled: {again}"
            elif not each.running and not status.at_work:
                failed = f", which failed {each.errors:,} times," if each.errors else ""
                yield f"subscription {each.name} on {name} has no worker{failed}: {again}"
    yield from _of_foreign_slots(status)


def _of_foreign_slots(status: Status) -> Iterable[str]:
    """Yield slots that the lab did not make, where they hold WAL back."""
    topology = status.topology
    own = {slot(name) for name in topology.nodes}
    own |= {name.replace("-", "_") for name in topology.nodes}
    for name, state in status.nodes.items():
        for each in state.followers:
            if each.slot in own or (each.active and each.kept_bytes <= LAG_BYTES):
                continue
            reader = "its reader is behind" if each.active else "nobody reads it"
            yield (
                f"slot {each.slot} on {name} is not the lab's, holds {size(each.kept_bytes)} of WAL"
                f" back and {reader}: make after cannot purge old rows while it does; drop it"
                f" (SELECT pg_drop_replication_slot('{each.slot}')) or have it read"
            )


def _of_leaves(status: Status, name: str, state: NodeState, again: str) -> Iterable[str]:
    """Yield the leaves that a node should have and has not."""
    topology = status.topology
    if status.at_work or not topology.has_reached("shard") or not state.is_up:
        return
    role, home = topology.nodes[name]["role"], topology.nodes[name]["region"]
    if role == "joining":
        return
    if not state.leaves:
        yield f"node {name} has no partitioned tables: they were dropped, or its data is lost"
    missing = [f"{region}.{table}" for region, table, kind in state.leaves if not kind]
    lost = [
        f"{region}.{table}"
        for region, table, kind in state.leaves
        if region == home and kind != "r" and topology.phase == "after"
    ]
    if lost:
        yield (
            f"node {name} is the home of {home} and has no rows of {', '.join(lost)}: they were"
            " dropped or its data is lost; a standby or a backup of it has them"
        )
    elif missing:
        yield f"node {name} has no {', '.join(missing)}: {again} makes what is missing"


def _of_leftovers(status: Status, name: str, state: NodeState, again: str) -> Iterable[str]:
    if status.at_work:
        return  # What a run at work has made for the time being is no leftover.
    for schema in state.schemas:
        yield f"schema {schema} on {name} is left of a run that was cut short: {_player(schema)}"
    if state.is_captured:
        is_after = status.topology.phase == "after"
        what = "the online rewrite of leaves" if is_after else "partitioning"
        yield f"{what} on {name} was cut short: make {'after' if is_after else 'shard'}"
    if state.deleted_s is not None and state.deleted_s > REWRITE_S:
        yield (
            f"bytes of rows that were deleted {state.deleted_s:,.0f} s ago are in the files of"
            f" {name} yet: make after removes them, unless a make move or make forget is at it"
        )
    for gid, age in state.prepared:
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
        unneeded = {slot(node) for node in status.topology.nodes}
        for each in state.followers:
            if each.slot in unneeded:
                yield f"slot {each.slot} on {name} keeps WAL and nobody needs it: {again}"


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


def source_of(topology: Topology, name: str) -> str | None:
    """Return the node that a standby or a replica follows."""
    node = topology.nodes[name]
    if node["role"] == "standby":
        return topology.primary_of(node["region"])
    return next(iter(topology.primaries()), None)


def follower_of(status: Status, name: str) -> Follower | None:
    """Return the slot by which a standby or a replica follows its source."""
    source = source_of(status.topology, name)
    if source is None:
        return None
    slot_name = _slot_of(status.topology, name)
    return next((each for each in status.nodes[source].followers if each.slot == slot_name), None)


def _slot_of(topology: Topology, name: str) -> str:
    is_standby = topology.nodes[name]["role"] == "standby"
    return name.replace("-", "_") if is_standby else slot(name)


def moment(entry: Mapping[str, Any]) -> str:
    """Return when an audit was made."""
    return str(entry.get("at", "an unknown time")).replace("T", " ").replace("+00:00", " UTC")


def _first(text: str) -> str:
    """Return the kernel of a client's message: it may name the address twice."""
    for words in ("Connection refused", "starting up", "shutting down", "no answer", "timeout"):
        if words in text:
            return words.lower() if words != "timeout" else f"no login in {CONNECT_S} s"
    return text[:60]
