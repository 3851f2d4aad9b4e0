"""Foreign servers and foreign leaves: how a node reaches the rows that are at home elsewhere.

One server for each other region, named after it. It lists every node of the region that is home to
the rows now and goes to the one that takes writes, so it follows a fail-over by the next statement;
it goes over TLS and checks the region's name. A foreign leaf stands for the remote leaf, never for
the remote parent: that would send queries in circles, and change rows by a ctid that is not unique.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from workload import tls
from workload.bulk import in_parallel
from workload.countries import rebound
from workload.errors import LabError
from workload.leaves import LOCK_ORDER, TABLES, Leaf, columns_of, leaves_of
from workload.locks import exclusively
from workload.peers import address_between
from workload.scram import verifier
from workload.sql import connect, describe, take_turns
from workload.topology import Role, Topology, set_roles

#: The roles that others come as: the customers', who see and add, and the operator's.
CUSTOMERS_ROLE, OPERATOR_ROLE = "foreign_customers", "foreign_operator"
#: What customers become who must not leave home (functions.sql makes it).
HOME_ROLE = "at_home"
SECRETS = (CUSTOMERS_ROLE, OPERATOR_ROLE)
#: Rows a round trip: the default 100 makes a far scan a matter of minutes.
OPTIONS: Mapping[str, str] = {
    "fetch_size": "10000",
    "batch_size": "1000",
    "async_capable": "true",
    "parallel_commit": "true",
    "connect_timeout": "5",
    # Half a minute for a link that went silent, not the quarter of an hour of TCP.
    "tcp_user_timeout": "30000",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "sslmode": "verify-full",
    "sslrootcert": tls.CA_FILE,
    "target_session_attrs": "read-write",
}
#: How long a session from elsewhere may hold on to something here.
ABANDONED = "60s"
#: Where a foreign leaf stands until it takes a table's place.
STAGED = "staged_{region}"
_FOREIGN_COLUMNS = {
    "customer": "id uuid NOT NULL DEFAULT gen_random_uuid(), email text NOT NULL",
    "purchase": (
        "id uuid NOT NULL DEFAULT gen_random_uuid(), customer_id uuid NOT NULL,"
        " amount decimal NOT NULL"
    ),
    "test": "id uuid NOT NULL DEFAULT gen_random_uuid(), email text NOT NULL",
}


def home_of(topology: Topology, node: str, region: str) -> list[str]:
    """Return the nodes that a node's server of a region goes to, the one that takes writes first.

    Those that hold its rows now: its own, or the origin's. The origin's own server goes to the
    region's node in any case: it is not used until the rows are there.
    """
    own = [name for name, found in topology.nodes.items() if found["region"] == region]
    at_origin = topology.nodes[node]["region"] == topology.origin()
    primary = topology.primary_of(region) or (own[0] if at_origin else topology.primaries()[0])
    home = topology.nodes[primary]["region"]
    others = [
        name
        for name, found in topology.nodes.items()
        if found["region"] == home and name != primary
    ]
    return [primary, *others]


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
        **OPTIONS,
    }


def address(host: str) -> str:
    """Return the address of a host; libpq takes no names beside the one that it checks."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except OSError as error:
        raise LabError(f"host {host} has no address here: {error}") from None


def ensure_role(connection: psycopg.Connection[Any], name: str, secret: str, region: str) -> bool:
    """Have a role that others come as to a region's leaves; return whether anything was done."""
    role = sql.Identifier(name)
    row = connection.execute(
        "SELECT rolpassword = %s FROM pg_authid WHERE rolname = %s", (secret, name)
    ).fetchone()
    if row is None:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        # A far side that went silent keeps its rows locked no longer than this.
        for setting in ("idle_in_transaction_session_timeout", "statement_timeout"):
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(
                    role, sql.Identifier(setting), sql.Literal(ABANDONED)
                )
            )
    if row is None or not row[0]:
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(secret)))
    granted = grant(connection, name, region)
    return granted or row is None or not row[0]


