"""A connection over the WAN: queues of bytes by due time, and what the two ends make of them.

The kernel accepts a connection at once, so its opening is acted out: the SYN is the first thing in
the queue to the node, where it opens a connection of the relay's own, and the answer to that is the
first thing in the queue back. What a client sends before that answer arrives counts as sent when it
arrives. FIN and RST queue like bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import select
import selectors
import socket
import struct
import time
from collections import deque
from typing import cast

from workload.wan.config import Config, Link

#: Bytes that one direction of one connection may hold. A 230 ms RTT fills it at 580 MB/s only.
FLOW_LIMIT = 64 << 20
#: Bytes that all may hold together, and what each may hold beyond that.
TOTAL_LIMIT, FLOW_FLOOR = 256 << 20, 256 << 10
#: What a queued item costs beside its bytes: a tuple, a float and two headers.
ITEM_COST = 160
#: Bytes taken from a socket at once.
READ_SIZE = 256 << 10
#: Seconds from which on the kernel's own lateness counts.
LONG_WAIT_S = 0.01
#: SO_LINGER that makes a close send RST.
LINGER_NOTHING = struct.pack("ii", 1, 0)


class Shared:
    """What all connections of a relay share: the loop, a buffer, and the count of bytes held."""

    def __init__(self, loop: asyncio.AbstractEventLoop, selector: PreciseSelector) -> None:
        """Begin with nothing held."""
        self.loop, self.selector = loop, selector
        self.buffer = memoryview(bytearray(READ_SIZE))
        #: Bytes held by all flows, and those whose sources wait for that to fall.
        self.queued = 0
        self.paused: set[Flow] = set()
        self.resume_below = TOTAL_LIMIT * 3 // 4


class PreciseSelector(selectors.EpollSelector):
    """Waits to the microsecond: epoll's own timeout is a whole number of milliseconds, rounded up.

    select(2) has a finer one. It watches the epoll descriptor alone, which is readable when any
    of those in it is. The kernel may still be late by a thousandth of the time asked for, so a long
    wait is one that ends early and a short one.
    """

    def __init__(self) -> None:
        """Make the epoll descriptor."""
        super().__init__()
        #: When the last wait ended. What is ready then came before, however long the loop then
        #: takes to get to it.
        self.woke = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready, waiting up to timeout seconds."""
        if timeout is not None and timeout > LONG_WAIT_S:
            end = time.monotonic() + timeout
            if not select.select([self], [], [], timeout * 0.995)[0]:
                select.select([self], [], [], max(0.0, end - time.monotonic()))
        elif timeout is None or timeout > 0:
            select.select([self], [], [], timeout)
        ready = super().select(0)
        self.woke = time.monotonic()
        return ready


class Signal(enum.Enum):
    """What crosses the WAN beside bytes."""

    SYN = enum.auto()
    SYN_ACK = enum.auto()
    FIN = enum.auto()
    RST = enum.auto()


Item = bytes | Signal


class Direction:
    """One direction of a link, as its connections share it."""

    __slots__ = ("delay_s", "held", "jitter_s")

    def __init__(self) -> None:
        """Begin without a delay."""
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.held = False


