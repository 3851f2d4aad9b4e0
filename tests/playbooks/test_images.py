"""Images that keep their data elsewhere, have other tools, or end at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import docker.errors
import pytest

from tests.fixtures.labs import IMAGE, LabUnderTest
from workload.nodes.docker import Engine
from workload.nodes.server import archive

pytestmark = [pytest.mark.slow, pytest.mark.docker]

MakeImage = Callable[..., str]


@pytest.fixture
def make_image(engine: Engine, docker_lab: LabUnderTest) -> Iterator[MakeImage]:
    """Return a function that makes an image from the lab's own, with changes and other files."""
    tag = f"{docker_lab.lab.name}-image:1"

    def make(*changes: str, **programs: str) -> str:
        container = engine.client.containers.create(IMAGE)
        try:
            for path, text in programs.items():
                container.put_archive("/", archive(path.replace("__", "/"), text.encode(), 0o755))
            container.commit(*tag.split(":"), changes="\n".join(changes) or None)
        finally:
            container.remove(force=True, v=True)
        return tag

    yield make
    docker_lab.remove()
    engine.client.images.remove(tag, force=True)


def test_data_is_kept_where_the_image_has_its_volume(
    engine: Engine, docker_lab: LabUnderTest, make_image: MakeImage
) -> None:
    """As the official image from PostgreSQL 18 on: the volume stands above PGDATA."""
    data = "/var/lib/postgresql/18/docker"
    image = make_image(f"ENV PGDATA={data}", "VOLUME /var/lib/postgresql")
    lab = docker_lab
    lab.environment["LAB_IMAGE"] = image
    lab.play_ok("before")
    lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    assert lab.query("SHOW data_directory") == [(data,)]
    container = engine.client.containers.get(f"{lab.lab.name}_eu_db")
    mounts = {mount["Name"]: mount for mount in container.attrs["Mounts"]}
    assert mounts[container.name]["Destination"] == "/var/lib/postgresql"
    # Files of the checkout, which a strict umask keeps from others, are not needed in there.
    assert {mount["Type"] for mount in mounts.values()} == {"volume"}
    # The stand-in's own volume is inherited, so one without a name comes with the container.
    nameless = [name for name in mounts if name != container.name]
    assert nameless

    container.remove(force=True, v=True)
    lab.play_ok("before")
    kept = "SELECT email FROM customer WHERE email LIKE 'kept%'"
    assert lab.query(kept) == [("kept@example.com",)]
    assert lab.play_ok("before").changed == 0

    lab.play_ok("expand_eu")
    lab.play_ok("failover")
    lab.play_ok("rejoin")
    assert lab.query(kept, 0) == lab.query(kept, 1) == [("kept@example.com",)]
    for name in ("eu_db", "eu_db_2"):
        container = engine.client.containers.get(f"{lab.lab.name}_{name}")
        nameless += [m["Name"] for m in container.attrs["Mounts"] if m["Name"] != container.name]
    lab.play_ok("teardown")
    for name in nameless:
        with pytest.raises(docker.errors.NotFound):
            engine.client.volumes.get(name)


def test_image_without_gnu_tools_is_refused(
    docker_lab: LabUnderTest, make_image: MakeImage
) -> None:
    busybox = "#!/bin/sh\ncase $* in *-printf*) echo unrecognized: -printf >&2; exit 1;; esac\n"
    docker_lab.environment["LAB_IMAGE"] = image = make_image(usr__bin__find=busybox)
    play = docker_lab.play("before", "-e", f"lab_image_standin={image}")
    assert play.status != 0
    assert image in play.error
    assert "GNU" in play.error
    assert not docker_lab.lab.home.exists()


def test_image_that_says_nothing_of_its_data_is_refused(
    docker_lab: LabUnderTest, make_image: MakeImage
) -> None:
    docker_lab.environment["LAB_IMAGE"] = image = make_image("ENV PGDATA=")
    play = docker_lab.play("before", "-e", f"lab_image_standin={image}")
    assert "no PGDATA" in play.error


def test_container_that_ends_at_once_is_told_at_once(
    docker_lab: LabUnderTest, make_image: MakeImage
) -> None:
    entrypoint = "#!/bin/sh\necho 'no reason'; echo 'the disk is on fire' >&2; exit 1\n"
    docker_lab.environment["LAB_IMAGE"] = make_image(
        **{"usr__local__bin__docker-entrypoint.sh": entrypoint}
    )
    started = time.monotonic()
    play = docker_lab.play("before")
    assert play.status != 0
    assert f"container {docker_lab.lab.name}_eu_db ended: the disk is on fire" in play.error
    # The wait for a server that may yet come takes 60 s.
    assert time.monotonic() - started < 50


def test_another_major_is_refused_before_it_is_run(
    docker_lab: LabUnderTest, make_image: MakeImage
) -> None:
    docker_lab.play_ok("before")
    docker_lab.query("INSERT INTO customer (email) VALUES ('kept@example.com')")
    play = docker_lab.play("before", LAB_IMAGE=make_image("ENV PG_MAJOR=16"))
    assert play.status != 0
    assert "PostgreSQL 16 cannot read" in play.error
    assert docker_lab.query("SELECT email FROM customer WHERE email LIKE 'kept%'") == [
        ("kept@example.com",)
    ]
