"""One server without a lab around it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fixtures.labs import free_ports
from workload.runtime import embedded
from workload.runtime.embedded import EmbeddedServer

PASSWORD = "secret"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    base = tmp_path_factory.mktemp("server") / "node"
    made = EmbeddedServer(base, free_ports(), embedded.find_bin_dir())
    with made.locked() as lock:
        made.initialise(PASSWORD, lock)
    made.configure()
    made.start()
    yield made
    made.remove()
