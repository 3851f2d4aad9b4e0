"""Two labs on one machine, at the same time, know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fixtures.labs import LabUnderTest
from tests.playbooks.traces import traces

Labs = tuple[LabUnderTest, LabUnderTest]


@pytest.fixture
def labs(runtime: str, new_lab: Callable[..., LabUnderTest]) -> Iterator[Labs]:
    """Return two labs that were brought up at the same time."""
    both = new_lab(runtime), new_lab(runtime)
    try:
        runs = [lab.start("before") for lab in both]
        assert [run.wait(120) for run in runs] == [0, 0]
        yield both
    finally:
        for lab in both:
            lab.remove()


def test_they_have_their_own_data_and_teardown_takes_one(labs: Labs) -> None:
    one, other = labs
    one.query("INSERT INTO customer (email) VALUES ('one@example.com')")
    other.query("INSERT INTO customer (email) VALUES ('other@example.com')")
    assert one.query("SELECT email FROM customer") == [("one@example.com",)]
    assert other.query("SELECT email FROM customer") == [("other@example.com",)]
    assert one.lab.secret_file("customers").read_text() != (
        other.lab.secret_file("customers").read_text()
    )

    started = other.query("SELECT pg_postmaster_start_time()")
    one.play_ok("teardown")
    assert traces(one) == []
    assert other.query("SELECT email FROM customer") == [("other@example.com",)]
    assert other.query("SELECT pg_postmaster_start_time()") == started
    assert other.play_ok("before").changed == 0


def test_a_kill_and_a_repair_of_one_do_not_touch_the_other(labs: Labs) -> None:
    one, other = labs
    started = other.query("SELECT pg_postmaster_start_time()")
    one.kill_server()
    one.play_ok("before")
    assert other.query("SELECT pg_postmaster_start_time()") == started


def test_the_second_on_the_ports_of_the_first_is_refused(
    labs: Labs, new_lab: Callable[..., LabUnderTest]
) -> None:
    third = new_lab(labs[0].runtime)
    third.port_base = labs[0].port_base
    play = third.play("before")
    assert play.status != 0
    assert f"port {third.port_base}" in play.error
    third.port_base = labs[1].port_base + 5  # Free, and not the first's.
    assert traces(third) == []
