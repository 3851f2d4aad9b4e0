"""What the WAN's relay adds to what it is asked for: time, and how it bounds throughput."""

from __future__ import annotations

import asyncio
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import cast

from bench.labs import PORT_BASE
from bench.rows import Row
from workload.lab import Lab
from workload.wan import control
from workload.wan.config import Link

ROUNDS = 3
MB = 1_000_000
TRANSFER = 400 * MB
CONNECTIONS, PINGS = 100, 10
RTTS_MS = (80, 155, 230)
TARGET = PORT_BASE + 9


def rows() -> Iterator[Row]:
    """Measure a relay of the bench's own; targets and clients are in this process."""
    links = {
        rtt_ms: Link(
            source=f"far{place}",
            node="near",
            region="near",
            port=PORT_BASE + 10 + place,
            host="127.0.0.1",
            target_port=TARGET,
            rtt_ms=rtt_ms,
            jitter_ms=0,
        )
        for place, rtt_ms in enumerate((0, *RTTS_MS))
    }
    with tempfile.TemporaryDirectory(prefix="geo-lab-bench-") as folder:
        lab = Lab("bench", Path(folder) / "home")
        try:
            control.ensure(lab, links.values())
            yield from _throughput(links[0].port)
            for rtt_ms in RTTS_MS:
                found = asyncio.run(_p50_ms(links[rtt_ms].port, rtt_ms))
                yield Row(
                    f"WAN {rtt_ms} ms, {CONNECTIONS} clients, p50 off",
                    abs(found - rtt_ms),
                    "ms",
                    max(2, 0.02 * rtt_ms),
                    "lower",
                )
        finally:
            control.stop(lab)


def _throughput(port: int) -> Iterator[Row]:
    relayed, direct = [], []
    with socket.create_server(("127.0.0.1", TARGET)) as server:
        for _ in range(ROUNDS):
            direct.append(_transfer(TARGET, server))
            relayed.append(_transfer(port, server))
    yield Row("WAN 0 ms, one client", median(relayed), "MB/s", 100, "higher")
    # Two sockets, two more copies, one thread: a tenth still fills a 10 Gbit/s line on any machine
    # whose loopback carries 100.
    yield Row("WAN 0 ms, beside loopback", median(relayed), "MB/s", 0.1, "higher", median(direct))


def _transfer(port: int, server: socket.socket) -> float:
    """Return the MB/s from a sender to the server, to the last byte's arrival."""
    received = 0

    def receive() -> None:
        nonlocal received
        connection, _ = server.accept()
        buffer = bytearray(MB)
        with connection:
            while count := connection.recv_into(buffer):
                received += count

    receiver = threading.Thread(target=receive)
    receiver.start()
    data = bytes(MB)
    with socket.create_connection(("127.0.0.1", port)) as sender:
        started = time.perf_counter()
        for _ in range(TRANSFER // MB):
            sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        receiver.join(60)
        took = time.perf_counter() - started
    if received != TRANSFER:
        raise RuntimeError(f"{received} of {TRANSFER} bytes arrived")
    return TRANSFER / MB / took


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def _p50_ms(port: int, rtt_ms: float) -> float:
    """Return the p50 of pings on many connections that are not in step."""

    async def ping(times: list[float]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(PINGS):
            started = time.perf_counter()
            writer.write(bytes(60))
            await reader.readexactly(60)
            # The first one bears the connection's opening.
            if number:
                times.append((time.perf_counter() - started) * 1e3)
            await asyncio.sleep(random.random() * rtt_ms / 1e3)
        writer.close()

    times: list[float] = []
    loop = asyncio.get_running_loop()
    async with await loop.create_server(_Echo, "127.0.0.1", TARGET):
        await asyncio.gather(*(ping(times) for _ in range(CONNECTIONS)))
    return median(times)
