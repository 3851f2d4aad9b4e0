"""A run that is cut short, wherever, is mended by the next one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable

import docker.errors
import psycopg
import pytest

from tests.fixtures.kills import kill_all, kill_the_playbook_alone
from tests.fixtures.labs import IMAGE, LabUnderTest, eventually
from tests.playbooks.traces import traces
from workload.nodes.docker import LABEL_SCRIPT, Engine
from workload.topology import Topology

#: A run is a third longer with Docker, and what the lab's own code does in it is the same.
MOMENTS = {"embedded": 8, "docker": 4}
SEED = int(os.environ.get("LAB_TEST_SEED") or 20261122)


def assert_whole(lab: LabUnderTest) -> None:
    """Assert that phase before is reached: tables, customers that can log in, the topology."""
    tables = "SELECT to_regclass('customer') IS NOT NULL AND to_regclass('purchase') IS NOT NULL"
    assert lab.query(tables) == [(True,)]
    topology = Topology.load(lab.lab)
    assert topology.phase == "before"
    with psycopg.connect(topology.customers_login(topology.regions[0]).conninfo()) as connection:
        connection.execute("INSERT INTO customer (email) VALUES ('x')")


@pytest.mark.soak
def test_killed_at_random_moments_it_converges(
    lab: LabUnderTest, new_lab: Callable[..., LabUnderTest]
) -> None:
    rng = random.Random(f"{SEED}/{lab.runtime}")
    started = time.monotonic()
    lab.play_ok("before")
    duration = time.monotonic() - started
    lab.remove()
    moments = MOMENTS[lab.runtime]
    for number in range(moments):
        # Spread over the run, each at random within its part.
        moment = duration * (number + rng.random()) / moments
        kill = kill_all if number % 2 else kill_the_playbook_alone
        what = f"{lab.runtime}, seed {SEED}: {kill.__name__} after {moment:.2f} of {duration:.2f} s"
        print(what)
        run = lab.start("before")
        time.sleep(moment)
        kill(run)
        play = lab.play("before")
        assert play.status == 0, f"{what}\n{play.output}{play.errors}"
        assert_whole(lab)
        if number % 3 == 0:
            play = lab.play("before")
            assert (play.status, play.changed) == (0, 0), f"{what}\n{play.output}{play.errors}"
        lab.remove()
        left = traces(lab)
        assert left == [], f"{what}\n{left}"


@pytest.mark.soak
def test_kill_of_a_run_that_changes_nothing_changes_nothing(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    rng = random.Random(SEED)
    for _ in range(3):
        run = lab.start("before")
        time.sleep(rng.uniform(0.2, 1.2))
        kill_all(run)
        assert_whole(lab)
    assert lab.play_ok("before").changed == 0


def test_two_runs_at_once_both_converge(lab: LabUnderTest) -> None:
    runs = [lab.start("before") for _ in range(2)]
    statuses = [run.wait(120) for run in runs]
    # One of them may lose a race, with a message; the lab is whole or mended by the next run.
    assert 0 in statuses
    lab.play_ok("before")
    assert_whole(lab)
    assert lab.play_ok("before").changed == 0


@pytest.mark.docker
@pytest.mark.parametrize("moment_s", [0.3, 0.9])
def test_container_that_is_killed_while_it_initialises_is_made_again(
    docker_lab: LabUnderTest, moment_s: float
) -> None:
    """Its volume would come back running and green, and be broken for ever."""
    engine = Engine()
    name = f"{docker_lab.lab.name}_eu_db"

    def is_running() -> bool:
        return bool(engine.client.containers.list(filters={"name": f"^/{name}$"}))

    run = docker_lab.start("before")
    eventually(is_running)
    time.sleep(moment_s)
    kill_all(run)
    with contextlib.suppress(Exception):  # It may just have gone.
        engine.client.containers.get(name).kill("SIGKILL")
    docker_lab.play_ok("before", "-e", "node_timeout_s=10")
    assert_whole(docker_lab)
    assert docker_lab.play_ok("before").changed == 0


@pytest.mark.docker
@pytest.mark.parametrize("is_running", [False, True])
def test_two_networks_of_one_name_become_one(docker_lab: LabUnderTest, is_running: bool) -> None:
    """Two runs at once could make them, and no container can be run on a name that is two."""
    networks = Engine().client.networks
    name = f"{docker_lab.lab.name}-network"
    if is_running:
        docker_lab.play_ok("before")
    for _ in range(1 if is_running else 2):
        # Engines of today refuse the second one themselves.
        with contextlib.suppress(docker.errors.APIError):
            networks.create(name, labels=docker_lab.lab.labels, check_duplicate=False)
    docker_lab.play_ok("before")
    assert len(networks.list(names=[name])) == 1
    assert_whole(docker_lab)
    assert docker_lab.play_ok("before").changed == 0


@pytest.mark.docker
def test_half_made_volume_is_made_again(docker_lab: LabUnderTest) -> None:
    """As a run leaves it that is killed while initdb works: all but the mark of a whole cluster."""
    client = Engine().client
    name, labels = f"{docker_lab.lab.name}_eu_db", docker_lab.lab.node_labels("eu")
    client.volumes.create(name, labels=labels)
    script = "initdb -D $PGDATA/.incoming >/dev/null; rm $PGDATA/.incoming/PG_VERSION"
    client.containers.run(
        IMAGE,
        ["-euc", f"{script}; touch $PGDATA/postgresql.conf"],
        entrypoint="/bin/sh",
        user="postgres",
        volumes={name: {"bind": "/var/lib/postgresql/data"}},
        remove=True,
    )
    docker_lab.play_ok("before")
    assert_whole(docker_lab)
    assert docker_lab.play_ok("before").changed == 0


@pytest.mark.docker
def test_script_container_that_a_killed_run_left_is_in_nobodys_way(
    docker_lab: LabUnderTest,
) -> None:
    docker_lab.play_ok("before")
    name = f"{docker_lab.lab.name}_eu_db"
    Engine().client.containers.run(
        IMAGE,
        ["true"],
        labels={**docker_lab.lab.node_labels("eu"), LABEL_SCRIPT: "yes"},
        detach=True,
        volumes={name: {"bind": "/volume", "mode": "ro"}},
    )
    assert docker_lab.play_ok("before").changed == 0
    docker_lab.play_ok("teardown")
    assert traces(docker_lab) == []


@pytest.mark.docker
def test_volume_that_was_whole_is_never_made_again(docker_lab: LabUnderTest) -> None:
    """A server that cannot start is left alone with its data, whatever it is that stops it."""
    docker_lab.play_ok("before")
    docker_lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    settings = '{"node_settings": {"shared_buffers": "lots"}}'
    play = docker_lab.play("before", "-e", settings)
    assert play.status != 0
    assert 'invalid value for parameter "shared_buffers": "lots"' in play.error
    # It is asked before it is stopped.
    assert docker_lab.query("SELECT email FROM customer") == [("kept@example.com",)]
    docker_lab.play_ok("before")
    assert docker_lab.query("SELECT email FROM customer") == [("kept@example.com",)]


@pytest.mark.docker
def test_lab_whose_state_folder_is_gone_is_adopted_with_its_data(
    docker_lab: LabUnderTest,
) -> None:
    docker_lab.play_ok("before")
    docker_lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    shutil.rmtree(docker_lab.lab.home)
    docker_lab.play_ok("before")
    assert docker_lab.query("SELECT email FROM customer WHERE email <> 'x'") == [
        ("kept@example.com",)
    ]
    # The customers have a new password, and it works.
    assert_whole(docker_lab)
    assert docker_lab.play_ok("before").changed == 0


def test_lost_secret_is_generated_again(lab: LabUnderTest) -> None:
    lab.play_ok("before")
    secret = lab.lab.secret_file("customers")
    old = secret.read_text()
    secret.unlink()
    lab.play_ok("before")
    assert secret.read_text() != old
    assert_whole(lab)
    assert lab.play_ok("before").changed == 0
