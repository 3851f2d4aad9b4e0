"""topology.json: the phase, the nodes' roles, and the nodes that serve each region's customers."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workload.errors import LabError
from workload.lab import Lab, read_json, write_atomically
from workload.processes import locked
from workload.sql import Login

#: The phases, in the order in which a lab passes them.
PHASES = ("before", "expand_eu", "expand_world", "shard", "after")

#: A replica holds copies and takes no customers' writes; a joining node takes no customers at all.
Role = Literal["primary", "standby", "fenced", "replica", "joining"]

#: The database of phase before, which all phases use.
DBNAME = "postgres"


@dataclass(frozen=True)
class Node:
    """A node as the inventory describes it."""

    name: str
    region: str
    host: str
    port: int
    #: Its port's distance from lab_port_base.
    port_offset: int
    #: The node whose standby it is at first, or "".
    follows: str
    #: The name of its container, and of its volume.
    container: str


def advance(
    lab: Lab,
    phase: str,
    state: Literal["joining", "partitioned", "reached"],
    customers_role: str,
    regions: Mapping[str, Sequence[str]],
    nodes: Sequence[Node],
    links: Sequence[Mapping[str, Any]] = (),
    dry_run: bool = False,
) -> bool:
    """Write a step towards a phase to topology.json; return whether it changes the file.

    reached: the phase is complete. joining: new nodes and regions are listed, but take no
    customers yet. partitioned: as joining, and customers now use the partitioned tables.

    regions: {name: countries} that each is to serve; until the world arrives only the origin's, the
    first node's region, takes part. links: the WAN's, [{source, node, port, rtt_ms}]. A node keeps
    the role that it has; one that is new begins as a primary in the origin, as a standby where it
    follows another, else as a replica.
    """
    origin = nodes[0].region
    if PHASES.index(phase) < PHASES.index("expand_world"):
        regions = {origin: regions[origin]}

    def begins_as(node: Node) -> Role:
        if state != "reached":
            return "joining"
        if node.follows:
            return "standby"
        return "primary" if node.region == origin else "replica"

    def change(content: dict[str, Any]) -> None:
        roles = {name: known["role"] for name, known in content.get("nodes", {}).items()}
        if state == "reached":
            roles = {name: role for name, role in roles.items() if role != "joining"}
            trading = dict(regions)
            tables = tables_of(phase)
        else:
            # Customers of new countries and regions begin when the phase is complete.
            trading = {name: known["countries"] for name, known in content["regions"].items()}
            tables = content["tables"]
            if state == "partitioned" and tables == "public":
                tables = "global"
        content.update(
            phase=phase if state == "reached" else content["phase"],
            dbname=DBNAME,
            customers={"user": customers_role, "password_file": f"secrets/{customers_role}"},
            tables=tables,
            nodes={
                node.name: {
                    "region": node.region,
                    "host": node.host,
                    "port": node.port,
                    "role": roles.get(node.name) or begins_as(node),
                    "container": node.container,
                }
                for node in nodes
            },
            links=[
                {key: link[key] for key in ("source", "node", "port", "rtt_ms")} for link in links
            ],
            regions={
                name: {
                    "countries": list(trading.get(name, ())),
                    "serves": list(regions.get(name, ())),
                    "warm_up": "",
                }
                for name in dict.fromkeys([*regions, *trading])
            },
        )

    return update(lab, change, dry_run)


def tables_of(phase: str) -> str:
    """Return which tables customers name in a phase.

    public: those of the start. global: the partitioned ones. home: their region's own leaves.
    """
    if phase == "after":
        return "home"
    return "public" if PHASES.index(phase) < PHASES.index("shard") else "global"


def update(lab: Lab, change: Callable[[dict[str, Any]], None], dry_run: bool = False) -> bool:
    """Change the content of topology.json, one process at a time; return whether it differs.

    All changes are made here: change alters the content in place, and the address that each
    region's customers use follows from it. Raises LabError where another run holds the lock.
    """
    # Not the state folder itself, which is held while canaries are planted in every region.
    with contextlib.nullcontext() if dry_run else locked(lab.home / "secrets"):
        before = read_json(lab.topology_file)
        content = copy.deepcopy(before)
        change(content)
        for name, region in content["regions"].items():
            region.update(_serving(content, name)[0][0])
        if content != before and not dry_run:
            write_atomically(lab.topology_file, json.dumps(content, indent=1) + "\n")
    return content != before


def set_warm_up(lab: Lab, region: str, statement: str) -> None:
    """Ask a region's customers to run a statement once, while they are idle; "" asks no more."""
    update(lab, lambda content: content["regions"][region].update(warm_up=statement))


def set_roles(lab: Lab, roles: Mapping[str, Role]) -> None:
    """Change nodes' roles in topology.json, and so the nodes that customers connect to."""

    def change(content: dict[str, Any]) -> None:
        for name, role in roles.items():
            content["nodes"][name]["role"] = role

    update(lab, change)


def _addresses(content: Mapping[str, Any], region: str) -> list[dict[str, Any]]:
    """Return how a region reaches each node, over the WAN where there is a link."""
    links = {link["node"]: link for link in content["links"] if link["source"] == region}
    return [
        {
            "node": name,
            "host": node["host"],
            "port": int(links.get(name, node)["port"]),
            "rtt_ms": float(links.get(name, {}).get("rtt_ms", 0.0)),
        }
        for name, node in content["nodes"].items()
    ]


