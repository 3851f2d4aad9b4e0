"""The relay as a process: what crosses it, how long it takes, and what cuts and kills do to it.

Targets and clients are in the test's own event loop; the relay is a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil
import pytest

from tests.fixtures.labs import CHECKOUT, LabUnderTest, Play, eventually, free_ports, is_listening
from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.embedded import EmbeddedServer, find_bin_dir
from workload.nodes.teardown import remove
from workload.wan import control
from workload.wan.config import Link, links_for
from workload.wan.flow import FLOW_LIMIT, TOTAL_LIMIT
from workload.wan.measure import measure

# Relays are meant to outlive the objects that started them.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

MB = 1 << 20
REGIONS = ["eu", "us", "jp"]
T = TypeVar("T")


@dataclass
class Wan:
    """A lab with nothing but a relay: nodes eu and us, customers in eu, us and jp."""

    lab: Lab
    port_base: int

    def links(
        self, jitter_ms: float = 0, eu_us: float = 20, eu_jp: float = 40, nodes: str = "eu us"
    ) -> list[Link]:
        """Return the links; RTTs in milliseconds."""
        rtt_ms: dict[str, dict[str, float]] = {"eu": {"us": eu_us, "jp": eu_jp}, "us": {"jp": 30}}
        offsets = {"eu": 0, "us": 2}
        found = [
            {
                "name": name,
                "region": name,
                "host": "127.0.0.1",
                "port": self.target(name),
                "port_offset": offsets[name],
            }
            for name in nodes.split()
        ]
        return links_for(REGIONS, found, rtt_ms, jitter_ms, self.port_base)

    def target(self, node: str) -> int:
        """Return a node's own port."""
        return self.port_base + {"eu": 0, "us": 2}[node]

    def port(self, source: str, node: str) -> int:
        """Return a link's port."""
        return next(x.port for x in self.links() if (x.source, x.node) == (source, node))

    def ensure(self, jitter_ms: float = 0, eu_us: float = 20) -> bool:
        """Start or reconfigure the relay."""
        return control.ensure(self.lab, self.links(jitter_ms, eu_us))

    @property
    def process(self) -> psutil.Process:
        """The relay's process."""
        found = control.running(self.lab)
        assert found, "no relay is running"
        return found

    def kill(self) -> None:
        """kill -9 the relay."""
        process = self.process
        process.kill()
        process.wait(10)

    async def change(self, link: str, state: str = "up", **more: Any) -> None:
        """Change a link while the test's loop goes on."""
        await asyncio.to_thread(control.set_state, self.lab, link, state, **more)


@pytest.fixture
def new_wan(tmp_path: Path) -> Iterator[Callable[[], Wan]]:
    """Return a function that makes a lab description; its relay is stopped in the end."""
    made: list[Wan] = []

    def make() -> Wan:
        number = len(made)
        made.append(Wan(Lab(f"wan{number}", tmp_path / f"a lab {number}"), free_ports()))
        return made[-1]

    yield make
    for wan in made:
        control.stop(wan.lab)
    for log in (wan.lab.home / "wan/relay.log" for wan in made):
        assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture
def wan(new_wan: Callable[[], Wan]) -> Wan:
    """Return a lab whose relay is not started yet."""
    return new_wan()


