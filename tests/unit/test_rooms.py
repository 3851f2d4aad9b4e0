"""Who may import whom: pyproject.toml says it, and each room's docstring says it to people."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = sorted(path.parent.name for path in CHECKOUT.glob("workload/*/__init__.py"))


def test_rooms_import_only_what_is_below_them() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_imports(room: str) -> None:
    text = (CHECKOUT / "workload" / room / "__init__.py").read_text()
    assert "Imports the core" in text
