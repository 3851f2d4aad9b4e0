"""docs/bad-input.md is what the tests say today."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fixtures.refusals import DOCUMENT, sections
from workload.lab import CHECKOUT

AT_LEAST = 60
IMPORT = re.compile(r"^from tests\.fixtures\.refusals import Refusal", re.MULTILINE)


def modules() -> dict[str, Path]:
    """Return the test modules that give wrong input, by the titles of their sections."""
    return {
        (ast.get_docstring(ast.parse(text)) or "").splitlines()[0].rstrip("."): path
        for path in CHECKOUT.glob("tests/*/test_*.py")
        if IMPORT.search(text := path.read_text())
    }


def test_it_has_many_rows_and_no_traceback() -> None:
    assert sum(map(len, sections(DOCUMENT).values())) >= AT_LEAST
    assert "Traceback" not in DOCUMENT.read_text()


def test_each_section_is_a_test_modules() -> None:
    assert set(sections(DOCUMENT)) == set(modules())


def test_unit_tests_write_the_same_sections(tmp_path: Path) -> None:
    """So a row whose test is gone does not stay. The other sections: make bad-input."""
    unit = {title: path for title, path in modules().items() if path.parent.name == "unit"}
    written = tmp_path / "bad-input.md"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--write-refusals", written, *unit.values()],
        cwd=CHECKOUT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
        capture_output=True,
        timeout=120,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    kept = {title: rows for title, rows in sections(DOCUMENT).items() if title in unit}
    assert sections(written) == kept