# -- what the tests are made of ----------------------------------------------------------------

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(port: int, handler: Handler | None = None) -> AsyncIterator[list[float]]:
    """Serve on a port while the body runs; yield when connections came (perf_counter)."""
    came: list[float] = []
    handling: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(time.perf_counter())
        task = asyncio.current_task()
        assert task
        handling.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await (handler or echo)(reader, writer)
            writer.close()
        finally:
            handling.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", port, backlog=2048, limit=MB)
    try:
        yield came
    finally:
        server.close()
        for task in handling:
            task.cancel()
        if handling:
            await asyncio.wait(handling)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back."""
    while data := await reader.read(MB):
        writer.write(data)
        await writer.drain()


class Client:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Client]:
        """Connect for the length of the body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MB)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    async def ping(self, timeout_s: float = 10) -> float:
        """Send 60 bytes, await their echo, and return the milliseconds."""
        data = os.urandom(60)
        started = time.perf_counter()
        self.writer.write(data)
        async with asyncio.timeout(timeout_s):
            assert await self.reader.readexactly(60) == data
        return (time.perf_counter() - started) * 1e3

    async def rtt(self) -> float:
        """Return the median of five pings, in milliseconds."""
        return median([await self.ping() for _ in range(5)])

    async def hears_nothing(self, for_s: float = 0.3) -> bool:
        """Tell whether neither a byte nor an end comes for a while."""
        try:
            async with asyncio.timeout(for_s):
                await self.reader.readexactly(1)
        except TimeoutError:
            return True
        return False

    async def is_reset(self, timeout_s: float = 5) -> bool:
        """Tell whether the connection ends by RST; where it ends otherwise, or not, it is not."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.reader.read()
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return False


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test in a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


async def until(condition: Callable[[], T], timeout_s: float = 10) -> T:
    """Poll in the loop until a condition is true, and return it."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have 6,000 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 6000:
        pytest.skip(f"this user may open {hard} files; the test needs 6,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 6000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- time --------------------------------------------------------------------------------------


@pytest.mark.serial
@pytest.mark.parametrize(
    ("rtt_ms", "connections"),
    [
        (80, 100),
        *(
            pytest.param(rtt_ms, connections, marks=pytest.mark.soak)
            for rtt_ms, connections in ((80, 1), (155, 1), (155, 100), (230, 1), (230, 100))
        ),
    ],
)
@scenario
async def test_rtt_is_as_configured(wan: Wan, rtt_ms: float, connections: int) -> None:
    wan.ensure(jitter_ms=0.5, eu_us=rtt_ms)

    async def customer(port: int) -> list[float]:
        async with Client.to(port) as client:
            await client.ping()
            times = []
            for _ in range(5):
                # Customers are not in step.
                await asyncio.sleep(random.random() * rtt_ms / 1e3)
                times.append(await client.ping())
            return times

    async def p50_is_off_by() -> float:
        """Return by how much, less what clients and target take of it on this machine, now."""
        relayed, direct = await asyncio.gather(
            *(
                asyncio.gather(*(customer(port) for _ in range(connections)))
                for port in (wan.port("us", "eu"), wan.target("eu"))
            )
        )
        own = median(itertools.chain(*direct))
        return median(itertools.chain(*relayed)) - own - rtt_ms

    seen: list[float] = []
    async with serving(wan.target("eu")):
        while not seen or abs(seen[-1]) > max(2, 0.02 * rtt_ms):
            assert len(seen) < 4, f"off by {seen} ms"
            seen.append(await p50_is_off_by())


@pytest.mark.serial
@scenario
async def test_jitter_stays_in_its_bounds(wan: Wan) -> None:
    wan.ensure(jitter_ms=5, eu_us=40)
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        times = [await client.ping() for _ in range(40)]
    assert 30 <= min(times) <= 38
    assert max(times) >= 42
    assert 36 < median(times) < 48


@pytest.mark.serial
@scenario
async def test_connect_feels_one_rtt(wan: Wan) -> None:
    """The node is reached after half an RTT; what it says at once is there after a whole one."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await echo(reader, writer)

    wan.ensure(eu_us=200)
    async with serving(wan.target("eu"), greet) as came:
        started = time.perf_counter()
        async with Client.to(wan.port("us", "eu")) as client:
            client.writer.write(b"x" * 60)  # As early as can be.
            assert await client.reader.readexactly(5) == b"hello"
            greeted = time.perf_counter() - started
            assert await client.reader.readexactly(60)
            answered = time.perf_counter() - started
    assert 0.1 <= came[0] - started < 0.15
    assert 0.2 <= greeted < 0.25
    # One for the connection, one for the ping: what was sent before the former waited for it.
    assert 0.4 <= answered < 0.45


@pytest.mark.serial
@scenario
async def test_end_takes_half_an_rtt(wan: Wan) -> None:
    ended: list[float] = []

    async def note_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(60)
        writer.write(b"y" * 60)
        await reader.read()
        ended.append(time.perf_counter())

    wan.ensure(eu_us=100)
    async with serving(wan.target("eu"), note_end), Client.to(wan.port("us", "eu")) as client:
        client.writer.write(b"x" * 60)
        await client.reader.readexactly(60)
        closed = time.perf_counter()
        client.writer.close()
        await until(lambda: ended)
    assert 0.05 <= ended[0] - closed < 0.09


@pytest.mark.serial
@scenario
async def test_reset_by_a_client_takes_half_an_rtt(wan: Wan) -> None:
    broken: list[float] = []

    async def note_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await echo(reader, writer)
        except ConnectionResetError:
            broken.append(time.perf_counter())

    wan.ensure(eu_us=100)
    async with serving(wan.target("eu"), note_reset), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        raw = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sent = time.perf_counter()
        client.writer.transport.abort()
        await until(lambda: broken)
    assert 0.05 <= broken[0] - sent < 0.09


@pytest.mark.serial
@scenario
async def test_refused_target_resets_the_client_after_one_rtt(wan: Wan) -> None:
    wan.ensure(eu_us=100)
    started = time.perf_counter()
    async with Client.to(wan.port("us", "eu")) as client:
        client.writer.write(b"x")
        assert await client.is_reset()
    assert 0.1 <= time.perf_counter() - started < 0.14


# -- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter_ms", [0, 5])
@scenario
async def test_20_mb_cross_whole_and_in_order_both_ways(wan: Wan, jitter_ms: float) -> None:
    wan.ensure(jitter_ms=jitter_ms, eu_us=20)
    data = random.Random(jitter_ms).randbytes(20 * MB)
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:

        async def send() -> None:
            sent, cuts = 0, random.Random(1)
            while sent < len(data):
                size = cuts.choice((1, 100, 10_000, MB))
                client.writer.write(data[sent : sent + size])
                sent += size
                await client.writer.drain()
            client.writer.write_eof()

        sending = asyncio.create_task(send())
        back = await client.reader.read()
        await sending
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


@scenario
async def test_half_close_leaves_the_answer_through(wan: Wan) -> None:
    async def sum_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest())
        await writer.drain()

    wan.ensure()
    data = os.urandom(3 * MB)
    async with serving(wan.target("eu"), sum_up), Client.to(wan.port("us", "eu")) as client:
        client.writer.write(data)
        client.writer.write_eof()
        assert await client.reader.read() == hashlib.sha256(data).digest()


@scenario
async def test_client_that_says_all_at_once_is_heard(wan: Wan) -> None:
    """Its FIN comes before the emulated connection is open."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())

    wan.ensure(eu_us=60)
    async with serving(wan.target("eu"), listen):
        with socket.create_connection(("127.0.0.1", wan.port("us", "eu"))) as client:
            client.sendall(b"all of it")
        await until(lambda: heard)
    assert heard == [b"all of it"]


@pytest.mark.soak
@pytest.mark.usefixtures("many_files")
@scenario
async def test_1000_connections(wan: Wan) -> None:
    wan.ensure()
    async with (
        serving(wan.target("eu")) as came,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = await asyncio.gather(
            *(
                stack.enter_async_context(Client.to(wan.port(*link)))
                for link in (("us", "eu"), ("jp", "eu"))
                for _ in range(500)
            )
        )
        await asyncio.gather(*(client.ping(30) for client in clients))
        assert len(came) == 1000
        # They are all open at once, and each is still its own.
        await asyncio.gather(*(client.ping(30) for client in clients))
    assert wan.process.is_running()


@scenario
async def test_connections_that_end_are_forgotten(wan: Wan) -> None:
    wan.ensure(eu_us=2)
    async with serving(wan.target("eu")):
        before = wan.process.num_fds()
        for close in ("close", "abort", "write_eof") * 5:
            async with Client.to(wan.port("us", "eu")) as client:
                await client.ping()
                getattr(client.writer.transport, close)()
        await until(lambda: wan.process.num_fds() == before)


@scenario
async def test_node_that_speaks_to_a_client_who_is_gone(wan: Wan) -> None:
    """The client's kernel answers with an RST, which nobody reads any more after its FIN."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await echo(reader, writer)
        writer.write(b"terminating connection")
        await writer.drain()
        await asyncio.sleep(0.01)  # For the RST to come before the FIN.

    wan.ensure()
    async with serving(wan.target("eu"), speak):
        before = wan.process.num_fds()
        for _ in range(5):
            async with Client.to(wan.port("us", "eu")) as client:
                await client.ping()
                client.writer.close()
        await until(lambda: wan.process.num_fds() == before)


# -- memory ------------------------------------------------------------------------------------


class Sender:
    """A client that sends without waiting, as much as the way takes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.sent = 0

    def push(self, data: bytes) -> int:
        """Send what is taken at once of data; return how much that is."""
        try:
            done = self.socket.send(data)
        except BlockingIOError:
            return 0
        self.sent += done
        return done


async def send_until_paused(senders: list[Sender], most: int) -> None:
    """Send up to most bytes from each, until none has sent anything for half a second."""
    data = bytes(MB)
    last = time.monotonic()
    while time.monotonic() - last < 0.5 and any(s.sent < most for s in senders):
        if sum(sender.push(data) for sender in senders if sender.sent < most):
            last = time.monotonic()
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("count", "held"),
    [
        pytest.param(1, FLOW_LIMIT, id="one connection"),
        pytest.param(8, TOTAL_LIMIT, id="eight together", marks=pytest.mark.slow),
    ],
)
@scenario
async def test_receiver_that_stalls_pauses_the_sender(wan: Wan, count: int, held: int) -> None:
    go_on = asyncio.Event()
    received = 0

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        while data := await reader.read(MB):
            received += len(data)

    wan.ensure(eu_us=10)
    idle = wan.process.memory_info().rss
    async with serving(wan.target("eu"), stall):
        senders = [Sender(wan.port("us", "eu")) for _ in range(count)]
        await send_until_paused(senders, 400 * MB)
        sent = sum(sender.sent for sender in senders)
        # The kernel's buffers on both sides of the relay take some more.
        assert held - 16 * MB < sent < held + count * 24 * MB
        assert max(sender.sent for sender in senders) < 400 * MB
        assert wan.process.memory_info().rss - idle < 1.25 * held + 16 * MB
        go_on.set()
        await until(lambda: received == sent, 30)
        for sender in senders:
            sender.socket.close()


@scenario
async def test_others_go_on_while_one_receiver_stalls(wan: Wan) -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    wan.ensure()
    async with serving(wan.target("eu"), stall), serving(wan.target("us")):
        sender = Sender(wan.port("us", "eu"))
        await send_until_paused([sender], 400 * MB)
        async with Client.to(wan.port("jp", "us")) as client:
            await client.ping()
            assert 30 <= await client.rtt() < 50
        sender.socket.close()


# -- cut, reset, slow --------------------------------------------------------------------------


@pytest.mark.serial
@scenario
async def test_hole_holds_and_healing_delivers_in_order(wan: Wan) -> None:
    wan.ensure()
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        await wan.change("us-eu", "cut")
        sent = [bytes([number]) * 1000 for number in range(50)]
        for part in sent:
            client.writer.write(part)
            await asyncio.sleep(0)
        assert await client.hears_nothing()
        await wan.change("us-eu", "up")
        assert await client.reader.readexactly(50_000) == b"".join(sent)
        assert await client.rtt() < 40


@scenario
async def test_hole_holds_what_was_on_its_way(wan: Wan) -> None:
    wan.ensure(eu_us=600)
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        client.writer.write(b"x" * 60)
        await wan.change("us-eu", "cut")
        assert await client.hears_nothing(0.8)
        await wan.change("us-eu", "up")
        assert await client.reader.readexactly(60) == b"x" * 60


@pytest.mark.parametrize(
    ("link", "arrives"),
    [("us-eu", False), ("eu-us", True)],
)
@scenario
async def test_hole_one_way(wan: Wan, link: str, arrives: bool) -> None:
    """From us to eu no question arrives; from eu to us it does, and the answer is held."""
    heard: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(MB):
            heard.append(data)
            writer.write(data)

    wan.ensure()
    async with serving(wan.target("eu"), note), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        heard.clear()
        await wan.change(link, "cut", one_way=True)
        client.writer.write(b"question")
        assert await client.hears_nothing()
        assert heard == ([b"question"] if arrives else [])
        await wan.change(link, "up")
        assert await client.reader.readexactly(8) == b"question"


@scenario
async def test_one_way_hole_stops_the_answers_to_the_other_side(wan: Wan) -> None:
    """Of an eu-initiated connection, the way from us to eu carries what comes back."""
    wan.ensure()
    async with (
        serving(wan.target("us")),
        Client.to(wan.port("eu", "us")) as cut,
        Client.to(wan.port("jp", "us")) as other,
    ):
        await cut.ping()
        await wan.change("us-eu", "cut", one_way=True)
        cut.writer.write(b"x")
        assert await cut.hears_nothing()
        assert await other.ping() >= 30
        await wan.change("eu-us", "up", one_way=True)  # The other direction: no change.
        assert await cut.hears_nothing()
        await wan.change("us-eu", "up")
        assert await cut.reader.readexactly(1) == b"x"


@pytest.mark.serial
@pytest.mark.parametrize("one_way", [False, True])
@pytest.mark.parametrize("link", ["us-eu", "eu-us"])
@scenario
async def test_new_connection_into_a_hole_opens_when_it_heals(
    wan: Wan, link: str, one_way: bool
) -> None:
    wan.ensure()
    await wan.change(link, "cut", one_way=one_way)
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:
        client.writer.write(b"x")
        assert await client.hears_nothing()
        healed = time.perf_counter()
        await wan.change(link, "up")
        assert await client.reader.readexactly(1) == b"x"
        assert time.perf_counter() - healed < 0.5
        assert await client.rtt() < 40


@pytest.mark.parametrize("link", ["us-eu", "eu-us"])
@scenario
async def test_client_that_gave_up_in_a_hole_reaches_nobody(wan: Wan, link: str) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())

    wan.ensure()
    before = wan.process.num_fds()
    await wan.change(link, "cut", one_way=True)
    async with serving(wan.target("eu"), listen):
        for _ in range(20):
            async with Client.to(wan.port("us", "eu")) as client:
                client.writer.write(b"login")
                await client.hears_nothing(0.005)
        # Else an outage with impatient customers would use up the relay's descriptors.
        await until(lambda: wan.process.num_fds() == before)
        await wan.change(link, "up")
        async with Client.to(wan.port("us", "eu")) as client:
            client.writer.write(b"back")
            client.writer.write_eof()
            await client.reader.read()
    assert b"back" in heard
    assert not any(b"login" in each for each in heard)


