"""Is Redis on Debian built, run and committed by docker over pyoverlay, and the same everywhere else?"""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from tests.containers import docker_elsewhere, redis_image
from tests.containers.docker_daemon import Docker
from tests.containers.podman_store import Podman
from tests.harness import Entry
from tests.mount.command import wait_for

IMAGE = "redis"
COMMITTED = "redis-committed"

# What is the same in no two builds: what dpkg and ldconfig note with times and inode numbers.
_OF_ONE_BUILD = (b"var/log/dpkg.log", b"var/log/alternatives.log", b"var/cache/ldconfig/aux-cache")


@pytest.fixture(scope="module", autouse=True)
def committed(docker: Docker, redis_context: Path) -> None:
    """Have docker build the image, and commit a container whose Redis has written its dump."""
    docker.build(redis_context, IMAGE)
    redis_image.commit_with_dump(docker, IMAGE, COMMITTED)


def test_it_has_six_layers(docker: Docker) -> None:
    layers = docker.inspect(IMAGE)["RootFS"]["Layers"]
    assert len(layers) == redis_image.LAYERS
    assert docker.inspect(COMMITTED)["RootFS"]["Layers"][:-1] == layers


def test_the_dump_survives(docker: Docker) -> None:
    assert redis_image.value_in(docker, COMMITTED) == redis_image.VALUE


def test_redis_answers_on_a_socket_that_is_shared_with_the_host(docker: Docker, base: Path) -> None:
    base.chmod(0o777)
    command = "--unixsocket /shared/socket --unixsocketperm 777"
    with docker.container(COMMITTED, f"--volume={base}:/shared", command=command):
        wait_for((base / "socket").exists)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(base / "socket"))
            client.sendall(b"SET other value\r\nGET other\r\nGET greeting\r\n")
            with client.makefile("rb") as answers:
                said = [answers.readline() for _ in range(5)]
    assert said == [b"+OK\r\n", b"$5\r\n", b"value\r\n", b"$5\r\n", b"hello\r\n"]


def test_the_saved_image_works_and_is_the_same_tree_elsewhere(
    docker: Docker, podman_on_kernel: Podman, base: Path
) -> None:
    archive = base / "saved.tar"
    docker("save", f"--output={archive}", COMMITTED)
    with docker.container(COMMITTED, "--entrypoint=sleep", command="1000") as container:
        seen, own = docker.tree(container), docker.own_names(container)
    (loaded,) = podman_on_kernel("load", "--quiet", f"--input={archive}").split()[-1:]
    assert redis_image.value_in(podman_on_kernel, loaded) == redis_image.VALUE
    with podman_on_kernel.mounted(loaded) as there:
        mounted = docker_elsewhere.tree(there)
    podman_on_kernel("rmi", loaded)
    assert len(seen) > 1000
    assert _differences(seen, mounted, own) == {}
    unpacked = docker_elsewhere.tree(docker_elsewhere.unpacked_by_umoci(archive, base))
    assert _differences(seen, unpacked, own) == {}


def test_podman_builds_the_same_tree(docker: Docker, podman: Podman, redis_archive: Path) -> None:
    with docker.container(IMAGE, "--entrypoint=sleep", command="1000") as container:
        seen, own = docker.tree(container), docker.own_names(container)
    with podman.mounted("redis") as there:
        podmans = docker_elsewhere.tree(there)
    assert _differences(_timeless(seen), _timeless(podmans), {*own, *_OF_ONE_BUILD}) == {}


def _timeless(tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: dataclasses.replace(entry, mtime=None) for path, entry in tree.items()}


def _differences(
    one: dict[bytes, Entry], other: dict[bytes, Entry], but: set[bytes]
) -> dict[bytes, tuple[Entry | None, Entry | None]]:
    return {
        path: (one.get(path), other.get(path))
        for path in (one.keys() | other.keys()) - but
        if one.get(path) != other.get(path)
    }
