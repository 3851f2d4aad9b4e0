"""Bytes of a customer in files of regions where they have no row: found, told apart, removed.

The id decides: it is one customer's alone. An e-mail may be somebody else's too, or a part of
theirs, and their rows are where they should be. So what others have is searched for as well, with
the bytes before it that make it theirs: the longer string takes the place of the shorter one that
it contains, and does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from workload.audit.canaries import Canary, Kind
from workload.audit.scan import scan
from workload.nodes.server import server_of
from workload.sharding.purge import TO_SCRUB, scrub
from workload.sql import connect
from workload.topology import Topology

#: Bytes of an e-mail that are searched for: fewer say nothing, more are no more certain.
SHORTEST, LONGEST = 8, 200
#: Others with the same e-mail, or with one that contains it, that are told apart on a node.
OTHERS = 1000
#: How often files are rewritten: a customer who trades on may leave a refused purchase in them.
ATTEMPTS = 3
#: Seconds in which a table is searched for a customer whose bytes stay.
SEARCH_S = 5

_OTHERS = "SELECT id, email FROM {} WHERE id <> %s AND position(%s IN email) > 0 LIMIT {}"
_OWN_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^(pg_|information_schema)'
"""


@dataclass(frozen=True)
class Person:
    """A customer and where they are at home; email "" where it is not known any more."""

    id: UUID
    email: str
    country: str
    region: str
    node: str
    purchases: int


@dataclass(frozen=True)
class Sought(Canary):
    """Strings that the scan of files looks for, under a region's name."""

    strings: tuple[tuple[bytes, Kind], ...] = ()

    def patterns(self) -> dict[bytes, Kind]:
        """Return them."""
        return dict(self.strings)


#: Whose strings the hits are.
GONE, OTHER = "gone", "other"


def remove(topology: Topology, password: str, person: Person, regions: Sequence[str]) -> list[str]:
    """Rewrite regions' files until no trace of a customer is in them; return what stays, in words.

    What stays is noted for make status and the next run. Raises LabError where files cannot be
    read or rewritten.
    """
    for attempt in range(ATTEMPTS):
        hits = find(topology, password, person, regions)
        homes = dict.fromkeys(
            str(topology.primary_of(topology.nodes[node]["region"])) for node in hits
        )
        if not hits:
            return []
        if attempt + 1 < ATTEMPTS:
            for home in homes:
                scrub(topology, password, home)
    for home in homes:
        with opened(topology, password, home) as connection:
            connection.execute(TO_SCRUB)
    return [
        f"{node}: {places}{_tables(topology, password, node, person)}"
        for node, places in hits.items()
    ]


def find(
    topology: Topology, password: str, person: Person, regions: Sequence[str]
) -> dict[str, str]:
    """Return where a customer's bytes are in the files of regions' nodes, {node: "heap (2)"}."""
    found = {}
    others = {region: _others(topology, password, region, person) for region in regions}
    for node, entry in topology.nodes.items():
        if entry["region"] not in others:
            continue
        known = others[entry["region"]]
        hits = scan(server_of(topology, node), sought(person, known)).hits
        places = [f"{where} ({n})" for (whose, where), n in sorted(hits.items()) if whose == GONE]
        if places:
            found[node] = ", ".join(places)
    return found


def sought(person: Person, others: Sequence[tuple[UUID, str]]) -> list[Canary]:
    """Return what to look for: a customer's strings, and those of others who have them too."""
    own: dict[bytes, Kind] = {str(person.id).encode(): "id_text"}
    if not {0x00, 0x0A} & set(person.id.bytes):
        own[person.id.bytes] = "id"
    email = _piece(person.email)
    theirs: dict[bytes, Kind] = {}
    same = False
    for key, text in others:
        if text == person.email:
            same = True
            theirs[_row(key, text)] = "marker"
        else:
            theirs[_around(text, email)] = "marker"
    row = _row(person.id, person.email)
    if len(row) >= SHORTEST:
        own[row] = "marker"
    # Where somebody else has it, it is theirs unless the id is before it.
    if len(email) >= SHORTEST and not same and len(others) < OTHERS:
        own[email] = "marker"
    theirs = {text: kind for text, kind in theirs.items() if text and text not in own}
    return [
        Sought(whose, "", "", whose, str(person.id), str(person.id), strings=tuple(strings.items()))
        for whose, strings in ((GONE, own), (OTHER, theirs))
        if strings
    ]


def _piece(text: str) -> bytes:
    """Return the longest part that a pattern of the scan can hold: no line feed is in one."""
    return max(text.encode().split(b"\n"), key=len)[:LONGEST]


def _around(text: str, piece: bytes) -> bytes:
    """Return the part of another's e-mail with a piece in it, with what is around it."""
    whole = next((part for part in text.encode().split(b"\n") if piece in part), piece)
    start = max(0, whole.index(piece) - LONGEST)
    return whole[start : whole.index(piece) + len(piece) + LONGEST]


def _row(key: UUID, email: str) -> bytes:
    """Return how id and e-mail stand side by side in a row: 16 bytes, the length, the text.

    The length of a short value is one odd byte (PostgreSQL's varattrib_1b), a longer one begins
    with the text for the scan. Of an id with a byte that ends a pattern, what follows that is left.
    """
    text = email.encode()
    head = bytes([(len(text) + 1) << 1 | 1]) if len(text) < 126 else b""
    end = re.split(rb"[\0\n]", key.bytes)[-1]
    return (end + head if head else b"") + text.split(b"\n")[0][:LONGEST]


def _others(
    topology: Topology, password: str, region: str, person: Person
) -> list[tuple[UUID, str]]:
    """Return other customers of a region whose e-mail is, or contains, a customer's."""
    home = topology.primary_of(region)
    if home is None or not person.email:
        return []
    piece = _piece(person.email).decode(errors="ignore")
    statement = sql.SQL(_OTHERS).format(sql.Identifier(region, "customer"), sql.Literal(OTHERS))
    with opened(topology, password, home) as connection:
        return [(row[0], row[1]) for row in connection.execute(statement, (person.id, piece))]


def _tables(topology: Topology, password: str, node: str, person: Person) -> str:
    """Return in which tables a customer's bytes are, "" where SQL shows them in none."""
    home = topology.primary_of(topology.nodes[node]["region"])
    names = []
    with opened(topology, password, str(home)) as connection:
        connection.execute(f"SET statement_timeout = '{SEARCH_S}s'".encode())
        for schema, table in connection.execute(_OWN_TABLES).fetchall():
            if schema in topology.countries() or schema == "lab":
                continue
            row: Any = connection.execute(
                sql.SQL(
                    "SELECT count(*) FROM {} AS t WHERE position(%s IN t::text) > 0"
                    " OR (%s <> '' AND position(%s IN t::text) > 0)"
                ).format(sql.Identifier(schema, table)),
                (str(person.id), person.email, person.email),
            ).fetchone()
            if row[0]:
                names.append(f"{schema}.{table} ({row[0]:,} rows)")
    return f" in {', '.join(names)}" if names else ""


@contextmanager
def opened(topology: Topology, password: str, node: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to a node that commits each statement."""
    with connect(topology.operator_login(node, password), 5) as connection:
        connection.autocommit = True
        yield connection