@scenario
async def test_reset_breaks_open_and_new_connections_of_both_sides(wan: Wan) -> None:
    wan.ensure()
    async with (
        serving(wan.target("eu")),
        serving(wan.target("us")),
        Client.to(wan.port("us", "eu")) as ours,
        Client.to(wan.port("eu", "us")) as theirs,
        Client.to(wan.port("jp", "eu")) as other,
    ):
        for client in (ours, theirs, other):
            await client.ping()
        await wan.change("us-eu", "reset")
        assert await ours.is_reset()
        assert await theirs.is_reset()
        assert await other.ping() >= 40
        with contextlib.suppress(ConnectionResetError):  # It may come that soon.
            async with Client.to(wan.port("us", "eu")) as late:
                assert await late.is_reset()
        await wan.change("us-eu", "up")
        async with Client.to(wan.port("us", "eu")) as healed:
            await healed.ping()


@scenario
async def test_reset_one_way_spares_what_the_other_side_began(wan: Wan) -> None:
    wan.ensure()
    async with (
        serving(wan.target("eu")),
        serving(wan.target("us")),
        Client.to(wan.port("us", "eu")) as ours,
        Client.to(wan.port("eu", "us")) as theirs,
    ):
        for client in (ours, theirs):
            await client.ping()
        await wan.change("us-eu", "reset", one_way=True)
        assert await ours.is_reset()
        assert await theirs.ping() >= 20


