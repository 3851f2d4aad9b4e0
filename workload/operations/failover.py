"""A failover and its cost: how long nobody could write (RTO), and what was lost (RPO)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from workload import store
from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.standby import Member, promote
from workload.processes import reached
from workload.proof.verify import verify
from workload.sharding import access
from workload.topology import Topology, set_roles
from workload.traffic.ledger import last_acknowledgement

#: Seconds to wait for the customers' first acknowledged write on the new primary.
RETURN_TIMEOUT_S = 15.0
#: Seconds since the last acknowledgement from which on nobody was writing.
TRAFFIC_S = 10.0


def fail_over(
    lab: Lab, primary: Member, standby: Member, password: str, dry_run: bool
) -> dict[str, Any]:
    """Fail over to the standby, wait for the customers, and verify every acknowledged write.

    Writes the new roles to topology.json and a record to failover.json. Raises LabError where the
    standby cannot take over (nothing is changed then) or where an acknowledged write is lost.
    """
    roles = lab.read_roles()
    if roles.get(standby.name) != "standby":
        state = roles.get(standby.name, "not there")
        raise LabError(
            f"{primary.name} has no standby to take over from it ({standby.name} is {state}):"
            " playbooks/rejoin.yml brings a fenced node back"
        )
    if dry_run:
        return {"changed": True, "line": f"{standby.name} would take over from {primary.name}"}
    folder = lab.home / "ledger"
    figures = promote(primary, standby)
    fenced_at = figures["fenced_at"]
    reached("failover.ready")
    set_roles(lab, {primary.name: "fenced", standby.name: "primary"})
    reached("failover.routed")
    topology = Topology.load(lab)
    _redirect(topology, password)
    rto_ms = None
    # Customers of other regions write elsewhere and did not feel it.
    felt_by = [region.name for region in topology.regions if region.node == standby.name]
    before = last_acknowledgement(folder, until=fenced_at, regions=felt_by)
    if before is not None and fenced_at - before < TRAFFIC_S:
        first = _first_after(folder, fenced_at, felt_by)
        rto_ms = None if first is None else (first - before) * 1e3
    verdicts = verify(Topology.load(lab), password)
    acknowledged = sum(verdict.acknowledged for verdict in verdicts)
    lost = sum(verdict.lost for verdict in verdicts)
    record = {
        "from": primary.name,
        "to": standby.name,
        **figures,
        "rto_ms": rto_ms,
        "acknowledged": acknowledged,
        "lost": lost,
    }
    store.save(lab, "failover", [*store.load(lab, "failover"), record])
    if lost:
        raise LabError(
            f"{standby.name} took over, and {lost:,} of {acknowledged:,} acknowledged writes are"
            " lost: make verify names some"
        )
    felt = (
        "nobody was writing, so the RTO was not measured"
        if rto_ms is None
        else f"RTO {rto_ms:,.0f} ms without an acknowledged write"
    )
    line = (
        f"{primary.name} is fenced ({figures['fence_ms']:.0f} ms), {standby.name} is the primary"
        f" ({figures['promote_ms']:.0f} ms); RPO 0 of {acknowledged:,} acknowledged writes lost;"
        f" {felt}"
    )
    return {"changed": True, "line": line, **record}


def _redirect(topology: Topology, password: str) -> None:
    """Make the other nodes' foreign servers try the new primary first.

    They know both addresses, but the relay accepts a connection before it knows that its node is
    down, and libpq tries the next address only where one is refused. A node that is down is left
    as it is: playing the phase again sets its servers.
    """
    if not topology.has_reached("after"):
        return
    setup = access.setup_of(topology, password)
    for node in topology.primaries():
        with contextlib.suppress(LabError, psycopg.Error):
            access.point_servers(setup, [node])


def _first_after(folder: Path, moment: float, regions: Sequence[str]) -> float | None:
    deadline = time.monotonic() + RETURN_TIMEOUT_S
    while time.monotonic() < deadline:
        first = last_acknowledgement(folder, since=moment, regions=regions)
        if first is not None:
            return first
        time.sleep(0.02)
    return None
