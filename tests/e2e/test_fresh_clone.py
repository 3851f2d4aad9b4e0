"""The README's first command from a fresh clone, as a new user would type it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fixtures.labs import CHECKOUT, IMAGE, free_ports
from tests.fixtures.require import skip_or_fail
from workload.errors import LabError
from workload.lab import Lab
from workload.nodes.docker import Engine
from workload.nodes.teardown import remove

NO_ENGINE = "unix:///nonexistent/docker.sock"
SECONDS = "3"


class Clone:
    """A copy of the tracked files at a path never used before, with an empty home."""

    def __init__(self, folder: Path, user: str | None = None) -> None:
        self.path = folder / "a new clone"
        self.home = folder / "home"
        self.home.mkdir()
        self.user = user
        self.name = f"e{os.getpid()}-{folder.name[-6:].lower().strip('_')}"
        self.port_base = free_ports()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            source = CHECKOUT / name
            if source.exists():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, self.path / name)
        if user:
            entry = pwd.getpwnam(user)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, entry.pw_uid, entry.pw_gid)

    @property
    def lab(self) -> Lab:
        return Lab(self.name, self.path / f".lab-{self.name}")

    def make(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("LAB_", "ANSIBLE_", "VIRTUAL_ENV", "UV_", "PYTEST"))
        }
        clean.update(HOME=str(self.home), TIME=SECONDS, LAB_NAME=self.name, **environ)
        clean["LAB_PORT_BASE"] = str(self.port_base)
        command = ["make", *arguments]
        if self.user:
            # A Python below root's home is not theirs.
            clean["PATH"] = "/usr/local/bin:/usr/bin:/bin"
            entry = pwd.getpwnam(self.user)
            change = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
            command = ["setpriv", *change, *command]
        return subprocess.run(
            command,
            cwd=self.path,
            env=clean,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=420,
            check=False,
        )

    def processes(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.path):
                    found.append(process.name())
            except (psutil.Error, OSError):
                continue
        return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that only its owner can enter, as root's home is."""
    path = Path(tempfile.mkdtemp(prefix="geo-lab-e2e-"))
    yield path
    shutil.rmtree(path)


def check_demo(clone: Clone, **environ: str) -> str:
    done = clone.make("demo", **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS: every acknowledged write is there, once." in done.stdout
    assert "make teardown" in done.stdout
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    wide = [line for line in lines if len(line) > 80 and str(clone.path) not in line]
    assert not wide
    rows = json.loads((clone.lab.home / "reports" / "experience.json").read_text())
    assert {row["operation"] for row in rows} == {"connect", "sign up", "buy", "basket", "read"}
    assert sum(row["failures"] for row in rows) == 0
    # They traded while each phase was reached, too, and the cutovers were under way.
    taken = json.loads((clone.lab.home / "reports" / "steps.json").read_text())
    assert [(row["phase"], row["region"]) for row in taken] == [
        *((phase, "eu") for phase in ("expand_eu", "expand_world")),
        *((phase, region) for phase in ("shard", "after") for region in ("eu", "us", "jp")),
    ]
    for row in taken:
        assert row["requests"] > 0
        assert row["failures"] == 0
    receipts = json.loads((clone.lab.home / "reports" / "cutover.json").read_text())
    assert receipts[0]["acknowledged"] < receipts[1]["acknowledged"]
    assert {(row["failed"], row["lost"], row["doubled"]) for row in receipts} == {(0, 0, 0)}
    return done.stdout


def check_teardown(clone: Clone, **environ: str) -> None:
    done = clone.make("teardown", **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not clone.lab.home.exists()
    assert clone.processes() == []


def test_without_an_engine_as_an_ordinary_user(folder: Path) -> None:
    clone = Clone(folder, user="nobody" if os.geteuid() == 0 else None)
    try:
        said = check_demo(clone, DOCKER_HOST=NO_ENGINE)
        assert "embedded runtime: no Docker engine answers" in said
        url = f"postgres://postgres:password@localhost:{clone.port_base}/?sslmode=disable"
        psql = subprocess.run(
            [
                clone.path / ".venv" / "bin" / "psql",
                url,
                "-Atc",
                "SELECT count(*) > 0 FROM purchase",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        assert psql.stdout == "t\n"
        check_teardown(clone, DOCKER_HOST=NO_ENGINE)
    finally:
        remove(clone.lab)


@pytest.mark.docker
def test_with_an_engine(folder: Path) -> None:
    try:
        engine = Engine()
        engine.find_image([IMAGE])
    except LabError as error:
        skip_or_fail("docker", str(error))
    clone = Clone(folder)
    try:
        said = check_demo(clone)
        assert "docker runtime: a Docker engine answers" in said
        container = engine.client.containers.get(f"{clone.name}_eu_db")
        assert container.status == "running"
        check_teardown(clone)
        assert clone.name not in str([c.name for c in engine.client.containers.list(all=True)])
        assert clone.name not in str([v.name for v in engine.client.volumes.list()])
    finally:
        remove(clone.lab)
