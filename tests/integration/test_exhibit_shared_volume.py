"""The exhibit of two servers on one data directory: what it shows, and that it cleans up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from exhibits.shared_volume import OWN_PID_AND_IPC
from tests.fixtures.labs import CHECKOUT, eventually
from tests.fixtures.require import skip_or_fail
from workload.errors import LabError
from workload.nodes.embedded import ROOT_ESCAPE, find_bin_dir

pytestmark = pytest.mark.soak

SHOW = [sys.executable, "-m", "exhibits", "shared-volume", "--seconds=3"]


def run(command: Sequence[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the exhibit below a folder of its own, where whatever it leaves can be found."""
    return subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(folder), **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def at_work_in(folder: Path) -> list[str]:
    """Return the command lines of all processes that have to do with a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if str(folder) in command or Path(process.cwd()).is_relative_to(folder):
                found.append(command)
        except (psutil.Error, OSError):
            continue
    return found


def assert_nothing_is_left(folder: Path) -> None:
    assert at_work_in(folder) == []
    assert list(folder.iterdir()) == []


def figures(story: str, row: str) -> list[int]:
    """Return the figures of a row of the story's table: eu_db, eu_db_2, both."""
    found = re.search(rf"^ *{re.escape(row)} +([\d,]+) +([\d,]+) +([\d,]+) ", story, re.MULTILINE)
    assert found, story
    return [int(figure.replace(",", "")) for figure in found.groups()]


def assert_story(done: subprocess.CompletedProcess[str]) -> None:
    """Check what holds in every run, whatever was lost in this one."""
    story = done.stdout
    assert (done.returncode, done.stderr) == (0, ""), story + done.stderr
    assert max(len(line.rstrip()) for line in story.splitlines()) <= 80
    assert re.search(r'none.* FATAL: lock file "postmaster.pid" already exists', story)
    assert re.search(r"PID +FATAL: pre-existing shared memory block", story)
    assert re.search(r"PID, IPC: containers +starts: .*not properly shut down", story)
    assert figures(story, "errors the client saw") == [0, 0, 0]
    acknowledged = figures(story, "acknowledged")
    assert all(acknowledged)
    lost = figures(story, "LOST")
    present = figures(story, "in the table, alone again")
    assert acknowledged == [a + b for a, b in zip(lost, present, strict=True)]
    # What stopped last wrote the whole index: the other server's rows are in no leaf of it.
    by_id = figures(story, "found by their id")
    assert by_id[2] < acknowledged[2]
    assert "pg_checksums: 0 bad blocks of " in story
    assert "pg_amcheck --heapallindexed: damaged: " in story
    assert "streaming standby with a volume of its own" in story


@pytest.fixture(autouse=True)
def _needs() -> None:
    try:
        find_bin_dir(os.environ.get("LAB_POSTGRES_BIN_DIR", ""))
    except LabError as error:
        skip_or_fail("postgresql", str(error))
    done = subprocess.run([*OWN_PID_AND_IPC, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        skip_or_fail("namespaces", f"no PID and IPC namespaces can be made: {done.stderr.strip()}")


def test_two_servers_lose_what_both_acknowledged_and_nothing_is_left(tmp_path: Path) -> None:
    done = run(SHOW, tmp_path)
    assert_story(done)
    assert_nothing_is_left(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root, so the other tests are this one")
def test_ordinary_user_sees_the_same(tmp_path: Path) -> None:
    done = run([*ROOT_ESCAPE, *SHOW], tmp_path)
    assert_story(done)
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "sign", ["data.*/global", "data/postmaster.pid", "eu_db_2.log", "eu_db_2.acknowledged"]
)
def test_interrupted_anywhere_it_leaves_nothing(
    tmp_path: Path, sign: str, number: signal.Signals
) -> None:
    exhibit = subprocess.Popen(
        [*SHOW[:-1], "--seconds=20"],
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        eventually(lambda: list(tmp_path.glob(f"*/node/{sign}")), 15)
        if number == signal.SIGINT:
            os.killpg(exhibit.pid, number)  # As a terminal does on Ctrl-C.
        else:
            exhibit.send_signal(number)
        _, said = exhibit.communicate(timeout=15)
    finally:
        exhibit.kill()
        exhibit.communicate()
    assert exhibit.returncode == 128 + number
    assert said in ("", "exhibits: interrupted; servers and data are removed\n")
    assert_nothing_is_left(tmp_path)


def test_without_namespaces_it_says_so_in_one_line(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    stub = programs / "unshare"
    stub.write_text(
        "#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1"
    )
    stub.chmod(0o755)
    folder = tmp_path / "tmp"
    folder.mkdir()
    done = run(SHOW, folder, PATH=f"{programs}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert done.stderr.startswith("exhibits: no PID and IPC namespaces can be made here (unshare:")
    assert len(done.stderr.splitlines()) == 1
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("name", [["shared-disk"], []])
def test_unknown_exhibit_is_told_the_known_ones(tmp_path: Path, name: list[str]) -> None:
    done = run([*SHOW[:3], *name], tmp_path)
    assert done.returncode == 2
    assert "use shared-volume" in done.stderr
    assert len(done.stderr.splitlines()) == 1
