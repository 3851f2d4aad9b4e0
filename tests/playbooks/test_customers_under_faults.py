"""Customers outlive their server, each failure counts once, and nothing acknowledged is lost."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests.fixtures.labs import LabUnderTest, eventually, wait_for

TRAFFIC = {"USERS": "8", "SPAWN_RATE": "8", "LAB_THINK_TIME": "0.1"}


def ledger(lab: LabUnderTest) -> list[tuple[str, str, str, float]]:
    """Return (mark, kind, id, seconds since the epoch) of each line."""
    lines = [
        line.split()
        for path in Path(lab.lab.home, "ledger").glob("*.txt")
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [(mark, kind, key, int(at) / 1e6) for mark, kind, key, at, _ in lines]


def acknowledged_since(lab: LabUnderTest, moment: float) -> int:
    return sum(mark == "A" and at > moment for mark, _, _, at in ledger(lab))


def has_outcomes(lab: LabUnderTest, count: int) -> bool:
    return sum(mark != "I" for mark, _, _, _ in ledger(lab)) >= count


def experience(lab: LabUnderTest) -> dict[str, dict[str, Any]]:
    rows = json.loads((lab.lab.home / "reports/experience.json").read_text())
    return {row["operation"]: row for row in rows}


def ended(traffic: subprocess.Popen[str], timeout_s: float) -> tuple[int, str]:
    """Return a run's exit status and all that it printed."""
    try:
        output, _ = traffic.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        traffic.kill()
        output, _ = traffic.communicate()
        raise AssertionError(f"traffic is still running after {timeout_s:g} s: {output}") from None
    return traffic.returncode, output


def test_kill_of_the_server_under_load(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    started = time.time()
    traffic = lab.start_workload("traffic", "--headless", TIME="14", **TRAFFIC)
    try:
        eventually(lambda: acknowledged_since(lab, started) > 40)
        lab.kill_server()
        play = lab.play_ok("before")
        assert play.changed >= 1
        back = time.time()
        eventually(lambda: acknowledged_since(lab, back) > 40, 20)
        status, output = ended(traffic, 60)
    finally:
        traffic.kill()
    assert status == 1, output
    assert "Traceback" not in output

    # Every customer came back: as many as before are connected and none signed up twice over.
    lines = ledger(lab)
    marks = Counter((mark, kind) for mark, kind, _, _ in lines)
    assert marks["A", "c"] == int(TRAFFIC["USERS"])
    buyers = lab.query("SELECT count(DISTINCT customer_id) FROM purchase")
    assert buyers == [(int(TRAFFIC["USERS"]),)]

    # The failures of a write are its attempts to connect and its broken or refused statements;
    # what is no failure was acknowledged, and the other way round.
    rows = experience(lab)
    for kind, operations in (("c", {"sign up": 1}), ("p", {"buy": 1, "basket": 2})):
        found = [(rows[name], each) for name, each in operations.items()]
        made = sum((row["requests"] - row["failures"]) * each for row, each in found)
        failed = sum(row["failures"] * each for row, each in found)
        assert made == marks["A", kind], (operations, marks)
        assert failed >= marks["U", kind] + marks["F", kind], (operations, marks)
        assert marks["I", kind] == sum(marks[mark, kind] for mark in "AFU")
    assert rows["read"]["failures"] + rows["buy"]["failures"] > 0
    # A failed attempt to connect counts for what it was for, and not once more as a connection.
    assert rows["connect"]["failures"] == 0
    assert rows["connect"]["requests"] >= 2 * int(TRAFFIC["USERS"])
    # The printed kinds of failures add up to those in the table.
    by_kind: Counter[str] = Counter()
    for count, name in re.findall(r"Failed ([\d,]+) x eu: ([a-z ]+):", output):
        by_kind[name] += int(count.replace(",", ""))
    assert by_kind == {name: row["failures"] for name, row in rows.items() if row["failures"]}

    done = lab.workload("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout


def test_attempts_to_connect_back_off(embedded_lab: LabUnderTest) -> None:
    """A server that stays away is asked now and then, not hammered, and is not waited for."""
    lab = embedded_lab
    lab.play_ok("before")
    lab.server().stop()
    traffic = lab.start_workload("traffic", "--headless", TIME="8", **{**TRAFFIC, "USERS": "2"})
    status, output = ended(traffic, 60)
    assert status == 1, output
    rows = experience(lab)
    assert set(rows) == {"sign up"}
    # Pauses of 0.1, 0.2, 0.4 ... 2 s, the shorter half of each by chance: 7 to 13 in 8 s.
    assert rows["sign up"]["requests"] == rows["sign up"]["failures"]
    assert 2 * 5 <= rows["sign up"]["failures"] <= 2 * 15
    assert "OperationalError refused" in output
    # Nothing was sent, so nothing is in doubt.
    assert ledger(lab) == []


def test_commit_that_only_a_warning_acknowledged_is_unknown(embedded_lab: LabUnderTest) -> None:
    """A cancelled wait for a standby: the row is here, and would be lost with this server."""
    lab = embedded_lab
    lab.play_ok("before")
    lab.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    lab.query("SELECT pg_reload_conf()")
    waiting = "FROM pg_stat_activity WHERE usename = 'customers' AND wait_event = 'SyncRep'"
    traffic = lab.start_workload("traffic", "--headless", TIME="5", USERS="1", SPAWN_RATE="1")
    try:
        for answered in (1, 2):
            eventually(lambda: lab.query(f"SELECT pg_cancel_backend(pid) {waiting}"))
            eventually(partial(has_outcomes, lab, answered))
        lab.query("ALTER SYSTEM RESET synchronous_standby_names")
        lab.query("SELECT pg_reload_conf()")
        assert wait_for(traffic, 60) == 0
    finally:
        traffic.kill()
        assert traffic.stdout
        traffic.stdout.close()
        traffic.wait()
    marks = [(mark, key) for mark, kind, key, _ in ledger(lab) if kind == "c"]
    doubtful = [key for mark, key in marks if mark == "U"]
    assert len(doubtful) >= 2
    # The customer whose sign-up is in doubt signs up anew, under another id.
    assert [mark for mark, _ in marks] == ["I", "U"] * len(doubtful) + ["I", "A"]
    for key in doubtful:
        assert lab.query(f"SELECT count(*) FROM customer WHERE id = '{key}'") == [(1,)]
    done = lab.workload("verify")
    assert done.returncode == 0, done.stdout
    assert re.search(rf"customer +{len(doubtful) + 1} +1 +0 +{len(doubtful)} +0", done.stdout)
