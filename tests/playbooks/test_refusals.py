"""What before.yml refuses: one line that names the cause and the way out, and nothing changed."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.fixtures.labs import CHECKOUT, IMAGE, LabUnderTest, refused, said
from tests.playbooks.traces import traces
from workload.lab import LABEL_HOME, LABEL_NAME, Lab
from workload.nodes.docker import Engine

NO_ENGINE = "unix:///nonexistent/docker.sock"


# -- the inventory -----------------------------------------------------------------------------


def test_what_the_inventory_is_checked_for_is_one_line_and_changes_nothing(
    embedded_lab: LabUnderTest, tmp_path: Path
) -> None:
    """One play for the wiring; each refusal is tests/unit/test_inventory_filters.py's."""
    copy = tmp_path / "inventory"
    shutil.copytree(CHECKOUT / "inventory/lab", copy)
    with (copy / "group_vars/nodes/node.yml").open("a") as file:
        file.write("node_timeout: 9\n")
    refused(embedded_lab.play("before", "-i", str(copy)), "'node_timeout'", "node_timeout_s")
    refused(embedded_lab.play("before", LAB_HOME="some/folder"), "LAB_HOME", "'some/folder'")
    assert traces(embedded_lab) == []
    assert not (CHECKOUT / "some").exists()
    assert not (CHECKOUT / "playbooks/some").exists()


# -- the machine -------------------------------------------------------------------------------


def test_port_is_taken(embedded_lab: LabUnderTest) -> None:
    """One play for the wiring; the addresses are tests/integration/test_ports.py's."""
    lab = embedded_lab
    me = psutil.Process()
    with socket.create_server(("127.0.0.1", lab.port_base)):
        play = lab.play("before", "--check")
    refused(play, f"port {lab.port_base}", me.name(), str(me.pid), "LAB_PORT_BASE")
    assert traces(lab) == []


def test_phase_is_played_too_early(at_before: LabUnderTest) -> None:
    """One play a phase for the wiring; the order is tests/unit/test_road.py's."""
    lab = at_before
    for phase, earlier in (("expand_world", "expand_eu"), ("shard", "expand_eu")):
        refused(lab.play(phase), f"play playbooks/{earlier}.yml first")
    refused(lab.play("after"), "builds on expand_world")
    assert not (lab.lab.home / "wan").exists()
    done = lab.workload("wan")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    done = lab.workload("source_tests")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "phase before" in line
    assert "playbooks/shard.yml first" in line


def test_docker_is_asked_for_and_no_engine_answers(new_lab: Callable[..., LabUnderTest]) -> None:
    lab = new_lab("docker")
    play = lab.play("before", DOCKER_HOST=NO_ENGINE)
    refused(play, "lab_runtime is 'docker'", "no Docker engine answers")
    assert traces(lab) == []


def test_auto_without_an_engine_takes_embedded_and_says_why(
    new_lab: Callable[..., LabUnderTest],
) -> None:
    lab = new_lab("auto")
    try:
        play = lab.play_ok("before", DOCKER_HOST=NO_ENGINE)
        assert "embedded runtime: no Docker engine answers" in said(play)
        assert lab.server().postmaster()
        # It stays with what it was begun as, also where an engine answers.
        again = lab.play_ok("before")
        assert again.changed == 0
        assert "embedded runtime: this lab was begun so" in said(again)
    finally:
        lab.remove()


@pytest.mark.docker
def test_auto_without_the_image_takes_embedded_and_says_why(
    engine: Engine, new_lab: Callable[..., LabUnderTest]
) -> None:
    lab = new_lab("auto", LAB_IMAGE="no-such-image:1")
    try:
        play = lab.play_ok("before", "-e", "lab_image_standin=no-such-image:2")
        assert "embedded runtime: image no-such-image:1 is not on this machine" in said(play)
        assert "make image" in said(play)
    finally:
        lab.remove()


@pytest.mark.docker
def test_auto_with_engine_and_image_takes_docker_and_says_why(
    engine: Engine, new_lab: Callable[..., LabUnderTest]
) -> None:
    lab = new_lab("auto")
    play = lab.play_ok("before", "--check")
    assert f"docker runtime: a Docker engine answers and image {IMAGE} is" in said(play)
    assert traces(lab) == []


@pytest.mark.docker
def test_image_is_absent_and_cannot_be_pulled(docker_lab: LabUnderTest) -> None:
    play = docker_lab.play(
        "before", "-e", "lab_image_standin=no-such-image:2", LAB_IMAGE="no-such-image:1"
    )
    refused(play, "no-such-image:1", "make image")
    assert traces(docker_lab) == []


@pytest.mark.docker
def test_image_with_an_old_postgresql(docker_lab: LabUnderTest, engine: Engine) -> None:
    tag = f"{docker_lab.lab.name}-old:1"
    container = engine.client.containers.create(IMAGE)
    try:
        container.commit(*tag.split(":"), changes="ENV PG_MAJOR=14")
        refused(docker_lab.play("before", LAB_IMAGE=tag), tag, "PostgreSQL 14", "15")
        assert traces(docker_lab) == []
    finally:
        container.remove(force=True, v=True)
        engine.client.images.remove(tag, force=True)


