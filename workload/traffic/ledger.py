"""The customers' own record of their writes, kept outside every database under test.

One line a step: mark, kind, id, microseconds since the epoch, the customer's region. A write has a
line I (intent) before it is sent, and one of A (acknowledged), F (refused) or U (unknown: the
connection broke, so it may be there or not) after it. An intent without a second line is unknown
too. E means that the row was erased since, on purpose.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal
from uuid import UUID

Mark = Literal["I", "A", "F", "U", "E"]
Kind = Literal["c", "p"]
#: What the kinds stand for, and the tables they are in.
KINDS: dict[Kind, str] = {"c": "customer", "p": "purchase"}
#: Bytes at each file's end that are read for what happened in the last minutes.
TAIL = 4_000_000


class Ledger:
    """Appends to one file a process, unbuffered: what was acknowledged survives a kill -9."""

    def __init__(self, folder: Path) -> None:
        """Open a new file in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.time_ns() // 1_000_000}-{os.getpid()}.txt"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, mark: Mark, kind: Kind, key: UUID, region: str = "-") -> None:
        """Append one line."""
        os.write(self._fd, f"{mark} {kind} {key} {time.time_ns() // 1000} {region}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def last_acknowledgement(
    folder: Path,
    since: float = 0,
    until: float = float("inf"),
    regions: Collection[str] | None = None,
) -> float | None:
    """Return when a write was acknowledged last, in seconds since the epoch, or None.

    With until, the last one up to then; with since, the first one from then on; with regions, of
    their customers alone.
    """
    latest: float | None = None
    for mark, moment, region in _latest(folder):
        if mark != "A" or not since <= moment <= until:
            continue
        if regions is not None and region not in regions:
            continue
        if latest is None or (moment < latest if since else moment > latest):
            latest = moment
    return latest


def failures_since(folder: Path, moment: float) -> int:
    """Count the writes that were refused, or whose outcome stayed unknown, from a moment on.

    moment: seconds since the epoch.
    """
    return sum(mark in "FU" and at >= moment for mark, at, _ in _latest(folder))


def _latest(folder: Path) -> Iterator[tuple[str, float, str]]:
    """Yield (mark, seconds since the epoch, region) of some minutes, from each file's end."""
    for path in folder.glob("*.txt"):
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            # The first line is a part of one, unless the file begins there.
            start = max(0, file.tell() - TAIL)
            file.seek(start)
            for line in file.read().split(b"\n")[1 if start else 0 : -1]:
                mark, _, _, microseconds, region = line.decode().split()
                yield mark, int(microseconds) / 1e6, region


def read(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (mark, kind, id) of every whole line of every file in a folder, in no set order."""
    for path in sorted(folder.glob("*.txt")):
        with path.open() as file:
            for line in file:
                # A traffic run may be writing its last line just now.
                if line.endswith("\n"):
                    mark, kind, key, *_ = line.split()
                    yield mark, kind, key
