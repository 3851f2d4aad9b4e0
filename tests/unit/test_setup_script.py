"""scripts/setup, before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
NEEDED = ("scripts/setup", "pyproject.toml", "requirements.txt", "requirements-dev.txt")

OLD_PYTHON = """#!/bin/sh
if [ "$1" = --version ]; then echo "Python 3.9.2"; exit 0; fi
exit 1
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what the script reads, in a folder with a space in its name."""
    copy = tmp_path / "a checkout"
    for name in NEEDED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, copy / name)
    return copy


def programs(folder: Path, **scripts: str) -> str:
    """Return a PATH with some programs replaced and no other Python on it."""
    folder.mkdir()
    for name in ("sh", "cat", "cksum", "dirname", "pwd"):
        (folder / name).symlink_to(shutil.which(name) or name)
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return str(folder)


def setup(
    checkout: Path, *arguments: str, path: str = "", python: str = ""
) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": path or os.environ["PATH"]}
    if python:
        environ["PYTHON"] = python
    return subprocess.run(
        ["/bin/sh", str(checkout / "scripts/setup"), *arguments],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_old_python_is_refused_in_one_line(checkout: Path, tmp_path: Path) -> None:
    done = setup(checkout, "run", path=programs(tmp_path / "bin", python3=OLD_PYTHON))
    assert done.returncode != 0
    (line,) = (done.stdout + done.stderr).splitlines()
    assert "3.11" in line
    assert "3.9.2" in line
    assert "PYTHON=" in line
    assert not (checkout / ".venv").exists()


def test_no_python_is_refused_in_one_line(checkout: Path, tmp_path: Path) -> None:
    done = setup(checkout, "run", path=programs(tmp_path / "bin"))
    assert done.returncode != 0
    (line,) = (done.stdout + done.stderr).splitlines()
    assert "3.11" in line
    assert "no python3" in line


def test_old_python_that_was_asked_for_is_not_replaced_by_another(
    checkout: Path, tmp_path: Path
) -> None:
    old = tmp_path / "python-old"
    old.write_text(OLD_PYTHON)
    old.chmod(0o755)
    done = setup(checkout, "run", python=str(old))
    assert done.returncode != 0
    assert "3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()


def test_newer_python_beside_an_old_python3_is_found(checkout: Path, tmp_path: Path) -> None:
    newer = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    path = programs(tmp_path / "bin", python3=OLD_PYTHON, **{"python3.12": newer})
    done = setup(checkout, "nonsense", path=path)
    assert done.stderr == "setup: unknown profile 'nonsense': run or dev\n"


def test_second_run_does_nothing(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.installed-run").write_text(_fingerprint(checkout))
    # No pip, uv or venv could run on this PATH, nor could a file be removed.
    done = setup(checkout, "run", path=programs(tmp_path / "bin"), python=sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_changed_pins_are_installed_again(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.installed-run").write_text(_fingerprint(checkout))
    (checkout / "requirements.txt").write_text("nothing==1\n")
    done = setup(checkout, "run", path=programs(tmp_path / "bin"), python=sys.executable)
    assert done.returncode != 0
    assert "setup: installing requirements.txt" in done.stdout


def _fingerprint(checkout: Path) -> str:
    """Run the script's own function: a stamp made elsewhere would prove nothing."""
    text = (checkout / "scripts/setup").read_text()
    function = text[text.index("fingerprint() {") : text.index("\nstamp=")]
    done = subprocess.run(
        ["/bin/sh", "-euc", f"python={sys.executable}\n{function}\nfingerprint requirements.txt"],
        cwd=checkout, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout
