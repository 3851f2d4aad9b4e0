"""What provisioning costs against the source document's own commands, on this machine, now."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from bench.labs import PORT_BASE, bench_lab
from bench.rows import Row, timed
from workload.errors import LabError
from workload.nodes.docker import Engine
from workload.nodes.embedded import find_bin_dir, run_as

ROUNDS = 3
IMAGES = ["postgres:16", "geo-sharding-lab/postgres:17"]
PORT = PORT_BASE + 100
URL = f"postgres://postgres:password@localhost:{PORT}/?sslmode=disable"
TABLES = (
    "CREATE TABLE customer (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), email TEXT NOT NULL);",
    "CREATE TABLE purchase (id UUID PRIMARY KEY DEFAULT gen_random_uuid(),"
    " customer_id UUID NOT NULL REFERENCES customer(id), amount DECIMAL NOT NULL);",
)


def rows() -> Iterator[Row]:
    """Measure both runtimes; docker only where an engine has an image."""
    yield from _compare("embedded", _raw_embedded)
    try:
        image = Engine().find_image(IMAGES).name
    except LabError as error:
        print(f"  not measured, docker: {error}")
        return
    yield from _compare("docker", lambda: _raw_docker(image))


def _compare(runtime: str, raw: Callable[[], float]) -> Iterator[Row]:
    cold, again, baseline = [], [], []
    for _ in range(ROUNDS):
        baseline.append(raw())
        with bench_lab(runtime) as lab:
            cold.append(timed(lambda lab=lab: lab.play("before")))  # type: ignore[misc]
            again.append(timed(lambda lab=lab: lab.play("before")))  # type: ignore[misc]
    yield Row(f"before.yml, cold lab, {runtime}", median(cold), "s", 4, "lower", median(baseline))
    yield Row(f"before.yml, no change, {runtime}", median(again), "s", 6, "lower")


def _raw_embedded() -> float:
    bin_dir = find_bin_dir()
    with tempfile.TemporaryDirectory(prefix="geo-lab-raw-") as folder:
        data, secret = Path(folder) / "data", Path(folder) / "password"
        secret.write_text("password")

        def commands() -> None:
            _run(
                *run_as(), bin_dir / "initdb", "-D", data, "-U", "postgres", f"--pwfile={secret}",
                "--auth=scram-sha-256",
            )  # fmt: skip
            options = f"-p {PORT} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
            _run(
                *run_as(), bin_dir / "pg_ctl", "-D", data, "-w", "-l", f"{folder}/log",
                "-o", options, "start",
            )  # fmt: skip
            _create_tables(bin_dir)

        try:
            return timed(commands)
        finally:
            _run(*run_as(), bin_dir / "pg_ctl", "-D", data, "-m", "immediate", "stop")


def _raw_docker(image: str) -> float:
    name = f"geo-lab-raw-{uuid.uuid4().hex[:8]}"

    def commands() -> None:
        _run(
            "docker", "run", "-d", "--name", name, "-p", f"127.0.0.1:{PORT}:5432",
            "-v", f"{name}:/var/lib/postgresql/data", "-e", "POSTGRES_PASSWORD=password", image,
        )  # fmt: skip
        bin_dir = find_bin_dir()
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run(bin_dir / "psql", URL, "-c", "SELECT 1")
                break
            if time.monotonic() > deadline:
                raise RuntimeError("the raw container takes no login in 60 s")
            time.sleep(0.05)
        _create_tables(bin_dir)

    if not shutil.which("docker"):
        raise RuntimeError("the docker command is not installed")
    try:
        return timed(commands)
    finally:
        _run("docker", "rm", "-f", "-v", name)
        _run("docker", "volume", "rm", name)


def _create_tables(bin_dir: Path) -> None:
    for statement in TABLES:
        _run(bin_dir / "psql", URL, "-c", statement)


def _run(*command: str | Path) -> None:
    # No pipes: the server that pg_ctl starts would keep them open.
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120
    )
