"""What topology.json says: the phase, and where each region's customers go now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workload.errors import LabError
from workload.lab import Lab, read_json, write_atomically
from workload.sql import Login
from workload.wan.config import Link

#: The phases in the order of the road.
PHASES = ("before", "expand_eu", "expand_world", "shard", "after")

Role = Literal["primary", "standby", "fenced"]


def build(
    phase: str,
    runtime: str,
    dbname: str,
    customers: Mapping[str, str],
    regions: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Link] = (),
    roles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the content of topology.json.

    nodes: [{name, region, host, port, follows}]; regions: {name: {countries}}; links: the WAN's;
    roles: those that hold now, by node, where they are no longer the inventory's. A region's
    customers go to the nodes of their own region, or else to those of the first node's, over the
    WAN where there is a link.
    """
    found_nodes = {
        node["name"]: {
            "region": node["region"],
            "host": node["host"],
            "port": node["port"],
            "role": (roles or {}).get(node["name"])
            or ("standby" if node["follows"] else "primary"),
        }
        for node in nodes
    }
    return {
        "phase": phase,
        "runtime": runtime,
        "dbname": dbname,
        "customers": dict(customers),
        "nodes": found_nodes,
        "regions": {
            name: {
                "countries": list(entry["countries"]),
                **_addresses(name, found_nodes, links),
            }
            for name, entry in regions.items()
        },
    }


def set_roles(lab: Lab, roles: Mapping[str, Role]) -> None:
    """Change nodes' roles in topology.json, and send each region's customers accordingly."""
    content = read_json(lab.topology_file)
    for name, role in roles.items():
        content["nodes"][name]["role"] = role
    for name, region in content["regions"].items():
        region.update(_in_order(name, region["addresses"], content["nodes"]))
    write_atomically(lab.topology_file, json.dumps(content, indent=1) + "\n")


def _addresses(
    region: str, nodes: Mapping[str, Mapping[str, Any]], links: Sequence[Link]
) -> dict[str, Any]:
    by_node = {link.node: link for link in links if link.source == region}
    own = [name for name, node in nodes.items() if node["region"] == region]
    home = nodes[own[0] if own else next(iter(nodes))]["region"]
    addresses = [
        {
            "node": name,
            "host": nodes[name]["host"],
            "port": by_node[name].port if name in by_node else nodes[name]["port"],
            "rtt_ms": by_node[name].rtt_ms if name in by_node else 0.0,
        }
        for name, node in nodes.items()
        if node["region"] == home
    ]
    return _in_order(region, addresses, nodes)


def _in_order(
    region: str,
    addresses: Sequence[Mapping[str, Any]],
    nodes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    order = sorted(addresses, key=lambda address: nodes[address["node"]]["role"] != "primary")
    has_standby = any(nodes[address["node"]]["role"] == "standby" for address in order)
    at_home = nodes[order[0]["node"]]["region"] == region
    return {
        # The address that the region's customers write to now; the others are where they look next.
        **order[0],
        "addresses": order,
        # Only those at home: for the others a standby is as far away as its primary.
        "reads": "standby" if has_standby and at_home else "primary",
    }


@dataclass(frozen=True)
class Region:
    """A region whose customers trade in this phase."""

    name: str
    countries: tuple[str, ...]
    node: str
    host: str
    port: int
    rtt_ms: float
    #: {node, host, port, rtt_ms} of each node that may serve it, the primary first.
    addresses: tuple[Mapping[str, Any], ...]
    reads: str

    def node_at(self, port: int) -> str:
        """Return which node a connection to a port of this machine reaches."""
        return next((str(a["node"]) for a in self.addresses if a["port"] == port), self.node)


@dataclass(frozen=True)
class Topology:
    """A lab that reached a phase."""

    lab: Lab
    phase: str
    runtime: str
    dbname: str
    user: str
    password_file: str
    regions: tuple[Region, ...]
    nodes: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, lab: Lab) -> Topology:
        """Return the lab's topology; raises LabError where no phase is reached yet."""
        found = read_json(lab.topology_file)
        if not found:
            raise LabError(
                f"no lab is running in {lab.home}: make demo, or .venv/bin/ansible-playbook"
                " playbooks/before.yml, brings one up"
            )
        try:
            return cls(
                lab=lab,
                phase=found["phase"],
                runtime=found["runtime"],
                dbname=found["dbname"],
                user=found["customers"]["user"],
                password_file=found["customers"]["password_file"],
                regions=tuple(
                    Region(
                        name=name,
                        countries=tuple(r["countries"]),
                        node=r["node"],
                        host=r["host"],
                        port=int(r["port"]),
                        rtt_ms=float(r["rtt_ms"]),
                        addresses=tuple(r["addresses"]),
                        reads=r["reads"],
                    )
                    for name, r in found["regions"].items()
                ),
                nodes={name: dict(node) for name, node in found["nodes"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"{lab.topology_file} is not as the playbooks write it ({error!r}): run the"
                " playbook of the phase again"
            ) from error

    def has_reached(self, phase: str) -> bool:
        """Tell whether the lab is in a phase or past it."""
        return PHASES.index(self.phase) >= PHASES.index(phase)

    def region(self, name: str) -> Region:
        """Return a region by name; raises LabError where its customers do not trade."""
        for region in self.regions:
            if region.name == name:
                return region
        raise LabError(f"region {name} does not trade in phase {self.phase}")

    def primary(self) -> str:
        """Return the node that takes the writes of the first region."""
        return next(name for name, node in self.nodes.items() if node["role"] == "primary")

    def customers_login(self, region: Region) -> Login:
        """Return how a region's customers connect, with every node that may serve them."""
        try:
            password = (self.lab.home / self.password_file).read_text()
        except OSError as error:
            raise LabError(
                f"the customers' password is not readable ({error}): run the playbook of the phase"
                " again"
            ) from error
        hosts = ",".join(str(address["host"]) for address in region.addresses)
        ports = ",".join(str(address["port"]) for address in region.addresses)
        return Login(hosts, ports, self.user, password, self.dbname)

    def operator_login(self, node: str, password: str) -> Login:
        """Return how the operator connects to a node."""
        address = self.nodes[node]
        return Login(address["host"], int(address["port"]), "postgres", password, self.dbname)
