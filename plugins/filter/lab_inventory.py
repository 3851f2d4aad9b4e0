"""Filters: what is wrong with an inventory, and what the actions need to know of it.

Each *_problems filter returns a list of one-line sentences, empty where all is well.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load

from workload.schemas import is_taken, taken

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
#: A region's name is a schema's, a server's and part of a host name; a country's is text in bounds.
REGION_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
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
    """Name the variables that no role and no part of the lab reads, with the likeliest meant one.

    Ansible takes a misspelt variable for a new one, and the lab would run with a default.
    """
    expected = MAGIC | set(known)
    problems = []
    for name in sorted(set(names) - expected):
        close = difflib.get_close_matches(name, expected, n=1)
        meant = f"did you mean {close[0]}?" if close else "no role reads it"
        problems.append(f"unknown variable '{name}' in the inventory or --extra-vars: {meant}")
    return problems


def region_problems(regions: Mapping[str, Any]) -> list[str]:
    """Name what is wrong with the regions: their names, their keys, countries claimed twice."""
    problems = []
    claimed: dict[str, str] = {}
    for region, entry in regions.items():
        if not REGION_NAME.fullmatch(str(region)) or is_taken(str(region)):
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


def node_problems(hosts: Iterable[Mapping[str, Any]], regions: Mapping[str, Any]) -> list[str]:
    """Name what is wrong with the nodes' identities: missing, unknown, or shared by two nodes."""
    problems = []
    taken: dict[tuple[str, Any], str] = {}
    for host in hosts:
        name = str(host["inventory_hostname"])
        missing = [key for key in NODE_KEYS if key not in host]
        if missing:
            problems.append(f"node '{name}' has no {missing[0]}: set it in the inventory")
            continue
        if host["node_region"] not in regions:
            problems.append(
                f"node '{name}' is in region '{host['node_region']}', which lab_regions does not"
                f" name: use one of {', '.join(regions)}"
            )
        for key in ("node_port_offset", "node_container"):
            other = taken.setdefault((key, host[key]), name)
            if other == name:
                continue
            why = ""
            if key == "node_container":
                why = ": two servers on one volume destroy its data, give each its own"
            problems.append(f"nodes '{other}' and '{name}' share {key} {host[key]}{why}")
    return problems


def port_problems(base: Any, nodes: int) -> list[str]:
    """Name what is wrong with the port base."""
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
            f"lab_address is {address} and the password is the source document's 'password': set"
            " LAB_PASSWORD to a secret one"
        ]
    return []


def nodes(hosts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the actions need to know of each node."""
    return [
        {
            "name": host["inventory_hostname"],
            "region": host["node_region"],
            "host": host["node_host"],
            "port": host["node_port"],
            "port_offset": host["node_port_offset"],
            "follows": host.get("node_follows", ""),
            "container": host["node_volume"],
            "volume": host["node_volume"],
        }
        for host in hosts
    ]


def pair(nodes: Iterable[Mapping[str, Any]], place: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair's place with {primary, standby}: by its roles, or as the two begin.

    place: what the pair's actions take, and roles, {node: role}, which they do not.
    """
    roles = place["roles"]
    primary, standby = sorted(
        nodes,
        key=lambda node: (
            roles.get(node["name"], "standby" if node["follows"] else "primary") != "primary"
        ),
    )
    found = {key: value for key, value in place.items() if key != "roles"}
    return {**found, "primary": primary, "standby": standby}


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "lab_node_problems": node_problems,
            "lab_nodes": nodes,
            "lab_pair": pair,
            "lab_password_problems": password_problems,
            "lab_port_problems": port_problems,
            "lab_region_problems": region_problems,
            "lab_role_inputs": role_inputs,
            "lab_unknown_names": unknown_names,
        }
