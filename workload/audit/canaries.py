"""Canaries: test customers of each region whose copies the audit finds in a node's raw files.

A canary is a customer that the lab signs up, with one purchase, as any other customer does. Its
e-mail begins with a marker of random letters, which do not compress; the marker and its ids occur
nowhere else. A trace is a copy of a canary's marker or of one of its ids in a file, also in a row
that is deleted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import psycopg
from psycopg import errors

from workload.errors import LabError
from workload.lab import Lab, read_json, write_atomically
from workload.processes import locked
from workload.sql import describe
from workload.topology import PHASES, Region, Topology

#: Canaries of each region that each phase adds.
GENERATION = 2
#: No hexadecimal digit is among them, so no customer's e-mail or id looks like a part of a marker.
LETTERS = "ghijklmnopqrstuvwxyz"
MARKER_LENGTH = 32
#: pglz puts a control byte before every eight items, so a compressed value keeps eight letters of a
#: marker in a row, and not always more.
WINDOW = 8
#: The first bytes of canaries' ids. Patterns that begin alike are searched for at four times the
#: rate of patterns that do not, and these bytes are rare in PostgreSQL's files.
ID_PREFIX = bytes.fromhex("fb97e3b5")

#: What a pattern matches: a whole marker, eight letters of one, an id as 16 bytes or as text.
Kind = Literal["marker", "window", "id", "id_text"]


@dataclass(frozen=True)
class Canary:
    """A customer with a marker, and a purchase; region is "" for an audit's control."""

    region: str
    country: str
    phase: str
    marker: str
    id: str
    purchase: str
    #: Whether a primary has acknowledged it.
    planted: bool = False

    @property
    def email(self) -> str:
        """The customer's e-mail."""
        return f"{self.marker}@canary.example"

    def patterns(self) -> dict[bytes, Kind]:
        """Return all byte strings that are a trace of this canary in a file."""
        kinds: dict[bytes, Kind] = dict.fromkeys(windows(self.marker), "window")
        kinds[self.marker.encode()] = "marker"
        for key in (self.id, self.purchase):
            kinds[UUID(key).bytes] = "id"
            kinds[key.encode()] = "id_text"
        return kinds


def windows(marker: str) -> list[bytes]:
    """Return all runs of eight letters of a marker.

    Where pglz keeps every letter, one of the first eight runs is between two control bytes. Where
    three letters occurred before, pglz writes a reference instead, and a later run is whole.
    """
    text = marker.encode()
    return [text[start : start + WINDOW] for start in range(len(text) - WINDOW + 1)]


def new_marker() -> str:
    """Return 32 random letters: about 138 bits, which no compression shortens."""
    return "".join(secrets.choice(LETTERS) for _ in range(MARKER_LENGTH))


def new_id() -> str:
    """Return a UUID without the bytes that end a pattern or a record in the scan."""
    while True:
        value = ID_PREFIX + uuid4().bytes[len(ID_PREFIX) :]
        if not {0x00, 0x0A} & set(value):
            return str(UUID(bytes=value))


def new_canary(region: str, country: str, phase: str) -> Canary:
    """Return a canary that is not planted yet."""
    return Canary(region, country, phase, new_marker(), new_id(), new_id())


# -- the file ------------------------------------------------------------------------------------


def canaries_file(lab: Lab) -> Path:
    """Return where a lab's canaries are remembered."""
    return lab.home / "canaries.json"


def load(lab: Lab) -> list[Canary]:
    """Return the canaries of all generations; raises LabError where the file is damaged."""
    path = canaries_file(lab)
    try:
        return [Canary(**entry) for entry in read_json(path).get("canaries", [])]
    except TypeError as error:
        raise LabError(
            f"{path} is not as the audit writes it ({error}): without it the audit cannot tell"
            " which region a canary in a file is of; make teardown starts afresh"
        ) from error


def save(lab: Lab, canaries: Sequence[Canary]) -> None:
    """Write canaries.json."""
    content = {"canaries": [asdict(canary) for canary in canaries]}
    write_atomically(canaries_file(lab), json.dumps(content, indent=1) + "\n")


# -- planting ------------------------------------------------------------------------------------


def plant(lab: Lab, topology: Topology) -> list[Canary]:
    """Ensure this phase's canaries of every region that trades; return those of all phases.

    canaries.json lists them before they are planted, so that a second run plants those that a
    killed run did not. Raises LabError where a region's primary takes no writes.
    """
    with locked(lab.home):
        return _plant(lab, topology)


def _plant(lab: Lab, topology: Topology) -> list[Canary]:
    canaries = load(lab)
    for region in topology.regions:
        existing = [c for c in canaries if (c.region, c.phase) == (region.name, topology.phase)]
        canaries += [
            new_canary(region.name, region.countries[0], topology.phase)
            for _ in range(GENERATION - len(existing))
        ]
    if all(canary.planted for canary in canaries):
        return canaries
    save(lab, canaries)
    for region in topology.regions:
        new = [c for c in canaries if c.region == region.name and not c.planted]
        if new:
            _sign_up(topology, region, new)
            canaries = [replace(c, planted=True) if c in new else c for c in canaries]
            save(lab, canaries)
    return canaries


def _sign_up(topology: Topology, region: Region, canaries: Sequence[Canary]) -> None:
    """Insert a region's canaries by the login and the address that its customers use."""
    customer, purchase = statements(topology.phase)
    login = topology.customers_login(region)
    # A canary may be lost with its primary, so its commit does not wait for a standby.
    options = "-c synchronous_commit=local -c statement_timeout=10s"
    try:
        with psycopg.connect(
            login.conninfo(),
            autocommit=True,
            options=options,
            target_session_attrs="read-write",
            tcp_user_timeout=10_000,
        ) as connection:
            for canary in canaries:
                row = {**asdict(canary), "email": canary.email}
                for statement in (customer, purchase):
                    try:
                        connection.execute(statement, row)
                    except errors.UniqueViolation:
                        continue  # A killed run planted it.
    except psycopg.Error as error:
        raise LabError(
            f"no canary of region {region.name} can be planted on {region.node}"
            f" ({describe(error)}): bring its primary back (make failover, make rejoin, or play"
            f" playbooks/{topology.phase}.yml again), or heal the link to it (make wan)"
        ) from error


def statements(phase: str) -> tuple[str, str]:
    """Return the inserts of a customer and of a purchase in a phase, with named parameters."""
    columns: dict[str, Any] = {
        "customer": {"id": "id", "email": "email"},
        "purchase": {"id": "purchase", "customer_id": "id", "amount": "1"},
    }
    schema = ""
    if PHASES.index(phase) >= PHASES.index("expand_world"):
        columns["customer"]["country"] = "country"
    if PHASES.index(phase) >= PHASES.index("shard"):
        columns["purchase"]["country"] = "country"
        schema = "global."

    def insert(table: str) -> str:
        values = ", ".join(
            value if value.isdigit() else f"%({value})s" for value in columns[table].values()
        )
        return f"INSERT INTO {schema}{table} ({', '.join(columns[table])}) VALUES ({values})"

    return insert("customer"), insert("purchase")
