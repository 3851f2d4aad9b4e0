"""Ports that somebody else listens on are found before a server is started on them."""

from __future__ import annotations

import socket

import psutil
import pytest

from tests.fixtures.labs import free_ports
from workload.errors import LabError
from workload.nodes.preflight import (
    OUTGOING_PORTS,
    check_embedded_address,
    check_port,
    port_warning,
)
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


def eu_at(port: int, host: str = "127.0.0.1") -> Node:
    return Node("eu", "eu", host, port, 0, "", "eu_db")


def test_ports_that_the_kernel_gives_to_others_are_warned_of() -> None:
    low, _ = map(int, OUTGOING_PORTS.read_text().split())
    # The nodes' own ports are below the range, the WAN's listeners are not.
    for base in (low, low - 5):
        warning = port_warning([eu_at(base)], regions=3)
        assert f"the lab's ports, {base} to " in warning
        assert f"({low} to " in warning
    assert port_warning([eu_at(low - 100)], regions=3) == ""


@pytest.mark.parametrize("address", ["0.0.0.0", "10.0.0.7", "::", "db.example.com"])
def test_server_processes_listen_on_loopback_alone_and_say_so(address: str) -> None:
    check_embedded_address(eu_at(5432))
    with pytest.raises(LabError, match=f"lab_address is {address}, and server processes"):
        check_embedded_address(eu_at(5432, address))
