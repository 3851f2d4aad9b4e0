"""An id that customers of two regions have is named, with the way out."""

from __future__ import annotations

import io
from dataclasses import replace
from uuid import UUID

from rich.console import Console

from tests.unit.test_status import UP, lab
from workload.operations.status.collect import COMPARED, Status
from workload.operations.status.diagnose import problems
from workload.operations.status.show import show
from workload.proof.verify import ID_BYTES, in_several_regions, name_shared

ONE, TWO, THREE = (UUID(int=number << 100) for number in (1, 2, 3))


def packed(*ids: UUID) -> bytes:
    return b"".join(key.bytes for key in sorted(ids))


def test_only_ids_of_several_regions_are_returned() -> None:
    assert in_several_regions({}) == {}
    assert in_several_regions({"eu": packed(ONE), "us": packed(TWO), "jp": b""}) == {}
    ids = {"us": packed(ONE, THREE), "jp": packed(TWO, THREE), "eu": packed(ONE, THREE)}
    assert in_several_regions(ids) == {ONE: ("us", "eu"), THREE: ("us", "jp", "eu")}


def test_the_first_three_are_named_and_the_others_counted() -> None:
    lines = list(name_shared({UUID(int=number): ("us", "jp") for number in range(5)}))
    assert len(lines) == 4
    assert f"make forget CUSTOMER={UUID(int=2)} REGION=jp" in lines[2]
    assert lines[3].startswith("2 more ids")


def with_ids(**ids: bytes) -> Status:
    return lab("after", **{name: replace(UP, customer_ids=each) for name, each in ids.items()})


def test_status_names_it() -> None:
    (line,) = problems(with_ids(us=packed(ONE, TWO), jp=packed(TWO)))
    assert line.startswith(f"customers of us and jp have one id, {TWO}: make find CUSTOMER={TWO}")


def test_a_run_at_work_may_be_moving_a_customer() -> None:
    status = with_ids(us=packed(TWO), jp=packed(TWO))
    assert status.shared_ids
    at_work = replace(status, nodes={**status.nodes, "eu": replace(UP, at_work=True)})
    assert not [line for line in problems(at_work) if "one id" in line]


def test_status_says_that_it_has_not_compared_too_many_customers() -> None:
    many = with_ids(us=bytes(ID_BYTES * (COMPARED + 1)), jp=bytes(ID_BYTES))
    assert many.shared_ids is None
    assert list(problems(many)) == []
    text = io.StringIO()
    assert show(many, Console(file=text, width=80))
    assert "not compared, since a region has more than 100,000" in text.getvalue()
