"""Foreign servers and foreign leaves: how a node reaches the rows that are at home elsewhere.

One server for each other region, named after it. It lists every node of the region that is home to
the rows now and goes to the one that takes writes, so it follows a failover by the next statement;
it goes over TLS and checks the region's name. A foreign leaf stands for the remote leaf, never for
the remote parent: that would send queries in circles, and change rows by a ctid that is not unique.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from workload import schemas
from workload.nodes import tls
from workload.sharding.definition import Definition
from workload.sharding.leaves import TABLES, Leaf
from workload.sql import together

#: The roles that remote nodes log in as: for customers, who read and add, and for the operator.
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
#: The foreign table by which a session opens its connection ahead of a cutover.
WARM_UP = "warm_up"
#: How long a session from elsewhere may hold on to something here.
ABANDONED = "60s"


def ensure_role(connection: psycopg.Connection[Any], name: str, secret: str, region: str) -> bool:
    """Ensure a role that remote nodes log in as; return whether anything changed."""
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


def _rights(role: str) -> sql.SQL:
    return sql.SQL("SELECT, INSERT" + (", UPDATE, DELETE" if role == OPERATOR_ROLE else ""))


def grant(connection: psycopg.Connection[Any], name: str, region: str) -> bool:
    """Grant a remote role the use of a region's leaves; return whether that was missing."""
    last = "DELETE" if name == OPERATOR_ROLE else "INSERT"
    changed = False
    for table in TABLES:
        leaf = sql.Identifier(region, table)
        row: Any = connection.execute(
            "SELECT relkind, has_table_privilege(%(role)s, oid, %(last)s)"
            " FROM pg_class WHERE oid = to_regclass(%(leaf)s)",
            {"role": name, "last": last, "leaf": leaf.as_string(connection)},
        ).fetchone()
        # Only what is at home here; what is not yet will be granted when it is.
        if row and row[0] == "r" and not row[1]:
            connection.execute(
                sql.SQL("GRANT {} ON {} TO {}").format(_rights(name), leaf, sql.Identifier(name))
            )
            changed = True
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
        changed = True
    return changed


def ensure_server(
    connection: psycopg.Connection[Any],
    region: str,
    options: Mapping[str, str],
    mappings: Mapping[str, tuple[str, str]],
) -> bool:
    """Ensure the server of a region and its user mappings; return whether anything changed.

    mappings: {local role: (remote role, password)}. Options that are as they should be are left
    alone: a change makes every session connect anew.
    """
    name = sql.Identifier(region)
    row: Any = connection.execute(
        "SELECT coalesce(srvoptions, '{}') FROM pg_foreign_server WHERE srvname = %s", (region,)
    ).fetchone()
    changed = False
    if row is None:
        connection.execute(
            sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(
                name, _options(options)
            )
        )
        changed = True
    else:
        current = dict(option.split("=", 1) for option in row[0])
        changes = [
            sql.SQL("{} {} {}").format(
                sql.SQL("SET" if key in current else "ADD"), sql.Identifier(key), sql.Literal(value)
            )
            for key, value in options.items()
            if current.get(key) != value
        ]
        if changes:
            connection.execute(
                sql.SQL("ALTER SERVER {} OPTIONS ({})").format(name, sql.SQL(", ").join(changes))
            )
            changed = True
    for local, (remote, password) in mappings.items():
        if _map(connection, region, local, remote, password):
            grant_usage = sql.SQL("GRANT USAGE ON FOREIGN SERVER {} TO {}")
            connection.execute(grant_usage.format(name, sql.Identifier(local)))
            changed = True
    return changed


def _map(
    connection: psycopg.Connection[Any], region: str, local: str, remote: str, password: str
) -> bool:
    """Map a local role to a remote one on a region's server; return whether that changed it."""
    name = sql.Identifier(region)
    mapping: Any = connection.execute(
        "SELECT umoptions FROM pg_user_mappings WHERE srvname = %s AND usename = %s",
        (region, local),
    ).fetchone()
    if mapping and mapping[0] == [f"user={remote}", f"password={password}"]:
        return False
    if mapping:
        connection.execute(
            sql.SQL("DROP USER MAPPING FOR {} SERVER {}").format(sql.Identifier(local), name)
        )
    connection.execute(
        sql.SQL("CREATE USER MAPPING FOR {} SERVER {} OPTIONS (user {}, password {})").format(
            sql.Identifier(local), name, sql.Literal(remote), sql.Literal(password)
        )
    )
    return True


