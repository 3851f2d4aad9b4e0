"""Canaries: markers that survive compression, and a file that forgets none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

import pytest

from workload.audit.canaries import (
    ID_PREFIX,
    canaries_file,
    load,
    new_canary,
    new_id,
    new_marker,
    save,
    statements,
    windows,
)
from workload.errors import LabError
from workload.lab import Lab
from workload.topology import PHASES


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab("unit", tmp_path)


def test_markers_share_nothing_with_hexadecimal_text() -> None:
    markers = [new_marker() for _ in range(200)]
    assert all(re.fullmatch("[g-z]{24,}", marker) for marker in markers)
    parts = [part for marker in markers for part in windows(marker)]
    assert len(set(parts)) == len(parts)


def test_one_of_the_first_eight_windows_is_between_two_control_bytes() -> None:
    marker = new_marker()
    for before in range(8):
        # pglz: a control byte, then eight items, which are letters as they are.
        items = "#" * before + marker
        packed = b"".join(
            b"\x01" + items[start : start + 8].encode() for start in range(0, len(items), 8)
        )
        assert marker.encode() not in packed
        assert sum(part in packed for part in windows(marker)[:8]) == 1


def test_ids_are_patterns_of_one_line_and_begin_alike() -> None:
    for _ in range(500):
        value = UUID(new_id())
        assert not {0, 10} & set(value.bytes)
        assert value.bytes.startswith(ID_PREFIX)
        assert value.version == 4


def test_patterns_are_marker_windows_and_ids() -> None:
    canary = new_canary("eu", "uk", "before")
    patterns = canary.patterns()
    assert patterns[canary.marker.encode()] == "marker"
    assert patterns[canary.marker[3:11].encode()] == "window"
    for key in (canary.id, canary.purchase):
        assert patterns[UUID(key).bytes] == "id"
        assert patterns[key.encode()] == "id_text"
    assert len(patterns) == 1 + (32 - 8 + 1) + 4
    assert not any(b"\n" in pattern or b"\0" in pattern for pattern in patterns)


def test_file_keeps_all_generations(lab: Lab) -> None:
    assert load(lab) == []
    made = [new_canary("eu", "uk", "before"), new_canary("us", "us", "after")]
    save(lab, made)
    assert load(lab) == made


def test_damaged_file_is_one_line(lab: Lab) -> None:
    canaries_file(lab).write_text(json.dumps({"canaries": [{"region": "eu"}]}))
    with pytest.raises(LabError, match=r"canaries\.json is not as the audit writes it"):
        load(lab)


@pytest.mark.parametrize("phase", PHASES)
def test_statements_are_those_of_the_phase(phase: str) -> None:
    customer, purchase = statements(phase)
    has_country = phase not in ("before", "expand_eu")
    is_sharded = phase in ("shard", "after")
    schema = "global." if is_sharded else ""
    country = ", country" if has_country else ""
    assert customer.startswith(f"INSERT INTO {schema}customer (id, email{country}) VALUES")
    country = ", country" if is_sharded else ""
    assert purchase.startswith(
        f"INSERT INTO {schema}purchase (id, customer_id, amount{country}) VALUES (%(purchase)s"
    )
