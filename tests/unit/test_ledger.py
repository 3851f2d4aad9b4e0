"""The ledger, and files that are written whole or not at all."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from workload.lab import CHECKOUT, read_json, write_atomically
from workload.traffic import ledger as ledgers
from workload.traffic.ledger import Ledger, failures_since, last_acknowledgement, read


def test_what_is_written_is_read(tmp_path: Path) -> None:
    key, other = uuid4(), uuid4()
    ledger = Ledger(tmp_path / "ledger")
    ledger.write("I", "c", key)
    ledger.write("A", "c", key)
    ledger.write("F", "p", other)
    assert list(read(tmp_path / "ledger")) == [
        ("I", "c", str(key)),
        ("A", "c", str(key)),
        ("F", "p", str(other)),
    ]
    ledger.close()


def test_line_is_mark_kind_id_microseconds_and_region(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write("U", "p", UUID(int=7), "us")
    ledger.close()
    (file,) = tmp_path.glob("*.txt")
    line = re.fullmatch(r"U p 00000000-0000-0000-0000-000000000007 (\d{16}) us\n", file.read_text())
    assert line
    assert abs(int(line[1]) / 1e6 - time.time()) < 60


def test_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    key = uuid4()
    ledger = Ledger(tmp_path)
    ledger.write("I", "c", key)
    ledger.close()
    (file,) = tmp_path.glob("*.txt")
    whole = file.read_bytes()
    for cut in range(1, len(whole)):
        file.write_bytes(whole + whole[:cut])
        assert list(read(tmp_path)) == [("I", "c", str(key))]


def write_at(folder: Path, seconds: float, mark: str, region: str = "us") -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "1-1.txt").open("a") as file:
        file.write(f"{mark} p {uuid4()} {int(seconds * 1e6)} {region}\n")


def test_failures_are_what_was_refused_or_in_doubt_from_a_moment_on(tmp_path: Path) -> None:
    for seconds, mark in ((10, "F"), (20, "I"), (20, "F"), (21, "U"), (22, "A"), (23, "E")):
        write_at(tmp_path, seconds, mark)
    assert failures_since(tmp_path, 20) == 2
    assert failures_since(tmp_path, 10) == 3
    assert failures_since(tmp_path / "none", 10) == 0


def test_what_happened_just_now_is_read_from_the_end_of_a_long_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in range(10, 30):
        write_at(tmp_path, seconds, "A" if seconds % 2 else "F")
    # About two lines and a half.
    monkeypatch.setattr(ledgers, "TAIL", 150)
    assert failures_since(tmp_path, 0) == 1
    assert last_acknowledgement(tmp_path) == 29
    assert last_acknowledgement(tmp_path, regions=["jp"]) is None


def test_files_of_several_processes_are_one_ledger(tmp_path: Path) -> None:
    script = "import sys, pathlib, uuid; from workload.traffic.ledger import Ledger;"
    script += "Ledger(pathlib.Path(sys.argv[1])).write('I', 'c', uuid.uuid4())"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=CHECKOUT, check=True)
    assert len(list(tmp_path.glob("*.txt"))) == 2
    assert len(list(read(tmp_path))) == 2


def test_no_folder_is_an_empty_ledger(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none")) == []


def test_file_is_written_with_its_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "customers"
    write_atomically(path, "s3cret", mode=0o600)
    assert path.read_text() == "s3cret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import itertools, pathlib, sys
from workload.lab import write_atomically
path = pathlib.Path(sys.argv[1])
for number in itertools.count():
    write_atomically(path, '{"number": "' + str(number % 10) * 200_000 + '"}', mode=0o600)
"""


def test_kill_in_the_middle_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    rng = random.Random(7)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=CHECKOUT)
        deadline = time.monotonic() + 30
        before = path.stat().st_ino if path.exists() else None
        while not path.exists() or path.stat().st_ino == before:
            assert time.monotonic() < deadline, "the writer wrote nothing in 30 s"
            assert writer.poll() is None
        # Any moment will do; this spreads them over a write.
        time.sleep(rng.uniform(0, 0.02))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        text = read_json(path)["number"]
        assert len(text) == 200_000
        assert len(set(text)) == 1
        assert path.stat().st_mode & 0o777 == 0o600
