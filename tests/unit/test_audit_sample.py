"""The sample: the bound's arithmetic, what is a value of its own, and what is searched for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from workload.audit import controller
from workload.audit.sample import Customer, bound, is_whole, size_from
from workload.errors import LabError
from workload.lab import Lab

ID = "0b0c0d0e-1111-4222-8333-444455556666"


@pytest.mark.parametrize(("count", "percent"), [(500, 0.5973), (100, 2.9513), (1, 95.0)])
def test_bound_is_exact(count: int, percent: float) -> None:
    share = bound(count)
    assert 100 * share == pytest.approx(percent, abs=1e-4)
    # A share this large leaves all of the sample out in one audit of twenty.
    assert math.comb(count, 0) * (1 - share) ** count == pytest.approx(0.05)
    # The rule of three is above it.
    assert share < 3 / count


def test_sample_of_nobody_bounds_nothing() -> None:
    assert bound(0) == 1


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        (b"", b"", True),
        (b" ", b" ", True),
        (b"'", b"'", True),
        (b":", b".", True),
        # A row: the value's length, and a word of any letters after it.
        (bytes([(len("ann@shop.example") + 1) * 2 + 1]), b"abc", True),
        (b"o", b" ", False),
        (b".", b" ", False),
        (b" ", b".au", False),
        (b" ", b"s", False),
        ("\u00e9".encode(), b" ", False),
    ],
)
def test_part_of_a_longer_email_is_none(before: bytes, after: bytes, whole: bool) -> None:
    assert is_whole(b"ann@shop.example", before, after) is whole


def test_patterns_are_parts_of_no_more_than_one_line() -> None:
    raw = "0a0c0d0e-1111-4222-8333-444455556666"
    assert list(Customer("us", ID, "ann@shop.example").patterns()) == [
        ID.encode(),
        bytes.fromhex(ID.replace("-", "")),
        b"ann@shop.example",
    ]
    assert list(Customer("us", raw, "").patterns()) == [raw.encode()]


@pytest.mark.parametrize("value", ["-1", "all", "1e3", "\u0663", "100001"])
def test_size_that_is_none_is_one_line(value: str) -> None:
    with pytest.raises(LabError, match="use a number of customers"):
        size_from({"LAB_AUDIT_SAMPLE": value})
    assert size_from({"LAB_AUDIT_SAMPLE": ""}) == size_from({}) == 500


def test_controller_may_hold_ids_where_they_are_needed_and_no_email(tmp_path: Path) -> None:
    lab = Lab("unit", tmp_path)
    customer = Customer("us", ID, "ann@shop.example")
    for folder in ("ledger", "reports", "nodes/eu/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ledger/1-1.txt").write_text(f"A c {ID} 1 us\n")
    (tmp_path / "nodes/eu/data/16384").write_text(customer.email)
    (tmp_path / "reports/experience.json").write_text("joann@shop.example ann@shop.examples")
    clean = controller.read(lab, [customer])
    assert (clean.files, dict(clean.emails), dict(clean.ids)) == (2, {}, {})
    (tmp_path / "reports/steps.json").write_text(f'{{"email": "{customer.email}", "id": "{ID}"}}')
    (tmp_path / "ledger/1-1.txt").write_text(f"A c {customer.email} 1 us\n")
    found = controller.read(lab, [customer])
    assert dict(found.emails) == {"reports/steps.json": 1, "ledger/1-1.txt": 1}
    assert dict(found.ids) == {"reports/steps.json": 1}


def test_email_on_two_chunks_of_a_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "CHUNK", 500)
    (tmp_path / "demo.log").write_text("x" * 490 + " ann@shop.example " + "y" * 490)
    found = controller.read(Lab("unit", tmp_path), [Customer("us", ID, "ann@shop.example")])
    assert set(found.emails) == {"demo.log"}
