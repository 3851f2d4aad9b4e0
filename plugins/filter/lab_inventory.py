"""Filters: an inventory's problems, and its nodes as the actions take them.

Each *_problems filter returns a list of one-line sentences, empty where there is no problem.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load

from workload.lab import NAME_PATTERN
from workload.schemas import is_taken, taken
from workload.topology import Node

#: Names that Ansible itself puts among a host's variables, beside ansible_*.
MAGIC = frozenset(
    {
        "environment",
        "group_names",
        "groups",
        "hostvars",
        "inventory_dir",
        "inventory_file",
        "inventory_hostname",
        "inventory_hostname_short",
        "omit",
        "play_hosts",
        "playbook_dir",
        "role_name",
        "role_names",
        "role_path",
        "role_uuid",
        "vars",
    }
)
REGION_KEYS = frozenset({"countries"})
COUNTRY_CODE = re.compile(r"[a-z0-9_-]{1,16}")
NODE_KEYS = ("node_region", "node_port_offset", "node_container")
HIGHEST_PORT = 65_535


def role_inputs(roles: str) -> list[str]:
    """Return the names of all inputs of all roles below a folder, by their argument_specs."""
    names: set[str] = set()
    for path in sorted(Path(roles).glob("*/meta/argument_specs.yml")):
        for entry_point in yaml_load(path.read_text())["argument_specs"].values():
            names |= set(entry_point.get("options", {}))
    return sorted(names)


def unknown_names(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return a problem for each variable that nothing reads, with the most similar name.

    Ansible accepts a misspelt variable as a new one, and the lab would use the default.
    """
    expected = MAGIC | set(known)
    problems = []
    checked = {name for name in names if not name.startswith(("ansible_", "__"))}
    for name in sorted(checked - expected):
        close = difflib.get_close_matches(name, expected, n=1)
        meant = f"did you mean {close[0]}?" if close else "no role reads it"
        problems.append(f"unknown variable '{name}' in the inventory or --extra-vars: {meant}")
    return problems


def region_problems(regions: Any) -> list[str]:
    """Return the regions' problems: their names, their keys, countries of two regions."""
    if not isinstance(regions, Mapping):
        return [f"lab_regions is {regions!r}: use a dict of regions, each with its countries"]
    problems = []
    claimed: dict[str, str] = {}
    for region, entry in regions.items():
        if not NAME_PATTERN.fullmatch(str(region)) or is_taken(str(region)):
            problems.append(
                f"region '{region}' in lab_regions is no name for a region, whose rows are in a"
                f" schema of that name: use lower-case letters, digits, _ and -, and none of"
                f" {', '.join(taken())}"
            )
            continue
        if not isinstance(entry, Mapping) or not entry.get("countries"):
            problems.append(f"region '{region}' in lab_regions serves no countries: give it a list")
            continue
        for key in sorted(set(entry) - REGION_KEYS):
            problems.append(
                f"region '{region}' has an unknown key '{key}': use {', '.join(REGION_KEYS)}"
            )
        if not isinstance(entry["countries"], Sequence) or isinstance(entry["countries"], str):
            problems.append(f"region '{region}' in lab_regions: countries must be a list")
            continue
        for country in entry["countries"]:
            if not isinstance(country, str):
                problems.append(
                    f"country {country!r} of region '{region}' is no text: quote it (an unquoted"
                    " no is false in YAML)"
                )
            elif not COUNTRY_CODE.fullmatch(country):
                problems.append(
                    f"country {country!r} of region '{region}' is no code: use lower-case letters,"
                    " digits, _ and -, as in ISO 3166"
                )
            elif country in claimed:
                problems.append(
                    f"country '{country}' is in the regions '{claimed[country]}' and '{region}':"
                    " take it out of one"
                )
            else:
                claimed[country] = region
    return problems


