"""The scan of a node's files, run by the shell on a folder that looks like a data directory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import UUID

import pytest

from workload.audit.canaries import Canary, new_canary
from workload.audit.sample import Customer
from workload.audit.scan import ONE_PLACE, scan
from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.server import NodeServer, Place


class Folder(NodeServer):
    """A folder with the files of a node and no server."""

    def __init__(self, data: Path, log: bytes | None, while_running: Callable[[], None]) -> None:
        lab = Lab("unit", data)
        super().__init__(Place(lab, "embedded", "eu", "", 0, "", "", "", ""))
        self.data, self.said, self.while_running = data, log, while_running

    def run(
        self, script: str, environ: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> bytes:
        self.while_running()
        done = subprocess.run(
            ["/bin/sh", "-eu", "-c", script],
            env={**os.environ, "PGDATA": str(self.data), **(environ or {})},
            input=stdin,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def identity(self) -> int | None:
        return None

    def log_file(self) -> Path | None:
        return None

    def log_bytes(self) -> bytes | None:
        return self.said

    def address_for_peers(self) -> tuple[str, int]:
        raise NotImplementedError

    def is_running(self) -> bool:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "a node's data"
    for name in ("base/5", "pg_wal", "base/pgsql_tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "PG_VERSION").write_text("17\n")
    return folder


@pytest.fixture
def canary() -> Canary:
    return new_canary("us", "us", "before")


def node(data: Path, log: bytes | None = b"") -> Folder:
    return Folder(data, log, lambda: None)


def test_each_pattern_is_a_place(data: Path, canary: Canary) -> None:
    apart = bytes(500)
    (data / "base/5/16384").write_bytes(
        apart.join(
            (
                canary.email.encode(),
                UUID(canary.id).bytes,
                b"\n" + UUID(canary.purchase).bytes,
                canary.id.encode() + b"\n",
                canary.marker[5:13].encode(),
            )
        )
    )
    (data / "pg_wal/0001").write_bytes(b"\n\n" + canary.email.encode() + bytes(1_000_000))
    found = scan(node(data), [canary, new_canary("eu", "uk", "before")])
    assert found.hits == {("us", "heap"): 5, ("us", "wal"): 1}
    assert found.kinds == {
        canary.marker: {
            ("heap", "marker"),
            ("heap", "id"),
            ("heap", "id_text"),
            ("heap", "window"),
            ("wal", "marker"),
        }
    }
    assert found.vanished == 0
    assert found.read["wal"] == 1_000_002 + len(canary.email)


def test_parts_side_by_side_are_one_place(data: Path, canary: Canary) -> None:
    text = canary.marker.encode()
    packed = b"\x01".join(text[start : start + 8] for start in range(0, 32, 8))
    # As a page's header parts a WAL record.
    parted = text[:13] + bytes(40) + text[13:]
    apart = bytes(ONE_PLACE)
    (data / "base/5/2619").write_bytes(apart.join((packed, packed, parted)))
    assert scan(node(data), [canary]).hits == {("us", "statistics"): 3}


def test_log_that_the_engine_keeps_is_read_too(data: Path, canary: Canary) -> None:
    found = scan(node(data, f"LOG: {canary.email}\n".encode()), [canary])
    assert found.hits == {("us", "log"): 1}
    assert found.read["log"] > 50
    assert not found.no_log
    assert scan(node(data, None), [canary]).no_log


def test_nothing_is_found_where_nothing_is(data: Path, canary: Canary) -> None:
    (data / "base/5/16384").write_bytes(new_canary("us", "us", "").email.encode())
    found = scan(node(data), [canary])
    assert not found.hits
    assert not found.kinds


def test_more_files_than_fit_a_command_line(data: Path, canary: Canary) -> None:
    for number in range(6000):
        (data / "base/5" / f"{number:060}").touch()
    (data / "base/5/16384").write_text(canary.email)
    assert scan(node(data), [canary]).hits == {("us", "heap"): 1}


@pytest.mark.parametrize("how", ["dangling", "loop", "fifo"])
def test_unreadable_file_is_named(data: Path, canary: Canary, how: str) -> None:
    path = data / "base/5/16999"
    if how == "dangling":
        path.symlink_to("nowhere")
    elif how == "loop":
        path.symlink_to("16999")
    else:
        os.mkfifo(path)
    with pytest.raises(LabError, match=r"eu: \./base/5/16999 cannot be read"):
        scan(node(data), [canary])


def test_linked_folder_is_read(data: Path, canary: Canary, tmp_path: Path) -> None:
    space = tmp_path / "space/PG_17_202406281/5"
    space.mkdir(parents=True)
    (space / "16384").write_text(canary.email)
    (data / "pg_tblspc").mkdir()
    (data / "pg_tblspc/16400").symlink_to(tmp_path / "space")
    assert scan(node(data), [canary]).hits == {("us", "heap"): 1}


def test_sample_is_found_by_email_and_by_id_and_has_its_line_in_a_log(data: Path) -> None:
    ann, bob = (
        Customer("us", f"{number}b0c0d0e-1111-4222-8333-444455556666", f"{name}@shop.example")
        for number, name in ((1, "ann"), (2, "bob"))
    )
    row = b"\0\x23ann@shop.exampleuk" + bytes(90)
    (data / "base/5/16384").write_bytes(row + UUID(bob.id).bytes + bytes(9) + b"joann@shop.example")
    log = f"LOG: a\n2026-01-01 [7] FATAL: role '{ann.email}'\nLOG: joann@shop.example\n"
    scanned = scan(node(data, log.encode()), [], (), [ann, bob])
    assert scanned.sampled == {("us", "heap"): {ann, bob}, ("us", "log"): {ann}}
    heap, line = sorted(scanned.places, key=lambda place: place.where)
    assert (heap.file, heap.hits) == ("base/5/16384", 2)
    assert (line.line, line.severity, line.hits) == (2, "FATAL", 1)
    assert "@" not in repr(scanned.places)


def test_what_is_searched_for_never_reaches_the_nodes_disk(data: Path) -> None:
    ann = Customer("us", "1b0c0d0e-1111-4222-8333-444455556666", "ann@shop.example")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    scan(node(data), [], (), [ann])
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
