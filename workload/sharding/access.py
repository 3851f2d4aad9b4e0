"""Cross-region access: TLS, roles, foreign servers and foreign partitions on every node.

Foreign servers point to where each region's rows are now, and foreign leaves stand in place of
copies. The origin keeps the leaves of regions that are not at home elsewhere yet: the cutover
removes those.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.errors import LabError
from workload.nodes import tls
from workload.nodes.peers import address_between
from workload.nodes.scram import verifier
from workload.nodes.server import server_of
from workload.processes import in_parallel, poll
from workload.sharding import foreign
from workload.sharding.definition import Definition, give_parents_columns, of_leaves
from workload.sharding.gates import keep_no_statistics, rebound
from workload.sharding.leaves import TABLES, Leaf, leaves_of, parents
from workload.sharding.locks import LOCKS_S, exclusively
from workload.sql import connect, describe, take_turns, together
from workload.topology import Role, Topology, set_roles
from workload.wan import control

#: Seconds for transactions to end that the origin forwards to a region that has moved.
FORWARD_DRAIN_S = 30.0


def home_of(topology: Topology, node: str, region: str) -> list[str]:
    """Return the nodes that a node's server of a region goes to, the one that takes writes first.

    Those that hold its rows now: its own, or the origin's. The origin's own server goes to the
    region's node in any case: it is not used until the rows are there.
    """
    own = topology.nodes_in(region)
    at_origin = topology.nodes[node]["region"] == topology.origin()
    primary = topology.primary_of(region) or (own[0] if at_origin else topology.origin_primary())
    home = topology.nodes[primary]["region"]
    return [primary, *(name for name in topology.nodes_in(home) if name != primary)]


def server_options(topology: Topology, node: str, region: str) -> dict[str, str]:
    """Return the options of a node's server for a region."""
    ends = home_of(topology, node, region)
    addresses = [address_between(topology, node, end) for end in ends]
    return {
        # The name to be checked, and apart from it the address to go to.
        "host": ",".join([tls.host_name(topology.nodes[ends[0]]["region"])] * len(ends)),
        "hostaddr": ",".join(address(host) for host, _ in addresses),
        "port": ",".join(str(port) for _, port in addresses),
        "dbname": topology.dbname,
        "application_name": f"{node} for {region}",
        **foreign.OPTIONS,
    }


def address(host: str) -> str:
    """Return the address of a host; libpq takes no names beside the one that it checks."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        raise LabError(f"host {host} has no address here: {error}") from None


@dataclass(frozen=True)
class Setup:
    """What all nodes' foreign servers are made from."""

    topology: Topology
    password: str
    #: {name: countries}
    regions: Mapping[str, Sequence[str]]
    customers_role: str

    def connect(self, node: str) -> psycopg.Connection[Any]:
        """Return the operator's connection to a node."""
        connection: psycopg.Connection[Any] = connect(
            self.topology.operator_login(node, self.password), 10
        )
        connection.autocommit = True
        return connection

    def secret(self, name: str) -> str:
        """Return a generated password; raises LabError where it is not readable."""
        try:
            return self.topology.lab.secret_file(name).read_text()
        except OSError as error:
            raise LabError(f"{name}'s password is not readable ({error}): play the phase") from None

    def writable(self) -> list[str]:
        """Return the nodes that take writes or hold copies: no standbys, nothing fenced."""
        return [
            name
            for name, node in self.topology.nodes.items()
            if node["role"] not in ("standby", "fenced")
        ]


def setup_of(topology: Topology, password: str) -> Setup:
    """Return what topology.json says of a lab's regions and customers, and the passwords."""
    return Setup(topology, password, topology.countries(), topology.user)


def prepare(setup: Setup) -> bool:
    """Ensure TLS, roles, servers and foreign leaves on all nodes; return whether any changed.

    Raises LabError with the node that it went wrong on.
    """
    topology = setup.topology
    created = tls.ensure_certificates(topology.lab, list(setup.regions))

    def secure(name: str) -> bool:
        login = topology.operator_login(name, setup.password)
        region = topology.nodes[name]["region"]
        return tls.install(topology.lab, region, server_of(topology, name), login)

    alive = [name for name, node in topology.nodes.items() if node["role"] != "fenced"]
    steps = [created, _on_each(alive, secure)]
    definitions = _definitions(setup)
    # The nodes that are connected to come first, then those that connect.
    steps.append(_on_each(setup.writable(), lambda name: _prepare_node(setup, name, definitions)))
    founded = _found_regions(setup)
    if founded:
        setup = replace(setup, topology=Topology.load(topology.lab))
    steps += [founded, point_servers(setup)]
    steps.append(_on_each(setup.writable(), lambda name: _replace_copies(setup, name, definitions)))
    # Countries that are new: at home first, so that it knows them before rows are sent there.
    for kind in ("r", "f"):
        steps.append(_on_each(setup.writable(), partial(_rebound, setup, kind)))
    return any(steps)