def grant(connection: psycopg.Connection[Any], name: str, region: str) -> bool:
    """Let those who come as a role use a region's leaves; return whether they could not yet."""
    rights = ["SELECT", "INSERT"] + (["UPDATE", "DELETE"] if name == OPERATOR_ROLE else [])
    done = False
    for table in TABLES:
        leaf = sql.Identifier(region, table)
        row: Any = connection.execute(
            "SELECT relkind, has_table_privilege(%(role)s, oid, %(last)s)"
            " FROM pg_class WHERE oid = to_regclass(%(leaf)s)",
            {"role": name, "last": rights[-1], "leaf": leaf.as_string(connection)},
        ).fetchone()
        # Only what is at home here; what is not yet will be granted when it is.
        if row and row[0] == "r" and not row[1]:
            connection.execute(
                sql.SQL("GRANT {} ON {} TO {}").format(
                    sql.SQL(", ".join(rights)), leaf, sql.Identifier(name)
                )
            )
            done = True
    row = connection.execute(
        "SELECT has_schema_privilege(%s, %s, 'USAGE') AND has_type_privilege(%s, 'global.country',"
        " 'USAGE') AND has_schema_privilege(%s, 'global', 'USAGE')",
        (name, region, name, name),
    ).fetchone()
    if row == (False,):
        connection.execute(
            sql.SQL("GRANT USAGE ON SCHEMA {}, global TO {}").format(
                sql.Identifier(region), sql.Identifier(name)
            )
        )
        done = True
    return done


def ensure_server(
    connection: psycopg.Connection[Any],
    region: str,
    options: Mapping[str, str],
    mappings: Mapping[str, tuple[str, str]],
) -> bool:
    """Have the server of a region and its user mappings; return whether anything was done.

    mappings: {local role: (remote role, password)}. Options that are as they should be are left
    alone: a change makes every session connect anew.
    """
    name = sql.Identifier(region)
    row: Any = connection.execute(
        "SELECT coalesce(srvoptions, '{}') FROM pg_foreign_server WHERE srvname = %s", (region,)
    ).fetchone()
    done = False
    if row is None:
        connection.execute(
            sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(
                name, _options(options)
            )
        )
        done = True
    else:
        found = dict(option.split("=", 1) for option in row[0])
        changes = [
            sql.SQL("{} {} {}").format(
                sql.SQL("SET" if key in found else "ADD"), sql.Identifier(key), sql.Literal(value)
            )
            for key, value in options.items()
            if found.get(key) != value
        ]
        if changes:
            connection.execute(
                sql.SQL("ALTER SERVER {} OPTIONS ({})").format(name, sql.SQL(", ").join(changes))
            )
            done = True
    for local, (remote, password) in mappings.items():
        wanted = [f"user={remote}", f"password={password}"]
        mapping: Any = connection.execute(
            "SELECT umoptions FROM pg_user_mappings WHERE srvname = %s AND usename = %s",
            (region, local),
        ).fetchone()
        if mapping and mapping[0] == wanted:
            continue
        if mapping:
            connection.execute(
                sql.SQL("DROP USER MAPPING FOR {} SERVER {}").format(sql.Identifier(local), name)
            )
        connection.execute(
            sql.SQL("CREATE USER MAPPING FOR {} SERVER {} OPTIONS (user {}, password {})").format(
                sql.Identifier(local), name, sql.Literal(remote), sql.Literal(password)
            )
        )
        connection.execute(
            sql.SQL("GRANT USAGE ON FOREIGN SERVER {} TO {}").format(name, sql.Identifier(local))
        )
        done = True
    return done


def _options(options: Mapping[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(key), sql.Literal(value))
        for key, value in options.items()
    )


def create_foreign(leaf: Leaf, schema: str) -> list[sql.Composed]:
    """Return the statements that make the foreign table that stands for a leaf, in a schema.

    ANALYZE of it would copy its home's e-mails into this node's pg_statistic: no statistics are
    kept of any column. Its CHECK is not enforced here but on the leaf itself; it lets the planner
    know.
    """
    name = sql.Identifier(schema, leaf.table)
    statements = [
        sql.SQL(
            "CREATE FOREIGN TABLE {name} ({columns}, country global.country NOT NULL,"
            " CONSTRAINT home CHECK (country IN ({countries})))"
            " SERVER {server} OPTIONS (schema_name {region}, table_name {table})"
        ).format(
            name=name,
            columns=sql.SQL(_FOREIGN_COLUMNS[leaf.table]),
            countries=leaf.country_list(),
            server=sql.Identifier(leaf.region),
            region=sql.Literal(leaf.region),
            table=sql.Literal(leaf.table),
        )
    ]
    statements += [
        sql.SQL("ALTER FOREIGN TABLE {} ALTER {} SET STATISTICS 0").format(
            name, sql.Identifier(column)
        )
        for column in leaf.columns
    ]
    return statements


def relkind(connection: psycopg.Connection[Any], leaf: Leaf, schema: str = "") -> str:
    """Return what a leaf is on a node: r a table, f a foreign table, "" where there is none."""
    name = sql.Identifier(schema or leaf.region, leaf.table).as_string(connection)
    row = connection.execute(
        "SELECT relkind::text FROM pg_class WHERE oid = to_regclass(%s)", (name,)
    ).fetchone()
    return str(row[0]) if row else ""


