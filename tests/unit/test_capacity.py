"""How many customers fit the servers' connections."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_status import lab, region
from workload.traffic.capacity import Room, fits, needed


def topology(*regions: tuple[str, str, str | None]) -> Any:
    """Return a lab by (region, node it writes to, node it reads from)."""
    found = lab("after").topology
    rows = [
        region(name, node=node, reads=({"node": reads},) if reads else ())
        for name, node, reads in regions
    ]
    object.__setattr__(found, "all_regions", tuple(rows))
    return found


def test_all_connections_of_a_customer_count() -> None:
    world = topology(("eu", "eu", "eu_2"), ("us", "eu", None), ("jp", "eu", None))
    assert needed(world, 7) == {"eu": 7, "eu_2": 3}


@pytest.mark.parametrize(("free", "most"), [(390, 390), (5, 5), (0, 0)])
def test_one_node_for_all_takes_as_many_as_it_has_connections(free: int, most: int) -> None:
    world = topology(("eu", "eu", None), ("us", "eu", None), ("jp", "eu", None))
    assert fits(world, {"eu": Room(free, 400)}) == most


def test_the_tightest_node_decides() -> None:
    after = topology(("eu", "eu", None), ("us", "us", None), ("jp", "jp", None))
    rooms = {"eu": Room(390, 400), "us": Room(100, 400), "jp": Room(390, 400)}
    # The regions take turns: of 301, eu has 101 and us 100.
    assert fits(after, rooms) == 301
