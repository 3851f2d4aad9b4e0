"""The commands behind the Makefile: python -m workload demo | traffic | verify | report | wan."""

from __future__ import annotations

import argparse
import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from uuid import UUID

from workload.errors import LabError
from workload.lab import Lab


def demo(lab: Lab, asked: Namespace) -> int:
    """Play the road with customers in each phase."""
    from workload.operations import demo

    return demo.run(lab, password(), asked.users, asked.spawn_rate, asked.time)


def traffic(lab: Lab, asked: Namespace) -> int:
    """Let the customers trade."""
    from workload.traffic import run

    return run.run(
        lab,
        password(),
        asked.users,
        asked.spawn_rate,
        asked.time,
        asked.headless,
        asked.web_port,
    )


def verify(lab: Lab, _: Namespace) -> int:
    """Prove that every acknowledged write is there."""
    from rich.console import Console

    from workload.proof import verify
    from workload.topology import Topology

    topology, console = Topology.load(lab), Console()
    holds = verify.show(verify.verify(topology, password()), console)
    for line in verify.name_shared(verify.shared_ids(topology, password())):
        console.print(f"WARNING: {line}", markup=False, highlight=False)
    if topology.phase == "shard":
        from workload.proof import compare

        holds &= compare.show(compare.compare(topology, password()), console)
    return 0 if holds else 1


def source_tests(lab: Lab, _: Namespace) -> int:
    """Run the source document's two tests of the sharded lab."""
    from rich.console import Console

    from workload.proof import source_tests
    from workload.topology import Topology

    return 0 if source_tests.run(Topology.load(lab), password(), Console()) else 1


def status(lab: Lab, _: Namespace) -> int:
    """Say how the lab is, and what is wrong."""
    from rich.console import Console

    from workload.operations.status.collect import collect
    from workload.operations.status.show import show
    from workload.topology import Topology

    return 0 if show(collect(Topology.load(lab), password()), Console()) else 1


def resolve(lab: Lab, asked: Namespace) -> int:
    """Show the row that stops a replica, and go on with the one to keep."""
    from rich.console import Console

    from workload.operations import resolve
    from workload.topology import Topology

    return resolve.run(Topology.load(lab), password(), asked.node, asked.keep, Console())


def psql(lab: Lab, asked: Namespace) -> int:
    """Open psql on a node, or run one statement there."""
    from workload.operations import psql
    from workload.topology import Topology

    return psql.run(Topology.load(lab), password(), asked.node, asked.sql)


def seed(lab: Lab, asked: Namespace) -> int:
    """Make many customers and purchases."""
    from workload.topology import Topology
    from workload.traffic import seed

    seed.run(Topology.load(lab), password(), asked.customers, asked.purchases_each)
    return 0


def find(lab: Lab, asked: Namespace) -> int:
    """Say where a customer is at home."""
    from workload.operations import people
    from workload.output import printable
    from workload.topology import Topology

    topology = Topology.load(lab)
    people.check_phase(topology)
    homes = people.homes_of(topology, password(), asked.customer)
    if not homes:
        raise LabError(f"there is no customer {asked.customer}")
    for person in homes:
        print(
            f"{person.id} is {printable(person.email)}, of {person.country}, at home in"
            f" {person.region} (node {person.node}), with {person.purchases:,} purchases"
        )
    if len(homes) > 1:
        print(f"These are {people.way_out(homes)}")
    return 0 if len(homes) == 1 else 1


def move(lab: Lab, asked: Namespace) -> int:
    """Move a customer with all purchases to another country."""
    from workload.operations import people
    from workload.topology import Topology

    topology = Topology.load(lab)
    moved = people.move(topology, password(), asked.customer, asked.country, asked.region)
    before, after = moved.before, moved.after
    if before == after:
        print(f"{after.id} is of {after.country} and at home on {after.node} already")
    else:
        print(
            f"{after.id} moved from {before.country} to {after.country} with"
            f" {before.purchases:,} purchases, and is at home on {after.node}"
        )
    if moved.files is not None:
        print(f"The files of {before.region}'s customers: {moved.files}")
        nodes = [n for n, node in topology.nodes.items() if node["region"] != after.region]
        print(f"Traces left on {', '.join(nodes)}: {'; '.join(moved.left) or 'none'}")
    if moved.left:
        print(f"So {people.remaining(moved.left)}")
    return 1 if moved.left else 0


def forget(lab: Lab, asked: Namespace) -> int:
    """Erase a customer and all purchases, everywhere."""
    from workload.operations import people
    from workload.topology import Topology

    topology = Topology.load(lab)
    person, files = people.forget(topology, password(), asked.customer, asked.region)
    nodes = ", ".join(topology.nodes)
    if files is None:
        print(f"{person.id} was erased before; no trace of the id in the files of {nodes}")
        return 0
    print(f"The files of {person.region}'s customers: {files}")
    print(
        f"{person.id} of {person.country} and {person.purchases:,} purchases are erased; no trace"
        f" in the files of {nodes}"
    )
    return 0


