"""The relay, the lab's WAN: python -m workload.wan.relay STATE_FOLDER.

Every byte is queued by the time it is due, half an RTT after it came in, and passed on then;
nothing is throttled (flow.py has the queues).

A direction that is cut holds its queue; healed, it goes on where it stopped, as TCP would by
repeating. What no peer can notice is that the relay's kernel acknowledges bytes before they
arrived: keepalives and TCP_USER_TIMEOUT find a cut link in order, so clients need timeouts of their
own.

Reads config.json at the start and on SIGHUP, and says in state.json what it applied.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import ipaddress
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import psutil

from workload.errors import LabError
from workload.lab import read_json, write_atomically
from workload.wan.config import Config, Link
from workload.wan.flow import Connection, LiveLink, PreciseSelector, Shared

BACKLOG = 4096
#: Seconds between checks whether the state folder is still there.
ORPHAN_CHECK_S = 10.0
#: Linux's option to bind to an address that is yet to come; Python has no name for it.
IP_FREEBIND = 15


class Relay(Shared):
    """All links of a lab."""

    def __init__(self, loop: asyncio.AbstractEventLoop, selector: PreciseSelector) -> None:
        """Begin without links."""
        super().__init__(loop, selector)
        self.links: dict[tuple[str, str], LiveLink] = {}
        self.ports: dict[int, LiveLink] = {}
        self.listeners: dict[tuple[str, int], asyncio.Server] = {}

    async def apply(self, config: Config) -> None:
        """Become what a configuration says, all of it or, with a LabError, nothing of it."""
        links = {(address, link.port): link for link in config.links for address in config.listen}
        opened = _listen({key: links[key] for key in links.keys() - self.listeners.keys()})
        for key in self.listeners.keys() - links.keys():
            self.listeners.pop(key).close()
        known = {(link.source, link.node): link for link in config.links}
        for name in self.links.keys() - known.keys():
            self.links.pop(name).close()
        for name, link in known.items():
            self.links.setdefault(name, LiveLink(link)).apply(link, config)
        self.ports = {link.config.port: link for link in self.links.values()}
        for key, listener in opened.items():
            self.listeners[key] = await self.loop.create_server(
                functools.partial(self._accept, key[1]), sock=listener, backlog=BACKLOG
            )

    def _accept(self, port: int) -> asyncio.BaseProtocol:
        link = self.ports.get(port)
        # A link may go in the moment between accept and this.
        return Connection(self, link).near if link else _Refusal()


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def _listen(links: dict[tuple[str, int], Link]) -> dict[tuple[str, int], socket.socket]:
    opened: dict[tuple[str, int], socket.socket] = {}
    for (address, port), link in sorted(links.items()):
        version = ipaddress.ip_address(address).version
        listener = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
        opened[address, port] = listener
        try:
            listener.setblocking(False)
            # Else the connections of a relay that was killed would keep the port for a minute.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # The address of a container network comes and goes with that network.
            listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            listener.bind((address, port))
            listener.listen(BACKLOG)
        except OSError as error:
            _close(opened.values())
            raise LabError(
                f"port {port}, which the WAN link {link.name} needs, cannot be had on {address}"
                f" ({error.strerror}): stop what uses it, or set LAB_PORT_BASE"
            ) from error
    return opened


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


async def serve(home: Path, selector: PreciseSelector) -> int:
    """Apply config.json, now and at each SIGHUP; return the exit status."""
    folder = home / "wan"
    loop = asyncio.get_running_loop()
    relay = Relay(loop, selector)
    wake = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, wake.set)
    identity = {"pid": os.getpid(), "create_time": psutil.Process().create_time()}
    wake.set()
    while True:
        try:
            await asyncio.wait_for(wake.wait(), ORPHAN_CHECK_S)
        except TimeoutError:
            if not (folder / "config.json").exists():
                _log(f"{folder} is gone, and so am I")
                return 0
            continue
        wake.clear()
        # Nothing below may hold up the bytes, so the disk is left to a thread.
        generation, error = -1, ""
        try:
            config = Config.from_json(await asyncio.to_thread(read_json, folder / "config.json"))
            generation = config.generation
            await relay.apply(config)
        except LabError as caught:
            error = str(caught)
        state = {**identity, "generation": generation, "error": error}
        _log(error or f"generation {generation}: {len(relay.listeners)} listeners")
        await asyncio.to_thread(write_atomically, folder / "state.json", json.dumps(state) + "\n")
        if not relay.listeners and error:
            return 1


def _log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main() -> int:
    """Be the relay of the lab whose state folder is the argument."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Two sockets a connection; the usual soft limit is 1,024.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    selector = PreciseSelector()
    # What is here now stays: the collector need not look at it again.
    gc.freeze()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        return runner.run(serve(Path(sys.argv[1]), selector))


if __name__ == "__main__":
    sys.exit(main())
