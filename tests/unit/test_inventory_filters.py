"""What preflight finds wrong with an inventory, before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.filter.lab_inventory import (
    country_problems,
    node_problems,
    nodes,
    password_problems,
    port_problems,
    region_problems,
    role_inputs,
    rtt_problems,
    unknown_names,
)
from tests.fixtures.refusals import Refusal

CHECKOUT = Path(__file__).resolve().parents[2]
REGIONS = {"eu": {"countries": ["uk", "de"]}, "us": {"countries": ["us"]}}


def node(name: str, **identity: Any) -> dict[str, Any]:
    whole = {"node_region": "eu", "node_port_offset": 0, "node_container": f"{name}_db"}
    return {"inventory_hostname": name, **whole, **identity}


def test_unknown_name_is_named_with_the_one_that_was_meant(refusal: Refusal) -> None:
    (problem,) = unknown_names(["lab_runtim", "lab_home"], ["lab_runtime", "lab_home"])
    refusal("-e lab_runtim=docker", problem)
    assert "'lab_runtim'" in problem
    assert "did you mean lab_runtime?" in problem


def test_unknown_name_that_resembles_nothing_is_named_too(refusal: Refusal) -> None:
    (problem,) = unknown_names(["zzz"], ["lab_runtime"])
    refusal("-e zzz=1", problem)
    assert "'zzz'" in problem
    assert "did you mean" not in problem


def test_names_of_ansible_itself_are_known() -> None:
    assert unknown_names(["groups", "inventory_hostname", "playbook_dir"], []) == []


def test_every_input_of_every_role_is_known() -> None:
    inputs = role_inputs(str(CHECKOUT / "roles"))
    for path in CHECKOUT.glob("roles/*/meta/argument_specs.yml"):
        options = yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
        assert set(options) <= set(inputs), path


def test_country_in_two_regions_names_both(refusal: Refusal) -> None:
    twice = {"eu": {"countries": ["uk", "de"]}, "us": {"countries": ["us", "de"]}}
    (problem,) = region_problems(twice)
    refusal("lab_regions: {eu: {countries: [uk, de]}, us: {countries: [us, de]}}", problem)
    assert "'de'" in problem
    assert "'eu'" in problem
    assert "'us'" in problem


@pytest.mark.parametrize("country", ["US", "it's", "u s", "us|de", "", "us\n"])
def test_country_that_is_no_code_is_named(country: str, refusal: Refusal) -> None:
    (problem,) = region_problems({"us": {"countries": [country]}})
    refusal(f"lab_regions: {{us: {{countries: [{country!r}]}}}}", problem)
    assert repr(country) in problem
    assert "'us'" in problem
    assert "lower-case" in problem


@pytest.mark.parametrize(
    "region", ["global", "lab", "pg_us", "lab_audit", "gate_us", "retired_us", "US", 'u"s', "1", ""]
)
def test_region_that_cannot_be_a_schema_of_its_own_is_named(region: str, refusal: Refusal) -> None:
    (problem,) = region_problems({region: {"countries": ["us"]}})
    refusal(f"lab_regions: {{{region!r}: {{countries: [us]}}}}", problem)
    assert f"'{region}'" in problem
    assert "schema" in problem


def test_unquoted_norway_is_explained(refusal: Refusal) -> None:
    (problem,) = region_problems(yaml.safe_load("eu: {countries: [uk, no]}"))
    refusal("lab_regions: {eu: {countries: [uk, no]}}", problem)
    assert "False" in problem
    assert "'eu'" in problem
    assert "quote it" in problem


def test_unknown_key_of_a_region_is_named(refusal: Refusal) -> None:
    (problem,) = region_problems({"eu": {"countries": ["uk"], "country": ["de"]}})
    refusal("lab_regions: {eu: {countries: [uk], country: [de]}}", problem)
    assert "'country'" in problem
    assert "countries" in problem


@pytest.mark.parametrize("entry", [{}, {"countries": []}, {"countries": None}, None, "uk", ["uk"]])
def test_region_without_countries_is_named(entry: Any, refusal: Refusal) -> None:
    (problem,) = region_problems({"eu": entry})
    refusal(f"lab_regions: {{eu: {entry}}}", problem)
    assert "'eu'" in problem
    assert "no countries" in problem


def test_countries_as_text_instead_of_a_list_are_refused(refusal: Refusal) -> None:
    problems = region_problems({"eu": {"countries": "uk"}})
    assert problems
    refusal("lab_regions: {eu: {countries: uk}}", problems[0])
    assert "'eu'" in problems[0]
    assert "list" in problems[0]


def test_the_labs_own_regions_are_in_order() -> None:
    path = CHECKOUT / "inventory/lab/group_vars/all/regions.yml"
    regions = yaml.safe_load(path.read_text())["lab_regions"]
    assert region_problems(regions) == []


def test_nodes_in_order_have_no_problem() -> None:
    hosts = [node("eu"), node("us", node_region="us", node_port_offset=2)]
    assert node_problems(hosts, REGIONS) == []


@pytest.mark.parametrize("key", ["node_region", "node_port_offset", "node_container"])
def test_missing_identity_is_named(key: str, refusal: Refusal) -> None:
    host = node("eu")
    del host[key]
    (problem,) = node_problems([host], REGIONS)
    refusal(f"a node without {key}", problem)
    assert "'eu'" in problem
    assert key in problem


def test_node_in_an_unknown_region_is_told_the_known_ones(refusal: Refusal) -> None:
    (problem,) = node_problems([node("eu", node_region="uk")], REGIONS)
    refusal("node_region: uk, which lab_regions does not have", problem)
    assert "'uk'" in problem
    assert "eu, us" in problem


@pytest.mark.parametrize(("key", "value"), [("node_port_offset", 3), ("node_container", "eu_db")])
def test_two_nodes_that_share_an_identity_are_both_named(
    key: str, value: Any, refusal: Refusal
) -> None:
    hosts = [node("one", node_port_offset=1), node("two", node_port_offset=2)]
    for host in hosts:
        host[key] = value
    (problem,) = node_problems(hosts, REGIONS)
    refusal(f"two nodes with {key}: {value}", problem)
    assert "'one'" in problem
    assert "'two'" in problem
    assert f"{key} {value}" in problem


@pytest.mark.parametrize("name", ["../eu", "EU", "2nd", "a b"])
def test_node_that_is_no_name_for_a_folder_is_named(name: str, refusal: Refusal) -> None:
    (problem,) = node_problems([node(name, node_container="db")], REGIONS)
    refusal(f"a node {name!r} in hosts.yml", problem)
    assert repr(name) in problem
    (problem,) = node_problems([node("eu", node_container=name)], REGIONS)
    refusal(f"node_container: {name!r}", problem)
    assert repr(name) in problem


def test_nodes_whose_slots_would_have_one_name_are_both_named(refusal: Refusal) -> None:
    hosts = [node("eu-2"), node("eu_2", node_port_offset=1, node_container="other")]
    (problem,) = node_problems(hosts, REGIONS)
    refusal("nodes eu-2 and eu_2 in hosts.yml", problem)
    assert "eu-2" in problem


@pytest.mark.parametrize("offset", [-1, "two", None, 1.5])
def test_port_offset_that_is_no_number_is_named(offset: Any, refusal: Refusal) -> None:
    (problem,) = node_problems([node("eu", node_port_offset=offset)], REGIONS)
    refusal(f"node_port_offset: {offset!r} of a node", problem)
    assert "'eu'" in problem


@pytest.mark.parametrize("country", ["us", "xx", None, ["uk"]])
def test_default_country_that_the_origin_does_not_serve_is_named(
    country: Any, refusal: Refusal
) -> None:
    (problem,) = country_problems(country, [node("eu")], REGIONS)
    refusal(f"lab_default_country: {country!r}", problem)
    assert "region eu" in problem
    assert country_problems("uk", [node("eu")], REGIONS) == []


@pytest.mark.parametrize("value", [80, ["eu"], {"eu": 80}])
def test_rtts_that_are_no_matrix_are_refused(value: Any, refusal: Refusal) -> None:
    (problem,) = rtt_problems(value)
    refusal(f"lab_rtt_ms: {value!r}", problem)
    assert "lab_rtt_ms" in problem
    assert rtt_problems({"eu": {"us": 80}}) == []


def test_regions_that_are_no_dict_are_refused_by_one_check(refusal: Refusal) -> None:
    (problem,) = region_problems(["eu"])
    refusal("lab_regions: [eu]", problem)
    assert node_problems([node("eu")], ["eu"]) == []
    assert country_problems("uk", [node("eu")], ["eu"]) == []


@pytest.mark.parametrize(
    "base", [1023, 0, -1, 65_536, "65535", "", "abc", "5432.5", None, "0x1538"]
)
def test_port_base_out_of_range_is_named_with_the_range(base: Any, refusal: Refusal) -> None:
    (problem,) = port_problems(base, 4)
    refusal(f"LAB_PORT_BASE={base}", problem)
    assert f"'{base}'" in problem
    assert "1024 to 65532" in problem


@pytest.mark.parametrize("base", [1024, 5432, "5432", 65_532])
def test_port_base_in_range(base: Any) -> None:
    assert port_problems(base, 4) == []


@pytest.mark.parametrize("address", ["0.0.0.0", "10.0.0.7", "::", "db.example.com", ""])
def test_default_password_is_refused_for_an_address_that_others_reach(
    address: str, refusal: Refusal
) -> None:
    (problem,) = password_problems("password", address)
    refusal(f"lab_address: {address!r}, LAB_PASSWORD not set", problem)
    assert "LAB_PASSWORD" in problem
    assert address in problem


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_default_password_is_accepted_on_loopback(address: str) -> None:
    assert password_problems("password", address) == []


def test_own_password_is_accepted_everywhere() -> None:
    assert password_problems("9f3kd", "0.0.0.0") == []


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_empty_password_is_refused_everywhere(address: str, refusal: Refusal) -> None:
    (problem,) = password_problems("", address)
    refusal(f"lab_address: {address}, lab_password: ''", problem)
    assert "LAB_PASSWORD" in problem


def test_nodes_carry_what_the_modules_need() -> None:
    derived = {"node_host": "127.0.0.1", "node_port": 5432, "node_container_name": "mine_eu_db"}
    (found,) = nodes([{**node("eu"), **derived, "other": 1}])
    expected = {
        "name": "eu",
        "region": "eu",
        "host": "127.0.0.1",
        "port": 5432,
        "container": "mine_eu_db",
    }
    assert expected.items() <= found.items()
    assert "other" not in found
