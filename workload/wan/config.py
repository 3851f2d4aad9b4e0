"""What the WAN is to be: links, delays, and what is cut. Pure data; nothing here reads or writes.

A link is where the customers and nodes of one region reach a node of another. Each of the two
directions between two regions has a state: "us>eu" carries what us-initiated connections send and
what eu-initiated ones answer. Links have delays, directions can be cut.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from workload.errors import LabError

#: What a direction can be; in one that is cut, what is sent is held until it is up again.
STATES = ("up", "cut", "reset")
#: Listener ports of one region; a node's own port is its offset into a row like these.
PORTS_PER_REGION = 10
HIGHEST_PORT = 65_535


@dataclass(frozen=True)
class Link:
    """A listener of the relay: connections from a source region to a node in another."""

    source: str
    node: str
    region: str
    port: int
    host: str
    target_port: int
    rtt_ms: float
    #: How far a direction's delay may stray from half the RTT.
    jitter_ms: float

    @property
    def name(self) -> str:
        """The link as messages name it."""
        return f"{self.source} -> {self.node}"


@dataclass(frozen=True)
class State:
    """What one direction between two regions is, where it is not as its links have it."""

    #: One of STATES.
    state: str = "up"
    #: In place of the links' own; a direction's delay is half of it.
    rtt_ms: float | None = None


@dataclass(frozen=True)
class Config:
    """All that the relay goes by."""

    links: tuple[Link, ...]
    #: Addresses on which every link listens.
    listen: tuple[str, ...]
    #: States of directions that are not as their links have them, by "from>to".
    states: Mapping[str, State] = field(default_factory=dict)
    #: Counts up with each change, so that a change can be told to be applied.
    generation: int = 0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Config:
        """Return what to_json wrote; raises LabError for anything else."""
        try:
            return cls(
                links=tuple(Link(**link) for link in content["links"]),
                listen=tuple(content["listen"]),
                states={name: State(**state) for name, state in content["ways"].items()},
                generation=int(content["generation"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"the WAN's config.json is not as the lab writes it ({error!r}): make teardown"
                " starts afresh"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the content of config.json."""
        content = asdict(self)
        content["ways"] = content.pop("states")
        return content

    def direction(self, start: str, end: str) -> State:
        """Return the state of one direction."""
        return self.states.get(f"{start}>{end}", State())

    def directions(self, link: Link) -> tuple[State, State]:
        """Return the states of a link's two directions, to its node and back."""
        return self.direction(link.source, link.region), self.direction(link.region, link.source)

    def delays_ms(self, link: Link) -> tuple[float, float]:
        """Return how long bytes take to a link's node, and back."""
        there, back = (
            self.direction(link.source, link.region),
            self.direction(link.region, link.source),
        )
        return (
            (link.rtt_ms if there.rtt_ms is None else there.rtt_ms) / 2,
            (link.rtt_ms if back.rtt_ms is None else back.rtt_ms) / 2,
        )

    def rtt_ms(self, link: Link) -> float:
        """Return the RTT of a link as it is now, slowed or not."""
        return sum(self.delays_ms(link))

    def trouble(self, link: Link) -> str:
        """Return what is cut or slowed on a link in a word or two, "" where nothing is."""
        there, back = (
            self.direction(link.source, link.region),
            self.direction(link.region, link.source),
        )
        if there.state == "reset":
            return "reset"
        held = (there.state == "cut", back.state == "cut")
        if held == (True, True):
            return "cut"
        if any(held):
            start, end = link.source, link.region
            return f"cut {start}>{end}" if held[0] else f"cut {end}>{start}"
        return "" if self.rtt_ms(link) == link.rtt_ms else "slow"

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of regions that have a link, each once."""
        pairs: list[tuple[str, str]] = []
        for link in self.links:
            if (link.region, link.source) not in pairs and (link.source, link.region) not in pairs:
                pairs.append((link.source, link.region))
        return pairs

    def pair(self, link: str) -> tuple[str, str]:
        """Return the regions of a link by its name, "us-eu"; one direction begins at the first.

        Raises LabError with the links that there are.
        """
        known = {f"{a}-{b}": (a, b) for pair in self.pairs() for a, b in (pair, pair[::-1])}
        if link not in known:
            names = ", ".join(f"{a}-{b}" for a, b in self.pairs()) or "none"
            raise LabError(
                f"no WAN link '{link}': use one of {names}, or one of them the other way round"
            )
        return known[link]

    def with_state(
        self, link: str, state: str = "up", one_way: bool = False, rtt_ms: float | None = None
    ) -> Config:
        """Return this configuration with a link cut, reset, up, or up with another RTT.

        link is "us-eu": both ways, or with one_way from us to eu alone. state is up, cut or reset.
        A link that is cut, and healed, keeps its other RTT; up on one that is up takes it back.
        Raises LabError for a name that there is not, and for an RTT that cannot be.
        """
        start, end = self.pair(link)
        if state not in STATES:
            raise LabError(f"WAN state '{state}' of {link}: use one of {', '.join(STATES)}")
        if rtt_ms is not None and not 0 <= rtt_ms <= 60_000:
            raise LabError(f"RTT {rtt_ms:g} of {link}: use milliseconds from 0 to 60000")
        if rtt_ms is not None and state != "up":
            raise LabError(f"RTT {rtt_ms:g} of {link}: a link that is {state} has none; use up")
        keeps = state != "up" or self.direction(start, end).state != "up"
        states = dict(self.states)
        for name in [f"{start}>{end}"] if one_way else [f"{start}>{end}", f"{end}>{start}"]:
            known_ms = self.states[name].rtt_ms if keeps and name in self.states else None
            states[name] = State(state, known_ms if rtt_ms is None else rtt_ms)
        return replace(self, states={k: each for k, each in states.items() if each != State()})

    def with_links(self, links: Iterable[Link], listen: Iterable[str]) -> Config:
        """Return a configuration with other links; those that remain keep their states.

        Raises LabError for an address that is none.
        """
        listen = tuple(listen)
        for address in listen:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise LabError(
                    f"wan_listen has '{address}': use IP addresses of this machine"
                ) from None
        changed = replace(self, links=tuple(links), listen=listen)
        kept = {name for a, b in changed.pairs() for name in (f"{a}>{b}", f"{b}>{a}")}
        return replace(changed, states={k: each for k, each in self.states.items() if k in kept})


def links_for(
    regions: Sequence[str],
    nodes: Sequence[Mapping[str, Any]],
    rtt_ms: Mapping[str, Mapping[str, Any]],
    jitter_ms: float,
    port_base: int,
) -> list[Link]:
    """Return a link for each region and each node that is not at home in it.

    nodes: [{name, region, host, port, port_offset}]. rtt_ms: {a: {b: ms}}, either way round. A
    listener's port goes by the region's place in the list, so it stays when one is appended.
    Raises LabError for a pair without an RTT, and for ports that do not fit.
    """
    if not 0 <= float(jitter_ms) <= 1000:
        raise LabError(f"lab_wan_jitter_ms is '{jitter_ms}': use milliseconds from 0 to 1000")
    links = []
    for place, source in enumerate(regions):
        for node in nodes:
            if node["region"] == source:
                continue
            offset = int(node["port_offset"])
            if not 0 <= offset < PORTS_PER_REGION:
                raise LabError(
                    f"node '{node['name']}' has node_port_offset {offset}: the WAN has room for 0"
                    f" to {PORTS_PER_REGION - 1}"
                )
            port = int(port_base) + PORTS_PER_REGION * (1 + place) + offset
            if port > HIGHEST_PORT:
                raise LabError(
                    f"WAN link {source} -> {node['name']} would listen on port {port}: set"
                    f" LAB_PORT_BASE to {HIGHEST_PORT - port + int(port_base)} or less"
                )
            rtt = _lookup(rtt_ms, source, node["region"])
            links.append(
                Link(
                    source=source,
                    node=node["name"],
                    region=node["region"],
                    port=port,
                    host=node["host"],
                    target_port=int(node["port"]),
                    rtt_ms=rtt,
                    # More would make bytes arrive before they are sent, or the mean stray.
                    jitter_ms=min(float(jitter_ms), rtt / 2),
                )
            )
    return links


def _lookup(rtt_ms: Mapping[str, Mapping[str, Any]], a: str, b: str) -> float:
    given = [row[end] for start, end in ((a, b), (b, a)) if end in (row := rtt_ms.get(start) or {})]
    if not given:
        raise LabError(f"no RTT between {a} and {b}: add the pair to lab_rtt_ms")
    try:
        values = {float(value) for value in given}
    except (TypeError, ValueError):
        values = {-1.0}
    if len(values) > 1:
        raise LabError(f"lab_rtt_ms has two RTTs between {a} and {b}: {given[0]} and {given[1]}")
    value = values.pop()
    if not 0 <= value <= 60_000:
        raise LabError(
            f"lab_rtt_ms between {a} and {b} is '{given[0]}': use milliseconds from 0 to 60000"
        )
    return value
