"""Passwords stay where they belong."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.fixtures.labs import CHECKOUT, LabUnderTest
from tests.fixtures.world import CONTAINERS
from workload.nodes.docker import Engine
from workload.sharding import foreign

#: Seconds between two reads of all processes' command lines, as ps would show them to anybody.
EVERY_S = 0.02


def watched(lab: LabUnderTest, log: Path, playbook: str, *arguments: str) -> tuple[str, set[str]]:
    """Play a playbook; return what it logged, and every command line that there was meanwhile."""
    run = lab.start(playbook, *arguments, ANSIBLE_LOG_PATH=str(log))
    command_lines: set[str] = set()
    while run.poll() is None:
        for process in psutil.process_iter(["cmdline"]):
            command_lines.add(" ".join(process.info["cmdline"] or []))
        time.sleep(EVERY_S)
    output = log.read_text()
    assert run.returncode == 0, output
    # It is really there: a password that nothing could have shown proves nothing.
    assert any(f"playbooks/{playbook}.yml" in line for line in command_lines)
    assert "failed=0" in output
    return output, command_lines


def server_log(lab: LabUnderTest, node: str = "eu") -> str:
    """Return what a node's server has logged."""
    if lab.runtime == "docker":
        name = f"{lab.lab.name}_{CONTAINERS[node]}"
        return str(Engine().client.containers.get(name).logs().decode())
    return lab.server(node).log.read_text()


def test_passwords_are_in_no_output_argument_log_or_label(
    lab: LabUnderTest, tmp_path: Path
) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    lab.environment["LAB_PASSWORD"] = canary
    log = tmp_path / "ansible.log"
    _, command_lines = watched(lab, log, "before", "-vvvv")
    for arguments in (
        ("before", "-vvv", "--check"), ("expand_eu", "-vvv"), ("failover", "-vvv"),
        ("rejoin", "-vvv"), ("expand_world", "-vvv"), ("shard", "-vvv"), ("after", "-vvv"),
    ):  # fmt: skip
        if arguments[0] == "failover":
            lab.kill_server()
        _, more = watched(lab, log, *arguments)
        command_lines |= more
    # The log goes on from run to run.
    output = log.read_text()
    places = {"output": output, "arguments": "\n".join(command_lines)}
    for node in CONTAINERS:
        places[f"log of {node}"] = server_log(lab, node)
        assert "ready to accept" in places[f"log of {node}"]
        if lab.runtime == "docker":
            name = f"{lab.lab.name}_{CONTAINERS[node]}"
            places[f"labels of {node}"] = str(Engine().client.containers.get(name).labels)
    # The keys of the nodes' certificates are in a folder of their own there.
    files = [path for path in (lab.lab.home / "secrets").iterdir() if path.is_file()]
    passwords = {path.name: path.read_text() for path in files}
    assert set(passwords) == {"customers", "replication", *foreign.SECRETS}
    for name, password in {**passwords, "the superuser": canary}.items():
        for place, text in places.items():
            assert password not in text, f"{name}'s password is in {place}"

    # Nor in any file of the lab but its own; a standby's settings hold the one it streams by.
    for path in lab.lab.home.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            content = path.read_bytes()
            assert canary.encode() not in content, path
            assert passwords["customers"].encode() not in content, path


def test_wrong_password_is_not_repeated(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    canary = f"canary-{secrets.token_hex(8)}"
    for verbosity in ((), ("-vvv",)):
        play = lab.play("before", *verbosity, LAB_PASSWORD=canary)
        assert play.status != 0
        assert canary not in play.output + play.errors


def test_statements_of_customers_are_not_logged(lab: LabUnderTest) -> None:
    """Nor what an error says of a row: they are where customers' data is."""
    lab.play_ok("before")
    marker = secrets.token_hex(8)
    key = f"md5('{marker}')::uuid"
    lab.query(f"INSERT INTO customer VALUES ({key}, '{marker}@example.com')")
    errors = {
        f"INSERT INTO customer VALUES ({key}, '{marker}')": "duplicate key",
        f"INSERT INTO purchase (customer_id, amount) VALUES (md5('2{marker}')::uuid, 1)": "foreign",
        f"INSERT INTO purchase (customer_id, amount) SELECT id, NULL FROM customer "
        f"WHERE email LIKE '{marker}%'": "null value",
        f"SELECT length('{marker}') / 0": "division by zero",
    }
    for statement, error in errors.items():
        with pytest.raises(psycopg.Error, match=error):
            lab.query(statement)
    ((uuid,),) = lab.query(f"SELECT {key}::text")
    log = server_log(lab)
    # It is the right log, and one that the server writes to.
    assert "database system is ready to accept connections" in log
    assert marker not in log
    assert uuid not in log


def test_no_password_is_in_a_tracked_file() -> None:
    """But for the source document's own, which is no secret."""
    for path in (CHECKOUT / "inventory").rglob("*.yml"):
        for line in path.read_text().splitlines():
            if "password:" in line and "{{" not in line:
                assert line.rstrip().endswith(("password:", "secrets/customers")), f"{path}: {line}"
