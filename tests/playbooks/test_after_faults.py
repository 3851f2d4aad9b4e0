"""Phase after, with what should not be: planted rows, a purge cut short, a lost primary."""

from __future__ import annotations

from contextlib import closing

import psycopg

from tests.fixtures.after import (
    INSERT,
    session,
    strays,
)
from tests.fixtures.labs import LabUnderTest, eventually
from tests.fixtures.traffic import (
    acknowledged,
    lost,
    traffic,
)
from tests.fixtures.world import NODES
from workload.audit import canaries


def test_planted_violations_are_found_and_a_purge_that_was_killed_is_finished(
    at_after: LabUnderTest,
) -> None:
    lab = at_after
    stranger = next(canary for canary in canaries.load(lab.lab) if canary.region == "eu")
    with psycopg.connect(lab.login(NODES["us"]).conninfo(), autocommit=True) as connection:
        connection.execute("CREATE TABLE scratch (email text, country text)")
        connection.execute(
            "INSERT INTO scratch SELECT %s, %s FROM generate_series(1, 300)",
            (stranger.email, stranger.country),
        )
        connection.execute("ANALYZE scratch")
        connection.execute(f"DO $$ BEGIN RAISE LOG '{stranger.email}'; END $$".encode())
        connection.execute("SET work_mem = '64kB'")
        connection.execute(
            "DECLARE spilled CURSOR WITH HOLD FOR SELECT email || md5(i::text)"
            " FROM scratch, generate_series(1, 50) i"
        )
        try:
            found = strays(lab)
            assert set(found) == {"us"}
            assert set(found["us"]["eu"]) == {
                "logical", "heap", "wal", "statistics", "log", "temp",
            }  # fmt: skip
            refused = lab.play("audit")
            assert refused.status != 0
            assert "VIOLATED" in refused.error
        finally:
            connection.execute("CLOSE spilled")
            connection.execute("DROP TABLE scratch")
    # What was planted is gone by its table, as copies are, and its traces are not scrubbed yet.
    assert {"wal", "statistics"} <= set(strays(lab)["us"]["eu"])
    (lab.lab.home / "purge-due").touch()
    lab.play_ok("after")
    assert not (lab.lab.home / "purge-due").exists()
    # A log is no copy of the lab's making: it keeps the line that the test wrote.
    assert set(strays(lab)["us"]["eu"]) == {"log"}


def test_foreign_servers_follow_a_failover(at_after: LabUnderTest) -> None:
    lab = at_after
    with traffic(lab, 120, users=30):
        lab.kill_server("eu")
        lab.play_ok("failover")
        with closing(session(lab, "us")) as connection:
            connection.execute(INSERT, ("from-us@example.com", "de"))
            assert connection.execute("SELECT count(*) > 0 FROM eu.customer").fetchone() == (True,)
        lab.play_ok("rejoin")
        already = acknowledged(lab)
        eventually(lambda: acknowledged(lab) > already + 50)
    assert lab.query("SELECT count(*) FROM eu.customer WHERE email LIKE 'from-us@%'", 1) == [(1,)]
    assert lost(lab) == 0
    lab.play_ok("after")
    assert lab.play_ok("after").changed == 0
    assert strays(lab) == {}