def test_programs_of_an_old_postgresql(embedded_lab: LabUnderTest, tmp_path: Path) -> None:
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n")
    program.chmod(0o755)
    play = embedded_lab.play("before", LAB_POSTGRES_BIN_DIR=str(tmp_path))
    refused(play, "PostgreSQL 14", str(tmp_path), "15", "LAB_POSTGRES_BIN_DIR")
    assert traces(embedded_lab) == []


def test_folder_without_programs(embedded_lab: LabUnderTest, tmp_path: Path) -> None:
    play = embedded_lab.play("before", LAB_POSTGRES_BIN_DIR=str(tmp_path))
    refused(play, str(tmp_path), "no program named postgres")
    assert traces(embedded_lab) == []


def test_state_folder_below_a_file(embedded_lab: LabUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(embedded_lab.play("before", LAB_HOME=str(file / "lab")), str(file), "LAB_HOME")
    assert file.read_text() == "mine"


def test_state_folder_that_nobody_can_write(embedded_lab: LabUnderTest) -> None:
    # /proc takes no files, not even from root.
    refused(embedded_lab.play("before", LAB_HOME="/proc/lab"), "/proc/lab", "LAB_HOME", "writable")


# -- what belongs to others --------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.parametrize("labelled", [True, False], ids=["another lab's", "nobody's lab's"])
def test_volume_of_another(docker_lab: LabUnderTest, engine: Engine, labelled: bool) -> None:
    name = f"{docker_lab.lab.name}_eu_db"
    other = Lab("other", Path("/srv/other"))
    volume = engine.client.volumes.create(name, labels=other.labels if labelled else {})
    try:
        owner = ("'other'", "/srv/other") if labelled else ("no lab",)
        refused(docker_lab.play("before"), f"volume {name}", *owner)
        assert traces(docker_lab) == [f"Volume {name}"]
        assert docker_lab.play("teardown").status == 0
        assert traces(docker_lab) == [f"Volume {name}"]
    finally:
        volume.remove(force=True)


@pytest.mark.docker
def test_volume_that_another_container_uses(docker_lab: LabUnderTest, engine: Engine) -> None:
    """As the source document's second node would, which destroys the data of both."""
    docker_lab.play_ok("before")
    docker_lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    name = f"{docker_lab.lab.name}_eu_db"
    rival = engine.client.containers.run(
        IMAGE,
        ["sleep", "600"],
        name=f"{name}_2",
        detach=True,
        volumes={name: {"bind": "/var/lib/postgresql/data"}},
    )
    try:
        refused(docker_lab.play("before"), f"volume {name}", f"{name}_2", "running", "destroy")
        rival.stop(timeout=0)
        refused(docker_lab.play("before"), f"volume {name}", f"{name}_2", "exited")
    finally:
        rival.remove(force=True)
    assert docker_lab.query("SELECT email FROM customer") == [("kept@example.com",)]
    assert docker_lab.play_ok("before").changed == 0


@pytest.mark.docker
def test_network_of_another(docker_lab: LabUnderTest, engine: Engine) -> None:
    name = f"{docker_lab.lab.name}-network"
    network = engine.client.networks.create(name)
    try:
        refused(docker_lab.play("before"), f"network {name}", "no lab")
        docker_lab.play_ok("teardown")
        assert traces(docker_lab) == [f"Network {name}"]
    finally:
        network.remove()


@pytest.mark.docker
def test_container_of_another(docker_lab: LabUnderTest, engine: Engine) -> None:
    name = f"{docker_lab.lab.name}_eu_db"
    labels = {LABEL_NAME: docker_lab.lab.name, LABEL_HOME: "/srv/other"}
    container = engine.client.containers.create(IMAGE, name=name, labels=labels)
    try:
        refused(docker_lab.play("before"), f"container {name}", "/srv/other")
        assert traces(docker_lab) == [f"Container {name}"]
        assert docker_lab.play("teardown").status == 0
        assert traces(docker_lab) == [f"Container {name}"]
    finally:
        container.remove(force=True, v=True)


def test_state_folder_of_another_lab(
    embedded_lab: LabUnderTest, new_lab: Callable[..., LabUnderTest]
) -> None:
    embedded_lab.play_ok("before")
    other = new_lab("embedded", LAB_HOME=str(embedded_lab.lab.home))
    refused(other.play("before"), str(embedded_lab.lab.home), f"'{embedded_lab.lab.name}'")
    assert embedded_lab.play_ok("before").changed == 0


# -- a lab that was begun ----------------------------------------------------------------------


def test_wrong_password_for_data_that_exists(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    refused(
        lab.play("before", LAB_PASSWORD="another"), f"127.0.0.1:{lab.port_base}", "LAB_PASSWORD"
    )
    assert lab.query("SELECT email FROM customer") == [("kept@example.com",)]

    # A server that was stopped is stopped again.
    stop(lab)
    refused(lab.play("before", LAB_PASSWORD="another"), "LAB_PASSWORD")
    assert is_stopped(lab)
    lab.play_ok("before")
    assert lab.query("SELECT email FROM customer") == [("kept@example.com",)]


def stop(lab: LabUnderTest) -> None:
    if lab.runtime == "docker":
        Engine().client.containers.get(f"{lab.lab.name}_eu_db").stop(timeout=20)
    else:
        lab.server().stop()


def is_stopped(lab: LabUnderTest) -> bool:
    if lab.runtime == "docker":
        return bool(Engine().client.containers.get(f"{lab.lab.name}_eu_db").status == "exited")
    return not lab.server().processes()


@pytest.mark.docker
def test_other_runtime_than_the_lab_was_begun_with(
    engine: Engine, embedded_lab: LabUnderTest
) -> None:
    embedded_lab.play_ok("before")
    play = embedded_lab.play("before", LAB_RUNTIME="docker")
    refused(play, "'docker'", "begun as 'embedded'", "make teardown", "LAB_NAME")
    assert not [trace for trace in traces(embedded_lab) if "Container" in trace]
    assert embedded_lab.play_ok("before", LAB_RUNTIME="auto").changed == 0


def test_phase_that_the_lab_is_past(lab: LabUnderTest) -> None:
    """Says so, and neither starts a server nor rewrites a table that a later phase has changed."""
    lab.play_ok("before")
    lab.query("ALTER TABLE purchase RENAME TO purchase_of_a_later_phase")
    file = lab.lab.topology_file
    file.write_text(json.dumps({**json.loads(file.read_text()), "phase": "after"}))
    before = file.read_bytes()
    for arguments in ((), ("--check",)):
        play = lab.play_ok("before", *arguments)
        assert play.changed == 0
        assert "in phase after" in said(play)
        assert file.read_bytes() == before
    assert lab.query("SELECT to_regclass('public.purchase')::text") == [(None,)]
    stop(lab)
    assert lab.play_ok("before").changed == 0
    assert is_stopped(lab)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("lab.json", "{"),
        ("lab.json", '{"name": 1}'),
        ("topology.json", "{"),
        ("topology.json", "[]"),
    ],
)
def test_state_file_that_is_broken(embedded_lab: LabUnderTest, file: str, text: str) -> None:
    home = embedded_lab.lab.home
    home.mkdir()
    (home / file).write_text(text)
    refused(embedded_lab.play("before"), str(home))
    assert [path.name for path in home.iterdir()] == [file]
    # The way out that it names works.
    assert embedded_lab.play("teardown").status == 0
    assert traces(embedded_lab) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"shared_buffers": "lots"}, ("shared_buffers", "lots")),
        ({"shared_preload_libraries": "nonesuch"}, ("nonesuch", "No such file")),
        ({"no_such_setting": 1}, ("unrecognized", "no_such_setting")),
    ],
    ids=["value", "library", "name"],
)
def test_settings_that_the_server_refuses(
    lab: LabUnderTest, setting: dict[str, object], words: tuple[str, ...]
) -> None:
    """It is asked before it is stopped: a running one goes on, a new one is not started."""
    settings = json.dumps({"node_settings": setting})
    refused(lab.play("before", "-e", settings), *words)
    lab.play_ok("before")
    started = lab.query("SELECT pg_postmaster_start_time()")
    refused(lab.play("before", "-e", settings), *words)
    assert lab.query("SELECT pg_postmaster_start_time()") == started
    assert lab.play_ok("before").changed == 0


def test_setting_of_a_person_is_merged_over_the_labs(lab: LabUnderTest) -> None:
    settings = json.dumps({"node_settings": {"log_statement": "all", "work_mem": "5MB"}})
    lab.play_ok("before", "-e", settings)
    names = ("log_statement", "work_mem", "wal_level", "max_replication_slots", "wal_recycle")
    assert [lab.query(f"SHOW {name}")[0][0] for name in names] == [
        *("all", "5MB", "logical", "20", "off")
    ]
    assert lab.play_ok("before", "-e", settings).changed == 0
    refused(
        lab.play("before", "-e", '{"node_settings": {"max_replication_slots": 4}}'),
        *("node 'eu'", "max_replication_slots", "20 or more"),
    )
    assert lab.query("SHOW work_mem") == [("5MB",)]


def test_root_is_told_where_it_cannot_run(embedded_lab: LabUnderTest, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user needs no user namespace")
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\nexit 1\n")
    unshare.chmod(0o755)
    play = embedded_lab.play("before", PATH=f"{tmp_path}:{os.environ['PATH']}")
    refused(play, "root", "ordinary user")
    assert traces(embedded_lab) == []