def stage(connection: psycopg.Connection[Any], leaves: Sequence[Leaf]) -> None:
    """Make the foreign tables of leaves anew in their staging schema."""
    for region in dict.fromkeys(leaf.region for leaf in leaves):
        schema = sql.Identifier(STAGED.format(region=region))
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(schema))
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    for leaf in leaves:
        for statement in create_foreign(leaf, STAGED.format(region=leaf.region)):
            connection.execute(statement)


def unstage(leaf: Leaf) -> sql.Composed:
    """Return the statement that puts a staged foreign table into the leaf's place."""
    return sql.SQL("ALTER FOREIGN TABLE {} SET SCHEMA {}").format(
        sql.Identifier(STAGED.format(region=leaf.region), leaf.table), sql.Identifier(leaf.region)
    )


def grant_customers(
    connection: psycopg.Connection[Any], leaves: Sequence[Leaf], role: str, schema: str = ""
) -> None:
    """Let customers see and add, by the leaves' own names too."""
    for leaf in leaves:
        connection.execute(
            sql.SQL("GRANT SELECT, INSERT ON {} TO {}, {}").format(
                sql.Identifier(schema.format(region=leaf.region) or leaf.region, leaf.table),
                sql.Identifier(role),
                sql.Identifier(HOME_ROLE),
            )
        )


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


def prepare(setup: Setup) -> bool:
    """Have TLS, roles, servers and foreign leaves on all nodes; return whether anything was done.

    Raises LabError with the node that it went wrong on.
    """
    topology = setup.topology
    made = tls.ensure_certificates(topology.lab, list(setup.regions))

    def secure(name: str) -> bool:
        login = topology.operator_login(name, setup.password)
        region = topology.nodes[name]["region"]
        return tls.install(topology.lab, region, topology.server(name), login)

    alive = [name for name, node in topology.nodes.items() if node["role"] != "fenced"]
    done = [made, _on_each(alive, secure)]
    # First everybody who is gone to, then who goes there.
    done.append(_on_each(setup.writable(), lambda name: _prepare_node(setup, name)))
    found = _found_regions(setup)
    if found:
        setup = replace(setup, topology=Topology.load(topology.lab))
    done += [found, point_servers(setup)]
    done.append(_on_each(setup.writable(), lambda name: _replace_copies(setup, name)))
    # Countries that are new: at home first, so that whoever sends rows there finds them known.
    for kind in ("r", "f"):
        done.append(_on_each(setup.writable(), lambda name, kind=kind: _rebound(setup, name, kind)))  # type: ignore[misc]
    return any(done)


def _on_each(names: Sequence[str], work: Callable[[str], bool]) -> bool:
    """Do work for nodes at the same time; return whether any of it changed something."""
    done: list[bool] = []

    def job(name: str) -> Callable[[], None]:
        def run() -> None:
            try:
                done.append(work(name))
            except psycopg.Error as error:
                raise LabError(f"{name}: {describe(error)}") from None

        return run

    in_parallel([job(name) for name in names])
    return any(done)


def _rebound(setup: Setup, name: str, kind: str) -> bool:
    with setup.connect(name) as connection:
        return rebound(connection, leaves_of(setup.regions), kind)


def _found_regions(setup: Setup) -> bool:
    """Make new regions' nodes the homes that nobody has rows for yet; return whether any was."""
    topology = setup.topology
    joining = [name for name, node in topology.nodes.items() if node["role"] == "joining"]
    with setup.connect(topology.primaries()[0]) as origin:
        at_origin = {
            leaf.region for leaf in leaves_of(setup.regions) if relkind(origin, leaf) == "r"
        }
    roles: dict[str, Role] = {}
    for name in joining:
        region = topology.nodes[name]["region"]
        if region in at_origin or region not in setup.regions:
            continue
        leaves = leaves_of(setup.regions, [region])
        with setup.connect(name) as connection:
            if relkind(connection, leaves[0]) == "":
                _make_home(connection, leaves, setup.customers_role)
        roles[name] = "primary"
    if roles:
        set_roles(topology.lab, roles)
    return bool(roles)


