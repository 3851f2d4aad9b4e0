"""topology.json: what is written into it, and what a reader says that finds it broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workload.errors import LabError
from workload.lab import Lab
from workload.topology import Topology, build

CUSTOMERS = {"user": "customers", "password_file": "secrets/customers"}
REGIONS = {"eu": {"countries": ["uk", "de"]}, "jp": {"countries": ["jp"]}}
WHOLE = ("phase", "runtime", "dbname", "customers", "nodes", "regions", "servers")


def node(name: str, region: str, port: int) -> dict[str, Any]:
    address = {"host": "127.0.0.1", "port": port}
    return {"name": name, "region": region, "follows": "", "container": "c", **address}


def written(
    nodes: list[dict[str, Any]], regions: dict[str, Any], roles: dict[str, str] | None = None
) -> dict[str, Any]:
    return build("before", "embedded", "postgres", CUSTOMERS, regions, nodes, roles=roles)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab("lab", tmp_path)


@pytest.fixture
def found() -> dict[str, Any]:
    return written([node("eu", "eu", 5432)], {"eu": REGIONS["eu"]})


def test_customers_go_to_the_first_node_of_their_own_region() -> None:
    nodes = [node("eu", "eu", 1), node("eu_2", "eu", 2), node("jp", "jp", 3)]
    regions = written(nodes, REGIONS, {"jp": "primary"})["regions"]
    assert {name: region["node"] for name, region in regions.items()} == {"eu": "eu", "jp": "jp"}
    assert (regions["jp"]["host"], regions["jp"]["port"]) == ("127.0.0.1", 3)
    assert regions["eu"]["countries"] == ["uk", "de"]


def test_customers_look_at_home_and_write_to_the_origin_while_their_node_is_a_replica() -> None:
    nodes = [node("eu", "eu", 1), node("eu_2", "eu", 2), node("jp", "jp", 3)]
    roles = {"eu_2": "standby"}
    regions = written(nodes, REGIONS, roles)["regions"]
    assert [way["node"] for way in regions["jp"]["addresses"]] == ["eu", "eu_2"]
    assert [way["node"] for way in regions["jp"]["reads"]] == ["jp"]
    assert [way["node"] for way in regions["eu"]["reads"]] == ["eu_2", "eu"]
    joining = written(nodes, REGIONS, {**roles, "jp": "joining"})["regions"]["jp"]
    assert (joining["node"], joining["reads"]) == ("eu", [])


def test_customers_of_a_region_without_a_node_go_to_the_first_node() -> None:
    region = written([node("eu", "eu", 1), node("eu_2", "eu", 2)], REGIONS)["regions"]["jp"]
    assert (region["node"], region["port"]) == ("eu", 1)


def test_what_is_written_is_what_is_read(lab: Lab, found: dict[str, Any]) -> None:
    (lab.home / "secrets").mkdir()
    (lab.home / "secrets/customers").write_text("s3cret")
    lab.topology_file.write_text(json.dumps(found))
    read = Topology.load(lab)
    assert (read.phase, read.runtime, read.dbname) == ("before", "embedded", "postgres")
    (region,) = read.regions
    assert (region.name, region.countries, region.node) == ("eu", ("uk", "de"), "eu")
    login = read.customers_login(region)
    assert (login.user, login.password, str(login.port)) == ("customers", "s3cret", "5432")
    operator = read.operator_login("eu", "word")
    assert (operator.user, operator.password, operator.port) == ("postgres", "word", 5432)


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


@pytest.mark.parametrize("key", ["countries", "node", "host", "port"])
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
