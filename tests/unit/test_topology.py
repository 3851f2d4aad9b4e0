"""topology.json: what is written into it, and what a reader says that finds it broken."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from workload.errors import LabError
from workload.lab import Lab, read_json
from workload.topology import Node, Topology, advance, set_roles, update

REGIONS = {"eu": ["uk", "de"], "jp": ["jp"]}
WHOLE = ("phase", "dbname", "customers", "nodes", "links", "regions", "tables")
STATE = {"name": "lab", "runtime": "embedded", "image": "", "bin_dir": "/bin"}
EU, EU_2 = Node("eu", "eu", "h", 1, 0, "", "c"), Node("eu_2", "eu", "h", 2, 1, "eu", "c2")
JP = Node("jp", "jp", "h", 3, 2, "", "c3")
LINKS = [{"source": "jp", "node": "eu", "port": 9, "rtt_ms": 230.0}]


def write(lab: Lab, phase: str, nodes: list[Node], state: str = "reached", **more: Any) -> bool:
    regions = more.pop("regions", REGIONS)
    return advance(lab, phase, state, "customers", regions, nodes, LINKS, **more)  # type: ignore[arg-type]


def regions(lab: Lab) -> dict[str, Any]:
    return {region.name: region for region in Topology.load(lab).all_regions}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "lab.json").write_text(json.dumps(STATE))
    return Lab("lab", tmp_path)


@pytest.fixture
def found(lab: Lab) -> dict[str, Any]:
    write(lab, "before", [EU])
    return read_json(lab.topology_file)


def test_customers_go_to_the_primary_of_their_own_region(lab: Lab) -> None:
    write(lab, "shard", [EU, EU_2, JP])
    set_roles(lab, {"jp": "primary"})
    assert {name: region.node for name, region in regions(lab).items()} == {"eu": "eu", "jp": "jp"}
    content = read_json(lab.topology_file)["regions"]["jp"]
    assert (content["host"], content["port"], content["rtt_ms"]) == ("h", 3, 0.0)


def test_customers_read_at_home_and_write_to_the_origin_while_their_node_is_a_replica(
    lab: Lab,
) -> None:
    write(lab, "shard", [EU, EU_2, JP])
    jp, eu = regions(lab)["jp"], regions(lab)["eu"]
    assert [way["node"] for way in jp.addresses] == ["eu", "eu_2"]
    assert (jp.port, jp.rtt_ms) == (9, 230.0)
    assert [way["node"] for way in jp.reads] == ["jp"]
    assert [way["node"] for way in eu.reads] == ["eu_2", "eu"]


def test_only_the_origins_customers_trade_until_the_world_arrives(lab: Lab) -> None:
    write(lab, "before", [EU])
    assert Topology.load(lab).countries() == {"eu": ("uk", "de")}
    write(lab, "expand_world", [EU])
    assert (regions(lab)["jp"].node, regions(lab)["jp"].port) == ("eu", 9)


def test_new_nodes_countries_and_regions_are_listed_before_they_take_customers(lab: Lab) -> None:
    write(lab, "expand_world", [EU, EU_2], regions={"eu": ["uk"]})
    write(lab, "shard", [EU, EU_2, JP], "joining")
    topology = Topology.load(lab)
    assert (topology.phase, topology.tables) == ("expand_world", "public")
    assert topology.nodes["jp"]["role"] == "joining"
    assert topology.countries() == {"eu": ("uk", "de"), "jp": ("jp",)}
    assert [(region.name, region.countries) for region in topology.regions] == [("eu", ("uk",))]
    assert regions(lab)["jp"].reads == ()
    write(lab, "shard", [EU, EU_2, JP], "partitioned")
    assert Topology.load(lab).tables == "global"
    write(lab, "shard", [EU, EU_2, JP])
    assert regions(lab)["jp"].open
    assert not write(lab, "shard", [EU, EU_2, JP])


def test_a_node_keeps_the_role_that_a_failover_gave_it(lab: Lab) -> None:
    write(lab, "expand_eu", [EU, EU_2])
    set_roles(lab, {"eu": "fenced", "eu_2": "primary"})
    write(lab, "expand_world", [EU, EU_2])
    assert regions(lab)["eu"].node == "eu_2"


def test_a_dry_run_says_what_would_change_and_changes_nothing(tmp_path: Path) -> None:
    lab = Lab("lab", tmp_path / "none")
    assert write(lab, "before", [EU], dry_run=True)
    assert not lab.home.exists()


def test_two_writers_at_once_lose_nothing(lab: Lab, found: dict[str, Any]) -> None:
    def count(key: str) -> None:
        def change(content: dict[str, Any]) -> None:
            content[key] = content.get(key, 0) + 1
            content["both"] = content.get("both", 0) + 1

        for _ in range(50):
            update(lab, change)

    processes = [multiprocessing.get_context("fork").Process(target=count, args=[k]) for k in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    content = read_json(lab.topology_file)
    assert (content["a"], content["b"], content["both"]) == (50, 50, 100)
    assert {key: content[key] for key in found} == found


def test_what_is_written_is_what_is_read(lab: Lab, found: dict[str, Any]) -> None:
    (lab.home / "secrets").mkdir(exist_ok=True)
    (lab.home / "secrets/customers").write_text("s3cret")
    lab.topology_file.write_text(json.dumps(found))
    read = Topology.load(lab)
    assert (read.phase, read.runtime, read.dbname) == ("before", "embedded", "postgres")
    (region,) = read.regions
    assert (region.name, region.countries, region.node) == ("eu", ("uk", "de"), "eu")
    login = read.customers_login(region)
    assert (login.user, login.password, str(login.port)) == ("customers", "s3cret", "1")
    operator = read.operator_login("eu", "word")
    assert (operator.user, operator.password, operator.port) == ("postgres", "word", 1)


def test_no_file_names_what_brings_a_lab_up(lab: Lab) -> None:
    with pytest.raises(LabError, match="make demo") as caught:
        Topology.load(lab)
    assert str(lab.home) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\0\1"])
def test_garbage_names_the_file_and_a_way_out(lab: Lab, text: str) -> None:
    lab.topology_file.write_text(text)
    with pytest.raises(LabError, match="make teardown") as caught:
        Topology.load(lab)
    assert str(lab.topology_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_name_the_file_and_a_way_out(lab: Lab) -> None:
    lab.topology_file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(LabError, match="make teardown"):
        Topology.load(lab)


@pytest.mark.parametrize("key", WHOLE)
def test_missing_part_says_to_run_the_playbook_again(
    lab: Lab, found: dict[str, Any], key: str
) -> None:
    del found[key]
    lab.topology_file.write_text(json.dumps(found))
    with pytest.raises(LabError, match="run the playbook of the phase again") as caught:
        Topology.load(lab)
    assert str(lab.topology_file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["customers", "nodes", "regions"])
@pytest.mark.parametrize("value", [None, 7, "text", [1]])
def test_part_of_another_kind_says_to_run_the_playbook_again(
    lab: Lab, found: dict[str, Any], key: str, value: Any
) -> None:
    found[key] = value
    lab.topology_file.write_text(json.dumps(found))
    with pytest.raises(LabError, match="run the playbook of the phase again"):
        Topology.load(lab)


@pytest.mark.parametrize("key", ["countries", "serves", "warm_up"])
def test_region_without_a_part_says_to_run_the_playbook_again(
    lab: Lab, found: dict[str, Any], key: str
) -> None:
    del found["regions"]["eu"][key]
    lab.topology_file.write_text(json.dumps(found))
    with pytest.raises(LabError, match="run the playbook of the phase again"):
        Topology.load(lab)


def test_lost_password_file_says_to_run_the_playbook_again(lab: Lab, found: dict[str, Any]) -> None:
    lab.topology_file.write_text(json.dumps(found))
    read = Topology.load(lab)
    with pytest.raises(LabError, match="run the playbook of the phase again"):
        read.customers_login(read.regions[0])
