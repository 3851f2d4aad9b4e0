"""What make status takes for an illness, and what it says to do."""

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
from workload.operations import psql, status
from workload.operations.status import Follower, Seen, Status, illnesses
from workload.topology import Region, Topology
from workload.wan.config import Config, Link

UP = Seen(version="17.4", connections=3, max_connections=400)
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


def region(name: str, **more: Any) -> Region:
    values: dict[str, Any] = {
        "name": name, "countries": (name,), "node": "eu", "host": "127.0.0.1", "port": 5432,
        "rtt_ms": 0.0, "addresses": (), "reads": (), "ways": (), "warm_up": "", "open": True,
    }  # fmt: skip
    return Region(**{**values, **more})


def lab(phase: str, **seen: Seen) -> Status:
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
        subscribed = replace(UP, subscriptions=[("lab", True, True)])
        healthy.update(us=subscribed, jp=subscribed)
    return Status(topology, {**healthy, **seen}, WAN)


def wrong(found: Status) -> str:
    """Return the one line that is wrong."""
    lines = list(illnesses(found))
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("phase", ROLES)
def test_a_healthy_lab_has_no_illness(phase: str) -> None:
    assert list(illnesses(lab(phase))) == []


def test_a_node_that_is_down_is_started_by_its_phase() -> None:
    line = wrong(lab("after", us=Seen(trouble="down", error="... Connection refused ...")))
    assert line == "node us is down (connection refused): make after starts it again"


def test_a_primary_with_a_standby_can_be_failed_over() -> None:
    line = wrong(lab("expand_world", eu=Seen(trouble="down", error="Connection refused")))
    assert "make failover lets its standby take over, or make expand_world" in line


def test_a_node_that_does_not_answer_is_to_be_continued() -> None:
    line = wrong(lab("after", jp=Seen(trouble="silent", error="timeout expired")))
    assert "kill -CONT" in line


def test_a_fenced_node_is_to_rejoin_and_is_not_missed() -> None:
    found = lab("after")
    found.topology.nodes["eu"]["role"] = "fenced"  # type: ignore[index]
    found.topology.nodes["eu_2"]["role"] = "primary"  # type: ignore[index]
    seen = {**found.nodes, "eu": Seen(trouble="down", error="refused"), "eu_2": UP}
    assert "make rejoin" in wrong(replace(found, nodes=seen))


@pytest.mark.parametrize(
    ("follower", "says"),
    [
        ([], "eu_2 has no slot on eu"),
        ([replace(STANDBY, active=False, state="")], "does not follow eu .* writes wait for it"),
        ([replace(STANDBY, wal_status="lost")], "no longer has its WAL"),
        ([replace(STANDBY, lag_bytes=1 << 30)], r"eu_2 is 1\.0 GB behind eu"),
    ],
)
def test_a_standby_that_does_not_follow(follower: list[Follower], says: str) -> None:
    line = wrong(lab("expand_world", eu=replace(UP, followers=follower)))
    assert re.search(says, line), line


def test_a_replica_whose_subscription_is_off() -> None:
    line = wrong(lab("shard", jp=replace(UP, subscriptions=[("lab", False, False)])))
    assert line == "subscription lab on jp is disabled: make shard"


def test_what_a_killed_run_left_is_named_with_what_ends_it() -> None:
    found = lab("shard")
    left = {**found.nodes, "eu": replace(found.nodes["eu"], schemas=["retired_us"])}
    assert "schema retired_us on eu" in wrong(replace(found, nodes=left))
    assert wrong(replace(found, nodes=left)).endswith("make after")
    busy = {**left, "us": replace(found.nodes["us"], at_work=True)}
    # What a run at work has made for the time being is no left-over.
    assert list(illnesses(replace(found, nodes=busy))) == []


def test_what_a_killed_rewrite_left_is_ended_by_make_after() -> None:
    line = wrong(lab("after", us=replace(UP, is_captured=True)))
    assert line == "writing the leaves anew on us was cut short: make after"
    assert wrong(lab("after", us=replace(UP, schemas=["rewritten_us"]))).endswith("make after")
    line = wrong(lab("after", us=replace(UP, deleted_s=3600.0)))
    assert "deleted 3,600 s ago are in the files of us yet: make after" in line
    assert list(illnesses(lab("after", us=replace(UP, deleted_s=5.0)))) == []


def test_prepared_transactions() -> None:
    moved = replace(UP, prepared=[("lab_move_x_from_eu", 60.0)])
    assert "make move" in wrong(lab("after", us=moved))
    under_way = replace(UP, prepared=[("lab_move_x_from_eu", 0.2)])
    assert list(illnesses(lab("after", us=under_way))) == []
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


def test_what_the_audit_found_is_an_illness_in_after_alone() -> None:
    for phase in ("shard", "after"):
        audits = [{"phase": phase, "verdict": "VIOLATED", "at": "2026-01-02T03:04:05+00:00"}]
        found = list(illnesses(replace(lab(phase), audits=audits)))
        assert bool(found) == (phase == "after")
    assert "2026-01-02 03:04:05 UTC" in found[0]


def test_it_is_printed_in_80_columns() -> None:
    out = io.StringIO()
    silent = Seen(trouble="silent", error="no answer in 5 s")
    found = lab("shard", us=silent, eu_2=replace(silent, trouble="down"))
    assert not status.show(found, Console(file=out, width=80))
    text = out.getvalue()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    for word in ("replica", "silent", "streaming, sync", "physical", "logical", "eu-jp", "230 ms"):
        assert word in text, word
    healthy = io.StringIO()
    assert status.show(lab("after"), Console(file=healthy, width=80))
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