@pytest.mark.serial
@scenario
async def test_slow_link_and_back(wan: Wan) -> None:
    wan.ensure()
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        # Out of reach of one another, even where a loaded machine adds to each.
        await wan.change("us-eu", rtt_ms=120)
        assert 120 <= await client.rtt() < 150
        await wan.change("us-eu", one_way=True, rtt_ms=60)  # The way back is the 120 ms' half.
        assert 90 <= await client.rtt() < 115
        await wan.change("us-eu", "up")
        assert 20 <= await client.rtt() < 45


@pytest.mark.serial
@scenario
async def test_bytes_do_not_overtake_when_a_link_gets_faster(wan: Wan) -> None:
    wan.ensure(eu_us=400)
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        client.writer.write(b"first")
        await wan.change("us-eu", rtt_ms=10)
        client.writer.write(b"second")
        assert await client.reader.readexactly(11) == b"firstsecond"


def test_unknown_link_changes_nothing(wan: Wan) -> None:
    wan.ensure()
    before = control.load(wan.lab)
    with pytest.raises(LabError, match="no WAN link 'us-uk': use one of eu-us, jp-eu"):
        control.set_state(wan.lab, "us-uk", "cut")
    assert control.load(wan.lab) == before


def test_change_without_a_wan_is_one_line_and_leaves_no_file(wan: Wan) -> None:
    for attempt in (
        lambda: control.set_state(wan.lab, "us-eu", "cut"),
        lambda: measure(wan.lab),
        lambda: control.load(wan.lab),
    ):
        with pytest.raises(LabError, match="has no WAN yet"):
            attempt()
    assert not wan.lab.home.exists()


