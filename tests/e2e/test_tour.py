"""docs/tour.md, typed as it stands: what is to succeed does, and what is to fail says so there."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable

import pytest

from tests.fixtures.labs import CHECKOUT, LabUnderTest

pytestmark = [pytest.mark.slow, pytest.mark.soak]

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Waits for a person: Locust's page, a prompt.
INTERACTIVE = re.compile(r"make traffic *(#.*)?|make psql NODE=jp *(#.*)?|\.venv/bin/psql .*")
ENDED = "@@ ended with"


def script() -> str:
    """Return the tour's commands for bash, each line said before and its status after it."""
    lines = []
    for block in BLOCK.findall((CHECKOUT / "docs/tour.md").read_text()):
        if "() {" in block:
            lines.append(block)
            continue
        for line in block.splitlines():
            if not INTERACTIVE.fullmatch(line):
                quick = re.sub(r"\bTIME=30\b", "TIME=8", line)
                lines += [f"echo {shlex.quote('$ ' + line)}", quick, f'echo "{ENDED} $?"']
    return "\n".join(lines)


def test_the_tour_as_it_is_written(new_lab: Callable[..., LabUnderTest]) -> None:
    lab = new_lab("embedded")
    try:
        done = subprocess.run(
            ["bash", "-c", script()],
            cwd=CHECKOUT,
            env=lab.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
            check=False,
        )
        ended = re.findall(rf"^\$ (.*?)$.*?^{ENDED} (\d+)$", done.stdout, re.M | re.S)
        assert len(ended) > 40
        surprises = [
            (line, status)
            for line, status in ended
            if (status != "0") != bool(re.search(r"# .*\bfails\b", line))
        ]
        assert surprises == [], done.stdout
        assert done.stdout.count("HOLDS: every acknowledged write is there, once.") >= 5
        assert not lab.lab.home.exists()
    finally:
        lab.remove()
