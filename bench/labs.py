"""Labs that are made for a measurement and gone after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workload.lab import CHECKOUT, Lab
from workload.nodes.teardown import remove
from workload.traffic.ledger import last_acknowledgement

#: Away from a user's own lab and from those of the tests.
PORT_BASE = 29_500
#: Seconds until the first customer has to have traded, and after which all of them go.
CONNECTED_S, TRAFFIC_S = 30, 600


@dataclass(frozen=True)
class BenchLab:
    """A lab of the bench's own."""

    lab: Lab
    runtime: str

    def environ(self) -> dict[str, str]:
        """Return the environment of its programs."""
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
            "LAB_NAME": self.lab.name,
            "LAB_HOME": str(self.lab.home),
            "LAB_RUNTIME": self.runtime,
            "LAB_PORT_BASE": str(PORT_BASE),
        }

    def run(self, *command: str | Path) -> str:
        """Run a program to its end and return what it printed; raises where it fails."""
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            env=self.environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def play(self, playbook: str) -> None:
        """Play a playbook."""
        path = CHECKOUT / "playbooks" / f"{playbook}.yml"
        self.run(sys.executable, "-m", "ansible", "playbook", path)

    @contextlib.contextmanager
    def customers(self, users: int) -> Iterator[None]:
        """Let customers of all regions trade while the block lasts."""
        began = time.time()
        process = subprocess.Popen(
            [
                sys.executable, "-m", "workload", "traffic", "--headless", f"--time={TRAFFIC_S}",
                f"--users={users}", f"--spawn-rate={users}",
            ],
            cwd=CHECKOUT,
            env=self.environ(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + CONNECTED_S
            while not last_acknowledgement(self.lab.home / "ledger", since=began):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no customer has written within {CONNECTED_S} s")
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


@contextlib.contextmanager
def bench_lab(runtime: str) -> Iterator[BenchLab]:
    """Yield a lab that is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="geo-lab-bench-") as folder:
        made = BenchLab(Lab(f"bench{os.getpid()}", Path(folder) / "home"), runtime)
        try:
            yield made
        finally:
            remove(made.lab)