def allow_forwarding(
    connection: psycopg.Connection[Any],
    leaves: Sequence[Leaf],
    schema: str,
    passwords: Mapping[str, str],
) -> None:
    """Let remote sessions that ask here for a region's rows use the foreign tables in schema.

    passwords: {role: password}, of SECRETS. Other nodes' servers point here for some milliseconds
    more, or until the next run where this one is killed.
    """
    for role, password in passwords.items():
        _map(connection, leaves[0].region, role, role, password)
        for leaf in leaves:
            connection.execute(
                sql.SQL("GRANT {} ON {} TO {}").format(
                    _rights(role), sql.Identifier(schema, leaf.table), sql.Identifier(role)
                )
            )


def forwarding_roles(connection: psycopg.Connection[Any], region: str) -> list[str]:
    """Return the remote roles whose queries this node forwards to a region."""
    rows = connection.execute(
        "SELECT usename FROM pg_user_mappings WHERE srvname = %s AND usename = ANY(%s)",
        (region, list(SECRETS)),
    ).fetchall()
    return [role for (role,) in rows]


def revoke_forwarding(connection: psycopg.Connection[Any], region: str) -> None:
    """Forward no query to a region any more."""
    for role in forwarding_roles(connection, region):
        for table in TABLES:
            connection.execute(
                sql.SQL("REVOKE ALL ON {} FROM {}").format(
                    sql.Identifier(region, table), sql.Identifier(role)
                )
            )
        connection.execute(
            sql.SQL("DROP USER MAPPING FOR {} SERVER {}").format(
                sql.Identifier(role), sql.Identifier(region)
            )
        )


def _options(options: Mapping[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(key), sql.Literal(value))
        for key, value in options.items()
    )


def relkind(connection: psycopg.Connection[Any], leaf: Leaf, schema: str = "") -> str:
    """Return what a leaf is on a node: r a table, f a foreign table, "" where there is none."""
    name = sql.Identifier(schema or leaf.region, leaf.table).as_string(connection)
    row = connection.execute(
        "SELECT relkind::text FROM pg_class WHERE oid = to_regclass(%s)", (name,)
    ).fetchone()
    return str(row[0]) if row else ""


def stage(
    connection: psycopg.Connection[Any],
    leaves: Sequence[Leaf],
    definitions: Mapping[str, Definition],
) -> None:
    """Make the foreign tables of leaves in their staging schema, in place of older ones."""
    for region in dict.fromkeys(leaf.region for leaf in leaves):
        unstage_all(connection, region)
        connection.execute(schemas.create(schemas.STAGED.format(region=region)))
    for leaf in leaves:
        schema = schemas.STAGED.format(region=leaf.region)
        connection.execute(together(definitions[leaf.table].create_foreign(leaf, schema)))


def unstage_all(connection: psycopg.Connection[Any], region: str) -> bool:
    """Drop a region's staging schema with what is in it; return whether there was one."""
    return schemas.drop(connection, schemas.STAGED.format(region=region), [*TABLES, WARM_UP])


def make_warm_up(connection: psycopg.Connection[Any], region: str, role: str) -> str:
    """Return a statement by which a role's session opens its connection to a staged region's home.

    It has a foreign table of its own, so the swap need not wait for sessions that still use it.
    """
    schema = sql.Identifier(schemas.STAGED.format(region=region))
    table = sql.Identifier(schemas.STAGED.format(region=region), WARM_UP)
    for statement in (
        sql.SQL(
            "CREATE FOREIGN TABLE {} (id uuid) SERVER {}"
            " OPTIONS (schema_name {}, table_name 'test')"
        ).format(table, sql.Identifier(region), sql.Literal(region)),
        sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, sql.Identifier(role)),
        sql.SQL("GRANT SELECT ON {} TO {}").format(table, sql.Identifier(role)),
    ):
        connection.execute(statement)
    return f"SELECT FROM {table.as_string(connection)} LIMIT 0"


def unstage(leaf: Leaf) -> sql.Composed:
    """Return the statement that puts a staged foreign table into the leaf's place."""
    return sql.SQL("ALTER FOREIGN TABLE {} SET SCHEMA {}").format(
        sql.Identifier(schemas.STAGED.format(region=leaf.region), leaf.table),
        sql.Identifier(leaf.region),
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
