"""make lint is a test, so that nobody can forget it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_lint_has_no_finding() -> None:
    done = subprocess.run(
        [CHECKOUT / "scripts/lint"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
