"""The verdict, residency.json, and what people read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from workload.audit import report
from workload.audit.places import FILES, Where
from workload.audit.residency import NodeFinds, Residency, load, save
from workload.errors import LabError
from workload.lab import Lab

AT = "2026-01-01T00:00:00+00:00"
READ: dict[Where, int] = dict.fromkeys(FILES, 1500000)


def finds(node: str, home: str, **hits: int) -> NodeFinds:
    """Return a node's finds from arguments such as us_heap=3."""
    found: dict[tuple[str, Where], int] = {}
    for name, count in hits.items():
        region, _, where = name.partition("_")
        found[region, where] = count  # type: ignore[index]
    return NodeFinds(node, home, found, READ, seconds=0.5)


def printed(residency: Residency) -> str:
    console = Console(file=io.StringIO(), width=80)
    report.show(residency, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    return " ".join(text.replace("\u00a0", " ").split())


def test_home_finds_are_no_violation() -> None:
    residency = Residency("after", AT, [finds("eu", "eu", eu_logical=9, eu_heap=4, us_wal=0)])
    assert residency.holds
    assert "HOLDS: no node has a row" in printed(residency)


@pytest.mark.parametrize("where", ["logical", *FILES])
def test_one_find_of_another_region_anywhere_is_a_violation(where: str) -> None:
    residency = Residency(
        "after", AT, [finds("eu", "eu", eu_heap=1), finds("us", "us", **{f"eu_{where}": 1})]
    )
    assert not residency.holds
    text = printed(residency)
    assert "VIOLATED: us holds " in text
    assert "HOLDS" not in text
    assert "eu 1!" in text


def test_violation_says_which_node_and_how_much() -> None:
    node = finds("us", "us", eu_logical=1234, eu_heap=3, eu_statistics=101, us_logical=7)
    assert list(report.violations(node)) == [
        "VIOLATED: us holds 1,234 rows of eu; its customers' traces: 3 in heap, 101 in statistics"
    ]
    assert list(report.violations(finds("us", "us", eu_wal=2))) == [
        "VIOLATED: us holds traces of eu's customers: 2 in wal"
    ]
    assert list(report.violations(finds("us", "us", unknown_logical=1))) == [
        "VIOLATED: us holds 1 row whose country no region serves"
    ]


def test_figures_have_their_units() -> None:
    text = printed(Residency("before", AT, [finds("eu", "eu", eu_logical=1)]))
    assert "Read on 1 node: heap 1.5 MB, wal 1.5 MB" in text
    assert "15 MB/s, 0.5 s" in text
    assert "Not read: memory and swap" in text


def test_what_was_not_read_is_said_beside_the_verdict() -> None:
    node = finds("eu", "eu", eu_heap=1)
    node.not_read.append("tables and statistics by SQL (its server is not running)")
    node.unproved = list(FILES)
    text = printed(Residency("before", AT, [node]))
    assert "HOLDS, as far as could be read:" in text
    assert "Not read on eu: tables and statistics by SQL" in text
    assert "Not proved on eu" in text


def test_large_figures_fit_the_page() -> None:
    nodes = [
        finds(
            "eu_2", "eu", eu_logical=12_345_678, us_logical=12_345_678, jp_heap=99_999,
            us_wal=12_345, us_statistics=1_234, jp_log=123, us_temp=54_321,
        )
    ]  # fmt: skip
    text = printed(Residency("shard", AT, nodes))
    assert "eu 12,345,678" in text
    assert "us 54,321!" in text


def test_file_has_the_last_audit_of_each_phase(tmp_path: Path) -> None:
    lab = Lab("unit", tmp_path)
    save(lab, Residency("after", AT, [finds("eu", "eu", eu_heap=1)]))
    save(lab, Residency("shard", AT, [finds("eu", "eu", us_heap=1)]))
    save(lab, Residency("after", AT, [finds("us", "us", us_log=2, us_logical=3)]))
    shard, after = json.loads((tmp_path / "reports/residency.json").read_text())
    assert (shard["phase"], shard["verdict"]) == ("shard", "VIOLATED")
    assert (after["phase"], after["verdict"]) == ("after", "HOLDS")
    (node,) = after["nodes"].values()
    assert node["home_region"] == "us"
    assert node["found"] == [
        {"region": "us", "where": "logical", "hits": 3},
        {"region": "us", "where": "log", "hits": 2},
    ]
    assert node["read"] == [{"where": where, "bytes": 1_500_000} for where in FILES]


def test_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/residency.json").write_text("{")
    with pytest.raises(LabError, match=r"residency\.json is damaged .*: remove it; make audit"):
        load(Lab("unit", tmp_path))
