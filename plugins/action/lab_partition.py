"""Action: move the rows of the start's tables into the leaf partitions while customers write.

Gives up cleanly, with the lab as it was. Returns figures of the move (customers, purchases,
write_pause_ms, tries, seconds, extra_bytes) and a line for people; none where it was done before.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from workload import store
from workload.actions import LOGIN, LabAction, countries_of, lab_of
from workload.sharding.partition import is_partitioned, partition
from workload.sql import Login, connect
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "home": {"type": "str", "required": True},
        "login": LOGIN,
        # {name: {countries}}
        "regions": {"type": "dict", "required": True},
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Move them."""
        lab = lab_of(arguments)
        login = Login(**arguments["login"])
        if dry_run:
            with connect(login) as connection:
                return {"changed": not is_partitioned(connection), "line": ""}
        regions = countries_of(arguments)
        leaving = set(regions) - {Topology.load(lab).origin()}
        done = partition(login, regions, self.say, arguments["timeout_s"], leaving)
        if done is None:
            return {"changed": False, "line": ""}
        store.save(lab, "partition", asdict(done))
        line = (
            f"{done.customers:,} customers and {done.purchases:,} purchases are in their"
            f" partitions ({done.seconds:.1f} s, {done.extra_bytes / 1e6:,.0f} MB on the way);"
            f" nobody could write for {done.write_pause_ms:.0f} ms"
        )
        return {"changed": True, "line": line, **asdict(done)}
