"""One server without a lab around it, and the sharded schema on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import psycopg
import pytest

from tests.fixtures.labs import free_ports
from workload.nodes import embedded
from workload.nodes.embedded import EmbeddedServer
from workload.sharding.definition import of_start
from workload.sharding.leaves import leaves_of
from workload.sql import Login

PASSWORD = "secret"
ROLES = Path(__file__).resolve().parents[2] / "roles"
#: What role shards runs, in this order.
SCRIPTS = ("files/lab.sql", "schema.sql.j2", "old_names.sql.j2", "grants.sql.j2")
#: What makes the tables of the start.
START = (ROLES / "shop/files/tables.sql", ROLES / "country/templates/country.sql.j2")
REGIONS = {"eu": ["uk", "de"], "us": ["us", "mx", "x-y"]}
#: What the domain knows, so that a country can come.
KNOWN = {"eu": ["uk", "de"], "us": ["us", "mx", "x-y", "br"]}


#: Takes away all that an earlier test of the session made in the database.
EMPTY = r"""
DO $$
DECLARE
  name text;
BEGIN
  FOR name IN SELECT pubname FROM pg_publication LOOP
    EXECUTE format('DROP PUBLICATION %I', name);
  END LOOP;
  FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)' LOOP
    EXECUTE format('DROP SCHEMA %I CASCADE', name);
  END LOOP;
  CREATE SCHEMA public;
  GRANT USAGE ON SCHEMA public TO PUBLIC;
END
$$
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Return the one server of a worker; connection gives each test an empty schema on it."""
    base = tmp_path_factory.mktemp("server") / "node"
    made = EmbeddedServer(base, free_ports(), embedded.find_bin_dir())
    with made.locked() as lock:
        made.initialise(PASSWORD, lock)
    made.configure()
    made.start()
    yield made
    made.remove()


@pytest.fixture
def login(server: EmbeddedServer) -> Login:
    """Return the operator's login on the server."""
    return Login("127.0.0.1", server.port, "postgres", PASSWORD)


def shards_scripts() -> list[dict[str, str]]:
    """Return the scripts by which role shards prepares a node of region eu."""
    folder = ROLES / "shards"
    return [
        {
            "name": name,
            "text": jinja2.Template(
                (folder / name if "/" in name else folder / "templates" / name).read_text(),
                trim_blocks=True,
            ).render(
                node_region="eu",
                shards_customers_role="customers",
                shards_regions={name: {"countries": known} for name, known in KNOWN.items()},
                shards_default_country="uk",
            ),
        }
        for name in SCRIPTS
    ]


def render() -> bytes:
    """Return the sharded schema."""
    return "\n".join(script["text"] for script in shards_scripts()).encode()


def make_start(connection: psycopg.Connection[Any]) -> None:
    """Make the tables of the start and the parents without leaves, in place of what is there."""
    connection.execute(EMPTY)
    if connection.execute("SELECT to_regrole('customers')").fetchone() == (None,):
        connection.execute("CREATE ROLE customers LOGIN")
    for start in START:
        connection.execute(jinja2.Template(start.read_text()).render(country_default="uk").encode())
    connection.execute(render())


@pytest.fixture
def connection(login: Login) -> Iterator[psycopg.Connection[Any]]:
    """Return a connection to a node with the sharded schema and all leaves, empty."""
    with psycopg.connect(login.conninfo(), autocommit=True) as made:
        made.execute("SET client_min_messages = debug1")
        make_start(made)
        definitions = of_start(made)
        made.execute("DROP TABLE public.purchase, public.customer")
        made.execute(render())
        for leaf in leaves_of(REGIONS):
            definition = definitions[leaf.table]
            for statement in [
                *definition.create(leaf),
                *definition.keys(leaf),
                leaf.attach(),
                *definition.references(leaf),
            ]:
                made.execute(statement)
        yield made
