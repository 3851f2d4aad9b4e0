"""Passwords stay where they belong."""

from __future__ import annotations

import secrets
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.fixtures.labs import CHECKOUT, LabUnderTest
from workload.nodes.docker import Engine

pytestmark = pytest.mark.slow


def test_passwords_are_in_no_output_argument_log_or_label(
    lab: LabUnderTest, tmp_path: Path
) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    lab.environment["LAB_PASSWORD"] = canary
    said = arguments = ""
    for verbosity in ("-vvv", "--check", "-vvvv"):
        log = tmp_path / "ansible.log"
        run = lab.start("before", verbosity, ANSIBLE_LOG_PATH=str(log))
        # What ps would have shown anybody on this machine meanwhile.
        while run.poll() is None:
            arguments += " ".join(
                part
                for process in psutil.process_iter(["cmdline"])
                for part in process.info["cmdline"] or []
            )
        assert run.returncode == 0
        said += log.read_text()
    play = lab.play_ok("before", "-vvv")
    said += play.output + play.errors
    # The run's output is really there: a canary that nothing could have shown proves nothing.
    assert "shop" in said
    assert "playbooks/before.yml" in arguments

    customers = lab.lab.secret_file("customers").read_text()
    if lab.runtime == "docker":
        container = Engine().client.containers.get(f"{lab.lab.name}_eu_db")
        server_log = container.logs().decode()
        labels = str(container.labels)
        assert customers not in str(container.attrs)
    else:
        server_log = lab.server().log.read_text()
        labels = ""
    assert "ready to accept connections" in server_log
    for where, text in {
        "output": said,
        "arguments": arguments,
        "server log": server_log,
        "labels": labels,
    }.items():
        assert canary not in text, where
        assert customers not in text, where

    # Nor in any file of the lab but the customers' own.
    for path in lab.lab.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert canary.encode() not in content, path
            if path != lab.lab.secret_file("customers"):
                assert customers.encode() not in content, path


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
    log = (
        Engine().client.containers.get(f"{lab.lab.name}_eu_db").logs().decode()
        if lab.runtime == "docker"
        else lab.server().log.read_text()
    )
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
