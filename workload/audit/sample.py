"""The sample: real customers of each region, drawn again for each audit.

A canary shows only copies that were made after it was planted. A sample also finds customers that
somebody copied. Where none of the sample is on a node, it bounds the share of the region's
customers that may be there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from psycopg import sql

from workload.audit.canaries import Canary
from workload.audit.logical import connected, hash_of
from workload.errors import LabError
from workload.sql import Login
from workload.topology import PHASES, Region, Topology

#: Customers of each region, unless LAB_AUDIT_SAMPLE or the role's input says otherwise.
SIZE = 500
#: Bytes of an e-mail that is searched for in files. A shorter one is a part of too much else, a
#: longer one is compressed or stored out of line.
SHORTEST, LONGEST = 8, 200
#: Customers of each region whose id is searched for in files as its 16 bytes too, as uuid columns
#: hold it. Any byte may begin such a pattern, so grep can skip less of a file for each.
AS_BYTES = 50
#: Share of audits in which the bound holds.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Customer:
    """A customer of the sample; an e-mail that is not searched for in files is ""."""

    region: str
    id: str
    email: str
    #: Whether its id's 16 bytes are searched for too.
    as_bytes: bool = True

    def patterns(self) -> Iterable[bytes]:
        """Yield the byte strings that are a trace of this customer in a file.

        The 16 bytes of an id are searched for where they have no end of a record of the scan
        (0x00 or 0x0A), as in 15 of 17 random ids.
        """
        yield self.id.encode()
        if self.as_bytes and not {0x00, 0x0A} & set(raw := UUID(self.id).bytes):
            yield raw
        if self.email:
            yield self.email.encode()

    def hashes(self, salt: str) -> Iterable[int]:
        """Yield the hashes of what is searched for."""
        yield hash_of(self.id, salt)
        if self.email:
            yield hash_of(self.email, salt)


@dataclass(frozen=True)
class Bound:
    """The result of the sample for a region on a node."""

    region: str
    #: Customers of the region, how many of them were searched for, and how many are there.
    customers: int
    sampled: int
    found: int
    #: Those whose e-mail SQL alone searches for.
    without_email: int = 0

    def entry(self) -> dict[str, object]:
        """Return it as residency.json has it."""
        share = round(bound(self.sampled), 6) if not self.found else None
        return {**vars(self), "fewer_than": share}


def size_from(environ: Mapping[str, str] = os.environ) -> int:
    """Return LAB_AUDIT_SAMPLE; raises LabError for what is no number of customers."""
    text = environ.get("LAB_AUDIT_SAMPLE") or str(SIZE)
    if not text.isascii() or not text.isdigit() or int(text) > 100_000:
        raise LabError(f"LAB_AUDIT_SAMPLE is '{text}': use a number of customers, 0 to 100000")
    return int(text)


def draw(
    topology: Topology, region: Region, login: Login, size: int, canaries: Iterable[Canary]
) -> tuple[list[Customer], int]:
    """Return customers of a region, drawn by its home, and how many it has, both without canaries.

    Every customer is equally likely, which the bound assumes; TABLESAMPLE SYSTEM would be faster
    and draws pages, whose customers signed up together. A million rows took PostgreSQL 15 on two
    busy cores 0.6 s, and it keeps no more than the sample in memory.
    """
    is_sharded = PHASES.index(topology.phase) >= PHASES.index("shard")
    has_country = PHASES.index(topology.phase) >= PHASES.index("expand_world")
    source = sql.SQL("{} WHERE id::text <> ALL ({}::text[]) AND {}").format(
        sql.SQL("global.customer" if is_sharded else "customer"),
        sql.Literal([canary.id for canary in canaries if canary.region == region.name]),
        sql.SQL("country = ANY ({}::text[])").format(sql.Literal(list(region.countries)))
        if has_country
        else sql.SQL("true"),
    )
    query = sql.SQL(
        "SELECT id::text, CASE WHEN octet_length(email) BETWEEN {} AND {}"
        " AND strpos(email, E'\\n') = 0 THEN email ELSE '' END FROM {} ORDER BY random() LIMIT {}"
    ).format(sql.Literal(SHORTEST), sql.Literal(LONGEST), source, sql.Literal(size))
    with connected(login) as connection:
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(source)).fetchone()
        drawn = connection.execute(query).fetchall() if size else []
    customers = [
        Customer(region.name, key, email, number < AS_BYTES)
        for number, (key, email) in enumerate(drawn)
    ]
    return customers, int(row[0] if row else 0)


def bound(count: int) -> float:
    """Return the share of a region's customers that is exceeded with probability 5 % at most.

    Where none of count customers, drawn at random, is on a node, the exact bound is the share p
    at which (1 - p)^count = 0.05; 3 / count is nearly the same (J. A. Hanley, A. Lippman-Hand,
    "If nothing goes wrong, is everything all right?", JAMA 249 (1983), p. 1743). Where a region has
    few customers it is less still, since they are drawn without replacement.
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / count)) if count else 1.0


def is_whole(value: bytes, before: bytes, after: bytes) -> bool:
    """Tell whether an e-mail in a file is a whole value: ann@x.com is a part of joann@x.com.

    before, after: the bytes beside it. In a row one byte with the length precedes a text of up to
    126 bytes; elsewhere a separator of words is on both sides.
    """
    if before[-1:] == bytes([(len(value) + 1) << 1 & 0xFF | 1]) and len(value) < 127:
        return True
    return not (
        before[-1:] == b"."
        or _goes_on(before[-1:])
        or _goes_on(after[:1])
        or _domain_goes_on(after)
    )


def _goes_on(byte: bytes) -> bool:
    return byte.isalnum() or byte in (b"_", b"-", b"+", b"%", b"~") or byte >= b"\x80"


def _domain_goes_on(after: bytes) -> bool:
    return after[:1] == b"." and after[1:2].isalnum()


def foreign_to(topology: Topology, node: str, sample: Collection[Customer]) -> list[Customer]:
    """Return the customers of a sample whose home is not in a node's region."""
    here = str(topology.nodes[node]["region"])
    homes = {r.name: str(topology.nodes[r.node]["region"]) for r in topology.regions}
    return [c for c in sample if here not in (c.region, homes[c.region])]
