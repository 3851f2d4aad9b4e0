"""Which of two measurements of a link is taken."""

from __future__ import annotations

from typing import Any

import pytest

from workload.wan.measure import better, worse


def row(measured_ms: float | None, serves: bool = True) -> dict[str, Any]:
    is_ok = measured_ms is not None and abs(measured_ms - 80) <= 4
    return {
        "from": "us", "node": "eu", "configured_ms": 80.0, "measured_ms": measured_ms, "ok": is_ok,
        "trouble": "", "error": "" if measured_ms else "no answer in time", "serves": serves,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "nearer", "further"),
    [
        (81.0, 86.3, 81.0, 86.3),
        (86.3, 81.0, 81.0, 86.3),
        (73.0, 86.3, 86.3, 73.0),
        # A link that is cut by now is cut, whatever it was; one that was is not any more.
        (81.0, None, None, None),
        (None, 81.0, 81.0, None),
    ],
)
def test_nearer_and_further(
    before: float | None, after: float | None, nearer: float | None, further: float | None
) -> None:
    earlier, later = row(before, serves=False), row(after)
    for found, expected in ((better(earlier, later), nearer), (worse(earlier, later), further)):
        assert found == row(expected)