def node_problems(hosts: Iterable[Mapping[str, Any]], regions: Any) -> list[str]:
    """Return the problems of the nodes' identities: missing, unknown, or shared by two nodes."""
    problems = []
    taken: dict[tuple[str, Any], str] = {}
    for host in hosts:
        name = str(host["inventory_hostname"])
        missing = [key for key in NODE_KEYS if key not in host]
        if missing:
            problems.append(f"node '{name}' has no {missing[0]}: set it in the inventory")
            continue
        identity = {key: host[key] for key in NODE_KEYS}
        for what, text in (
            (f"node '{name}'", name),
            (f"node_container of '{name}'", identity["node_container"]),
        ):
            if not isinstance(text, str) or not NAME_PATTERN.fullmatch(text):
                problems.append(
                    f"{what} is {text!r}, which is no name for a folder or a container: use up to"
                    " 31 characters of a-z 0-9 _ -, a letter first"
                )
        if not str(identity["node_port_offset"]).isdigit():
            problems.append(
                f"node_port_offset of '{name}' is {identity['node_port_offset']!r}: use a number"
                " from 0"
            )
        if not isinstance(regions, Mapping):
            continue
        if str(identity["node_region"]) not in regions:
            problems.append(
                f"node '{name}' is in region '{identity['node_region']}', which lab_regions does"
                f" not name: use one of {', '.join(map(str, regions))}"
            )
        # A slot's name has no dashes.
        identity["name"] = name.replace("-", "_")
        for key in ("name", "node_port_offset", "node_container"):
            value = str(identity[key])
            other = taken.setdefault((key, value), name)
            if other == name:
                continue
            why = ""
            if key == "node_container":
                why = ": two servers on one volume destroy its data, give each its own"
            problems.append(f"nodes '{other}' and '{name}' share {key} {value}{why}")
    return problems


def country_problems(country: Any, hosts: Sequence[Mapping[str, Any]], regions: Any) -> list[str]:
    """Refuse a default country that the origin's region, the first node's, does not serve."""
    origin = hosts[0].get("node_region")
    entry = regions.get(str(origin)) if isinstance(regions, Mapping) else None
    if not isinstance(entry, Mapping) or country in (entry.get("countries") or ()):
        return []
    return [
        f"lab_default_country is '{country}', which region {origin}, where the first customers are,"
        " does not serve: use one of its countries in lab_regions"
    ]


def rtt_problems(rtt_ms: Any) -> list[str]:
    """Refuse RTTs that are no dict of dicts; their values are checked where links are made."""
    if isinstance(rtt_ms, Mapping) and all(isinstance(row, Mapping) for row in rtt_ms.values()):
        return []
    return [f"lab_rtt_ms is {rtt_ms!r}: use a dict, as in eu: {{us: 80, jp: 230}}"]


def port_problems(base: Any, nodes: int) -> list[str]:
    """Return the problems of the port base."""
    text = str(base)
    if not text.isdigit() or not 1024 <= int(text) <= HIGHEST_PORT - nodes + 1:
        return [f"lab_port_base is '{base}': use a port from 1024 to {HIGHEST_PORT - nodes + 1}"]
    return []


def password_problems(password: str, address: str) -> list[str]:
    """Refuse the source document's password for any address that others can reach."""
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = address == "localhost"
    if not password:
        return ["lab_password is empty: set LAB_PASSWORD"]
    if password == "password" and not loopback:
        return [
            f"lab_address is '{address}' and the password is the source document's 'password': set"
            " LAB_PASSWORD to a secret one"
        ]
    return []


def nodes(hosts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each node as the actions take it."""
    return [
        asdict(
            Node(
                name=host["inventory_hostname"],
                region=host["node_region"],
                host=host["node_host"],
                port=host["node_port"],
                port_offset=host["node_port_offset"],
                follows=host.get("node_follows", ""),
                container=host["node_container_name"],
            )
        )
        for host in hosts
    ]


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "lab_country_problems": country_problems,
            "lab_node_problems": node_problems,
            "lab_nodes": nodes,
            "lab_password_problems": password_problems,
            "lab_port_problems": port_problems,
            "lab_region_problems": region_problems,
            "lab_role_inputs": role_inputs,
            "lab_rtt_problems": rtt_problems,
            "lab_unknown_names": unknown_names,
        }
