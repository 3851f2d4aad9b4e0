"""What is typed on make's command line arrives as typed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fixtures.labs import CHECKOUT

TEXTS = {
    "dollar": r"SELECT 1 WHERE email ~ '@example\.com$'",
    "parameters": "EXECUTE one($1, $(HOME), ${HOME}, $$)",
    "quotes": """SELECT 'it''s', "name" """,
    "backticks": "SELECT '`id` $(id)'",
    "comment": "SELECT 1 # 2 -- three",
    "per cent": "SELECT 5 % 2, 'a%' LIKE '%d'",
    "lines": "SELECT 1,\n  '$x';\nSELECT 2",
    "backslash": "SELECT E'\\n\\\\'",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("by", ["command line", "environment"])
def test_a_statement_arrives_as_typed(text: str, by: str, tmp_path: Path) -> None:
    # The program that make starts, in the place of the lab's own.
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nprintf %s "$SQL"\n')
    program.chmod(0o755)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "setup").write_text("#!/bin/sh\n")
    (scripts / "setup").chmod(0o755)
    arguments, environ = ([f"SQL={text}"], {}) if by == "command line" else ([], {"SQL": text})
    done = subprocess.run(
        ["make", "-f", CHECKOUT / "Makefile", "psql", f"PYTHON_VENV={program}", *arguments],
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == text
