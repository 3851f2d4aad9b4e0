"""Action: move the rows of the start's tables into the leaf partitions while customers write.

Gives up cleanly, with the lab as it was. Returns figures of the move (customers, purchases,
write_pause_ms, tries, seconds, extra_bytes); none where the rows were moved before.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from workload import store
from workload.actions import WHOLE_LAB, LabAction, lab_of
from workload.sharding.partition import is_partitioned, partition
from workload.sql import connect
from workload.topology import Topology


class ActionModule(LabAction):
    """The action."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        **WHOLE_LAB,
        "timeout_s": {"type": "int", "default": 60},
    }

    def act(self, arguments: dict[str, Any], dry_run: bool) -> dict[str, Any]:
        """Move them."""
        topology = Topology.load(lab_of(arguments))
        login = topology.operator_login(topology.origin_primary(), arguments["lab"]["password"])
        if dry_run:
            with connect(login) as connection:
                return {"changed": not is_partitioned(connection)}
        regions = topology.countries()
        leaving = set(regions) - {topology.origin()}
        figures = partition(login, regions, self.say, arguments["timeout_s"], leaving)
        if figures is None:
            return {"changed": False}
        store.save(topology.lab, "partition", asdict(figures))
        self.say(
            f"{figures.customers:,} customers and {figures.purchases:,} purchases are in their"
            f" partitions ({figures.seconds:.1f} s, {figures.extra_bytes / 1e6:,.0f} MB on the"
            f" way); nobody could write for {figures.write_pause_ms:.0f} ms."
            " What the old names cannot do any more (pg_dump -t, ON CONFLICT, TRUNCATE, ...):"
            " docs/old-names.md"
        )
        return {"changed": True, **asdict(figures)}
