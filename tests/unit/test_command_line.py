"""python -m workload, as make calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workload.__main__ import parser
from workload.lab import CHECKOUT


def workload(home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    make = ("LAB_", "USERS", "SPAWN_RATE", "TIME", "HEADLESS", "WEB_PORT")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(make)}
    return subprocess.run(
        [sys.executable, "-m", "workload", *arguments],
        cwd=CHECKOUT,
        env={**clean, "LAB_HOME": str(home), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("variable", "option"),
    [
        ("USERS", "--users"),
        ("SPAWN_RATE", "--spawn-rate"),
        ("TIME", "--time"),
        ("WEB_PORT", "--web-port"),
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "abc"])
def test_bad_number_is_a_usage_error_that_names_the_option(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    option: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["traffic"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert option in last
    assert value in last


@pytest.mark.parametrize("command", ["traffic", "verify", "wan", "report", "status", "psql"])
def test_without_a_lab_one_line_names_make_demo(tmp_path: Path, command: str) -> None:
    done = workload(tmp_path, command, HEADLESS="1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("lab: no ")
    assert "make demo" in line
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_bad_lab_name_is_one_line(tmp_path: Path) -> None:
    done = workload(tmp_path, "verify", LAB_NAME="No Name")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "LAB_NAME is 'No Name'" in line


def test_unknown_command_names_those_there_are(tmp_path: Path) -> None:
    done = workload(tmp_path, "trafic")
    assert done.returncode == 2
    assert "traffic" in done.stderr
    assert "verify" in done.stderr
