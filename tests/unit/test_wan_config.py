"""The WAN as data: which links there are, where they listen, and what is cut."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.fixtures.refusals import Refusal
from workload.errors import LabError
from workload.operations.wan import sentence, show
from workload.wan.config import Config, Link, State, links_for
from workload.wan.measure import is_within

CHECKOUT = Path(__file__).resolve().parents[2]
RTT = {"eu": {"us": 80, "jp": 230}, "us": {"jp": 155}}
REGIONS = ["eu", "us", "jp"]


def node(name: str, region: str, offset: int) -> dict[str, Any]:
    where = {"host": "127.0.0.1", "port": 5432 + offset, "port_offset": offset}
    return {"name": name, "region": region, **where, "volume": f"{name}_db"}


NODES = [node("eu", "eu", 0), node("eu_2", "eu", 1), node("us", "us", 2), node("jp", "jp", 3)]


def links(nodes: list[dict[str, Any]] = NODES, regions: list[str] = REGIONS) -> list[Link]:
    return links_for(regions, nodes, RTT, 0.5, 5432)


@pytest.fixture
def config() -> Config:
    return Config(tuple(links()), ("127.0.0.1",))


def link(source: str, node: str) -> Link:
    return next(x for x in links() if (x.source, x.node) == (source, node))


# -- links -------------------------------------------------------------------------------------


def test_every_region_has_a_link_to_every_node_that_is_not_at_home() -> None:
    assert {(x.source, x.node) for x in links()} == {
        ("eu", "us"), ("eu", "jp"),
        ("us", "eu"), ("us", "eu_2"), ("us", "jp"),
        ("jp", "eu"), ("jp", "eu_2"), ("jp", "us"),
    }  # fmt: skip


def test_link_says_all_that_the_relay_needs() -> None:
    assert link("jp", "eu_2") == Link("jp", "eu_2", "eu", 5463, "127.0.0.1", 5433, 230.0, 0.5)


def test_rtt_is_found_either_way_round() -> None:
    assert link("us", "eu").rtt_ms == link("eu", "us").rtt_ms == 80
    assert link("us", "jp").rtt_ms == link("jp", "us").rtt_ms == 155


def test_ports_are_all_different_and_none_is_a_nodes() -> None:
    ports = [x.port for x in links()]
    assert len(set(ports)) == len(ports)
    assert not set(ports) & {node["port"] for node in NODES}


def test_ports_stay_when_a_region_is_appended() -> None:
    before = {(x.source, x.node): x.port for x in links()}
    rtt = {**RTT, "au": {"eu": 280, "us": 200, "jp": 110}}
    more = links_for([*REGIONS, "au"], [*NODES, node("au", "au", 4)], rtt, 0, 5432)
    after = {(x.source, x.node): x.port for x in more}
    assert before.items() < after.items()


def test_nodes_all_at_home_have_no_link() -> None:
    assert links_for(["eu"], NODES[:2], {}, 0, 5432) == []


def test_pair_without_an_rtt_is_named_with_where_to_add_it(refusal: Refusal) -> None:
    with pytest.raises(LabError, match=r"no RTT between jp and us: .*lab_rtt_ms") as caught:
        links_for(REGIONS, NODES[2:3], {"eu": {"us": 80, "jp": 230}}, 0, 5432)
    refusal("lab_rtt_ms: {eu: {us: 80, jp: 230}}", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, "far", None, float("nan"), 100_000])
def test_rtt_that_is_none_is_named(value: Any, refusal: Refusal) -> None:
    with pytest.raises(LabError, match="lab_rtt_ms between us and eu is") as caught:
        links_for(["us"], NODES[:1], {"eu": {"us": value}}, 0, 5432)
    refusal(f"lab_rtt_ms: {{eu: {{us: {value}}}}}", str(caught.value))


def test_two_rtts_of_one_pair_are_both_named(refusal: Refusal) -> None:
    with pytest.raises(LabError, match="two RTTs between us and eu: 90 and 80") as caught:
        links_for(["us"], NODES[:1], {"eu": {"us": 80}, "us": {"eu": 90}}, 0, 5432)
    refusal("lab_rtt_ms: {eu: {us: 80}, us: {eu: 90}}", str(caught.value))


def test_one_rtt_written_both_ways_round_is_one() -> None:
    (found,) = links_for(["us"], NODES[:1], {"eu": {"us": 80}, "us": {"eu": 80.0}}, 0, 5432)
    assert found.rtt_ms == 80


def test_port_that_is_too_high_is_told_the_highest_base(refusal: Refusal) -> None:
    highest = "port 65540: set LAB_PORT_BASE to 65505 or less"
    with pytest.raises(LabError, match=highest) as caught:
        links_for(REGIONS, NODES[:1], RTT, 0, 65_510)
    refusal("LAB_PORT_BASE=65510, with three regions", str(caught.value))
    assert links_for(REGIONS, NODES[:1], RTT, 0, 65_505)


@pytest.mark.parametrize("offset", [-1, 10])
def test_port_offset_that_would_be_another_regions_is_named(offset: int, refusal: Refusal) -> None:
    with pytest.raises(LabError, match=f"node 'x' has node_port_offset {offset}") as caught:
        links_for(["us"], [node("x", "eu", offset)], RTT, 0, 5432)
    refusal(f"node_port_offset: {offset}", str(caught.value))


@pytest.mark.parametrize("jitter", [-0.1, 1001])
def test_jitter_that_cannot_be_is_named(jitter: float, refusal: Refusal) -> None:
    with pytest.raises(LabError, match=f"lab_wan_jitter_ms is '{jitter}'") as caught:
        links_for(["us"], NODES[:1], RTT, jitter, 5432)
    refusal(f"lab_wan_jitter_ms: {jitter}", str(caught.value))


def test_jitter_never_makes_a_delay_negative() -> None:
    (found,) = links_for(["us"], NODES[:1], {"eu": {"us": 1}}, 20, 5432)
    assert found.jitter_ms == 0.5


def test_the_inventorys_own_figures_make_links() -> None:
    folder = CHECKOUT / "inventory/lab/group_vars/all"
    wan = yaml.safe_load((folder / "wan.yml").read_text())
    regions = list(yaml.safe_load((folder / "regions.yml").read_text())["lab_regions"])
    found = links_for(regions, NODES, wan["lab_rtt_ms"], wan["lab_wan_jitter_ms"], 5432)
    assert {(x.source, x.region): x.rtt_ms for x in found} == {
        (a, b): rtt for pair, rtt in (("eu us", 80), ("eu jp", 230), ("us jp", 155))
        for a, b in (pair.split(), pair.split()[::-1])
    }  # fmt: skip


# -- states ------------------------------------------------------------------------------------


def test_cut_is_both_ways(config: Config) -> None:
    cut = config.with_state("us-eu", "cut")
    assert cut.states == {"us>eu": State("cut"), "eu>us": State("cut")}
    assert cut.trouble(link("us", "eu_2")) == cut.trouble(link("eu", "us")) == "cut"
    assert cut.trouble(link("jp", "eu")) == cut.trouble(link("jp", "us")) == ""


def test_name_the_other_way_round_is_the_same_link(config: Config) -> None:
    assert config.with_state("us-eu", "cut").states == config.with_state("eu-us", "cut").states


def test_one_way_is_from_the_first_to_the_second(config: Config) -> None:
    cut = config.with_state("us-eu", "cut", one_way=True)
    assert cut.states == {"us>eu": State("cut")}
    # It carries what the one side sends and what the other is answered.
    assert cut.trouble(link("us", "eu")) == cut.trouble(link("eu", "us")) == "cut us>eu"


def test_reset_concerns_connections_begun_on_that_side(config: Config) -> None:
    reset = config.with_state("us-eu", "reset", one_way=True)
    assert reset.trouble(link("us", "eu")) == "reset"
    assert reset.trouble(link("eu", "us")) == ""


def test_up_heals_whatever_it_was(config: Config) -> None:
    bad = config.with_state("us-eu", "cut", one_way=True).with_state("eu-us", "reset", True)
    slow = bad.with_state("jp-eu", "up", rtt_ms=300)
    healed = slow.with_state("us-eu", "up").with_state("jp-eu", "up")
    assert healed == config


def test_slow_link_has_another_rtt(config: Config) -> None:
    slow = config.with_state("us-eu", "up", rtt_ms=300)
    assert slow.rtt_ms(link("us", "eu")) == slow.rtt_ms(link("eu", "us")) == 300
    assert slow.trouble(link("us", "eu")) == "slow"
    one_way = config.with_state("us-eu", "up", one_way=True, rtt_ms=300)
    assert one_way.delays_ms(link("us", "eu")) == (150, 40)
    assert one_way.delays_ms(link("eu", "us")) == (40, 150)


@pytest.mark.parametrize("name", ["us-uk", "useu", "", "eu-eu", "us>eu", "us-eu_2"])
def test_unknown_link_is_told_the_known_ones(config: Config, name: str, refusal: Refusal) -> None:
    with pytest.raises(LabError, match=f"no WAN link '{name}'.* eu-us, eu-jp, us-jp") as caught:
        config.with_state(name, "cut")
    refusal(f"make wan LINK={name} STATE=cut", str(caught.value))
    assert "\n" not in str(caught.value)


def test_pair_without_a_node_in_either_has_no_link() -> None:
    config = Config(tuple(links(NODES[:1])), ("127.0.0.1",))
    assert config.pairs() == [("us", "eu"), ("jp", "eu")]
    with pytest.raises(LabError, match="no WAN link 'us-jp'"):
        config.with_state("us-jp", "cut")


def test_region_with_a_hyphen_in_its_name() -> None:
    found = links_for(["eu-west", "us"], [node("w", "eu-west", 0)], {"us": {"eu-west": 80}}, 0, 1)
    config = Config(tuple(found), ("127.0.0.1",))
    assert set(config.with_state("us-eu-west", "cut", one_way=True).states) == {"us>eu-west"}


def test_unknown_state_is_told_the_known_ones(config: Config, refusal: Refusal) -> None:
    with pytest.raises(LabError, match=r"'hole' of us-eu: use one of up, cut, reset") as caught:
        config.with_state("us-eu", "hole")
    refusal("make wan LINK=us-eu STATE=hole", str(caught.value))


@pytest.mark.parametrize("rtt", [-1, 60_001, float("nan"), float("inf")])
def test_rtt_out_of_range_is_refused(config: Config, rtt: float, refusal: Refusal) -> None:
    with pytest.raises(LabError, match="use milliseconds from 0 to 60000") as caught:
        config.with_state("us-eu", "up", rtt_ms=rtt)
    refusal(f"make wan LINK=us-eu RTT={rtt}", str(caught.value))


def test_cut_link_has_no_rtt(config: Config, refusal: Refusal) -> None:
    with pytest.raises(LabError, match="a link that is cut has none") as caught:
        config.with_state("us-eu", "cut", rtt_ms=300)
    refusal("make wan LINK=us-eu STATE=cut RTT=300", str(caught.value))


def test_links_that_remain_keep_their_states(config: Config) -> None:
    cut = config.with_state("us-eu", "cut").with_state("jp-us", "reset")
    fewer = cut.with_links(links(NODES[:2]), ["127.0.0.1"])
    assert set(fewer.states) == {"us>eu", "eu>us"}


def test_address_that_is_none_is_named(config: Config, refusal: Refusal) -> None:
    with pytest.raises(LabError, match="wan_listen has 'gateway'") as caught:
        config.with_links(links(), ["127.0.0.1", "gateway"])
    refusal("wan_listen: [127.0.0.1, gateway]", str(caught.value))


def test_what_is_written_is_what_is_read(config: Config) -> None:
    whole = config.with_state("us-eu", "cut").with_state("jp-eu", "up", True, 300)
    assert Config.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("key", ["links", "listen", "ways", "generation"])
def test_file_of_another_shape_is_one_line(config: Config, key: str) -> None:
    found = config.to_json()
    for broken in ({**found, key: None}, {k: v for k, v in found.items() if k != key}):
        with pytest.raises(LabError, match=r"config\.json is not as the lab writes it") as caught:
            Config.from_json(broken)
        assert "\n" not in str(caught.value)


# -- what make wan prints ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "one_way", "rtt", "said"),
    [
        ("cut", False, None, "us-eu is cut both ways: what is sent is held until STATE=up"),
        ("cut", True, None, "us-eu is cut from us to eu: what is sent is held until STATE=up"),
        ("reset", False, None, "us-eu is reset: connections begun in us or eu break, new ones too"),
        ("reset", True, None, "us-eu is reset: connections begun in us break, new ones too"),
        ("up", False, None, "us-eu is up both ways, with an RTT of 80 ms"),
        ("up", True, None, "us-eu is up from us to eu, with an RTT of 80 ms"),
        ("up", False, 300, "us-eu is up both ways, with an RTT of 300 ms"),
        ("up", True, 300, "us-eu is up, and from us to eu it takes 150 ms"),
    ],
)
def test_change_is_said_in_a_line(
    config: Config, state: str, one_way: bool, rtt: float | None, said: str
) -> None:
    assert sentence(config.with_state("us-eu", state, one_way, rtt), "us-eu", one_way) == said


@pytest.mark.parametrize(
    ("configured", "measured", "within"),
    [(80, 82, True), (80, 84, True), (80, 84.1, False), (80, 75.9, False), (230, 241.5, True),
     (230, 242, False), (10, 12, True), (10, 12.1, False), (0, 0.3, True)],
)  # fmt: skip
def test_off_is_more_than_2_ms_and_more_than_5_percent(
    configured: float, measured: float, within: bool
) -> None:
    assert is_within(configured, measured) is within


def row(source: str, node: str, measured: float | None, **more: Any) -> dict[str, Any]:
    configured = link(source, node).rtt_ms
    ok = measured is not None and is_within(configured, measured)
    found = {"from": source, "node": node, "configured_ms": configured, "measured_ms": measured}
    return {**found, "ok": ok, "trouble": "", "error": "", **more}


def printed(rows: list[dict[str, Any]]) -> tuple[bool, list[str]]:
    out = StringIO()
    holds = show(rows, Console(file=out, width=80))
    return holds, out.getvalue().splitlines()


def test_matrix_of_four_nodes_fits_80_columns() -> None:
    holds, lines = printed([row(x.source, x.node, x.rtt_ms + 0.4) for x in links()])
    assert holds
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "80.0 / 80.4 ms" in text
    assert "230.0 / 230.4 ms" in text
    assert "…" not in text
    (jp,) = [" ".join(line.split()) for line in lines if line.strip().startswith("jp")]
    assert jp == "jp 230.0 / 230.4 ms 230.0 / 230.4 ms 155.0 / 155.4 ms home"


def test_link_that_is_off_is_marked_and_named() -> None:
    rows = [row(x.source, x.node, x.rtt_ms * (1.2 if x.node == "jp" else 1)) for x in links()]
    holds, lines = printed(rows)
    assert not holds
    assert sum(line.split() == ["OFF"] for line in lines) == 2
    assert "OFF: us -> jp has 186.0 ms where 155.0 ms are configured" in lines
    assert max(map(len, lines)) <= 80


def test_link_that_is_cut_says_so() -> None:
    rows = [row(x.source, x.node, x.rtt_ms) for x in links()]
    cut = row("us", "eu", None, trouble="cut us>eu")
    holds, lines = printed([cut if (r["from"], r["node"]) == ("us", "eu") else r for r in rows])
    assert not holds
    assert any("cut us>eu" in line for line in lines[:-1])
    assert lines[-1] == "OFF: us -> eu is cut us>eu"


def test_link_that_nobody_answers_says_why_in_a_line() -> None:
    rows = [row("us", "eu", None, error="connection refused " * 10)]
    holds, lines = printed(rows)
    assert not holds
    assert "no answer" in "\n".join(lines[:-1])
    assert lines[-1].startswith("OFF: us -> eu: connection refused")


def test_slow_link_is_as_wanted_and_says_that_it_is_slow() -> None:
    slow = {**row("us", "eu", 300.2), "configured_ms": 300.0, "ok": True, "trouble": "slow"}
    holds, lines = printed([slow])
    assert holds
    assert any("slow" in line for line in lines)


def test_a_slowed_link_that_is_cut_and_healed_is_slow_still(config: Config) -> None:
    slow = config.with_state("us-eu", rtt_ms=300)
    cut = slow.with_state("us-eu", "cut")
    assert cut.states["us>eu"] == State("cut", 300)
    assert cut.with_state("us-eu") == slow
    assert slow.with_state("us-eu") == config
