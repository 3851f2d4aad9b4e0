"""One customer at a time: find, move to another country, forget.

A move between regions is two transactions, one on each home, with one moment that decides. The new
home prepares its copy (PREPARE TRANSACTION: it is there, survives a crash, and nobody sees it); the
old home deletes the rows and commits, which decides; the new home commits what it prepared. Who was
interrupted finds a prepared copy, and the old home says what to do with it: where the customer is
still there, it is rolled back, else committed. So after a recovery there is one visible copy,
always; between the two commits, for a round trip, there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from workload.audit import canaries
from workload.audit.canaries import Canary, Kind
from workload.audit.scan import scan
from workload.errors import LabError
from workload.nodes.server import server_of
from workload.processes import locked, reached
from workload.sharding.purge import clean_statistics, drop_old_wal
from workload.sharding.rewrite import Rewritten, rewrite
from workload.sql import connect, describe
from workload.topology import Topology
from workload.traffic.ledger import Ledger

GID = re.compile(r"lab_move_([0-9a-f-]{36})_from_(.+)")
#: Seconds for a customer's own transactions to let go of their rows.
LOCK_TIMEOUT_S = 10
#: Whoever deletes rows writes this with it, so that their bytes are not forgotten in the files.
TO_SCRUB = "INSERT INTO lab.to_scrub DEFAULT VALUES"


@dataclass(frozen=True)
class Person:
    """A customer and where they are at home."""

    id: UUID
    email: str
    country: str
    region: str
    node: str
    purchases: int


@dataclass(frozen=True)
class Trace(Canary):
    """A customer as the scan of files looks for them."""

    def patterns(self) -> dict[bytes, Kind]:
        """Return the e-mail and the id, as text and as bytes."""
        found: dict[bytes, Kind] = {self.marker.encode(): "marker", self.id.encode(): "id_text"}
        key = UUID(self.id).bytes
        # A pattern cannot hold the bytes that end one, or a record.
        if not {0x00, 0x0A} & set(key):
            found[key] = "id"
        return found


def find(topology: Topology, password: str, customer: UUID) -> Person:
    """Return a customer and their home; raises LabError where there is none, or more than one."""
    found = []
    for node in topology.primaries():
        region = topology.nodes[node]["region"]
        with _open(topology, password, node) as connection:
            row = connection.execute(
                sql.SQL(
                    "SELECT email, country::text,"
                    " (SELECT count(*) FROM {} WHERE customer_id = c.id)"
                    " FROM {} AS c WHERE id = %s"
                ).format(_leaf(region, "purchase"), _leaf(region, "customer")),
                (customer,),
            ).fetchone()
        if row:
            found.append(Person(customer, row[0], row[1], region, node, int(row[2])))
    if not found:
        raise LabError(f"there is no customer {customer}")
    if len(found) > 1:
        names = " and ".join(person.node for person in found)
        raise LabError(f"customer {customer} is on {names}: make verify, then mend one of them")
    return found[0]


def move(
    topology: Topology, password: str, customer: UUID, country: str
) -> tuple[Person, Person, Rewritten | None]:
    """Move a customer with all purchases to another country; return who they were and are.

    And what it took to have no bytes of them in the old home's files; None within a region. Raises
    LabError with what is in the way; the customer is at one home then, where a second try
    finds them.
    """
    check_phase(topology)
    target = next((r.name for r in topology.regions if country in r.countries), None)
    if target is None:
        raise LabError(
            f"country '{country}' is at home in no region: lab_regions in the inventory has the"
            " known ones, in lower case"
        )
    resolve(topology, password)
    person = find(topology, password, customer)
    moved = replace(person, country=country, region=target)
    if target == person.region:
        _change_country(topology, password, person, country)
        return person, moved, None
    moved = replace(moved, node=str(topology.primary_of(target)))
    with (
        _open(topology, password, person.node) as old,
        _open(topology, password, moved.node) as new,
    ):
        try:
            _move(old, new, person, moved)
        except psycopg.Error as error:
            # What is left of it, the next call and make status know what to do with.
            raise LabError(f"customer {customer} was not moved: {describe(error)}") from None
    _follow_canary(topology, moved)
    reached("move.followed")
    return person, moved, scrub(topology, password, person.node)


def _move(
    old: psycopg.Connection[Any],
    new: psycopg.Connection[Any],
    person: Person,
    moved: Person,
) -> None:
    gid = f"lab_move_{person.id}_from_{person.region}"
    old.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
    # Who tidies up after the dead leaves alone what is alive.
    old.execute("SELECT pg_advisory_lock(hashtext(%s))", (gid,))
    reached("move.begun")
    with old.transaction():
        # Nobody adds a purchase from here on: its foreign key wants this row.
        kept = old.execute(
            sql.SQL("SELECT id, email FROM {} WHERE id = %s FOR UPDATE").format(
                _leaf(person.region, "customer")
            ),
            (person.id,),
        ).fetchone()
        if kept is None:
            raise LabError(f"customer {person.id} has just left {person.region}")
        purchases = old.execute(
            sql.SQL("SELECT id, amount FROM {} WHERE customer_id = %s FOR UPDATE").format(
                _leaf(person.region, "purchase")
            ),
            (person.id,),
        ).fetchall()
        reached("move.read")
        new.execute("BEGIN")
        new.execute(
            sql.SQL("INSERT INTO {} (id, email, country) VALUES (%s, %s, %s)").format(
                _leaf(moved.region, "customer")
            ),
            (*kept, moved.country),
        )
        if purchases:
            ids, amounts = zip(*purchases, strict=True)
            new.execute(
                sql.SQL(
                    "INSERT INTO {} (id, customer_id, amount, country)"
                    " SELECT p.id, %s, p.amount, %s"
                    " FROM unnest(%s::uuid[], %s::numeric[]) AS p (id, amount)"
                ).format(_leaf(moved.region, "purchase")),
                (person.id, moved.country, list(ids), list(amounts)),
            )
        reached("move.written")
        new.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(gid)))
        reached("move.prepared")
        for table, key in (("purchase", "customer_id"), ("customer", "id")):
            old.execute(
                sql.SQL("DELETE FROM {} WHERE {} = %s").format(
                    _leaf(person.region, table), sql.Identifier(key)
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
    done = []
    for node in topology.primaries():
        with _open(topology, password, node) as new:
            gids = [row[0] for row in new.execute("SELECT gid FROM pg_prepared_xacts")]
            for gid in gids:
                found = GID.fullmatch(gid)
                source = topology.primary_of(found[2]) if found else None
                if not found or source is None:
                    continue
                with _open(topology, password, source) as old:
                    lock: Any = old.execute(
                        "SELECT pg_try_advisory_lock(hashtext(%s))", (gid,)
                    ).fetchone()
                    if not lock[0]:
                        continue
                    still_there = old.execute(
                        sql.SQL("SELECT id FROM {} WHERE id = %s").format(
                            _leaf(found[2], "customer")
                        ),
                        (found[1],),
                    ).fetchone()
                    what = "ROLLBACK PREPARED {}" if still_there else "COMMIT PREPARED {}"
                    new.execute(sql.SQL(what).format(sql.Literal(gid)))
                    where = f"stays in {found[2]}" if still_there else f"is at home on {node}"
                    done.append(f"a move was interrupted: customer {found[1]} {where}")
    for node in topology.primaries():
        with _open(topology, password, node) as connection:
            row: Any = connection.execute("SELECT count(*) FROM lab.to_scrub").fetchone()
        if row[0]:
            scrub(topology, password, node)
            done.append(f"{node}: bytes of deleted rows are gone from its files")
    return done


def forget(topology: Topology, password: str, customer: UUID) -> tuple[Person, Rewritten]:
    """Erase a customer and all purchases everywhere; return who it was, and what the files took.

    The ledger notes that its writes are erased, so that they are not taken for lost. Raises
    LabError where a trace of them is left.
    """
    check_phase(topology)
    resolve(topology, password)
    person = find(topology, password, customer)
    if any(UUID(canary.id) == customer for canary in canaries.load(topology.lab)):
        raise LabError(f"customer {customer} is a canary of the audit, which would miss it")
    try:
        _erase(topology, password, person)
    except psycopg.Error as error:
        raise LabError(f"customer {customer} was not erased: {describe(error)}") from None
    reached("forget.deleted")
    rewritten = scrub(topology, password, person.node)
    left = traces(topology, person)
    if left:
        raise LabError(f"customer {customer} is deleted, and traces are left: {', '.join(left)}")
    return person, rewritten


def _erase(topology: Topology, password: str, person: Person) -> None:
    """Delete a customer and all purchases, noted in the ledger; raises psycopg.Error."""
    customer = person.id
    ledger = Ledger(topology.lab.home / "ledger")
    with _open(topology, password, person.node) as connection:
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
        with connection.transaction():
            # Nobody adds a purchase from here on: its foreign key wants this row.
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
            ledger.write("E", "c", customer)
            for row in gone:
                ledger.write("E", "p", row[0])
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE id = %s").format(_leaf(person.region, "customer")),
                (customer,),
            )
            connection.execute(TO_SCRUB)
    ledger.close()


def scrub(topology: Topology, password: str, node: str) -> Rewritten:
    """Have no bytes of what was deleted from a home in its files, nor in those of its standbys.

    Its leaves are written anew, since a VACUUM leaves deleted rows in their pages; then statistics
    and WAL go.
    """
    region = topology.nodes[node]["region"]
    with _open(topology, password, node) as connection:
        since = connection.execute("SELECT clock_timestamp()").fetchone()
    login = topology.operator_login(node, password)
    rewritten = rewrite(login, topology.countries(), region)
    reached("move.rewritten")
    with _open(topology, password, node) as connection:
        clean_statistics(connection)
    drop_old_wal(topology, password, node)
    reached("move.cleaned")
    with _open(topology, password, node) as connection:
        connection.execute("DELETE FROM lab.to_scrub WHERE since <= %s", since)
    return rewritten


def traces(topology: Topology, person: Person, only: Sequence[str] | None = None) -> list[str]:
    """Return where an e-mail or an id is in nodes' files, as "node: place (hits)"."""
    trace = Trace("gone", person.country, "", person.email, str(person.id), str(person.id))
    found = []
    for node in topology.nodes if only is None else only:
        hits = scan(server_of(topology, node), [trace]).hits
        found += [f"{node}: {where} ({count})" for (_, where), count in sorted(hits.items())]
    return found


def nodes_of(topology: Topology, region: str) -> list[str]:
    """Return a region's nodes."""
    return [name for name, node in topology.nodes.items() if node["region"] == region]


def check_phase(topology: Topology) -> None:
    """Raise LabError before phase after: there is no home to move to yet."""
    if topology.phase != "after":
        raise LabError(
            f"the lab is in phase {topology.phase}, and customers are at home in their regions from"
            " phase after on: play playbooks/after.yml first"
        )


def _change_country(topology: Topology, password: str, person: Person, country: str) -> None:
    with _open(topology, password, person.node) as connection, connection.transaction():
        for table, key in (("customer", "id"), ("purchase", "customer_id")):
            connection.execute(
                sql.SQL("UPDATE {} SET country = %s WHERE {} = %s").format(
                    _leaf(person.region, table), sql.Identifier(key)
                ),
                (country, person.id),
            )


def _follow_canary(topology: Topology, moved: Person) -> None:
    """Have the audit look for a canary that moved where it is at home now."""
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


@contextmanager
def _open(topology: Topology, password: str, node: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(topology.operator_login(node, password), 5) as connection:
        connection.autocommit = True
        yield connection
