"""Start, reconfigure, change and stop a lab's relay.

The configuration is <state folder>/wan/config.json; what the relay applied of it, and which process
it is, stands in state.json beside it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from workload.errors import LabError
from workload.lab import CHECKOUT, Lab, read_json, write_atomically
from workload.processes import await_end, detach, is_alive, locked, signal_all, spawn_detached
from workload.wan.config import Config, Link

MODULE = "workload.wan.relay"
#: Seconds that a relay has to apply a configuration, and that two runs wait for each other.
APPLY_TIMEOUT_S = 10.0
#: The kernel reckons a process's start from the clock's, which may be set meanwhile.
CREATE_TIME_TOLERANCE_S = 5.0


def load(lab: Lab) -> Config:
    """Return what the WAN is to be; raises LabError where the lab has none."""
    config = _read(lab)
    if config is None:
        raise LabError(
            f"the lab in {lab.home} has no WAN yet: it comes with the phase in which customers of"
            " other regions arrive, playbooks/expand_world.yml"
        )
    return config


def links(lab: Lab) -> tuple[Link, ...]:
    """Return the WAN's links as configured, none while all customers are at home."""
    config = _read(lab)
    return config.links if config else ()


def rtt_ms(lab: Lab, source: str, node: str) -> float:
    """Return the RTT from a region to a node as it is now, slowed or not; 0.0 without a link."""
    config = _read(lab)
    if config is None:
        return 0.0
    there = (link for link in config.links if (link.source, link.node) == (source, node))
    return max(map(config.rtt_ms, there), default=0.0)


def running(lab: Lab) -> psutil.Process | None:
    """Return the relay's process, or None.

    The process id alone proves nothing after a crash: it may be another program's by now.
    """
    state = _state(lab)
    with contextlib.suppress(KeyError, TypeError, ValueError, psutil.Error):
        process = psutil.Process(int(state["pid"]))
        born = abs(process.create_time() - float(state["create_time"]))
        if born < CREATE_TIME_TOLERANCE_S and _is_relay_of(process, lab):
            return process
    return None


def is_current(lab: Lab, links: Iterable[Link], listen: Iterable[str] = ("127.0.0.1",)) -> bool:
    """Tell whether ensure() would find nothing to do."""
    config = _read(lab)
    return (
        config is not None
        and config.with_links(links, listen) == config
        and running(lab) is not None
        and _has_applied(lab, config.generation)
    )


def is_dead(lab: Lab) -> bool:
    """Tell whether revive() would find something to do."""
    return (_folder(lab) / "config.json").exists() and running(lab) is None


def ensure(lab: Lab, links: Iterable[Link], listen: Iterable[str] = ("127.0.0.1",)) -> bool:
    """Make the relay run with these links, and wait until it does; return whether it did not.

    A link that was there keeps its open connections, and its state if it was cut or slowed. Raises
    LabError where a port cannot be had; the relay then goes on as it was.
    """
    links, listen = tuple(links), tuple(listen)
    with locked(_folder(lab)):
        if is_current(lab, links, listen):
            return False
        _apply(lab, (_read(lab) or Config((), ())).with_links(links, listen))
    return True


def revive(lab: Lab) -> bool:
    """Start the relay where the lab has a WAN and its relay is dead; return whether that was so.

    Raises LabError where a port cannot be had.
    """
    if not is_dead(lab):
        return False
    with locked(_folder(lab)):
        if not is_dead(lab):
            return False
        _apply(lab, load(lab))
    return True


def set_state(
    lab: Lab,
    link: str,
    state: str = "up",
    one_way: bool = False,
    rtt_ms: float | None = None,
) -> bool:
    """Cut, reset, heal or slow a link, and wait until it is so; return whether it was not.

    link is "us-eu", both ways, or with one_way from us to eu alone; state is up, cut (what is sent
    is held until the link is up again) or reset. up without rtt_ms is as the inventory has it.
    Raises LabError for a name that there is not.
    """
    load(lab)  # Before a lock file is made in a lab without a WAN.
    with locked(_folder(lab)):
        config = load(lab)
        changed = config.with_state(link, state, one_way, rtt_ms)
        if changed == config and running(lab) and _has_applied(lab, config.generation):
            return False
        _apply(lab, changed)
    return True


def stop(lab: Lab) -> bool:
    """Stop the relay, and any that a killed run left; return whether one ran.

    Its configuration stays: revive() would start it again.
    """
    if not _folder(lab).is_dir():
        return _end(_relays(lab))
    with locked(_folder(lab)):
        return _end(_relays(lab))


def _folder(lab: Lab) -> Path:
    return lab.home / "wan"


def _read(lab: Lab) -> Config | None:
    content = read_json(_folder(lab) / "config.json")
    return Config.from_json(content) if content else None


def _state(lab: Lab) -> dict[str, Any]:
    try:
        return read_json(_folder(lab) / "state.json")
    except LabError:
        return {}  # A relay that says nothing of use is as good as none.


def _has_applied(lab: Lab, generation: int) -> bool:
    state = _state(lab)
    return state.get("generation") == generation and not state.get("error")


def _is_relay_of(process: psutil.Process, lab: Lab) -> bool:
    return process.cmdline()[1:] == ["-m", MODULE, str(lab.home)] and is_alive(process)


def _relays(lab: Lab) -> list[psutil.Process]:
    relays = []
    # Not process_iter: it remembers, and takes a recycled id for the process that had it before.
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if _is_relay_of(process, lab):
                relays.append(process)
    return relays


def _apply(lab: Lab, config: Config) -> None:
    config = replace(config, generation=config.generation + 1)
    write_atomically(_folder(lab) / "config.json", json.dumps(config.to_json(), indent=1) + "\n")
    process = running(lab)
    if process is not None:
        process.send_signal(signal.SIGHUP)
        if _await(lab, config.generation, process):
            return
    # None that runs, one that does not answer, or one that a killed run left behind unnamed.
    _end(_relays(lab))
    child = spawn_detached(
        [sys.executable, "-m", MODULE, str(lab.home)], _folder(lab) / "relay.log", CHECKOUT
    )
    process = psutil.Process(child.pid)
    try:
        if not _await(lab, config.generation, process):
            raise LabError(f"the WAN's relay does not start: {_last_line(lab)}")
        detach(child)
    except LabError:
        _end([process])
        child.wait()
        raise


def _await(lab: Lab, generation: int, process: psutil.Process) -> bool:
    deadline = time.monotonic() + APPLY_TIMEOUT_S
    while True:
        # In this order: what it wrote before it ended counts.
        has_ended = not is_alive(process)
        state = _state(lab)
        if state.get("generation") == generation and state.get("pid") == process.pid:
            if state["error"]:
                raise LabError(state["error"])
            return True
        if has_ended or time.monotonic() > deadline:
            return False
        time.sleep(0.005)


def _end(processes: list[psutil.Process]) -> bool:
    signal_all(processes, signal.SIGTERM)
    signal_all(processes, signal.SIGCONT)  # One that is paused would not hear the first.
    alive = await_end(processes, 5)
    signal_all(alive, signal.SIGKILL)
    await_end(alive, 5)
    return bool(processes)


def _last_line(lab: Lab) -> str:
    with contextlib.suppress(OSError):
        lines = (_folder(lab) / "relay.log").read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return "it said nothing"