class Flow:
    """One direction of a connection: a queue by due time, from one side to the other."""

    __slots__ = (
        "blocked", "connection", "dead", "direction", "early", "last_due", "parked", "paused",
        "queue", "queued", "relay", "sink", "source", "timer",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, direction: Direction, source: Side, sink: Side, early: bool
    ) -> None:
        """Begin empty; early holds back what is sent until the connection is open."""
        self.relay = connection.relay
        self.connection = connection
        self.direction = direction
        self.source, self.sink = source, sink
        self.queue: deque[tuple[float, Item]] = deque()
        self.early: list[Item] | None = [] if early else None
        #: Bytes held here, in the queue or in the sink's write buffer, and the latter alone.
        self.queued = self.parked = 0
        self.last_due = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.blocked = self.paused = self.dead = False

    def send(self, item: Item) -> None:
        """Take what the source sent."""
        if self.early is None:
            self.push(item)
        elif not self.dead:
            self.early.append(item)
            self.hold(_cost(item))
            self.throttle()

    def open(self) -> None:
        """Let what was sent too early count as sent now."""
        early, self.early = self.early or [], None
        for item in early:
            self.release(_cost(item))
            self.push(item)

    def push(self, item: Item) -> None:
        """Put an item on its way."""
        if self.dead:
            return
        direction = self.direction
        now = self.relay.selector.woke
        due = now + direction.delay_s
        if direction.jitter_s:
            due += random.uniform(-direction.jitter_s, direction.jitter_s)
        # A byte never overtakes another.
        self.last_due = due = max(due, self.last_due)
        if due <= now and not self.queue and not self.blocked and not direction.held:
            self.deliver(item)
            return
        self.queue.append((due, item))
        self.hold(_cost(item))
        self.throttle()
        if self.timer is None:
            self.schedule()

    def schedule(self) -> None:
        """Set the timer for the head of the queue."""
        if self.queue and self.timer is None and not self.blocked and not self.direction.held:
            self.timer = self.relay.loop.call_at(self.queue[0][0], self.flush)

    def flush(self) -> None:
        """Deliver what is due."""
        self.timer = None
        now = self.relay.loop.time()
        queue = self.queue
        while queue and queue[0][0] <= now and not self.blocked and not self.direction.held:
            _, item = queue.popleft()
            self.deliver(item)
            self.release(_cost(item))
        self.schedule()

    def deliver(self, item: Item) -> None:
        """Hand an item to the sink."""
        if isinstance(item, bytes):
            self.sink.write(item)
        else:
            self.connection.arrived(self, item)

    def block(self) -> None:
        """Stop delivering: the sink takes no more for now."""
        self.blocked = True
        self.parked = self.sink.buffered()
        self.hold(self.parked)
        self.throttle()

    def unblock(self) -> None:
        """Go on delivering."""
        self.blocked = False
        parked, self.parked = self.parked, 0
        self.release(parked)
        self.schedule()

    # -- bounded memory ------------------------------------------------------------------------

    def hold(self, count: int) -> None:
        """Count bytes in."""
        self.queued += count
        self.relay.queued += count

    def release(self, count: int) -> None:
        """Count bytes out, and resume the sources that waited for it."""
        relay = self.relay
        was_full = relay.queued > relay.resume_below
        self.queued -= count
        relay.queued -= count
        if self.paused:
            self.relent()
        if was_full and relay.queued <= relay.resume_below:
            for flow in list(relay.paused):
                flow.relent()

    def throttle(self) -> None:
        """Stop reading from the source where too much of it is here."""
        if not self.paused and (
            self.queued > FLOW_LIMIT
            or (self.relay.queued > TOTAL_LIMIT and self.queued > FLOW_FLOOR)
        ):
            self.paused = True
            self.relay.paused.add(self)
            self.source.pause_reading()

    def relent(self) -> None:
        """Read from the source again where enough of it is gone."""
        if self.queued <= FLOW_LIMIT * 3 // 4 and (
            self.relay.queued <= self.relay.resume_below or self.queued <= FLOW_FLOOR
        ):
            self.paused = False
            self.relay.paused.discard(self)
            self.source.resume_reading()

    def discard(self) -> None:
        """Drop everything: one end is gone. The source is read no further."""
        if self.dead:
            return
        self.dead = True
        if self.timer is not None:
            self.timer.cancel()
        self.queue.clear()
        self.early = None
        self.relay.paused.discard(self)
        self.paused = False
        self.parked = 0
        self.source.pause_reading()
        self.release(self.queued)


def _cost(item: Item) -> int:
    return len(item) + ITEM_COST if isinstance(item, bytes) else ITEM_COST


class Side(asyncio.BufferedProtocol):
    """The relay's end of a connection to a client (near) or to a node (far).

    Reads into one buffer that all share: a buffer of its own for each read would cost more than
    all else does for a small message. asyncio sets TCP_NODELAY itself.
    """

    def __init__(self, connection: Connection) -> None:
        """Begin unconnected."""
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.out: Flow
        self.into: Flow
        #: The peer sent its FIN; it was sent one; the socket is gone.
        self.sent_fin = self.got_fin = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self.transport = cast(asyncio.Transport, transport)
        self.connection.made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        del sizehint
        return self.connection.relay.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.out.send(bytes(self.connection.relay.buffer[:nbytes]))

    def eof_received(self) -> bool:
        """Take the peer's FIN; the other direction stays open."""
        self.sent_fin = True
        self.connection.closing(self)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the peer's RST, or the end that the relay itself made."""
        del exc
        self.lost = True
        self.connection.lost(self)

    def pause_writing(self) -> None:
        """Stop delivering: the peer does not keep up."""
        self.into.block()

    def resume_writing(self) -> None:
        """Go on delivering: it does again."""
        self.into.unblock()

    def write(self, data: bytes) -> None:
        """Write to the peer, if it is still there."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def buffered(self) -> int:
        """Return how many bytes wait for the peer to take them."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def pause_reading(self) -> None:
        """Read no more; once the peer has sent its FIN there is nothing to read anyway."""
        if self.transport is not None and not self.sent_fin:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.transport is not None and not self.sent_fin:
            self.transport.resume_reading()

    def finish(self) -> None:
        """Send a FIN."""
        self.got_fin = True
        if self.transport is not None and not self.transport.is_closing():
            try:
                self.transport.write_eof()
            except OSError:
                # It was reset after its own FIN, when nobody read from it any more.
                self.transport.abort()

    def reset(self) -> None:
        """Send an RST."""
        if self.transport is not None and not self.lost:
            with contextlib.suppress(OSError):
                raw = self.transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOTHING)
            self.transport.abort()


