"""Many customers and purchases at once, made by the servers themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from workload.processes import Say
from workload.sharding.bulk import Progress
from workload.sql import Login, connect
from workload.topology import Topology

#: Customers of one statement.
CHUNK = 20_000
#: E-mails carry their region, as those of the populations; countries take turns.
_CUSTOMERS = (
    "INSERT INTO {customer} (id, email{country_column})"
    " SELECT gen_random_uuid(), {region} || '_' || md5(random()::text) || '@example.com'"
    "{country_value} FROM generate_series(1, %(rows)s) AS n RETURNING id{country_column}"
)
_SEED = (
    "WITH made AS ({customers})"
    " INSERT INTO {purchase} (id, customer_id, amount{country_column})"
    " SELECT gen_random_uuid(), made.id, round((random() * 100)::numeric, 2){country_column}"
    " FROM made, generate_series(1, %(each)s)"
)


@dataclass(frozen=True)
class Field:
    """Where one region's rows are made."""

    region: str
    login: Login
    schema: str
    countries: Sequence[str]


def seed(
    topology: Topology, password: str, customers: int, purchases_each: int, say: Say
) -> Progress:
    """Make customers, a share in each region, and purchases of each; return what was made.

    Customers may trade meanwhile. Raises LabError where a node takes no login.
    """
    fields = _fields(topology, password)
    progress = Progress("seed", customers * (1 + purchases_each), say)
    shares = [
        customers // len(fields) + (place < customers % len(fields)) for place in range(len(fields))
    ]
    for field, share in zip(fields, shares, strict=True):
        _sow(field, share, purchases_each, progress)
    return progress


def _fields(topology: Topology, password: str) -> list[Field]:
    has_country = topology.has_reached("expand_world")
    fields = []
    for region in topology.regions:
        schema = "public"
        if topology.has_reached("shard"):
            schema = region.name if topology.has_reached("after") else "global"
        login = topology.operator_login(region.node, password)
        countries = region.countries if has_country else ()
        fields.append(Field(region.name, login, schema, countries))
    return fields


def _sow(field: Field, customers: int, purchases_each: int, progress: Progress) -> None:
    country_value = sql.SQL("")
    if field.countries:
        country_value = sql.SQL(", (%(countries)s::text[])[1 + n %% cardinality(%(countries)s)]")
    names = {
        "customer": sql.Identifier(field.schema, "customer"),
        "purchase": sql.Identifier(field.schema, "purchase"),
        "region": sql.Literal(field.region),
        "country_column": sql.SQL(", country" if field.countries else ""),
        "country_value": country_value,
    }
    inserts = sql.SQL(_CUSTOMERS).format(**names)
    purchases = names
    if field.schema == "public":
        # In the start's tables a purchase has no country.
        purchases = {**names, "country_column": sql.SQL("")}
    statement = sql.SQL(_SEED).format(customers=inserts, **purchases)
    with connect(field.login, 10) as connection:
        connection.autocommit = True
        # A crash would lose the last chunk, which nobody was told of yet.
        connection.execute("SET synchronous_commit = off")
        while customers > 0:
            rows = min(CHUNK, customers)
            connection.execute(
                statement,
                {"rows": rows, "each": purchases_each, "countries": list(field.countries)},
            )
            progress.add(rows * (1 + purchases_each))
            customers -= rows


def run(topology: Topology, password: str, customers: int, purchases_each: int) -> None:
    """Seed, and print how far it is."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"  {line}", flush=True)

    progress = seed(topology, password, customers, purchases_each, say)
    print(f"  {progress.line()}, {time.monotonic() - started:.1f} s")
