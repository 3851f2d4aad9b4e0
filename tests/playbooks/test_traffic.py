"""make traffic: on a web page and without one, and the names that its figures go by."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import requests

from tests.fixtures.labs import DOCKER_IN_SOAK, LabUnderTest, eventually, free_ports, wait_for

pytestmark = DOCKER_IN_SOAK

OPERATIONS = {"sign up", "buy", "basket", "read", "connect"}


def experience(lab: LabUnderTest) -> list[dict[str, Any]]:
    return list(json.loads((lab.lab.home / "reports/experience.json").read_text()))


def test_headless_run_writes_what_customers_experienced(shared_lab: LabUnderTest) -> None:
    for users in (3, 6):
        done = shared_lab.workload(
            "traffic", "--headless", USERS=str(users), TIME="3", LAB_THINK_TIME="0.1"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{users} customers of eu for 3 s, in phase before" in done.stdout
        rows = experience(shared_lab)
        assert {(row["phase"], row["region"], row["operation"]) for row in rows} == {
            ("before", "eu", operation) for operation in OPERATIONS
        }
        # The second run takes the place of the first.
        assert len(rows) == len(OPERATIONS)
        by_operation = {row["operation"]: row for row in rows}
        assert by_operation["sign up"]["requests"] == users
        assert by_operation["connect"]["requests"] == users
        for row in rows:
            assert row["failures"] == row["stale_reads"] == 0
            assert row["requests"] > 0
            assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] < 5_000


def test_headless_output_fits_a_terminal(shared_lab: LabUnderTest) -> None:
    done = shared_lab.workload("traffic", "--headless", USERS="3", TIME="2")
    assert done.stderr == ""
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
    assert "Longest time without an acknowledged write in eu" in done.stdout


def test_more_customers_than_connections_are_refused_before_the_run(
    shared_lab: LabUnderTest,
) -> None:
    done = shared_lab.workload("traffic", "--headless", USERS="600", TIME="2")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("lab: 600 customers need 600 connections to eu, which has")
    assert "USERS=" in line
    assert "max_connections (node_settings in the inventory, then make before)" in line


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have SIGINT end the processes started here, though these tests may run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_web_page_starts_shows_and_stops_customers(shared_lab: LabUnderTest) -> None:
    port = free_ports()
    page = f"http://127.0.0.1:{port}"
    traffic = shared_lab.start_workload("traffic", WEB_PORT=str(port), LAB_THINK_TIME="0.1")
    assert traffic.stdout

    def answers() -> bool:
        assert traffic.poll() is None
        try:
            return requests.get(page, timeout=5).ok
        except requests.ConnectionError:
            return False

    def rows() -> dict[str, str]:
        stats = requests.get(f"{page}/stats/requests", timeout=5).json()["stats"]
        return {row["name"]: row["method"] for row in stats if row["name"] != "Aggregated"}

    def state() -> str:
        return str(requests.get(f"{page}/stats/requests", timeout=5).json()["state"])

    try:
        eventually(answers)
        assert "EuCustomer" in requests.get(page, timeout=5).text
        # It is for this machine alone.
        listening = {
            connection.laddr.ip
            for connection in psutil.Process(traffic.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        }
        assert listening == {"127.0.0.1"}
        started = requests.post(f"{page}/swarm", data={"user_count": 5, "spawn_rate": 5}, timeout=5)
        assert started.json()["success"]
        expected = {f"eu: {operation}": "eu" for operation in OPERATIONS}
        eventually(lambda: rows() == expected, seen=rows)
        assert requests.post(f"{page}/stop", timeout=30).json()["success"]
        eventually(lambda: state() == "stopped", seen=state)
        traffic.send_signal(signal.SIGINT)
        assert wait_for(traffic, 30) == 0
        said = traffic.stdout.read()
        assert page in said
        assert "KeyboardInterrupt" not in said
    finally:
        traffic.kill()
        traffic.wait()
        traffic.stdout.close()
    assert {row["operation"] for row in experience(shared_lab)} == OPERATIONS
    assert shared_lab.workload("verify").returncode == 0
