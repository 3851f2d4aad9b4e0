"""A person's own ansible-playbook: it works, or says in one line what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from workload.lab import CHECKOUT


def play(tmp_path: Path, *missing: str, patch: str = "") -> subprocess.CompletedProcess[str]:
    """Make a dry run with the Python below the virtual environment, and some packages missing."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith((*missing, "__editable__")) and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    (packages / "sitecustomize.py").write_text(patch)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAB_", "ANSIBLE_"))}
    own = {"PYTHONPATH": str(packages), "LAB_HOME": str(tmp_path / "home"), "LAB_NAME": "own"}
    ports = {"LAB_PORT_BASE": "20500", "LAB_RUNTIME": "embedded", "LC_ALL": "C.UTF-8"}
    script = "import sys; from ansible.cli.playbook import main; sys.argv[0] = 'ansible-playbook'"
    return subprocess.run(
        [
            *(f"{sys.base_prefix}/bin/python3", "-P", "-c", f"{script}; main()"),
            *("playbooks/before.yml", "--check"),
        ],
        cwd=CHECKOUT,
        env={**clean, **own, **ports},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_works_where_its_python_has_what_the_lab_needs(tmp_path: Path) -> None:
    done = play(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done, changed=" in done.stdout


@pytest.mark.parametrize(
    ("missing", "patch", "says"),
    [
        ("psycopg", "", "has no psycopg"),
        ("rich", "", "has no rich"),
        (
            "none",
            "import ansible.release; ansible.release.__version__ = '2.16.3'",
            "this is ansible-core 2.16.3",
        ),
    ],
)
def test_it_says_in_one_line_what_is_missing(
    tmp_path: Path, missing: str, patch: str, says: str
) -> None:
    done = play(tmp_path, missing, patch=patch)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert says in line
    assert "make setup, then .venv/bin/ansible-playbook" in line
    assert "Traceback" not in done.stdout
