"""What topology.json says: the phase, and where each region's customers go now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workload.errors import LabError
from workload.lab import Lab, read_json
from workload.sql import Login


def build(
    phase: str,
    runtime: str,
    dbname: str,
    customers: Mapping[str, str],
    regions: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the content of topology.json.

    nodes: [{name, region, host, port}]; regions: {name: {countries}}. A region's customers go to
    the first node of their own region, else to the first of all.
    """
    homes: dict[str, Mapping[str, Any]] = {}
    for node in nodes:
        homes.setdefault(node["region"], node)
    found = {}
    for region, entry in regions.items():
        home = homes.get(region, nodes[0])
        found[region] = {
            "countries": list(entry["countries"]),
            "node": home["name"],
            "host": home["host"],
            "port": home["port"],
        }
    return {
        "phase": phase,
        "runtime": runtime,
        "dbname": dbname,
        "customers": dict(customers),
        "nodes": {
            node["name"]: {key: node[key] for key in ("region", "host", "port")} for node in nodes
        },
        "regions": found,
    }


@dataclass(frozen=True)
class Region:
    """A region whose customers trade in this phase."""

    name: str
    countries: tuple[str, ...]
    node: str
    host: str
    port: int


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
    nodes: dict[str, dict[str, Any]]

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
                    Region(name, tuple(r["countries"]), r["node"], r["host"], int(r["port"]))
                    for name, r in found["regions"].items()
                ),
                nodes=dict(found["nodes"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"{lab.topology_file} is not as the playbooks write it ({error!r}): run the"
                " playbook of the phase again"
            ) from error

    def customers_login(self, region: Region) -> Login:
        """Return how a region's customers connect."""
        try:
            password = (self.lab.home / self.password_file).read_text()
        except OSError as error:
            raise LabError(
                f"the customers' password is not readable ({error}): run the playbook of the phase"
                " again"
            ) from error
        return Login(region.host, region.port, self.user, password, self.dbname)

    def operator_login(self, node: str, password: str) -> Login:
        """Return how the operator connects to a node."""
        address = self.nodes[node]
        return Login(address["host"], int(address["port"]), "postgres", password, self.dbname)
