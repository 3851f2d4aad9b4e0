"""Locust before psycopg: the other way round, one slow query stops every customer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path for folder in ("workload", "bench") for path in CHECKOUT.glob(f"{folder}/**/*.py")
)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


def test_psycopg_first_is_refused_with_the_reason() -> None:
    done = python("import psycopg, workload.traffic.customer")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("ImportError: import locust before psycopg")


def test_locust_first_works() -> None:
    done = python("import locust, psycopg, workload.traffic.customer")
    assert done.returncode == 0, done.stderr


def test_customers_alone_work() -> None:
    done = python("import workload.traffic.customer")
    assert done.returncode == 0, done.stderr


def test_a_slow_query_holds_up_nobody_else() -> None:
    """psycopg itself, as the populations import it, waits where others can run."""
    done = python(
        "import workload.traffic.customer, psycopg; print(psycopg.waiting.wait.__name__);"
        "import socket, gevent.socket; print(socket.socket is gevent.socket.socket)"
    )
    assert done.stdout.split() == ["wait_poll", "True"], done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_files_that_import_both_import_locust_first(path: Path) -> None:
    first: dict[str, int] = {}
    for node in ast.parse(path.read_text()).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            first.setdefault(name.partition(".")[0], node.lineno)
    if {"locust", "psycopg"} <= set(first):
        assert first["locust"] < first["psycopg"]
