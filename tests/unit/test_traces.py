"""What is looked for of a customer, and what somebody else's is not taken for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest

from workload.operations.traces import GONE, OTHER, Person, sought
from workload.output import printable

ANN, BOB = UUID("11111111-2222-4333-8444-555555555555"), UUID(int=7)
EMAIL = "ann@example.com"


def person(email: str = EMAIL) -> Person:
    return Person(ANN, email, "us", "us", "us", 0)


def row(key: UUID, email: str) -> bytes:
    """Return a row's id and e-mail as PostgreSQL stores them: the length is one odd byte."""
    return key.bytes + bytes([2 * (len(email.encode()) + 1) + 1]) + email.encode()


def found(folder: Path, content: bytes, email: str, others: Sequence[tuple[UUID, str]]) -> set[str]:
    """Return whose strings grep finds in a file, as the scan runs it."""
    known = {
        text: canary.region for canary in sought(person(email), others)
        for text in canary.patterns()
    }  # fmt: skip
    patterns, file = folder / "patterns", folder / "file"
    patterns.write_bytes(b"\n".join(known) + b"\n")
    file.write_bytes(content)
    done = subprocess.run(
        ["grep", "-zaobF", "-f", str(patterns), str(file)],
        capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False,
    )  # fmt: skip
    return {known[hit.split(b":", 1)[1]] for hit in done.stdout.split(b"\0")[:-1]}


def test_id_and_email_are_traces(tmp_path: Path) -> None:
    for content in (row(ANN, EMAIL), str(ANN).encode(), ANN.bytes, b"to <ann@example.com>"):
        assert found(tmp_path, b"x" + content + b"y\0", EMAIL, []) == {GONE}
    assert found(tmp_path, row(BOB, "bob@example.com"), EMAIL, []) == set()


def test_an_email_that_contains_it_is_not_a_trace(tmp_path: Path) -> None:
    longer = "joann@example.com"
    assert found(tmp_path, row(BOB, longer) + b"\0", EMAIL, [(BOB, longer)]) == {OTHER}
    both = row(BOB, longer) + b"\0" + b"ann@example.com\0"
    assert found(tmp_path, both, EMAIL, [(BOB, longer)]) == {GONE, OTHER}


def test_the_same_email_of_somebody_else_is_not_a_trace(tmp_path: Path) -> None:
    others = [(BOB, EMAIL)]
    assert GONE not in found(tmp_path, row(BOB, EMAIL) + b"\0", EMAIL, others)
    assert GONE in found(tmp_path, row(ANN, EMAIL) + b"\0", EMAIL, others)


@pytest.mark.parametrize("email", ["e", "'e'", "x\ny", "\n", "z" * 1_000_000, "", "[/x]"])
def test_any_text_makes_patterns_that_the_scan_can_hold(email: str) -> None:
    for canary in sought(person(email), [(BOB, email)]):
        for text in canary.patterns():
            assert text
            assert not {0x00, 0x0A} & set(text)
            # Fewer would be found by chance in any file.
            assert len(text) >= 8 or canary.region == OTHER
            assert len(text) <= 500


def test_foreign_text_is_printed_on_one_line_and_cut() -> None:
    assert printable("x\nHEALTHY \x1b[31m\u202e") == "x\\nHEALTHY \\x1b[31m\\u202e"
    assert printable("ünï@x") == "ünï@x"
    assert printable("q" * 1000) == "q" * 60 + "... (1,000 characters)"
