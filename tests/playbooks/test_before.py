"""Phase before, played for real in both runtimes."""

from __future__ import annotations

import pytest

from tests.fixtures.labs import LabUnderTest

pytestmark = pytest.mark.slow


def test_second_run_changes_nothing(shared_lab: LabUnderTest) -> None:
    assert shared_lab.play_ok("before").changed == 0


def test_dry_run_on_a_running_lab_changes_nothing(shared_lab: LabUnderTest) -> None:
    assert shared_lab.play_ok("before", "--check").changed == 0