class Connection:
    """A client's connection and the relay's own one to the node."""

    def __init__(self, relay: Shared, link: LiveLink) -> None:
        """Begin with the client alone."""
        self.relay, self.link = relay, link
        self.near, self.far = Side(self), Side(self)
        self.there = Flow(self, link.there, self.near, self.far, early=True)
        self.back = Flow(self, link.back, self.far, self.near, early=False)
        self.near.out = self.far.into = self.there
        self.far.out = self.near.into = self.back
        self.dialling: asyncio.Task[None] | None = None
        self.is_open = self.is_over = False
        link.connections.add(self)

    def made(self, side: Side) -> None:
        """Take one of the two sockets as connected."""
        if self.is_over or self.link.is_reset:
            self.end()
            side.reset()
        elif side is self.near:
            self.there.push(Signal.SYN)
        else:
            self.back.push(Signal.SYN_ACK)

    def arrived(self, flow: Flow, item: Signal) -> None:
        """Do what an item means that reached the other end."""
        if item is Signal.SYN:
            self.dialling = self.relay.loop.create_task(self._dial())
        elif item is Signal.SYN_ACK:
            self.is_open = True
            self.there.open()
        elif item is Signal.FIN:
            flow.sink.finish()
            if self.near.got_fin and self.far.got_fin:
                for side in (self.near, self.far):
                    if side.transport is not None:
                        side.transport.close()
        else:
            self.end()

    async def _dial(self) -> None:
        link = self.link.config
        try:
            await self.relay.loop.create_connection(lambda: self.far, link.host, link.target_port)
        except OSError:
            if not self.is_over:
                self.back.push(Signal.RST)

    def closing(self, side: Side) -> None:
        """Take a peer's FIN."""
        side.out.send(Signal.FIN)
        if side is self.near:
            self.forget_if_given_up()

    def forget_if_given_up(self) -> None:
        """Forget a connection that a cut keeps from opening and whose client is gone.

        Its FIN may be a mere half-close, but a client who had to wait for its SYN to be answered
        could not have sent that.
        """
        is_stuck = self.link.there.held or self.link.back.held
        if not self.is_open and is_stuck and self.near.sent_fin:
            self.end()

    def lost(self, side: Side) -> None:
        """Take a closed socket: by the peer's RST, where the relay did not close it."""
        if (self.near.lost and self.far.lost) or (side is self.near and not self.is_open):
            self.end()
        elif not (self.is_over or (self.near.got_fin and self.far.got_fin)):
            side.into.discard()
            side.out.push(Signal.RST)

    def end(self) -> None:
        """Reset what is left of it."""
        if self.is_over:
            return
        self.is_over = True
        self.link.connections.discard(self)
        for flow in (self.there, self.back):
            flow.discard()
        if self.dialling is not None:
            self.dialling.cancel()
        for side in (self.near, self.far):
            side.reset()


class LiveLink:
    """A link with its open connections."""

    def __init__(self, link: Link) -> None:
        """Begin without connections."""
        self.config = link
        self.there, self.back = Direction(), Direction()
        self.is_reset = False
        self.connections: set[Connection] = set()

    def apply(self, link: Link, config: Config) -> None:
        """Take a configuration; what is under way already keeps its due time."""
        self.config = link
        there, back = (
            config.direction(link.source, link.region),
            config.direction(link.region, link.source),
        )
        self.is_reset = there.state == "reset"
        for direction, state, delay_ms in zip(
            (self.there, self.back), (there, back), config.delays_ms(link), strict=True
        ):
            direction.delay_s = delay_ms / 1e3
            direction.jitter_s = min(link.jitter_ms, delay_ms) / 1e3
            direction.held = state.state == "cut"
        for connection in list(self.connections):
            if self.is_reset:
                connection.end()
            else:
                connection.forget_if_given_up()
                connection.there.schedule()
                connection.back.schedule()

    def close(self) -> None:
        """Reset every connection."""
        for connection in list(self.connections):
            connection.end()