def _serving(
    content: Mapping[str, Any], region: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return where a region's customers write and where they read, by the nodes' roles.

    They write to their region's primary, or else to the first primary, and have the address of its
    standby too. They read in their region where a node there has their rows: a standby before its
    primary, or a replica. A standby of another region is as far away as its primary.
    """
    nodes = content["nodes"]
    primaries = [node["region"] for node in nodes.values() if node["role"] == "primary"]
    first = [*primaries, next(iter(nodes.values()))["region"]][0]
    home = region if region in primaries else first
    by_role: dict[str, list[dict[str, Any]]] = {}
    for address in _addresses(content, region):
        node = nodes[address["node"]]
        if node["region"] == home or (node["region"], node["role"]) == (region, "replica"):
            by_role.setdefault(node["role"], []).append(address)
    writes = [each for role in ("primary", "standby", "fenced") for each in by_role.get(role, [])]
    reads = by_role.get("replica", [])
    if home == region and "standby" in by_role:
        reads = by_role["standby"] + by_role.get("primary", [])
    return writes, reads


@dataclass(frozen=True)
class Region:
    """A region that takes part in this phase."""

    name: str
    #: The countries of its customers now; none before the region trades.
    countries: tuple[str, ...]
    #: The countries that its partitions are for.
    serves: tuple[str, ...]
    #: {node, host, port, rtt_ms} of each node that may take its writes, the primary first.
    addresses: tuple[Mapping[str, Any], ...]
    #: The same of each node that its customers read from, best first; none where they read from the
    #: nodes that they write to.
    reads: tuple[Mapping[str, Any], ...]
    #: The same of every node of the lab, as configured: make wan shows links that were slowed.
    ways: tuple[Mapping[str, Any], ...]
    #: The statement that its customers run once, while they are idle; "" for none.
    warm_up: str

    @property
    def node(self) -> str:
        """The node that its customers write to."""
        return str(self.addresses[0]["node"])

    @property
    def host(self) -> str:
        """The host at which they reach it."""
        return str(self.addresses[0]["host"])

    @property
    def port(self) -> int:
        """The port at which they reach it."""
        return int(self.addresses[0]["port"])

    @property
    def rtt_ms(self) -> float:
        """The round trip to it, as configured."""
        return float(self.addresses[0]["rtt_ms"])

    @property
    def open(self) -> bool:
        """Whether its customers trade."""
        return bool(self.countries)

    @property
    def served(self) -> tuple[object, ...]:
        """The addresses; a customer reconnects where they change."""
        return (self.addresses, self.reads)

    def node_at(self, port: int) -> str:
        """Return which node a connection to a port of this machine reaches."""
        return next((str(way["node"]) for way in self.ways if way["port"] == port), self.node)

    def way_to(self, node: str) -> Mapping[str, Any]:
        """Return {node, host, port, rtt_ms} by which the region reaches a node of the lab."""
        return next(way for way in self.ways if way["node"] == node)


@dataclass(frozen=True)
class Topology:
    """A lab that has reached a phase."""

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
        content = read_json(lab.topology_file)
        if not content:
            raise LabError(
                f"no lab is running in {lab.home}: make demo, or .venv/bin/ansible-playbook"
                " playbooks/before.yml, brings one up"
            )
        try:
            state = lab.read_state()
            return cls(
                lab=lab,
                phase=content["phase"],
                runtime=state["runtime"],
                dbname=content["dbname"],
                user=content["customers"]["user"],
                password_file=content["customers"]["password_file"],
                all_regions=tuple(
                    Region(
                        name=name,
                        countries=tuple(region["countries"]),
                        serves=tuple(region["serves"]),
                        addresses=tuple(writes),
                        reads=tuple(reads),
                        ways=tuple(_addresses(content, name)),
                        warm_up=region["warm_up"],
                    )
                    for name, region in content["regions"].items()
                    for writes, reads in [_serving(content, name)]
                ),
                nodes={name: dict(node) for name, node in content["nodes"].items()},
                servers={
                    "image": state["image"],
                    "bin_dir": state["bin_dir"],
                    "network": Lab(state["name"], lab.home).network,
                },
                tables=content["tables"],
            )
        except (
            AttributeError,
            IndexError,
            KeyError,
            StopIteration,
            TypeError,
            ValueError,
        ) as error:
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
        """Return the countries that each region's partitions are for."""
        return {region.name: region.serves for region in self.all_regions if region.serves}

    def origin(self) -> str:
        """Return the region of the first node, where all rows are at first."""
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
        nodes = (name for name in self.primaries() if self.nodes[name]["region"] == region)
        return next(nodes, None)

    def is_home(self, region: Region) -> bool:
        """Tell whether a region's customers write to a node of their own region."""
        return bool(self.nodes[region.node]["region"] == region.name)

    def customers_login(self, region: Region, reads: bool = False) -> Login:
        """Return how a region's customers connect, with every node that may serve them.

        reads: whether to read only. Raises LabError where their password is not readable.
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
