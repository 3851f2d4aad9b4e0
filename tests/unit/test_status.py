"""What make status takes for a problem, and what it says to do."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from workload.errors import LabError
from workload.lab import Lab
from workload.operations import psql
from workload.operations.status.collect import Follower, NodeState, Status, Subscription
from workload.operations.status.diagnose import problems
from workload.operations.status.show import show
from workload.sharding.conflicts import Conflict
from workload.topology import Region, Topology
from workload.wan.config import Config, Link

UP = NodeState(version="17.4", connections=3, max_connections=400)
STANDBY = Follower("eu_2", "physical", True, "streaming", "sync", 0, 0.4, "reserved")
REPLICAS = [
    Follower(f"lab_{node}", "logical", True, "streaming", "async", 1_000, 80.0, "reserved")
    for node in ("us", "jp")
]
ROLES = {
    "expand_world": {"eu": "primary", "eu_2": "standby"},
    "shard": {"eu": "primary", "eu_2": "standby", "us": "replica", "jp": "replica"},
    "after": {"eu": "primary", "eu_2": "standby", "us": "primary", "jp": "primary"},
}
WAN = Config(
    links=tuple(
        Link(source, node, node, port, "127.0.0.1", port + 100, rtt, 0.5)
        for port, (source, node, rtt) in enumerate(
            [("eu", "us", 80.0), ("us", "eu", 80.0), ("eu", "jp", 230.0)], 9_000
        )
    ),
    listen=("127.0.0.1",),
)


def region(name: str, node: str = "eu", **more: Any) -> Region:
    values: dict[str, Any] = {
        "name": name, "countries": (name,), "serves": (name,), "addresses": ({"node": node},),
        "reads": (), "ways": (), "warm_up": "",
    }  # fmt: skip
    return Region(**{**values, **more})


def lab(phase: str, **seen: NodeState) -> Status:
    """Return a healthy lab in a phase, but for what is said of some nodes."""
    nodes = {
        name: {
            "region": name.split("_")[0], "role": role, "host": "127.0.0.1", "port": 5432 + place,
            "container": name,
        }
        for place, (name, role) in enumerate(ROLES[phase].items())
    }  # fmt: skip
    topology = Topology(
        lab=Lab("lab", Path("/nowhere")),
        phase=phase,
        runtime="embedded",
        dbname="postgres",
        user="customers",
        password_file="secrets/customers",
        all_regions=tuple(map(region, ("eu", "us", "jp"))),
        nodes=nodes,
        servers={},
        tables="home",
    )
    followers = [STANDBY, *(REPLICAS if phase == "shard" else [])]
    healthy = dict.fromkeys(nodes, UP)
    healthy["eu"] = replace(UP, followers=followers)
    healthy["eu_2"] = replace(UP, in_recovery=True)
    if phase == "shard":
        subscribed = replace(UP, subscriptions=[Subscription("lab", True, True)])
        healthy.update(us=subscribed, jp=subscribed)
    states = {**healthy, **seen}
    return Status(topology, {n: with_leaves(n, phase, each) for n, each in states.items()}, WAN)


def with_leaves(name: str, phase: str, state: NodeState) -> NodeState:
    """Return a node that is up with all leaves that it should have."""
    if not state.is_up or state.leaves or phase not in ("shard", "after"):
        return state
    kinds = {
        region: "r" if phase == "shard" or name.split("_")[0] == region else "f"
        for region in ("eu", "us", "jp")
    }
    return replace(state, leaves=[(region, "customer", kind) for region, kind in kinds.items()])


def wrong(found: Status) -> str:
    """Return the one line that is wrong."""
    lines = list(problems(found))
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("phase", ROLES)
def test_a_healthy_lab_has_no_problem(phase: str) -> None:
    assert list(problems(lab(phase))) == []


def test_a_node_that_is_down_is_started_by_its_phase() -> None:
    line = wrong(lab("after", us=NodeState(trouble="down", error="... Connection refused ...")))
    assert line == "node us is down (connection refused): make after starts it again"


def test_a_primary_with_a_standby_can_be_failed_over() -> None:
    line = wrong(lab("expand_world", eu=NodeState(trouble="down", error="Connection refused")))
    assert "make failover lets its standby take over, or make expand_world" in line


def test_a_node_that_does_not_answer_is_to_be_continued() -> None:
    line = wrong(lab("after", jp=NodeState(trouble="silent", error="timeout expired")))
    assert "kill -CONT" in line


def test_a_fenced_node_is_to_rejoin_and_is_not_missed() -> None:
    found = lab("after")
    found.topology.nodes["eu"]["role"] = "fenced"  # type: ignore[index]
    found.topology.nodes["eu_2"]["role"] = "primary"  # type: ignore[index]
    up = with_leaves("eu_2", "after", UP)
    seen = {**found.nodes, "eu": NodeState(trouble="down", error="refused"), "eu_2": up}
    assert "make rejoin" in wrong(replace(found, nodes=seen))


@pytest.mark.parametrize(
    ("follower", "says"),
    [
        ([], "eu_2 has no slot on eu"),
        ([replace(STANDBY, active=False, state="")], "does not follow eu .* writes wait for it"),
        ([replace(STANDBY, wal_status="lost")], "no longer has its WAL"),
        ([replace(STANDBY, lag_bytes=1 << 30)], r"eu_2 is 1\.1\sGB behind eu"),
    ],
)
def test_a_standby_that_does_not_follow(follower: list[Follower], says: str) -> None:
    line = wrong(lab("expand_world", eu=replace(UP, followers=follower)))
    assert re.search(says, line), line


def test_a_replica_whose_subscription_is_off() -> None:
    line = wrong(lab("shard", jp=replace(UP, subscriptions=[Subscription("lab", False, False)])))
    assert line == "subscription lab on jp is disabled: make shard"


def test_what_a_killed_run_left_is_named_with_what_ends_it() -> None:
    found = lab("shard")
    left = {**found.nodes, "eu": replace(found.nodes["eu"], schemas=["retired_us"])}
    assert "schema retired_us on eu" in wrong(replace(found, nodes=left))
    assert wrong(replace(found, nodes=left)).endswith("make after")
    busy = {**left, "us": replace(found.nodes["us"], at_work=True)}
    # What a run at work has made for the time being is no left-over.
    assert list(problems(replace(found, nodes=busy))) == []


def test_what_a_killed_rewrite_left_is_ended_by_make_after() -> None:
    line = wrong(lab("after", us=replace(UP, is_captured=True)))
    assert line == "the online rewrite of leaves on us was cut short: make after"
    assert wrong(lab("after", us=replace(UP, schemas=["rewritten_us"]))).endswith("make after")
    line = wrong(lab("after", us=replace(UP, deleted_s=3600.0)))
    assert "deleted 3,600 s ago are in the files of us yet: make after" in line
    assert list(problems(lab("after", us=replace(UP, deleted_s=5.0)))) == []


def test_prepared_transactions() -> None:
    moved = replace(UP, prepared=[("lab_move_x_from_eu", 60.0)])
    assert "make move" in wrong(lab("after", us=moved))
    under_way = replace(UP, prepared=[("lab_move_x_from_eu", 0.2)])
    assert list(problems(lab("after", us=under_way))) == []
    line = wrong(lab("after", us=replace(UP, prepared=[("mine", 3.0)])))
    assert "'mine' on us" in line
    assert "make psql NODE=us" in line


def test_a_slot_that_nobody_needs_any_more() -> None:
    found = lab("after", eu=replace(UP, followers=[STANDBY, REPLICAS[0]]))
    assert wrong(found).startswith("slot lab_us on eu keeps WAL")


def test_links_that_are_not_as_the_inventory_has_them() -> None:
    found = lab("after")
    assert found.wan is not None
    cut = replace(found, wan=found.wan.with_state("us-eu", "cut"))
    assert wrong(cut) == "link eu-us is cut: make wan LINK=eu-us STATE=up"
    slow = replace(found, wan=found.wan.with_state("us-eu", rtt_ms=300))
    assert "link eu-us is slow" in wrong(slow)
    one_way = replace(found, wan=found.wan.with_state("us-eu", "cut", one_way=True))
    assert "link eu-us is cut us>eu" in wrong(one_way)
    assert "relay is paused" in wrong(replace(cut, relay="paused"))


def test_what_the_audit_found_is_a_problem_in_after_alone() -> None:
    for phase in ("shard", "after"):
        audits = [{"phase": phase, "verdict": "VIOLATED", "at": "2026-01-02T03:04:05+00:00"}]
        found = list(problems(replace(lab(phase), audits=audits)))
        assert bool(found) == (phase == "after")
    assert "2026-01-02 03:04:05 UTC" in found[0]


def test_it_is_printed_in_80_columns() -> None:
    out = io.StringIO()
    silent = NodeState(trouble="silent", error="no answer in 5 s")
    found = lab("shard", us=silent, eu_2=replace(silent, trouble="down"))
    assert not show(found, Console(file=out, width=80))
    text = out.getvalue()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    for word in ("replica", "silent", "streaming, sync", "physical", "logical", "eu-jp", "230 ms"):
        assert word in text, word
    healthy = io.StringIO()
    assert show(lab("after"), Console(file=healthy, width=80))
    assert "HEALTHY" in healthy.getvalue()


def test_psql_goes_to_the_first_primary_or_to_who_is_named() -> None:
    topology = lab("after").topology
    assert psql.target(topology, None) == "eu"
    assert psql.target(topology, "jp") == "jp"
    with pytest.raises(LabError, match=r"no node 'zz' in this lab: use one of eu, eu_2, us, jp$"):
        psql.target(topology, "zz")


def test_psql_is_not_told_the_password_on_its_command_line() -> None:
    arguments, environment = psql.command(lab("after").topology, "s3cret", "jp", "SELECT 1")
    assert environment["PGPASSWORD"] == "s3cret"
    assert "s3cret" not in " ".join(arguments)
    assert arguments[-2:] == ["-c", "SELECT 1"]
    assert "--port=5435" in arguments


def test_a_lab_whose_leaves_are_missing_is_not_healthy() -> None:
    found = lab("after")
    gone = [(r, t, "" if r == "us" else k) for r, t, k in found.nodes["us"].leaves]
    line = wrong(replace(found, nodes={**found.nodes, "us": replace(UP, leaves=gone)}))
    assert line.startswith("node us is the home of us and has no rows of us.customer:")
    at_eu = [(r, t, "" if r == "us" else k) for r, t, k in found.nodes["eu"].leaves]
    eu = replace(found.nodes["eu"], leaves=at_eu)
    line = wrong(replace(found, nodes={**found.nodes, "eu": eu}))
    assert line == "node eu has no us.customer: make after makes what is missing"
    emptied = replace(found.nodes["jp"], leaves=[])
    line = wrong(replace(found, nodes={**found.nodes, "jp": emptied}))
    assert line.startswith("node jp has no partitioned tables")


def test_a_row_that_stops_a_replica_is_named_once_with_its_key() -> None:
    conflict = Conflict(
        "lab", "us", "eu", "eu", "customer", {"id": "7"}, {"id": "7"}, {"id": "7"}, "duplicate"
    )
    failing = replace(UP, subscriptions=[Subscription("lab", True, False, 3)], conflict=conflict)
    followers = [STANDBY, replace(REPLICAS[0], active=False, state=""), REPLICAS[1]]
    line = wrong(lab("shard", us=failing, eu=replace(UP, followers=followers)))
    for words in (
        "us is stopped",
        "subscription lab",
        "eu.customer",
        "id 7",
        "make resolve NODE=us",
    ):
        assert words in line


@pytest.mark.parametrize("phase", ["expand_world", "shard", "after"])
def test_a_slot_of_somebody_else_that_holds_wal_back_is_named_with_its_bytes(phase: str) -> None:
    foreign = Follower("debezium", "logical", False, "", "", 0, 0.0, "extended", 5_000_000)
    found = lab(phase)
    followers = [*found.nodes["eu"].followers, foreign]
    nodes = {**found.nodes, "eu": replace(found.nodes["eu"], followers=followers)}
    line = wrong(replace(found, nodes=nodes))
    assert line.startswith("slot debezium on eu is not the lab's, holds 5.0\u00a0MB of WAL back")
    assert "pg_drop_replication_slot('debezium')" in line
    read = replace(foreign, active=True)
    nodes["eu"] = replace(nodes["eu"], followers=[*found.nodes["eu"].followers, read])
    assert list(problems(replace(found, nodes=nodes))) == []