def test_second_same_change_is_none(wan: Wan) -> None:
    wan.ensure()
    assert control.set_state(wan.lab, "us-eu", "cut")
    assert not control.set_state(wan.lab, "us-eu", "cut")
    assert control.set_state(wan.lab, "us-eu")
    assert not control.set_state(wan.lab, "us-eu")


# -- the process -------------------------------------------------------------------------------


def test_second_ensure_changes_nothing(wan: Wan) -> None:
    assert not control.is_current(wan.lab, wan.links())
    assert wan.ensure()
    process = wan.process
    assert control.is_current(wan.lab, wan.links())
    assert not wan.ensure()
    assert wan.process == process


def test_relay_is_a_session_of_its_own(wan: Wan) -> None:
    """So that Ctrl-C in the terminal where a playbook ran does not reach it."""
    wan.ensure()
    assert os.getsid(wan.process.pid) == wan.process.pid != os.getsid(0)


@scenario
async def test_reconfiguring_keeps_open_connections(wan: Wan) -> None:
    async def reconfigure(links: list[Link]) -> None:
        assert await asyncio.to_thread(control.ensure, wan.lab, links)

    await reconfigure(wan.links(nodes="eu"))
    process = wan.process
    async with (
        serving(wan.target("eu")),
        serving(wan.target("us")),
        Client.to(wan.port("us", "eu")) as client,
        Client.to(wan.port("jp", "eu")) as other,
    ):
        await client.ping()
        await other.ping()
        client.writer.write(b"on its way")
        await reconfigure(wan.links())
        assert await client.reader.readexactly(10) == b"on its way"
        async with Client.to(wan.port("eu", "us")) as new:
            assert await new.ping() >= 20
        await reconfigure(wan.links(eu_us=60))
        assert await client.ping() >= 60
        await reconfigure([x for x in wan.links(eu_us=60) if x.source != "jp"])
        assert await client.ping() >= 60
        assert await other.is_reset()
    assert wan.process == process
    assert not is_listening(wan.port("jp", "eu"))