def _on_each(names: Sequence[str], work: Callable[[str], bool]) -> bool:
    """Do work for nodes at the same time; return whether any of it changed something."""
    changes: list[bool] = []

    def job(name: str) -> Callable[[], None]:
        def run() -> None:
            try:
                changes.append(work(name))
            except psycopg.Error as error:
                raise LabError(f"{name}: {describe(error)}") from None

        return run

    in_parallel([job(name) for name in names])
    return any(changes)


def _rebound(setup: Setup, kind: str, name: str) -> bool:
    with setup.connect(name) as connection:
        return rebound(connection, leaves_of(setup.regions), kind, LOCKS_S)


def _found_regions(setup: Setup) -> bool:
    """Make new regions' nodes the homes that nobody has rows for yet; return whether any was."""
    topology = setup.topology
    joining = [name for name, node in topology.nodes.items() if node["role"] == "joining"]
    with setup.connect(topology.origin_primary()) as origin:
        at_origin = {
            leaf.region for leaf in leaves_of(setup.regions) if foreign.relkind(origin, leaf) == "r"
        }
    roles: dict[str, Role] = {}
    for name in joining:
        region = topology.nodes[name]["region"]
        if region in at_origin or region not in setup.regions:
            continue
        leaves = leaves_of(setup.regions, [region])
        with setup.connect(name) as connection:
            if foreign.relkind(connection, leaves[0]) == "":
                _make_home(connection, leaves, _definitions(setup), setup.customers_role)
        roles[name] = "primary"
    if roles:
        set_roles(topology.lab, roles)
    return bool(roles)


def _definitions(setup: Setup) -> dict[str, Definition]:
    """Return how leaves are made, as the origin's own ones are."""
    with setup.connect(setup.topology.origin_primary()) as connection:
        return of_leaves(connection, setup.topology.origin())


def _prepare_node(setup: Setup, name: str, definitions: Mapping[str, Definition]) -> bool:
    """Ensure a node's extensions, the roles that others log in as, and its parents' columns."""
    with setup.connect(name) as connection:
        take_turns(connection, LOCKS_S)
        changed = False
        for extension in ("postgres_fdw", "dblink"):
            row = connection.execute(
                "SELECT FROM pg_extension WHERE extname = %s", (extension,)
            ).fetchone()
            if row is None:
                connection.execute(
                    sql.SQL("CREATE EXTENSION {} SCHEMA public").format(sql.Identifier(extension))
                )
                changed = True
        for role in foreign.SECRETS:
            password_verifier = verifier(setup.secret(role), role)
            for region in setup.regions:
                changed |= foreign.ensure_role(connection, role, password_verifier, region)
        for leaf in leaves_of(setup.regions):
            if foreign.relkind(connection, leaf) == "r":
                changed |= _grant_customers(connection, leaf, setup.customers_role)
        changed |= give_parents_columns(connection, definitions)
        for table in TABLES:
            changed |= keep_no_statistics(connection, sql.Identifier("global", table))
        return changed


def point_servers(setup: Setup, nodes: Sequence[str] = ()) -> bool:
    """Point servers to where each region's rows are now; return whether any changed.

    nodes: whose servers, without it those of all.
    """
    changes = []
    mappings = {
        setup.customers_role: (foreign.CUSTOMERS_ROLE, setup.secret(foreign.CUSTOMERS_ROLE)),
        "postgres": (foreign.OPERATOR_ROLE, setup.secret(foreign.OPERATOR_ROLE)),
    }
    for name in nodes or setup.writable():
        with setup.connect(name) as connection:
            for region in setup.regions:
                if region != setup.topology.nodes[name]["region"]:
                    options = server_options(setup.topology, name, region)
                    changes.append(foreign.ensure_server(connection, region, options, mappings))
    if not nodes:
        changes.append(_stop_forwarding(setup))
    return any(changes)


