"""What the tests of the playbooks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fixtures.labs import IMAGE, LabUnderTest
from tests.fixtures.require import skip_or_fail
from workload.errors import LabError
from workload.nodes.docker import Engine


@pytest.fixture
def engine() -> Engine:
    """Return a Docker engine that has the image."""
    try:
        engine = Engine()
        engine.find_image([IMAGE])
    except LabError as error:
        skip_or_fail("docker", str(error))
    return engine


@pytest.fixture
def docker_lab(engine: Engine, new_lab: Callable[..., LabUnderTest]) -> Iterator[LabUnderTest]:
    """Return a fresh lab in the docker runtime, removed after the test."""
    made = new_lab("docker")
    yield made
    made.remove()
