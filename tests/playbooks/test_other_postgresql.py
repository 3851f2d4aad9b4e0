"""The road on the oldest PostgreSQL that the lab takes, from the user's own packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.labs import LabUnderTest, eventually
from tests.fixtures.require import skip_or_fail
from tests.fixtures.traffic import lost, move_somebody, play_traffic, traffic

BIN_DIR = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.soak
def test_the_road_on_postgresql_15(embedded_lab: LabUnderTest) -> None:
    if not (BIN_DIR / "postgres").exists():
        skip_or_fail("postgresql", f"{BIN_DIR} has no server: apt-get install postgresql-15")
    lab = embedded_lab
    lab.environment["LAB_POSTGRES_BIN_DIR"] = str(BIN_DIR)
    lab.play_ok("before")
    assert lab.query("SELECT current_setting('server_version_num')::int / 10000") == [(15,)]
    lab.play_ok("expand_eu")
    play_traffic(lab, 3)
    lab.kill_server()
    lab.play_ok("failover")
    play = lab.play_ok("rejoin")
    assert "(rewound)" in play.output
    lab.play_ok("expand_world")
    play_traffic(lab, 3)
    assert lost(lab) == 0
    rows = "SELECT sync_state FROM pg_stat_replication"
    eventually(lambda: lab.query(rows, offset=1) == [("sync",)])
    with traffic(lab, 180, users=20):
        lab.play_ok("site")
    assert lost(lab) == 0
    assert lab.play_ok("site").changed == 0
    move_somebody(lab)
    assert "HOLDS: no node" in " ".join(lab.play_ok("audit").output.split())
