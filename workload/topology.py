"""What topology.json says: the phase, and where each region's customers go now."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workload.errors import LabError
from workload.lab import Lab, read_json, write_atomically
from workload.sql import Login

#: The phases in the order of the road.
PHASES = ("before", "expand_eu", "expand_world", "shard", "after")

#: A replica holds copies and takes no customers' writes; a joining node takes no customers at all.
Role = Literal["primary", "standby", "fenced", "replica", "joining"]


def build(
    phase: str,
    runtime: str,
    dbname: str,
    customers: Mapping[str, str],
    regions: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]] = (),
    roles: Mapping[str, str] | None = None,
    servers: Mapping[str, str] | None = None,
    tables: str = "",
    closed: Collection[str] = (),
) -> dict[str, Any]:
    """Return the content of topology.json.

    nodes: [{name, region, host, port, follows, container}]; regions: {name: {countries}}; links:
    the WAN's, [{source, node, port, rtt_ms}]; roles: those that hold now, by node, where they are
    no longer the inventory's;
    servers: what the nodes run on, {image, bin_dir, network}; tables: which ones customers name,
    where these are not the phase's; closed: regions whose customers are still to come. The first
    node's region is the origin: nodes of others begin as
    replicas.
    """
    origin = nodes[0]["region"]

    def begins_as(node: Mapping[str, Any]) -> str:
        if node["follows"]:
            return "standby"
        return "primary" if node["region"] == origin else "replica"

    found_nodes = {
        node["name"]: {
            "region": node["region"],
            "host": node["host"],
            "port": node["port"],
            "role": (roles or {}).get(node["name"]) or begins_as(node),
            "container": node["container"],
        }
        for node in nodes
    }
    by_region: dict[str, dict[str, Mapping[str, Any]]] = {}
    for link in links:
        by_region.setdefault(link["source"], {})[link["node"]] = link
    content = {
        "phase": phase,
        "runtime": runtime,
        "dbname": dbname,
        "customers": dict(customers),
        "servers": dict(servers or {}),
        "tables": tables or tables_of(phase),
        "nodes": found_nodes,
        "regions": {
            name: {
                "countries": list(entry["countries"]),
                "warm_up": "",
                "open": name not in closed,
                "ways": _ways(found_nodes, by_region.get(name, {})),
            }
            for name, entry in regions.items()
        },
    }
    _route(content)
    return content


def tables_of(phase: str) -> str:
    """Return which tables customers name in a phase.

    public: those of the start. global: the partitioned ones. home: their region's own leaves.
    """
    if phase == "after":
        return "home"
    return "public" if PHASES.index(phase) < PHASES.index("shard") else "global"


def set_warm_up(lab: Lab, region: str, statement: str) -> None:
    """Ask a region's customers to run a statement once, in an idle moment; "" takes it back."""
    content = read_json(lab.topology_file)
    content["regions"][region]["warm_up"] = statement
    write_atomically(lab.topology_file, json.dumps(content, indent=1) + "\n")


def set_roles(lab: Lab, roles: Mapping[str, Role]) -> None:
    """Change nodes' roles in topology.json, and send each region's customers accordingly."""
    content = read_json(lab.topology_file)
    for name, role in roles.items():
        content["nodes"][name]["role"] = role
    _route(content)
    write_atomically(lab.topology_file, json.dumps(content, indent=1) + "\n")


