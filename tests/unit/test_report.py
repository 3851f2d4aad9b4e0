"""The report from figures alone: what it compares, what it refuses, and that it fits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from workload.errors import LabError
from workload.lab import Lab
from workload.report import terminal
from workload.report.experience import Experience
from workload.report.findings import Receipts, changes, holdings
from workload.report.roundtrips import Distance

FAR = {
    ("expand_world", "us"): Distance(80, 80),
    ("expand_world", "jp"): Distance(230, 230),
    ("shard", "us"): Distance(80, 0),
    ("shard", "jp"): Distance(230, 0),
}
RTT = {"us": 80.0, "jp": 230.0}


def felt(phase: str, region: str, operation: str, p50_ms: float, stale: int = 0) -> Experience:
    return Experience(phase, region, operation, 1_000, 0, p50_ms, p50_ms, p50_ms, stale)


def road() -> list[Experience]:
    rows = [felt("before", "eu", operation, 2.0) for operation in ("buy", "read")]
    for phase in ("expand_world", "shard", "after"):
        for region in ("eu", "us", "jp"):
            way = FAR.get((phase, region), Distance())
            rows.append(felt(phase, region, "buy", 2.0 + way.writes_ms))
            stale = 30 if phase == "shard" and region != "eu" else 0
            rows.append(felt(phase, region, "read", 1.0 + way.reads_ms, stale))
    return rows


def links(phase: str, serves: bool, looks: bool) -> list[dict[str, Any]]:
    return [
        {
            "phase": phase, "from": region, "node": "eu", "configured_ms": rtt,
            "measured_ms": rtt, "ok": True, "serves": serves, "looks": looks,
        }
        for region, rtt in RTT.items()
    ]  # fmt: skip


WAN = [*links("expand_world", True, True), *links("shard", True, False)]


def audit(phase: str, **found: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Return an entry of residency.json from {node: {region: {where: hits}}}."""
    return {
        "phase": phase,
        "verdict": "HOLDS" if phase == "after" else "VIOLATED",
        "at": "2026-01-01T00:00:00+00:00",
        "nodes": {
            node: {
                "home_region": node,
                "found": [
                    {"region": region, "where": where, "hits": hits}
                    for region, places in regions.items()
                    for where, hits in places.items()
                ],
            }
            for node, regions in found.items()
        },
    }


# -- what is compared ---------------------------------------------------------------------------


def test_before_and_after_of_each_region_with_what_it_gained() -> None:
    found = {(x.region, x.operation): x for x in changes(road(), FAR)}
    jp = found["jp", "buy"]
    assert (jp.far_ms, jp.shard_ms, jp.home_ms) == (232.0, 232.0, 2.0)
    assert jp.speed_up == "116 x"
    assert found["us", "read"].speed_up == "81 x"
    assert found["us", "read"].stale == "30 of 1,000"
    assert found["us", "buy"].stale == ""
    # At home all the time: what is different there is chance.
    assert found["eu", "buy"].speed_up == ""


def test_nothing_is_compared_before_there_is_a_change() -> None:
    rows = [row for row in road() if row.phase in ("before", "expand_world")]
    assert changes(rows, FAR) == []
    assert changes([row for row in road() if row.phase == "after"], FAR) == []


def test_a_phase_without_traffic_leaves_its_place_empty() -> None:
    found = changes([row for row in road() if row.phase != "shard"], FAR)
    assert {x.shard_ms for x in found} == {None}
    assert {x.stale for x in found} == {""}
    assert found[2].speed_up


def test_matrix_of_an_audit_has_every_node_and_region() -> None:
    entry = audit(
        "shard",
        eu={"eu": {"logical": 5, "heap": 2, "wal": 1}, "us": {"logical": 3}},
        us={"us": {"logical": 3}, "unknown": {"logical": 1}},
    )
    cells = {(cell.node, cell.region): cell for cell in holdings(entry)}
    assert set(cells) == {(n, r) for n in ("eu", "us") for r in ("eu", "us", "unknown")}
    assert cells["eu", "eu"].text == "5 + 3"
    assert not cells["eu", "eu"].is_foreign
    assert cells["eu", "us"].is_foreign
    assert cells["us", "unknown"].is_foreign
    assert not cells["us", "eu"].is_there


# -- what is refused ----------------------------------------------------------------------------


def test_a_wan_that_was_off_where_customers_used_it_is_refused() -> None:
    for use in ({"serves": True}, {"serves": False, "looks": True}):
        row = {**WAN[0], "measured_ms": 120.0, **use}
        with pytest.raises(LabError, match=r"us to eu was 120\.0 ms, configured 80 ms"):
            terminal.check_wan([row], [])


def test_a_link_that_nobody_used_may_be_as_it_likes() -> None:
    terminal.check_wan([*WAN, {**WAN[0], "measured_ms": None, "serves": False, "looks": False}], [])


