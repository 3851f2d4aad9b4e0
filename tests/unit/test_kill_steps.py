"""The points at which tests kill a run: one list, and the calls in the source."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from workload import processes
from workload.lab import CHECKOUT


def test_every_listed_step_is_in_the_source_once_and_the_other_way_round() -> None:
    calls = [
        step
        for path in (CHECKOUT / "workload").rglob("*.py")
        for step in re.findall(r'\breached\("([^"]+)"\)', path.read_text())
    ]
    assert sorted(calls) == sorted(processes.STEPS)


@pytest.mark.parametrize(("step", "status"), [("a.step", -signal.SIGKILL), ("another", 0)])
def test_only_the_step_that_the_environment_names_ends_the_process(step: str, status: int) -> None:
    program = "from workload.processes import reached; reached('a.step')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, env={"LAB_KILL_AT": step}, check=False
    )
    assert done.returncode == status