def _prepare_node(setup: Setup, name: str) -> bool:
    """Have what others need to come to a node, and the wrapper by which it goes to them."""
    with setup.connect(name) as connection:
        take_turns(connection, 60)
        done = False
        for extension in ("postgres_fdw", "dblink"):
            row = connection.execute(
                "SELECT FROM pg_extension WHERE extname = %s", (extension,)
            ).fetchone()
            if row is None:
                connection.execute(
                    sql.SQL("CREATE EXTENSION {} SCHEMA public").format(sql.Identifier(extension))
                )
                done = True
        for role in SECRETS:
            password_verifier = verifier(setup.secret(role), role)
            for region in setup.regions:
                done |= ensure_role(connection, role, password_verifier, region)
        for leaf in leaves_of(setup.regions):
            if relkind(connection, leaf) == "r":
                done |= _grant_customers(connection, leaf, setup.customers_role)
        # Inherited statistics would be made from all leaves' rows, the foreign ones too.
        for table in TABLES:
            row = connection.execute(
                "SELECT bool_or(coalesce(attstattarget, -1) <> 0) FROM pg_attribute"
                " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
                (f"global.{table}",),
            ).fetchone()
            if row == (True,):
                for column in columns_of(table):
                    connection.execute(
                        sql.SQL("ALTER TABLE ONLY {} ALTER {} SET STATISTICS 0").format(
                            sql.Identifier("global", table), sql.Identifier(column)
                        )
                    )
                done = True
        return done


def point_servers(setup: Setup, nodes: Sequence[str] = ()) -> bool:
    """Have servers go where each region's rows are now; return whether any changed.

    nodes: whose servers, without it those of all.
    """
    done = []
    mappings = {
        setup.customers_role: (CUSTOMERS_ROLE, setup.secret(CUSTOMERS_ROLE)),
        "postgres": (OPERATOR_ROLE, setup.secret(OPERATOR_ROLE)),
    }
    for name in nodes or setup.writable():
        with setup.connect(name) as connection:
            for region in setup.regions:
                if region != setup.topology.nodes[name]["region"]:
                    options = server_options(setup.topology, name, region)
                    done.append(ensure_server(connection, region, options, mappings))
    return any(done)


def _replace_copies(setup: Setup, name: str) -> bool:
    """Have foreign leaves for the other regions on a node, in place of copies if there are any.

    The origin keeps what is not at home elsewhere yet: the cut-over is what takes that away.
    """
    topology = setup.topology
    own = topology.nodes[name]["region"]
    done = False
    with setup.connect(name) as connection:
        for region in setup.regions:
            leaves = leaves_of(setup.regions, [region])
            kinds = {relkind(connection, leaf) for leaf in leaves}
            if region == own:
                continue
            if kinds == {"f"} or (own == topology.origin() and "r" in kinds):
                continue
            stage(connection, leaves)

            def swap(leaves: Sequence[Leaf] = leaves) -> None:
                for leaf in reversed(leaves):
                    connection.execute(
                        sql.SQL("DROP {} IF EXISTS {}").format(
                            sql.SQL(
                                "FOREIGN TABLE" if relkind(connection, leaf) == "f" else "TABLE"
                            ),
                            leaf.identifier(),
                        )
                    )
                for leaf in leaves:
                    connection.execute(unstage(leaf))
                    connection.execute(leaf.attach())
                    grant_customers(connection, [leaf], setup.customers_role)

            parents = [sql.Identifier("global", table) for table in LOCK_ORDER]
            exclusively(connection, parents, swap, 60)
            done = True
    return done


def _make_home(
    connection: psycopg.Connection[Any], leaves: Sequence[Leaf], customers_role: str
) -> None:
    """Make the leaves of a region that begins with a node of its own, empty."""
    with connection.transaction():
        for leaf in leaves:
            connection.execute(leaf.create())
            for statement in leaf.key_statements():
                connection.execute(statement)
            connection.execute(leaf.attach())
        for leaf in leaves:
            for statement in leaf.references():
                connection.execute(statement)
        grant_customers(connection, leaves, customers_role)
        for role in SECRETS:
            grant(connection, role, leaves[0].region)


def _grant_customers(connection: psycopg.Connection[Any], leaf: Leaf, role: str) -> bool:
    row = connection.execute(
        "SELECT has_table_privilege(%(role)s, to_regclass(%(leaf)s), 'INSERT')"
        " AND has_table_privilege(%(home)s, to_regclass(%(leaf)s), 'INSERT')",
        {"role": role, "home": HOME_ROLE, "leaf": leaf.identifier().as_string(connection)},
    ).fetchone()
    if row == (True,):
        return False
    grant_customers(connection, [leaf], role)
    return True


def check_link(topology: Topology, password: str, node: str, region: str) -> None:
    """Prove that a node's server of a region answers; raises LabError with what it says."""
    with connect(topology.operator_login(node, password), 10) as connection:
        name = sql.Identifier(region, "test")
        try:
            connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(name))
        except psycopg.Error as error:
            raise LabError(f"{node} does not reach {region}: {describe(error)}") from None