def report(lab: Lab, _: Namespace) -> int:
    """Print what the customers experienced, and write the page."""
    from rich.console import Console

    from workload.report import terminal

    terminal.run(lab, Console())
    return 0


def wan(lab: Lab, asked: Namespace) -> int:
    """Show the WAN's RTTs, or change a link."""
    from workload.operations import wan

    return wan.run(lab, asked.link, asked.state, asked.one_way, asked.rtt)


def audit(lab: Lab, _: Namespace) -> int:
    """Say where every region's data is, down to the bytes."""
    from rich.console import Console

    from workload.audit import run

    return 0 if run.run(lab, password(), Console()) else 1


COMMANDS: tuple[Callable[[Lab, Namespace], int], ...] = (
    demo,
    traffic,
    seed,
    verify,
    source_tests,
    audit,
    find,
    move,
    forget,
    report,
    status,
    resolve,
    psql,
    wan,
)


def parser() -> argparse.ArgumentParser:
    """Return the parser; the environment gives the defaults, as make sets it."""
    whole = argparse.ArgumentParser(prog="python -m workload", description=__doc__)
    commands = whole.add_subparsers(dest="command", required=True)
    by_name = {}
    for command in COMMANDS:
        name = command.__name__
        by_name[name] = commands.add_parser(name, help=(command.__doc__ or "").lower().rstrip("."))
        by_name[name].set_defaults(run=command)
    for name in ("demo", "traffic"):
        add = by_name[name].add_argument
        add("--users", type=whole_number, default=set_to("USERS", "20"))
        add("--spawn-rate", type=positive, default=set_to("SPAWN_RATE", "10"))
        add("--time", type=whole_number, default=set_to("TIME", "30"), metavar="SECONDS")
    add = by_name["traffic"].add_argument
    add("--headless", action="store_true", default=set_to("HEADLESS", "0") != "0")
    add("--web-port", type=whole_number, default=set_to("WEB_PORT", "8089"))
    add = by_name["seed"].add_argument
    add("--customers", type=whole_number, default=set_to("CUSTOMERS", "1000000"))
    add("--purchases-each", type=whole_number, default=set_to("PURCHASES_EACH", "3"))
    for name in ("find", "move", "forget"):
        add = by_name[name].add_argument
        add("--customer", type=uuid, default=set_to("CUSTOMER", ""), metavar="ID")
    by_name["move"].add_argument("--country", default=set_to("COUNTRY", ""))
    for name in ("move", "forget"):
        by_name[name].add_argument("--region", default=set_to("REGION", ""))
    for name in ("psql", "resolve"):
        by_name[name].add_argument("--node", default=set_to("NODE"), metavar="NODE")
    add = by_name["resolve"].add_argument
    add("--keep", default=set_to("KEEP", ""), metavar="origin|local")
    add = by_name["psql"].add_argument
    add("--sql", default=set_to("SQL"), metavar="STATEMENT")
    add = by_name["wan"].add_argument
    add("--link", default=set_to("LINK"), metavar="us-eu")
    add("--state", default=set_to("STATE"), metavar="cut|reset|up")
    add("--one-way", action="store_true", default=set_to("ONE_WAY", "0") != "0")
    add("--rtt", type=not_negative, default=set_to("RTT"), metavar="MILLISECONDS")
    return whole


def set_to(variable: str, default: str | None = None) -> str | None:
    """Return an environment variable that make or a person set, or the default."""
    return os.environ.get(variable) or default


def password() -> str:
    """Return the superuser's password."""
    return os.environ.get("LAB_PASSWORD") or "password"


def uuid(text: str) -> UUID:
    """Return a customer's id."""
    try:
        return UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"CUSTOMER is '{text}': give the id of one, a UUID") from None


def whole_number(text: str) -> int:
    """Return a number of at least 1."""
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"{text} is not at least 1")
    return value


def positive(text: str) -> float:
    """Return a number above 0."""
    value = float(text)
    if not value > 0:
        raise ArgumentTypeError(f"{text} is not more than 0")
    return value


def not_negative(text: str) -> float:
    """Return a number of at least 0."""
    value = float(text)
    if not value >= 0:
        raise ArgumentTypeError(f"{text} is not at least 0")
    return value


def main() -> int:
    """Run one command; return its exit status."""
    asked = parser().parse_args()
    status: int = asked.run(Lab.from_environment(), asked)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"lab: {error}")
