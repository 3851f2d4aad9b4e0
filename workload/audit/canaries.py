"""Canaries: customers of each region that are found again in a node's raw files.

They sign up and buy as any other customer does. What tells them apart is their e-mail and their
ids, which occur nowhere else and do not compress.
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
#: pglz puts a control byte before every eight items, so eight letters in a row is all that is sure
#: to be left of a marker in a compressed value.
WINDOW = 8
#: The first bytes of canaries' ids. Patterns that begin alike are searched for at four times the
#: rate of patterns that do not, and these bytes are rare in PostgreSQL's files.
ID_PREFIX = bytes.fromhex("fb97e3b5")

#: What a pattern is a trace of: all of a marker, a part of it, an id in 16 bytes or in 36 letters.
Kind = Literal["marker", "window", "id", "id_text"]


@dataclass(frozen=True)
class Canary:
    """A customer with a marker, and a purchase; region is "" for an audit's own control."""

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
        found: dict[bytes, Kind] = dict.fromkeys(windows(self.marker), "window")
        found[self.marker.encode()] = "marker"
        for key in (self.id, self.purchase):
            found[UUID(key).bytes] = "id"
            found[key.encode()] = "id_text"
        return found


def windows(marker: str) -> list[bytes]:
    """Return all parts of a marker that have eight letters.

    Eight of them would do for a marker whose letters pglz all keeps: one of the first eight windows
    is between two control bytes. Where it finds three letters in what it saw before, it refers to
    them instead, and a later window is whole.
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
    """Return a canary that nobody has planted yet."""
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
            f"{path} is not as the audit writes it ({error}): without it nothing tells whose the"
            " canaries in the files are; make teardown starts afresh"
        ) from error


def save(lab: Lab, canaries: Sequence[Canary]) -> None:
    """Write canaries.json."""
    content = {"canaries": [asdict(canary) for canary in canaries]}
    write_atomically(canaries_file(lab), json.dumps(content, indent=1) + "\n")


# -- planting ------------------------------------------------------------------------------------


def plant(lab: Lab, topology: Topology) -> list[Canary]:
    """Have this phase's canaries of every region that trades; return those of all phases.

    They are written down before they are planted, so none is ever forgotten, and a second run
    plants what a killed one had not. Raises LabError where a region's primary takes no writes.
    """
    with locked(lab.home):
        return _plant(lab, topology)


def _plant(lab: Lab, topology: Topology) -> list[Canary]:
    found = load(lab)
    for region in topology.regions:
        own = [c for c in found if (c.region, c.phase) == (region.name, topology.phase)]
        found += [
            new_canary(region.name, region.countries[0], topology.phase)
            for _ in range(GENERATION - len(own))
        ]
    if all(canary.planted for canary in found):
        return found
    save(lab, found)
    for region in topology.regions:
        new = [c for c in found if c.region == region.name and not c.planted]
        if new:
            _sign_up(topology, region, new)
            found = [replace(c, planted=True) if c in new else c for c in found]
            save(lab, found)
    return found


def _sign_up(topology: Topology, region: Region, canaries: Sequence[Canary]) -> None:
    """Insert a region's canaries as its customers do, from where they are."""
    customer, purchase = statements(topology.phase)
    login = topology.customers_login(region)
    # A canary need not outlive its primary, so it does not wait for a standby that may be away.
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
                        continue  # A killed run has planted it.
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
