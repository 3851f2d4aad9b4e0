"""Filter: the content of topology.json, by which the populations find their node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def topology(
    hosts: Iterable[Mapping[str, Any]],
    phase: str,
    runtime: str,
    regions: Mapping[str, Any],
    customers: Mapping[str, str],
    dbname: str,
) -> dict[str, Any]:
    """Return {phase, runtime, dbname, customers, nodes, regions}.

    nodes: {name: {region, host, port}}; regions: {name: {countries, node, host, port}}, where node
    is the one that the region's customers use now: the first of their own region, else the first.
    """
    nodes = {
        str(host["inventory_hostname"]): {
            "region": host["node_region"],
            "host": host["node_host"],
            "port": host["node_port"],
        }
        for host in hosts
    }
    homes: dict[str, str] = {}
    for name, node in nodes.items():
        homes.setdefault(node["region"], name)
    first = next(iter(nodes))
    found = {}
    for region, entry in regions.items():
        home = homes.get(region, first)
        found[region] = {
            "countries": list(entry["countries"]),
            "node": home,
            "host": nodes[home]["host"],
            "port": nodes[home]["port"],
        }
    return {
        "phase": phase,
        "runtime": runtime,
        "dbname": dbname,
        "customers": dict(customers),
        "nodes": nodes,
        "regions": found,
    }


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {"lab_topology": topology}
