"""A cutover that cannot be made now is given up, and nothing is changed."""

from __future__ import annotations

import re
import subprocess
from contextlib import closing

import pytest

from tests.fixtures.after import (
    INSERT,
    assert_not_begun,
    kinds,
    session,
)
from tests.fixtures.labs import CHECKOUT, LabUnderTest, eventually
from workload.wan import control


@pytest.fixture(scope="module")
def sharded(all_at_shard: LabUnderTest) -> LabUnderTest:
    """Return a lab in phase shard, which each test leaves as it was."""
    return all_at_shard


def test_check_run_before_it_changes_nothing(sharded: LabUnderTest) -> None:
    before = sharded.lab.topology_file.read_text()
    assert sharded.play_ok("after", "--check").changed > 0
    assert sharded.lab.topology_file.read_text() == before
    assert set(kinds(sharded, "us").values()) == {"r"}


def test_gives_up_where_a_long_transaction_keeps_the_locks(sharded: LabUnderTest) -> None:
    with closing(session(sharded)) as connection, connection.transaction():
        connection.execute(INSERT, ("long@example.com", "us"))
        given_up = sharded.play("after", "-e", "cutover_timeout_s=3")
        assert given_up.status != 0
        assert "long transaction in 3 s" in given_up.error
        assert "no moment without a long transaction" in given_up.error
    assert_not_begun(sharded, "us")
    assert sharded.query("SELECT count(*) FROM us.customer WHERE email LIKE 'long@%'") == [(1,)]


@pytest.mark.parametrize("state", ["cut", "slow"])
def test_gives_up_where_the_last_rows_do_not_arrive(sharded: LabUnderTest, state: str) -> None:
    """The link fails when the copy is up to date and the customers warm up."""
    topology_file = sharded.lab.topology_file
    # One who never warms up is waited for.
    with closing(session(sharded, application_name="customers of us")):
        run = subprocess.Popen(
            sharded.command("after", "-e", "cutover_timeout_s=2"), cwd=CHECKOUT,
            env=sharded.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        eventually(lambda: '"staged_us' in topology_file.read_text().replace("\\", ""), 60)
        if state == "cut":
            control.set_state(sharded.lab, "us-eu", "cut")
        else:
            control.set_state(sharded.lab, "us-eu", "up", rtt_ms=700)
        try:
            _, said = run.communicate(timeout=90)
        finally:
            control.set_state(sharded.lab, "us-eu", "up")
    assert run.returncode != 0
    errors = [line for line in said.splitlines() if line.startswith("ERROR ")]
    assert len(errors) == 1, said
    # A slow link may be too slow for the connection that waits for the last row.
    late = "us's node did not have the last row|connection timeout"
    assert re.search(late if state == "slow" else "cutover of us", said)
    assert_not_begun(sharded, "us")