def test_reconfiguring_keeps_a_cut(wan: Wan) -> None:
    control.ensure(wan.lab, wan.links(nodes="eu"))
    control.set_state(wan.lab, "us-eu", "cut")
    assert wan.ensure()
    config = control.load(wan.lab)
    assert {config.trouble(link) for link in config.links if "jp" not in link.name} == {"cut"}


@scenario
async def test_killed_relay_is_revived_as_it_was(wan: Wan) -> None:
    wan.ensure()
    control.set_state(wan.lab, "jp-eu", "cut")
    async with serving(wan.target("eu")):
        async with Client.to(wan.port("us", "eu")) as client:
            await client.ping()
            assert not control.is_dead(wan.lab)
            assert not control.revive(wan.lab)
            wan.kill()
            assert control.is_dead(wan.lab)
            assert await client.reader.read() == b""
        assert await asyncio.to_thread(control.revive, wan.lab)
        assert not await asyncio.to_thread(control.revive, wan.lab)
        async with Client.to(wan.port("us", "eu")) as client:
            assert await client.ping() >= 20
        async with Client.to(wan.port("jp", "eu")) as client:
            client.writer.write(b"x")
            assert await client.hears_nothing()


def test_killed_relay_is_started_by_the_next_change_too(wan: Wan) -> None:
    wan.ensure()
    wan.kill()
    assert wan.ensure()
    wan.kill()
    assert control.set_state(wan.lab, "us-eu", "cut")
    assert wan.process.is_running()


def test_nothing_is_revived_where_there_was_no_wan(wan: Wan) -> None:
    assert not control.is_dead(wan.lab)
    assert not control.revive(wan.lab)
    assert not control.stop(wan.lab)
    assert not wan.lab.home.exists()


def test_recycled_process_id_is_not_signalled(wan: Wan) -> None:
    wan.ensure()
    state_file = wan.lab.home / "wan/state.json"
    state = json.loads(state_file.read_text())
    wan.kill()
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            born = psutil.Process(stranger.pid).create_time()
            for lie in (
                {**state, "pid": stranger.pid},
                {**state, "pid": stranger.pid, "create_time": born},
            ):
                state_file.write_text(json.dumps(lie))
                assert control.running(wan.lab) is None
                assert not control.stop(wan.lab)
            assert control.revive(wan.lab)
            assert wan.process.pid != stranger.pid
            control.stop(wan.lab)
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x"}'])
def test_garbage_in_the_state_file_does_not_stop_a_start(wan: Wan, text: str) -> None:
    wan.ensure()
    first = wan.process
    (wan.lab.home / "wan/state.json").write_text(text)
    assert wan.ensure()  # The old one is found by its command line, and replaced.
    assert wan.process != first
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE


