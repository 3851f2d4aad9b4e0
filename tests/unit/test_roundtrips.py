"""Why an operation takes as long as it does, in every phase."""

from __future__ import annotations

from typing import Any

from workload.report.experience import Experience
from workload.report.roundtrips import Distance, distances, explain, read_notes

RTT = {"us": 80.0, "jp": 230.0}


def link(phase: str, region: str, serves: bool, **more: Any) -> dict[str, Any]:
    row = {"phase": phase, "from": region, "node": "eu", "configured_ms": RTT[region]}
    return {**row, "measured_ms": RTT[region], "serves": serves, **more}


def felt(phase: str, region: str, operation: str, p50_ms: float, stale: int = 0) -> Experience:
    return Experience(phase, region, operation, 10, 0, p50_ms, p50_ms, p50_ms, stale)


def test_who_is_served_from_afar_pays_for_writes_and_looks() -> None:
    assert distances([link("expand_world", "us", True, looks=True)]) == {
        ("expand_world", "us"): Distance(80, 80)
    }


def test_a_link_that_nobody_uses_makes_no_way() -> None:
    assert distances([link("after", "us", False, looks=False)]) == {}


def test_rows_from_before_there_were_reads_elsewhere_count_for_both() -> None:
    assert distances([link("expand_world", "jp", True)])["expand_world", "jp"] == Distance(230, 230)


def test_in_shard_writes_pay_and_looks_do_not() -> None:
    far = distances([link("shard", "jp", True, looks=False)])
    rows = [
        felt("shard", "eu", "buy", 2.0),
        felt("shard", "eu", "basket", 5.0),
        felt("shard", "jp", "buy", 232.0),
        felt("shard", "jp", "basket", 925.0),
        felt("shard", "jp", "read", 1.0, stale=3),
        # Half of these go home and half do not: no one figure explains them.
        felt("shard", "jp", "connect", 930.0),
    ]
    found = {x.operation: x for x in explain(rows, far)}
    assert set(found) == {"buy", "basket"}
    assert found["buy"].predicted_ms == 232.0
    assert (found["basket"].round_trips, found["basket"].predicted_ms) == (4, 925.0)
    (note,) = read_notes(rows, far)
    assert note.startswith("shard, jp read: at home, 1.00 ms; 3 of 10")


def test_the_work_is_that_of_who_did_the_same_at_home() -> None:
    rows = [felt("shard", "us", "read", 0.5), felt("shard", "jp", "buy", 234.0)]
    far = {("shard", "us"): Distance(80, 0), ("shard", "jp"): Distance(230, 0)}
    (found,) = explain(rows, far)
    assert found.local_ms == 0.0
    (found,) = explain([*rows, felt("shard", "eu", "buy", 4.0)], far)
    assert found.local_ms == 4.0


def test_nobody_pays_in_after() -> None:
    rows = [felt("after", region, "buy", 2.0) for region in ("eu", "us", "jp")]
    assert explain(rows, {("expand_world", "us"): Distance(80, 80)}) == []
    assert read_notes(rows, {}) == []


def test_first_statements_are_told_from_the_rest() -> None:
    far = {("expand_world", "us"): Distance(80, 80)}
    (prepared,) = explain([felt("expand_world", "us", "buy", 82.0)], far)
    (first,) = explain([felt("expand_world", "us", "buy", 165.0)], far)
    assert not prepared.is_first
    assert first.is_first