def _ways(
    nodes: Mapping[str, Mapping[str, Any]], links: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return how a region reaches each node, over the WAN where there is a link."""
    return [
        {
            "node": name,
            "host": node["host"],
            "port": links[name]["port"] if name in links else node["port"],
            "rtt_ms": links[name]["rtt_ms"] if name in links else 0.0,
        }
        for name, node in nodes.items()
    ]


def _route(content: dict[str, Any]) -> None:
    """Say for each region where its customers write and look, by the nodes' roles.

    They write to their own region's primary, or else to the first one that there is, and know its
    standby too. They look at home where something there has their rows: a standby before its
    primary, or a replica; for others a standby is as far away as its primary.
    """
    nodes = content["nodes"]
    first = next(
        (node["region"] for node in nodes.values() if node["role"] == "primary"),
        next(iter(nodes.values()))["region"],
    )
    for name, region in content["regions"].items():
        by_role: dict[str, list[dict[str, Any]]] = {}
        has_primary = any(
            node["region"] == name and node["role"] == "primary" for node in nodes.values()
        )
        home = name if has_primary else first
        for way in region["ways"]:
            node = nodes[way["node"]]
            if node["region"] == home or (node["region"], node["role"]) == (name, "replica"):
                by_role.setdefault(node["role"], []).append(way)
        serving = [by_role.get(role, []) for role in ("primary", "standby", "fenced")]
        addresses = [way for ways in serving for way in ways]
        reads = by_role.get("replica", [])
        if home == name and by_role.get("standby"):
            reads = by_role["standby"] + by_role.get("primary", [])
        # The address that the region's customers write to now; the others are where they look next.
        region.update(**addresses[0], addresses=addresses, reads=reads)


@dataclass(frozen=True)
class Region:
    """A region whose customers trade in this phase."""

    name: str
    countries: tuple[str, ...]
    node: str
    host: str
    port: int
    rtt_ms: float
    #: {node, host, port, rtt_ms} of each node that may take its writes, the primary first.
    addresses: tuple[Mapping[str, Any], ...]
    #: The same of each node that its customers look at, best first; none where they look where
    #: they write.
    reads: tuple[Mapping[str, Any], ...]
    #: The same of every node of the lab.
    ways: tuple[Mapping[str, Any], ...]
    #: Whether its customers trade.
    open: bool
    #: What its customers are asked to run once, in an idle moment; "" for nothing.
    warm_up: str

    @property
    def served(self) -> tuple[object, ...]:
        """What a customer connects anew for, where it changes."""
        return (self.addresses, self.reads)

    def node_at(self, port: int) -> str:
        """Return which node a connection to a port of this machine reaches."""
        return next((str(way["node"]) for way in self.ways if way["port"] == port), self.node)

    def way_to(self, node: str) -> Mapping[str, Any]:
        """Return {node, host, port, rtt_ms} by which the region reaches a node of the lab."""
        return next(way for way in self.ways if way["node"] == node)


@dataclass(frozen=True)
class Topology:
    """A lab that reached a phase."""

    lab: Lab
    phase: str
    runtime: str
    dbname: str
    user: str
    password_file: str
    all_regions: tuple[Region, ...]
    nodes: Mapping[str, Mapping[str, Any]]
    #: What the nodes run on: image, bin_dir and network.
    servers: Mapping[str, str]
    #: Which tables customers name: see tables_of.
    tables: str

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
                all_regions=tuple(
                    Region(
                        name=name,
                        countries=tuple(r["countries"]),
                        node=r["node"],
                        host=r["host"],
                        port=int(r["port"]),
                        rtt_ms=float(r["rtt_ms"]),
                        addresses=tuple(r["addresses"]),
                        reads=tuple(r["reads"]),
                        ways=tuple(r["ways"]),
                        warm_up=r["warm_up"],
                        open=bool(r["open"]),
                    )
                    for name, r in found["regions"].items()
                ),
                nodes={name: dict(node) for name, node in found["nodes"].items()},
                servers=dict(found["servers"]),
                tables=found["tables"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"{lab.topology_file} is not as the playbooks write it ({error!r}): run the"
                " playbook of the phase again"
            ) from error

    def has_reached(self, phase: str) -> bool:
        """Tell whether the lab is in a phase or past it."""
        return PHASES.index(self.phase) >= PHASES.index(phase)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions whose customers trade."""
        return tuple(region for region in self.all_regions if region.open)

    def region(self, name: str) -> Region:
        """Return a region by name; raises LabError where its customers are not expected."""
        for region in self.all_regions:
            if region.name == name:
                return region
        raise LabError(f"region {name} does not trade in phase {self.phase}")

    def primary(self) -> str:
        """Return the node that takes the writes of the first region."""
        return next(name for name, node in self.nodes.items() if node["role"] == "primary")

    def countries(self) -> dict[str, tuple[str, ...]]:
        """Return each region's countries."""
        return {region.name: region.countries for region in self.regions}

    def origin(self) -> str:
        """Return the region that the company started in."""
        return str(next(iter(self.nodes.values()))["region"])

    def primaries(self) -> list[str]:
        """Return the nodes that take writes, the first region's first."""
        return [name for name, node in self.nodes.items() if node["role"] == "primary"]

    def nodes_in(self, region: str) -> list[str]:
        """Return a region's nodes, in the inventory's order."""
        return [name for name, node in self.nodes.items() if node["region"] == region]

    def origin_primary(self) -> str:
        """Return the node of the origin that takes its writes; raises LabError without one."""
        primary = self.primary_of(self.origin())
        if primary is None:
            raise LabError(f"no node of {self.origin()} takes writes: make status")
        return primary

    def primary_of(self, region: str) -> str | None:
        """Return the node of a region that takes its writes, None where they go elsewhere."""
        found = (name for name in self.primaries() if self.nodes[name]["region"] == region)
        return next(found, None)

    def is_home(self, region: Region) -> bool:
        """Tell whether a region's customers write to a node of their own region."""
        return bool(self.nodes[region.node]["region"] == region.name)

    def customers_login(self, region: Region, reads: bool = False) -> Login:
        """Return how a region's customers connect, with every node that may serve them.

        With reads, to look. Raises LabError where their password is not readable.
        """
        try:
            password = (self.lab.home / self.password_file).read_text()
        except OSError as error:
            raise LabError(
                f"the customers' password is not readable ({error}): run the playbook of the phase"
                " again"
            ) from error
        addresses = (reads and region.reads) or region.addresses
        hosts = ",".join(str(address["host"]) for address in addresses)
        ports = ",".join(str(address["port"]) for address in addresses)
        return Login(hosts, ports, self.user, password, self.dbname)

    def operator_login(self, node: str, password: str) -> Login:
        """Return how the operator connects to a node."""
        address = self.nodes[node]
        return Login(address["host"], int(address["port"]), "postgres", password, self.dbname)