def test_a_phase_whose_wan_was_not_measured_is_refused_where_customers_cross_it() -> None:
    with pytest.raises(LabError, match=r"phase shard .* no measurement of the WAN"):
        terminal.check_wan(links("expand_world", True, True), road())


def test_after_asks_nothing_of_the_wan() -> None:
    rows = [row for row in road() if row.phase == "after"]
    terminal.check_wan([], rows)
    cut = [{**row, "measured_ms": None} for row in links("after", False, False)]
    terminal.check_wan(cut, rows)


# -- what is printed and written ----------------------------------------------------------------


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return a lab in which the whole road was played, by its reports."""
    (tmp_path / "reports").mkdir()
    content: dict[str, Any] = {
        "experience.json": [vars(row) for row in road()],
        "wan.json": WAN,
        "residency.json": [
            audit("shard", eu={"eu": {"heap": 5}, "us": {"logical": 1_234_567, "wal": 89_012}},
                  us={"us": {"logical": 7}}),
            audit("after", eu={"eu": {"logical": 5}}, us={"us": {"logical": 7}}),
        ],
        "partition.json": {"customers": 100, "purchases": 200, "seconds": 1.5,
                           "write_pause_ms": 12.3, "tries": 1, "extra_bytes": 0},
        "replicas.json": {"us": {"rows": 1_000_000, "seconds": 5.0, "rows_per_s": 200_000.0}},
        "cutover.json": [
            {"region": "us", "rtt_ms": 80.0, "write_pause_ms": 95.1, "others_pause_ms": 9.9,
             "tries": 1, "rows": 44, "rows_copied": 44, "copy_rows_per_s": None,
             "acknowledged": 213, "failed": 4, "lost": 0, "doubled": 0}
        ],
        "steps.json": [
            {"phase": phase, "region": region, "requests": 12_345, "failures": 6,
             "buy_p50_ms": 233.3, "buy_slowest_ms": 1407.0, "look_p50_ms": None,
             "look_slowest_ms": None}
            for phase in ("expand_world", "after") for region in ("eu", "jp")
        ],
    }  # fmt: skip
    for name, value in content.items():
        (tmp_path / "reports" / name).write_text(json.dumps(value))
    return Lab("lab", tmp_path)


def printed(lab: Lab) -> str:
    out = io.StringIO()
    terminal.run(lab, Console(file=out, width=80))
    return out.getvalue()


def test_terminal_has_all_of_it_in_80_columns(lab: Lab) -> None:
    said = printed(lab)
    wide = [x for x in said.splitlines() if len(x.rstrip()) > 80 and str(lab.home) not in x]
    assert not wide
    for text in (
        "shard, jp buy: 1 round trip (one statement) x 230 ms",
        "shard, us read: at home, 1.00 ms; 30 of 1,000",
        "116 x",
        "1,234,567 + 89,012!",
        "VIOLATED",
        "HOLDS",
        "Partitioning moved 300 rows in 1.5 s; nobody could write for 12.3 ms.",
        "200,000 rows/s",
        "us 44 80 95.1 9.90 213 4 0",
        "expand_world jp 12,345 6 233 1,407",
    ):
        assert text in " ".join(said.split()), text
    assert "after, " not in said


def test_page_has_charts_matrices_and_receipts_and_needs_no_network(lab: Lab) -> None:
    printed(lab)
    page = (lab.home / "reports" / "index.html").read_text()
    for text in (
        "residency HOLDS", "residency VIOLATED", "1,234,567 + 89,012", "116 x", "Cutovers", "95.1",
        "<td>4</td><td>0</td>", "What each step did", "1,407",
        "shard, jp buy: 1 round trip", "shard, us read: at home",
    ):  # fmt: skip
        assert text in page, text
    assert page.count('class="plotly-graph-div"') == 3
    assert "<script src=" not in page
    assert "cdn.plot" not in page.split("<h1>")[0]


def test_a_name_cannot_break_the_page(lab: Lab) -> None:
    rows = [{**vars(row), "phase": "<b>"} for row in road() if row.phase == "before"]
    (lab.home / "reports" / "experience.json").write_text(json.dumps(rows))
    printed(lab)
    assert "<td><b>" not in (lab.home / "reports" / "index.html").read_text()


def test_the_start_of_the_road_has_its_report_too(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    rows = [vars(row) for row in road() if row.phase == "before"]
    (tmp_path / "reports" / "experience.json").write_text(json.dumps(rows))
    said = printed(Lab("lab", tmp_path))
    assert "What sharding changed" not in said
    assert "nothing crosses the WAN" in (tmp_path / "reports" / "index.html").read_text()


def test_a_damaged_receipt_is_named(lab: Lab) -> None:
    (lab.home / "reports" / "partition.json").write_text("{")
    with pytest.raises(LabError, match=r"partition\.json is damaged"):
        Receipts.load(lab)
