"""One customer at a time: find, move to another country, forget.

A move between regions is two transactions, one on each home, with one moment that decides. The new
home prepares its copy (PREPARE TRANSACTION: it is there, survives a crash, and is invisible); the
old home deletes the rows and commits, which decides; the new home commits what it prepared. After a
crash, the old home decides the orphaned prepared transaction: where the customer is still there, it
is rolled back, else committed. So after a recovery there is always one visible copy; between the
two commits, for one round trip, there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from workload.audit import canaries
from workload.errors import LabError
from workload.operations import traces
from workload.operations.traces import Person, opened
from workload.processes import locked, reached
from workload.sharding.definition import of_leaves
from workload.sharding.leaves import REGION, STARTED
from workload.sharding.purge import TO_SCRUB, scrub
from workload.sharding.rewrite import Rewritten
from workload.sql import describe
from workload.topology import Topology
from workload.traffic.ledger import Ledger, read

GID = re.compile(r"lab_move_([0-9a-f-]{36})_from_(.+)")
#: Seconds to wait for a customer's own transactions, which lock their rows.
LOCK_TIMEOUT_S = 10


@dataclass(frozen=True)
class Moved:
    """What a move did."""

    before: Person
    after: Person
    #: What the old home's files took; None where no row left it.
    files: Rewritten | None
    #: Where bytes of the customer stay outside the new home, in words.
    left: Sequence[str] = ()


def homes_of(topology: Topology, password: str, customer: UUID) -> list[Person]:
    """Return a customer at each home that has one with their id: it is unique within a region."""
    people = []
    for node in topology.primaries():
        region = topology.nodes[node]["region"]
        with opened(topology, password, node) as connection:
            row = connection.execute(
                sql.SQL(
                    "SELECT email, country::text,"
                    " (SELECT count(*) FROM {} WHERE customer_id = c.id)"
                    " FROM {} AS c WHERE id = %s"
                ).format(_leaf(region, "purchase"), _leaf(region, "customer")),
                (customer,),
            ).fetchone()
        if row:
            people.append(Person(customer, row[0], row[1], region, node, int(row[2])))
    return people


def find(topology: Topology, password: str, customer: UUID, region: str = "") -> Person:
    """Return a customer and their home, or the one in a region.

    Raises LabError where there is none, and where the id is in two regions and none is given.
    """
    people = homes_of(topology, password, customer)
    chosen = [person for person in people if region in ("", person.region)]
    if not chosen:
        where = f" in region {region}" if region else ""
        raise LabError(f"there is no customer {customer}{where}")
    if len(chosen) > 1:
        raise LabError(f"customer {customer} is {way_out(people)}")
    return chosen[0]


def way_out(people: Sequence[Person]) -> str:
    """Return what to do about an id that two regions have."""
    regions = [person.region for person in people]
    return (
        f"two people of one id, in {' and '.join(regions)}: an id is unique within a region. Say"
        f" which one with REGION={regions[-1]}; make forget CUSTOMER={people[0].id}"
        f" REGION={regions[-1]} leaves the other as it is"
    )


def move(
    topology: Topology, password: str, customer: UUID, country: str, region: str = ""
) -> Moved:
    """Move a customer with all purchases to another country, and their bytes out of the old home.

    region says which one, where two have the id. Raises LabError with what is in the way; the
    customer is at one home then, and a second call finishes it, also where only bytes were left.
    """
    check_phase(topology)
    target = next((r.name for r in topology.regions if country in r.countries), None)
    if target is None:
        raise LabError(
            f"country '{country}' is at home in no region: lab_regions in the inventory has the"
            " known ones, in lower case"
        )
    resolve(topology, password)
    person = find(topology, password, customer, region)
    people = homes_of(topology, password, customer)
    elsewhere = {other.region for other in people if other.region != person.region}
    if target in elsewhere:
        raise LabError(f"customer {customer} is in {target} too: they are {way_out(people)}")
    moved = replace(person, country=country, region=target, node=str(topology.primary_of(target)))
    files = None
    if target != person.region:
        with (
            opened(topology, password, person.node) as old,
            opened(topology, password, moved.node) as new,
        ):
            try:
                _move(old, new, person, moved)
            except psycopg.Error as error:
                # What is left of it, the next call and make status know what to do with.
                raise LabError(f"customer {customer} was not moved: {describe(error)}") from None
        _follow_canary(topology, moved)
        reached("move.followed")
        files = scrub(topology, password, person.node)
    elif country != person.country:
        _change_country(topology, password, person, country)
        return Moved(person, moved, None)
    others = [r.name for r in topology.regions if r.name not in {target, *elsewhere}]
    return Moved(person, moved, files, traces.remove(topology, password, person, others))


def _move(
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    person: Person,
    moved: Person,
) -> None:
    gid = f"lab_move_{person.id}_from_{person.region}"
    old.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
    # By this lock, resolve() of another session knows that the move is under way.
    old.execute("SELECT pg_advisory_lock(hashtext(%s))", (gid,))
    reached("move.begun")
    definitions = of_leaves(old, person.region)
    theirs = of_leaves(new, moved.region)
    odd = [
        f"{table.name}.{column}"
        for table in STARTED
        for column in definitions[table.name].differences(theirs[table.name])
    ]
    if odd:
        raise LabError(
            f"{person.region} and {moved.region} do not have the same columns:"
            f" {', '.join(odd)}; add them to the table in global on every node, or drop them"
        )
    with old.transaction():
        # The customer's row first: a new purchase's foreign key waits for it from here on.
        rows = {
            table.name: old.execute(
                definitions[table.name].rows_as_text(
                    _leaf(person.region, table.name), table.by or "id"
                ),
                (person.id,),
            ).fetchall()
            for table in STARTED
        }
        if not rows["customer"]:
            raise LabError(f"customer {person.id} has just left {person.region}")
        reached("move.read")
        new.execute("BEGIN")
        for table in STARTED:
            definition = definitions[table.name]
            if rows[table.name]:
                columns = dict(
                    zip(
                        definition.names,
                        map(list, zip(*rows[table.name], strict=True)),
                        strict=True,
                    )
                )
                columns[REGION] = [moved.country] * len(rows[table.name])
                new.execute(
                    definition.insert_text(_leaf(moved.region, table.name)), list(columns.values())
                )
        reached("move.written")
        new.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(gid)))
        reached("move.prepared")
        for table in reversed(STARTED):
            old.execute(
                sql.SQL("DELETE FROM {} WHERE {} = %s").format(
                    _leaf(person.region, table.name), sql.Identifier(table.by or "id")
                ),
                (person.id,),
            )
        old.execute(TO_SCRUB)
        reached("move.deleted")
    reached("move.decided")
    new.execute(sql.SQL("COMMIT PREPARED {}").format(sql.Literal(gid)))
    reached("move.committed")


def resolve(topology: Topology, password: str) -> list[str]:
    """Finish or undo moves that were interrupted; return what was done, a line each.

    A move that is under way is left alone. Raises LabError where a home does not answer.
    """
    lines = []
    for node in topology.primaries():
        with opened(topology, password, node) as new:
            gids = [row[0] for row in new.execute("SELECT gid FROM pg_prepared_xacts")]
            for gid in gids:
                name = GID.fullmatch(gid)
                source = topology.primary_of(name[2]) if name else None
                if not name or source is None:
                    continue
                with opened(topology, password, source) as old:
                    lock: Any = old.execute(
                        "SELECT pg_try_advisory_lock(hashtext(%s))", (gid,)
                    ).fetchone()
                    if not lock[0]:
                        continue
                    still_there = old.execute(
                        sql.SQL("SELECT id FROM {} WHERE id = %s").format(
                            _leaf(name[2], "customer")
                        ),
                        (name[1],),
                    ).fetchone()
                    what = "ROLLBACK PREPARED {}" if still_there else "COMMIT PREPARED {}"
                    new.execute(sql.SQL(what).format(sql.Literal(gid)))
                    where = f"stays in {name[2]}" if still_there else f"is at home on {node}"
                    lines.append(f"a move was interrupted: customer {name[1]} {where}")
    for node in topology.primaries():
        with opened(topology, password, node) as connection:
            row: Any = connection.execute("SELECT count(*) FROM lab.to_scrub").fetchone()
        if row[0]:
            scrub(topology, password, node)
            lines.append(f"{node}: bytes of deleted rows are gone from its files")
    return lines


def forget(
    topology: Topology, password: str, customer: UUID, region: str = ""
) -> tuple[Person, Rewritten | None]:
    """Erase a customer and all purchases everywhere; return who it was, and what the files took.

    region says which one, where two have the id. Where an earlier call was cut short after the
    deletion, this one finishes it, by the id alone; its figures are None. The ledger notes that the
    writes are erased, so that they are not taken for lost. Raises LabError where bytes stay.
    """
    check_phase(topology)
    resolve(topology, password)
    people = homes_of(topology, password, customer)
    files = None
    if not people and _was_erased(topology, customer):
        person = Person(customer, "", "", "", "", 0)
    else:
        person = find(topology, password, customer, region)
        if any(UUID(canary.id) == customer for canary in canaries.load(topology.lab)):
            raise LabError(f"customer {customer} is a canary of the audit, which would miss it")
        try:
            _erase(topology, password, person, is_only=len(people) == 1)
        except psycopg.Error as error:
            raise LabError(f"customer {customer} was not erased: {describe(error)}") from None
        reached("forget.deleted")
        files = scrub(topology, password, person.node)
    living = {other.region for other in people} - {person.region}
    others = [r.name for r in topology.regions if r.name not in living]
    left = traces.remove(topology, password, person, others)
    if left:
        raise LabError(f"customer {customer} is deleted, and {remaining(left)}")
    return person, files


def remaining(left: Sequence[str]) -> str:
    """Return where bytes of a customer stay, and what to do."""
    return (
        f"bytes of theirs stay in files: {'; '.join(left)}. Where a table is named, its rows have"
        " them: change those; then make after, or the same command again, removes what is left"
    )


def _was_erased(topology: Topology, customer: UUID) -> bool:
    """Tell whether the ledger has a customer as erased."""
    key = str(customer)
    rows = read(topology.lab.home / "ledger")
    return any(mark == "E" and kind == "c" and each == key for mark, kind, each in rows)


def _erase(topology: Topology, password: str, person: Person, is_only: bool) -> None:
    """Delete a customer and all purchases, noted in the ledger; raises psycopg.Error.

    is_only tells whether nobody else has the id, so that the ledger's row of it is theirs.
    """
    customer = person.id
    ledger = Ledger(topology.lab.home / "ledger")
    with opened(topology, password, person.node) as connection:
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
        with connection.transaction():
            # No purchase is added from here on: its foreign key has to lock this row.
            connection.execute(
                sql.SQL("SELECT FROM {} WHERE id = %s FOR UPDATE").format(
                    _leaf(person.region, "customer")
                ),
                (customer,),
            )
            gone = connection.execute(
                sql.SQL("DELETE FROM {} WHERE customer_id = %s RETURNING id").format(
                    _leaf(person.region, "purchase")
                ),
                (customer,),
            ).fetchall()
            if is_only:
                ledger.write("E", "c", customer)
            for row in gone:
                ledger.write("E", "p", row[0])
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE id = %s").format(_leaf(person.region, "customer")),
                (customer,),
            )
            connection.execute(TO_SCRUB)
    ledger.close()


def check_phase(topology: Topology) -> None:
    """Raise LabError before phase after: there is no home to move to yet."""
    if topology.phase != "after":
        raise LabError(
            f"the lab is in phase {topology.phase}, and customers are at home in their regions from"
            " phase after on: play playbooks/after.yml first"
        )


def _change_country(topology: Topology, password: str, person: Person, country: str) -> None:
    with opened(topology, password, person.node) as connection, connection.transaction():
        for table, key in (("customer", "id"), ("purchase", "customer_id")):
            connection.execute(
                sql.SQL("UPDATE {} SET country = %s WHERE {} = %s").format(
                    _leaf(person.region, table), sql.Identifier(key)
                ),
                (country, person.id),
            )


def _follow_canary(topology: Topology, moved: Person) -> None:
    """Tell the audit where a canary that moved is at home now."""
    with locked(topology.lab.home):
        known = canaries.load(topology.lab)
        changed = [
            replace(canary, region=moved.region, country=moved.country)
            if UUID(canary.id) == moved.id
            else canary
            for canary in known
        ]
        if changed != known:
            canaries.save(topology.lab, changed)


def _leaf(region: str, table: str) -> sql.Identifier:
    return sql.Identifier(region, table)
