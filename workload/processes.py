"""Processes and threads: start, wait, poll, and the locks between runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from workload.errors import LabError

#: Seconds that a run waits for another run that holds a lock.
LOCK_TIMEOUT_S = 60.0

#: Prints how far a long step is.
Say = Callable[[str], None]

#: Every point at which a killed run leaves another state. A test kills a run at each of them, and
#: plays it again.
STEPS = (
    "standby.slotted", "standby.seeded", "standby.streaming",
    "partition.created", "partition.armed", "partition.loaded", "partition.keyed",
    "partition.swapping", "partition.swapped",
    "replicas.published", "replicas.emptied", "replicas.slotted", "replicas.loaded",
    "replicas.attached",
    "cutover.agreed", "cutover.staged", "cutover.warmed", "cutover.gated", "cutover.swapping",
    "cutover.swapped", "cutover.homed",
    "purge.due", "purge.unsubscribed", "purge.dropped", "purge.removed", "purge.scrubbed",
    "failover.fenced", "failover.promoted", "failover.ready", "failover.routed",
    "rejoin.slotted", "rejoin.rewound", "rejoin.started",
    "move.begun", "move.read", "move.written", "move.prepared", "move.deleted", "move.decided",
    "move.committed", "move.followed", "move.rewritten", "move.cleaned",
    "rewrite.armed", "rewrite.loaded", "rewrite.keyed", "rewrite.swapping", "rewrite.swapped",
    "forget.deleted",
)  # fmt: skip


def reached(step: str) -> None:
    """End this process by SIGKILL where LAB_KILL_AT names the step, one of STEPS; else nothing."""
    if os.environ.get("LAB_KILL_AT") == step:
        os.kill(os.getpid(), signal.SIGKILL)


def spawn_detached(
    command: Sequence[str | Path], log: Path, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output at the end of a log, and return it.

    A Ctrl-C in the terminal does not reach it. The caller calls detach() once the process is up, or
    reaps it where it does not come up.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def detach(child: subprocess.Popen[bytes]) -> None:
    """Detach a running child, so that Python does not warn that it still runs."""
    child.returncode = 0


def signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to processes; those that have ended are skipped."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process has not ended.

    A zombie has ended: an orphan's new parent may reap it seconds later, or never.
    """
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def await_end(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until processes have ended; return those that still run after timeout_s."""
    waiting = list(processes)
    deadline = time.monotonic() + timeout_s
    while alive := [process for process in waiting if is_alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return alive


@contextlib.contextmanager
def locked(folder: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[int]:
    """Hold a folder's lock and yield its descriptor; make the folder where it is missing.

    A killed playbook leaves its worker running; the next run waits for it here. Raises LabError
    where the lock is not free within timeout_s.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The folder itself, so that no lock file is left; the lock ends with its holder.
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"{folder} is locked for more than {timeout_s:.0f} s: another run of this"
                        " lab is at work there"
                    ) from None
                time.sleep(0.02)
        yield handle
    finally:
        os.close(handle)


def poll(condition: Callable[[], bool], timeout_s: float, complaint: str) -> None:
    """Wait until a condition holds; raises LabError with the complaint after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{complaint} within {timeout_s:.0f} s")
        time.sleep(0.02)


def in_parallel(tasks: Sequence[Callable[[], None]]) -> None:
    """Run each function in a thread, and raise the error of the first one that failed."""
    if not tasks:
        return
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()