def test_relay_that_does_not_answer_is_replaced(wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
    wan.ensure()
    monkeypatch.setattr(control, "APPLY_TIMEOUT_S", 1.0)
    paused = wan.process
    paused.suspend()
    assert wan.ensure(eu_us=50)
    assert wan.process != paused


def test_stop_ends_it_and_says_whether_it_ran(wan: Wan) -> None:
    wan.ensure()
    process = wan.process
    process.suspend()  # One that is paused is no exception.
    assert control.stop(wan.lab)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    # The kernel closes a listener a moment after its process has ended.
    eventually(lambda: not is_listening(wan.port("us", "eu")))
    assert not control.stop(wan.lab)


def test_two_labs_relays_side_by_side(new_wan: Callable[[], Wan]) -> None:
    ours, theirs = new_wan(), new_wan()
    ours.ensure()
    theirs.ensure()
    assert ours.process != theirs.process
    assert control.stop(ours.lab)
    assert theirs.process.is_running()
    assert is_listening(theirs.port("us", "eu"))
    ours.ensure()
    ours.kill()
    assert not control.is_dead(theirs.lab)
    assert control.is_dead(ours.lab)


def test_taken_port_is_named_with_the_link(wan: Wan) -> None:
    port = wan.port("us", "eu")
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(LabError, match=f"port {port}, which the WAN link us -> eu") as caught:
            wan.ensure()
        assert "LAB_PORT_BASE" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert control.running(wan.lab) is None
        assert not is_listening(wan.port("jp", "eu"))
    assert wan.ensure()


@scenario
async def test_port_that_is_taken_later_leaves_the_relay_as_it_was(wan: Wan) -> None:
    control.ensure(wan.lab, wan.links(nodes="eu"))
    async with serving(wan.target("eu")), Client.to(wan.port("us", "eu")) as client:
        await client.ping()
        with (
            socket.create_server(("127.0.0.1", wan.port("eu", "us"))),
            pytest.raises(LabError, match="which the WAN link eu -> us needs"),
        ):
            await asyncio.to_thread(wan.ensure, eu_us=500)
        assert await client.ping() < 100
        assert not control.is_current(wan.lab, wan.links(eu_us=500))
        assert await asyncio.to_thread(wan.ensure, eu_us=100)
        assert await client.ping() >= 100


def test_each_address_is_listened_on(wan: Wan) -> None:
    addresses = ("127.0.0.1", "127.0.0.2")
    assert control.ensure(wan.lab, wan.links(), addresses)
    for address in addresses:
        socket.create_connection((address, wan.port("us", "eu"))).close()
    assert control.ensure(wan.lab, wan.links(), addresses[:1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((addresses[1], wan.port("us", "eu")))


def test_address_that_is_yet_to_come_is_no_obstacle(wan: Wan) -> None:
    """A container network's gateway: the network may be made after the relay is started."""
    assert control.ensure(wan.lab, wan.links(), ("127.0.0.1", "192.0.2.1"))
    assert is_listening(wan.port("us", "eu"))


@pytest.mark.slow
def test_relay_whose_folder_is_gone_goes_too(wan: Wan) -> None:
    wan.ensure()
    process = wan.process
    for path in sorted(wan.lab.home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert process.wait(30) == 0


def test_two_runs_at_once_take_turns(wan: Wan) -> None:
    code = (
        "import sys, pathlib; from workload.lab import Lab; from workload.wan import control\n"
        "lab = Lab('wan', pathlib.Path(sys.argv[1]))\n"
        "print(control.revive(lab))"
    )
    wan.ensure()
    wan.kill()
    command = [sys.executable, "-W", "ignore", "-c", code, str(wan.lab.home)]
    runs = [
        subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = sorted(run.communicate(timeout=30)[0].strip() for run in runs)
    assert said == ["False", "False", "True"]


# -- with PostgreSQL, and in the lab ----------------------------------------------------------


@pytest.fixture
def server(wan: Wan) -> Iterator[EmbeddedServer]:
    """Return node eu of the lab as a running PostgreSQL."""
    base = wan.lab.node_dir("eu")
    settings = {"shared_buffers": "16MB"}
    made = EmbeddedServer(base, wan.target("eu"), find_bin_dir(), settings)
    with made.locked() as lock:
        made.initialise("password", lock)
        made.configure()
        made.start()
    yield made
    made.remove()


def wan_command(wan: Wan, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LAB_")}
    home = {"LAB_HOME": str(wan.lab.home), "LAB_NAME": wan.lab.name}
    return subprocess.run(
        [sys.executable, "-m", "workload", "wan", *arguments],
        cwd=CHECKOUT,
        env={**clean, **home},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_postgresql_is_measured_through_every_link(wan: Wan) -> None:
    control.ensure(wan.lab, wan.links(jitter_ms=0.5, nodes="eu", eu_us=80, eu_jp=230))
    rows = {row["from"]: row for row in measure(wan.lab)}
    assert (rows["us"]["configured_ms"], rows["jp"]["configured_ms"]) == (80, 230)
    assert [row["ok"] for row in rows.values()] == [True, True]

    done = wan_command(wan)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "80.0 / 8" in done.stdout

    done = wan_command(wan, "--link=us-eu", "--state=cut")
    assert done.returncode == 0
    assert done.stdout == "us-eu is cut both ways: what is sent is held until STATE=up\n"
    done = wan_command(wan, "--link=jp-eu", "--rtt=300")
    assert done.stdout == "jp-eu is up both ways, with an RTT of 300 ms\n"
    rows = {row["from"]: row for row in measure(wan.lab, samples=3)}
    assert (rows["us"]["measured_ms"], rows["us"]["ok"]) == (None, False)
    assert rows["us"]["trouble"] == "cut"
    assert rows["jp"]["configured_ms"] == 300
    assert (rows["jp"]["ok"], rows["jp"]["trouble"]) == (True, "slow")

    done = wan_command(wan)
    assert done.returncode == 1
    assert "OFF: us -> eu is cut" in done.stdout


def test_link_whose_node_is_down_is_off_with_the_reason(wan: Wan) -> None:
    control.ensure(wan.lab, wan.links(nodes="eu"))
    rows = measure(wan.lab, samples=1)
    assert {row["ok"] for row in rows} == {False}
    assert all("127.0.0.1" in row["error"] for row in rows)


def test_dead_relay_is_off_with_the_reason(wan: Wan) -> None:
    wan.ensure()
    wan.kill()
    assert {row["error"] for row in measure(wan.lab)} == {"the relay is not running"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--link=us-uk", "--state=cut"], "no WAN link 'us-uk': use one of eu-us"),
        (["--link=us-eu", "--state=hole"], "WAN state 'hole' of us-eu: use one of up, cut, reset"),
        (["--state=cut"], "STATE, ONE_WAY and RTT need a LINK"),
        (["--rtt=5"], "STATE, ONE_WAY and RTT need a LINK"),
    ],
)
def test_wrong_change_is_one_line(wan: Wan, arguments: list[str], said: str) -> None:
    wan.ensure()
    done = wan_command(wan, *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert said in line


def test_environment_gives_the_change(wan: Wan, monkeypatch: pytest.MonkeyPatch) -> None:
    """As make does it."""
    wan.ensure()
    for name, value in {"LINK": "us-eu", "STATE": "cut", "ONE_WAY": "1", "RTT": ""}.items():
        monkeypatch.setenv(name, value)
    assert wan_command(wan).stdout.startswith("us-eu is cut from us to eu")


def test_lab_without_a_wan_is_one_line(wan: Wan) -> None:
    done = wan_command(wan)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no lab is running" in done.stderr
    wan.lab.home.mkdir()
    (wan.lab.home / "topology.json").write_text(json.dumps(_TOPOLOGY))
    (wan.lab.home / "lab.json").write_text(json.dumps({"name": wan.lab.name, **_STATE}))
    done = wan_command(wan, "--link=us-eu")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "has no WAN yet" in line
    assert "expand_world.yml" in line


_STATE = {"runtime": "embedded", "image": "", "bin_dir": ""}
_TOPOLOGY = {
    "phase": "before",
    "dbname": "postgres",
    "customers": {"user": "customers", "password_file": "secrets/customers"},
    "tables": "public",
    "regions": {},
    "nodes": {},
}


def test_teardown_stops_the_relay_and_removes_its_folder(wan: Wan) -> None:
    wan.ensure()
    process = wan.process
    removed = remove(wan.lab)
    assert {"the WAN's relay", "folder wan"} <= set(removed)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not wan.lab.home.exists()


PLAYBOOK = """\
- name: The WAN alone
  hosts: control
  roles:
    - {role: preflight, vars: {preflight_phase: expand_world}}
    - wan
"""


@pytest.mark.slow
def test_role_starts_changes_nothing_again_and_is_revived_by_any_playbook(
    embedded_lab: LabUnderTest, tmp_path: Path
) -> None:
    lab, playbook = embedded_lab, tmp_path / "wan.yml"
    playbook.write_text(PLAYBOOK)

    def only_wan(*arguments: str) -> Play:
        # By its path as the lab's own playbooks are named, and with the inventory that they have.
        name = os.path.relpath(playbook.with_suffix(""), CHECKOUT / "playbooks")
        return lab.play_ok(name, "-i", str(CHECKOUT / "inventory/lab"), *arguments)

    lab.play_ok("before")
    assert only_wan("--check").changed == 1
    assert control.running(lab.lab) is None
    assert only_wan().changed == 1
    assert only_wan("--check").changed == 0
    assert only_wan().changed == 0
    config = control.load(lab.lab)
    assert {(x.source, x.node, x.port - lab.port_base) for x in config.links} == {
        ("us", "eu", 20), ("us", "eu_2", 21), ("jp", "eu", 30), ("jp", "eu_2", 31),
    }  # fmt: skip
    assert only_wan("-e", '{"lab_rtt_ms": {"eu": {"us": 10, "jp": 20}}}').changed == 1

    # topology.json takes the new links over.
    lab.play_ok("before")
    process = control.running(lab.lab)
    assert process
    process.kill()
    process.wait(10)
    dry = lab.play_ok("before", "--check")
    assert dry.changed == 1
    assert control.running(lab.lab) is None
    play = lab.play_ok("before")
    assert play.changed == 1
    assert "the WAN's relay was dead" in play.output
    assert control.running(lab.lab)
    assert lab.play_ok("before").changed == 0
    play = lab.play_ok("teardown")
    assert "the WAN's relay" in play.output
    assert control.running(lab.lab) is None
