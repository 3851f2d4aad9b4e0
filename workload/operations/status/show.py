"""Print how the lab is, in 80 columns."""

from __future__ import annotations

from rich.console import Console

from workload.operations.status.collect import COMPARED, Status
from workload.operations.status.diagnose import follower_of, link_state, moment, problems, source_of
from workload.output import size, table
from workload.wan.config import Config


def show(status: Status, console: Console) -> bool:
    """Print the tables and what is wrong in 80 columns; return whether nothing is."""
    topology = status.topology
    console.print(
        f"Lab {topology.lab.name}: phase {topology.phase}, {topology.runtime} runtime"
        + (", a run is at work" if status.at_work else ""),
        highlight=False,
    )
    console.print(str(topology.lab.home), soft_wrap=True, highlight=False)
    _show_nodes(status, console)
    _show_replication(status, console)
    if status.wan is not None:
        _show_links(status, status.wan, console)
    _show_audits(status, console)
    if status.shared_ids is None:
        console.print(
            f"Ids of customers: not compared, since a region has more than {COMPARED:,}; make"
            " verify compares them",
            highlight=False,
        )
    lines = list(problems(status))
    for line in lines:
        console.print(f"WRONG: {line}", markup=False, highlight=False)
    if not lines:
        console.print("HEALTHY: nothing is wrong.", highlight=False)
    return not lines


def _show_nodes(status: Status, console: Console) -> None:
    rows = table("Nodes")
    for column in ("node", "region", "role", "port", "state", "PostgreSQL"):
        rows.add_column(column)
    rows.add_column("connections", justify="right")
    for name, node in status.topology.nodes.items():
        state = status.nodes[name]
        rows.add_row(
            name,
            node["region"],
            node["role"],
            str(node["port"]),
            state.trouble or "up",
            state.version,
            f"{state.connections:,} of {state.max_connections:,}" if state.is_up else "",
        )
    console.print(rows)


def _show_replication(status: Status, console: Console) -> None:
    rows = table("Replication")
    for column in ("node", "follows", "kind", "state"):
        rows.add_column(column)
    for column in ("behind", "ms"):
        rows.add_column(column, justify="right")
    for name, node in status.topology.nodes.items():
        if node["role"] not in ("standby", "replica"):
            continue
        source = source_of(status.topology, name)
        follower = follower_of(status, name)
        kind = "physical" if node["role"] == "standby" else "logical"
        if follower is None or not follower.active:
            unknown = source is None or not status.nodes[source].is_up
            rows.add_row(name, source or "?", kind, "unknown" if unknown else "away", "", "")
            continue
        state = f"{follower.state}, {follower.sync}" if kind == "physical" else follower.state
        behind = size(max(0, follower.lag_bytes))
        rows.add_row(name, source, kind, state, behind, f"{follower.lag_ms:,.1f}")
    if rows.row_count:
        console.print(rows)


def _show_links(status: Status, config: Config, console: Console) -> None:
    rows = table("Links of the WAN")
    rows.add_column("link")
    rows.add_column("state")
    rows.add_column("RTT", justify="right")
    for start, end in config.pairs():
        rtt = max(
            config.rtt_ms(link)
            for link in config.links
            if {link.source, link.region} == {start, end}
        )
        state = f"relay {status.relay}" if status.relay else link_state(config, start, end)
        rows.add_row(f"{start}-{end}", state, f"{rtt:g} ms")
    console.print(rows)


def _show_audits(status: Status, console: Console) -> None:
    current = [entry for entry in status.audits if entry["phase"] == status.topology.phase]
    if not current:
        console.print(f"Audit: none in phase {status.topology.phase} yet (make audit)")
        return
    (entry,) = current[-1:]
    expected = (
        ""
        if entry["verdict"] == "HOLDS" or status.topology.phase == "after"
        else f", which is what phase {status.topology.phase} is"
    )
    console.print(
        f"Audit: {entry['verdict']} at {moment(entry)}{expected}", markup=False, highlight=False
    )
