"""make teardown: all that the lab made, in any state, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import docker.errors
import psutil
import pytest

from tests.fixtures.labs import IMAGE, LabUnderTest, eventually
from tests.playbooks.traces import traces
from workload.nodes.docker import Engine


def test_lab_that_was_never_there(lab: LabUnderTest) -> None:
    play = lab.play_ok("teardown")
    assert "nothing, there was no lab" in " ".join(play.output.split())
    assert play.changed == 0
    assert traces(lab) == []


def test_running_lab_after_traffic_and_twice_in_a_row(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    assert lab.workload("traffic", "--headless", USERS="2", TIME="1").returncode == 0
    assert {path.name for path in lab.lab.home.iterdir()} >= {"ledger", "reports", "lab.json"}
    play = lab.play_ok("teardown")
    assert play.changed == 1
    assert "removed: " in play.output
    assert traces(lab) == []
    assert lab.play_ok("teardown").changed == 0
    # And the way is free for the next one.
    lab.play_ok("before")
    assert lab.query("SELECT count(*) FROM customer") == [(0,)]


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_half_provisioned_lab(lab: LabUnderTest, share: float) -> None:
    run = lab.start("before")
    # From the first thing on disk, a part of what is left of the run.
    eventually(lambda: (lab.lab.home / "lab.json").exists())
    time.sleep(share * 2)
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.wait(10)
    lab.play_ok("teardown")
    assert traces(lab) == []


def test_killed_server(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    lab.kill_server()
    lab.play_ok("teardown")
    assert traces(lab) == []


def test_paused_server(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    if lab.runtime == "docker":
        Engine().client.containers.get(f"{lab.lab.name}_eu_db").pause()
    else:
        for process in lab.server().processes():
            process.suspend()
    lab.play_ok("teardown")
    assert traces(lab) == []


def test_server_whose_processes_lost_their_postmaster(embedded_lab: LabUnderTest) -> None:
    embedded_lab.play_ok("before")
    server = embedded_lab.server()
    postmaster = server.postmaster()
    assert postmaster
    orphans = postmaster.children()
    for process in orphans:
        process.suspend()
    os.kill(postmaster.pid, signal.SIGKILL)
    embedded_lab.play_ok("teardown")
    # The dead may wait a while for their new parent to notice.
    eventually(lambda: not any(process.is_running() for process in orphans), 60)
    assert traces(embedded_lab) == []


def test_lab_under_load(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    traffic = lab.start_workload("traffic", "--headless", USERS="5", TIME="60")
    try:
        eventually(lambda: lab.query("SELECT count(*) FROM purchase")[0][0] > 5)
        lab.play_ok("teardown")
        assert not [trace for trace in traces(lab) if "eu_db" in trace or "nodes" in trace]
    finally:
        traffic.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            traffic.communicate(timeout=30)
        traffic.kill()
        traffic.communicate()
    # The customers' own run may have written its last report after that.
    lab.play_ok("teardown")
    assert traces(lab) == []


def test_files_that_are_not_the_labs_stay(lab: LabUnderTest) -> None:
    home = lab.lab.home
    (home / "my notes").mkdir(parents=True)
    (home / "my notes/talk.txt").write_text("mine")
    (home / "lab.json.bak").write_text("mine")
    lab.play_ok("before")
    lab.play_ok("teardown")
    assert traces(lab) == [
        str(path) for path in (home, *sorted((*home.glob("*"), home / "my notes/talk.txt")))
    ]
    assert (home / "my notes/talk.txt").read_text() == "mine"
    assert (home / "lab.json.bak").exists()


def test_what_a_killed_run_had_half_written_goes_too(embedded_lab: LabUnderTest) -> None:
    embedded_lab.play_ok("before")
    home = embedded_lab.lab.home
    # As workload.lab.write_atomically names them until they are whole.
    (home / ".lab.json.4711").write_text("{")
    (home / ".topology.json.4711").write_text("{")
    (home / "nodes/.DS_Store").write_text("")
    embedded_lab.play_ok("teardown")
    assert traces(embedded_lab) == []


def test_state_file_that_is_gone(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    (lab.lab.home / "lab.json").unlink()
    lab.play_ok("teardown")
    assert traces(lab) == []


def test_link_out_of_the_state_folder_is_not_followed(
    embedded_lab: LabUnderTest, tmp_path: Path
) -> None:
    embedded_lab.play_ok("before")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    (embedded_lab.lab.home / "reports").symlink_to(elsewhere)
    play = embedded_lab.play("teardown")
    assert (elsewhere / "mine.txt").read_text() == "mine"
    assert play.status == 0, play.errors
    assert traces(embedded_lab) == []


@pytest.mark.docker
def test_containers_and_volumes_of_similar_names_stay(docker_lab: LabUnderTest) -> None:
    client = Engine().client
    docker_lab.play_ok("before")
    name = f"{docker_lab.lab.name}_eu_db_backup"
    volume = client.volumes.create(name)
    container = client.containers.run(
        IMAGE,
        ["sleep", "600"],
        name=name,
        detach=True,
        volumes={name: {"bind": "/var/lib/postgresql/data"}},
    )
    try:
        docker_lab.play_ok("teardown")
        assert sorted(traces(docker_lab)) == [f"Container {name}", f"Volume {name}"]
        container.reload()
        assert container.status == "running"
    finally:
        container.remove(force=True, v=True)
        volume.remove(force=True)


@pytest.mark.docker
def test_trailing_slash_of_the_folder_makes_no_other_lab(docker_lab: LabUnderTest) -> None:
    docker_lab.environment["LAB_HOME"] = f"{docker_lab.lab.home}/"
    docker_lab.play_ok("before")
    assert docker_lab.play_ok("before").changed == 0
    docker_lab.play_ok("teardown")
    assert traces(docker_lab) == []


@pytest.mark.docker
def test_lab_in_docker_without_an_engine_is_not_forgotten(docker_lab: LabUnderTest) -> None:
    docker_lab.play_ok("before")
    play = docker_lab.play("teardown", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert play.status != 0
    assert "start the engine" in play.error
    assert (docker_lab.lab.home / "lab.json").exists()
    docker_lab.play_ok("teardown")
    assert traces(docker_lab) == []


@pytest.mark.docker
def test_lab_in_docker_whose_state_folder_is_gone(docker_lab: LabUnderTest) -> None:
    docker_lab.play_ok("before")
    for path in sorted(docker_lab.lab.home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    docker_lab.lab.home.rmdir()
    docker_lab.play_ok("teardown")
    assert traces(docker_lab) == []
    with pytest.raises(docker.errors.NotFound):
        Engine().client.volumes.get(f"{docker_lab.lab.name}_eu_db")


def test_dry_run_is_refused(new_lab: Callable[..., LabUnderTest]) -> None:
    play = new_lab("embedded").play("teardown", "--check")
    assert play.status != 0
    assert "without --check" in play.error