def _stop_forwarding(setup: Setup) -> bool:
    """Stop forwarding once every foreign server points to the new home; return whether it was on.

    A transaction that is being forwarded goes on to its end. Where one takes too long, forwarding
    stays on until the next run.
    """
    topology = setup.topology
    changes = []
    with setup.connect(topology.origin_primary()) as connection:
        for region in setup.regions:
            if region == topology.origin() or not topology.primary_of(region):
                continue
            if foreign.forwarding_roles(connection, region) and _has_emptied(setup, connection):
                foreign.revoke_forwarding(connection, region)
                changes.append(region)
    return bool(changes)


def _has_emptied(setup: Setup, connection: psycopg.Connection[Any]) -> bool:
    """Wait for the end of forwarded transactions that began before now; return whether it came.

    A remote session may have opened its transaction but not yet sent its query, so this waits for
    at least one RTT.
    """
    topology = setup.topology
    rtt_ms = max(
        control.rtt_ms(topology.lab, region.name, node)
        for region in topology.all_regions
        for node in topology.nodes
    )
    row: Any = connection.execute(
        "SELECT clock_timestamp() + %s * interval '1 ms'", (rtt_ms,)
    ).fetchone()

    def is_empty() -> bool:
        answer: Any = connection.execute(
            "SELECT clock_timestamp() > %(moment)s AND NOT EXISTS (SELECT FROM pg_stat_activity"
            " WHERE usename = ANY(%(roles)s) AND xact_start <= %(moment)s)",
            {"moment": row[0], "roles": list(foreign.SECRETS)},
        ).fetchone()
        return bool(answer[0])

    try:
        poll(is_empty, FORWARD_DRAIN_S, "")
    except LabError:
        return False
    return True


def _replace_copies(setup: Setup, name: str, definitions: Mapping[str, Definition]) -> bool:
    """Ensure foreign leaves for the other regions on a node, in place of copies if there are any.

    The origin keeps the leaves of regions that are not at home elsewhere yet.
    """
    topology = setup.topology
    own = topology.nodes[name]["region"]
    changed = False
    with setup.connect(name) as connection:
        for region in setup.regions:
            leaves = leaves_of(setup.regions, [region])
            kinds = {leaf: foreign.relkind(connection, leaf) for leaf in leaves}
            if region == own:
                continue
            relkinds = set(kinds.values())
            if relkinds == {"f"} or (own == topology.origin() and "r" in relkinds):
                continue
            foreign.stage(connection, leaves, definitions)
            staged = schemas.STAGED.format(region=region)
            foreign.grant_customers(connection, leaves, setup.customers_role, staged)
            swap = [
                sql.SQL("DROP {} IF EXISTS {}").format(
                    sql.SQL("FOREIGN TABLE" if kinds[leaf] == "f" else "TABLE"), leaf.identifier()
                )
                for leaf in reversed(leaves)
            ]
            for leaf in leaves:
                swap += [foreign.unstage(leaf), leaf.attach()]
            exclusively(connection, parents(), swap, LOCKS_S)
            changed = True
    return changed


def _make_home(
    connection: psycopg.Connection[Any],
    leaves: Sequence[Leaf],
    definitions: Mapping[str, Definition],
    customers_role: str,
) -> None:
    """Make the leaves of a region that begins with a node of its own, empty."""
    with connection.transaction():
        for leaf in leaves:
            definition = definitions[leaf.table]
            statements = [*definition.create(leaf), *definition.keys(leaf), leaf.attach()]
            connection.execute(together(statements))
        for leaf in leaves:
            for statement in definitions[leaf.table].references(leaf):
                connection.execute(statement)
        foreign.grant_customers(connection, leaves, customers_role)
        for role in foreign.SECRETS:
            foreign.grant(connection, role, leaves[0].region)


def _grant_customers(connection: psycopg.Connection[Any], leaf: Leaf, role: str) -> bool:
    row = connection.execute(
        "SELECT has_table_privilege(%(role)s, to_regclass(%(leaf)s), 'INSERT')"
        " AND has_table_privilege(%(home)s, to_regclass(%(leaf)s), 'INSERT')",
        {"role": role, "home": foreign.HOME_ROLE, "leaf": leaf.identifier().as_string(connection)},
    ).fetchone()
    if row == (True,):
        return False
    foreign.grant_customers(connection, [leaf], role)
    return True
