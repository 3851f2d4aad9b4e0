"""psql on a node of the lab: make psql NODE=jp."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from workload.errors import LabError
from workload.topology import Topology


def run(topology: Topology, password: str, node: str | None, statement: str | None) -> int:
    """Become psql on a node, or with a statement run that alone; does not return.

    Raises LabError for a node that there is not, and where there is no psql.
    """
    arguments, environment = command(topology, password, target(topology, node), statement)
    sys.stdout.flush()
    os.execvpe(arguments[0], arguments, {**os.environ, **environment})


def target(topology: Topology, node: str | None) -> str:
    """Return the node that a person named, the first primary by default; raises LabError."""
    if not node:
        return topology.primary()
    if node not in topology.nodes:
        raise LabError(f"no node '{node}' in this lab: use one of {', '.join(topology.nodes)}")
    return node


def command(
    topology: Topology, password: str, node: str, statement: str | None
) -> tuple[list[str], dict[str, str]]:
    """Return psql's command line, and what its environment has beyond this process's own.

    The password is in the environment: everyone on the machine can read a command line. Raises
    LabError where there is no psql.
    """
    login = topology.operator_login(node, password)
    once = ["-c", statement] if statement else []
    # The virtual environment has the wheel's; elsewhere it is the system's.
    program = shutil.which("psql", path=str(Path(sys.executable).parent)) or shutil.which("psql")
    if program:
        where = [f"--host={login.host}", f"--port={login.port}"]
        who = [f"--username={login.user}", f"--dbname={login.dbname}"]
        return [program, *where, *who, *once], {"PGPASSWORD": password, "PGCONNECT_TIMEOUT": "5"}
    if topology.runtime == "docker":
        terminal = ["-it"] if sys.stdin.isatty() and not statement else ["-i"]
        container = topology.nodes[node]["container"]
        who = [f"--username={login.user}", f"--dbname={login.dbname}"]
        return ["docker", "exec", *terminal, container, "psql", *who, *once], {}
    raise LabError("no psql in .venv/bin or on PATH: make setup, or install postgresql-client")
