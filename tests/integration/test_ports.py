"""Ports that somebody else listens on are found before a server is started on them."""

from __future__ import annotations

import socket

import psutil
import pytest

from tests.fixtures.labs import free_ports
from workload.errors import LabError
from workload.nodes.preflight import check_port
from workload.topology import Node

ADDRESSES = [
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET, "0.0.0.0"),
    (socket.AF_INET6, "::1"),
]


@pytest.mark.parametrize(("family", "address"), ADDRESSES, ids=["loopback", "all", "IPv6"])
def test_port_that_is_taken_is_named_with_its_owner(
    family: socket.AddressFamily, address: str
) -> None:
    port = free_ports()
    node = Node("eu", "eu", "127.0.0.1", port, 0, "", "eu_db")
    check_port(node)
    try:
        listener = socket.create_server((address, port), family=family)
    except OSError as error:
        if family == socket.AF_INET:
            raise
        pytest.skip(f"this machine has no {address}: {error}")
    me = psutil.Process()
    with listener, pytest.raises(LabError, match=f"port {port}, which node eu needs") as caught:
        check_port(node)
    assert f"{me.name()} (process {me.pid}): stop that, or set LAB_PORT_BASE" in str(caught.value)
