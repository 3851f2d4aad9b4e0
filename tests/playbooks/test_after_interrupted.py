"""Phase after, cut short at any point: the next run mends it, and nothing is lost or leaked."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable

import psycopg
import pytest

from tests.fixtures.kills import kill_all
from tests.fixtures.labs import LabUnderTest
from tests.fixtures.traffic import acknowledged, traffic
from workload.audit.run import audit
from workload.proof.verify import verify
from workload.topology import Topology

pytestmark = pytest.mark.soak

SEED = int(os.environ.get("LAB_TEST_SEED") or 20261124)
#: What the catalogue of eu says at a moment of the phase.
ENTERED = "SELECT to_regnamespace('retired_us') IS NOT NULL"
SWAPPED = (
    "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('us.customer') AND relkind = 'f')"
)
RETIRED = "SELECT to_regnamespace('retired_jp') IS NOT NULL"
LONGEST_S = 60


def reach(lab: LabUnderTest, moment: str, is_over: Callable[[], bool]) -> bool:
    """Wait until eu says that a moment has come; return whether it did while the run went on."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline and not is_over():
        # The server may have been killed, and not be back yet.
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(lab.login().conninfo(), autocommit=True) as connection,
        ):
            while time.monotonic() < deadline and not is_over():
                if connection.execute(moment.encode()).fetchone() == (True,):
                    return True
                time.sleep(0.001)
        time.sleep(0.05)
    return False


def test_killed_runs_and_servers_converge(new_lab: Callable[..., LabUnderTest]) -> None:
    lab = new_lab("embedded")
    moments = random.Random(SEED)
    try:
        for phase in ("before", "expand_eu", "expand_world"):
            lab.play_ok(phase)
        with traffic(lab, 240, users=20):
            # The playbook, three times: anywhere before the cutover, in it, and right after it.
            for moment in ("", ENTERED, SWAPPED):
                run = lab.start("after")
                if moment:
                    assert reach(lab, moment, lambda run=run: run.poll() is not None), moment  # type: ignore[misc]
                    time.sleep(moments.uniform(0, 0.15))
                else:
                    time.sleep(moments.uniform(2, 8))
                kill_all(run)
            # A server, twice: the new home and the old one, while the second region moves.
            for node in ("jp", "eu"):
                run = lab.start("after")
                if reach(
                    lab,
                    "SELECT to_regnamespace('retired_jp') IS NOT NULL",
                    lambda run=run: run.poll() is not None,  # type: ignore[misc]
                ):
                    time.sleep(moments.uniform(0, 0.3))
                    lab.kill_server(node)
                run.wait(120)
            # And the playbook once more, between what is dropped and what is scrubbed.
            run = lab.start("after")
            reach(lab, RETIRED, lambda: run.poll() is not None)
            if reach(
                lab,
                "SELECT to_regnamespace('retired_jp') IS NULL",
                lambda: run.poll() is not None,
            ):
                kill_all(run)
            run.wait(60)
            play = lab.play("after")
            assert play.status == 0, f"seed {SEED}\n{play.output}{play.errors}"
            already = acknowledged(lab)
            deadline = time.monotonic() + 20
            while acknowledged(lab) < already + 50:
                assert time.monotonic() < deadline, "nobody can write"
                time.sleep(0.1)
        assert all(verdict.holds for verdict in verify(Topology.load(lab.lab), "password")), SEED
        found = audit(Topology.load(lab.lab), "password")
        assert found.holds, (SEED, [node.foreign() for node in found.nodes])
        assert lab.play_ok("after").changed == 0
    finally:
        lab.remove()
