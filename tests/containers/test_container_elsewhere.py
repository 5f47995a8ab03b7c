"""Do other engines see in our containers, and in the images made of them, what we see?"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.images import checking, inspecting
from pyoverlay.images.digests import Digest
from pyoverlay.images.stacking import lower_directories
from tests.containers import busybox_image, docker_elsewhere, redis_image
from tests.containers.containerd_daemon import Containerd
from tests.containers.docker_daemon import Docker
from tests.containers.own_engine import Engine
from tests.containers.podman_store import Podman
from tests.harness import Entry
from tests.images.merged import merged
from tests.mount.command import processes_naming, pyoverlay, succeed, wait_for

# What the same commands do. Not among them: another name for an old file, which itself is changed then to us,
# and to podman on the kernel's overlay, but not to docker.

CHANGES = """
cd /t
echo new > added; mkdir -p new-directory/inner; echo x > new-directory/inner/file
echo more >> content; chmod 600 mode; chown 7:8 owner; touch -t 200001010000 time
rm deleted; rm -r deleted-directory
rm -r emptied && mkdir emptied && echo x > emptied/new
rm -r anew && mkdir anew && echo x > anew/kept
rm to-directory && mkdir to-directory && echo x > to-directory/file
rm -r to-file && echo x > to-file
mv moved moved-away; ln added added-too; rm link && ln -s elsewhere link
chmod 700 directory-mode; echo x > only-below/inner/new
touch brief; rm brief; mkdir brief; rmdir brief; mkfifo pipe
"""
_FILES = "content mode owner time deleted to-directory moved untouched".split()
_DIRECTORIES = (
    "deleted-directory emptied anew to-file directory-mode only-below/inner untouched-directory".split()
)


def make_tree(base: Path) -> Path:
    """A directory with busybox, and the tree that `CHANGES` changes."""
    root = busybox_image.write_context(base / "tree")
    (root / "Dockerfile").unlink()
    (root / "t").mkdir()
    for name in _FILES:
        (root / "t" / name).write_text(f"{name}\n")
    for name in _DIRECTORIES:
        (root / "t" / name).mkdir(parents=True)
        for inner in ("kept", "gone"):
            (root / "t" / name / inner).write_text(f"{inner}\n")
    (root / "t/link").symlink_to("target")
    for engines_own in ("dev", "proc", "sys", "etc", "run", "tmp"):
        (root / engines_own).mkdir()
    return root


@pytest.fixture
def engine(base: Path) -> Iterator[Engine]:
    """An empty store; no process is left of it."""
    yield Engine(base / "store")
    wait_for(lambda: not processes_naming(base / "store"))


def test_the_same_commands_are_the_same_changes(
    engine: Engine, base: Path, docker: Docker, podman: Podman
) -> None:
    root = ["--root", str(engine.root)]
    succeed(pyoverlay("commit", *root, make_tree(base), "localhost/tree:1"))
    succeed(pyoverlay("image", "save", *root, "--format=docker-archive", "tree:1", base / "tree.tar"))
    docker("load", "--input", base / "tree.tar")
    engine.run(CHANGES, "--name=ours", image="tree:1")
    ours = engine("diff", "ours").splitlines()
    assert {"D /t/emptied/gone", "C /t/to-directory", "A /t/to-directory/file"} < set(ours)
    with docker.container("localhost/tree:1") as container:
        docker("exec", container, "sh", "-ec", CHANGES)
        assert sorted(docker("diff", container).splitlines()) == sorted(ours)
    podman("load", f"--input={base}/tree.tar")
    with podman.container("localhost/tree:1") as container:
        made_by_podman = set(podman("diff", container).splitlines())
        podman.shell(container, CHANGES)
        assert sorted(set(podman("diff", container).splitlines()) - made_by_podman) == sorted(ours)


# The story of an image

NAME = "localhost/redis-committed:latest"
CHANGED = "localhost/redis-changed:1"


@contextlib.contextmanager
def redis_in(engine: Engine, *words: str) -> Iterator[Path]:
    """Redis in a container of ours, which ends by itself afterwards; gives its root directory."""

    def pid() -> int:
        there = "redis" in engine.containers.names()
        return engine.containers.record("redis").pid if there else 0

    process = engine.start(*words)
    try:
        wait_for(lambda: process.poll() is not None or pid() > 0)
        assert process.poll() is None
        root = Path(f"/proc/{engine.inspect('redis')['State']['Pid']}/root")
        wait_for(lambda: process.poll() is not None or (root / redis_image.SOCKET.lstrip("/")).is_socket())
        yield root
        ask(root, "SHUTDOWN NOSAVE")
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def ask(root: Path, command: str) -> str:
    """What Redis answers; nothing when it ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(f"{root}{redis_image.SOCKET}")
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(4096).decode().rstrip()


@pytest.fixture(scope="module")
def redis(engines_base: Path, redis_archive: Path) -> Iterator[Engine]:
    """A store with the image that podman built, and with `CHANGED`, for which it ran here."""
    engine = Engine(engines_base / "own")
    told = succeed(pyoverlay("image", "load", "--root", engine.root, redis_archive)).decode().splitlines()
    assert [line.partition(": ")[2] for line in told] == ["Unpacked"] * (redis_image.LAYERS + 1) + [NAME]
    with redis_in(engine, "run", "--name=redis", NAME) as root:
        assert ask(root, f"GET {redis_image.KEY}").split() == [
            f"${len(redis_image.VALUE)}",
            redis_image.VALUE,
        ]
        assert ask(root, "SET changed yes") == "+OK"
        assert ask(root, "SAVE") == "+OK"
    engine.commit("redis", CHANGED)
    yield engine
    wait_for(lambda: not processes_naming(engine.root))


def layers(engine: Engine, image: str) -> list[Digest]:
    (described,) = json.loads(succeed(pyoverlay("image", "inspect", "--root", engine.root, image)))
    return [Digest(layer) for layer in described["RootFS"]["Layers"]]


@pytest.fixture
def tree(redis: Engine, base: Path) -> Iterator[dict[bytes, Entry]]:
    """The committed image's tree, as the kernel's overlay shows our layers."""
    lowers = lower_directories(redis.containers.store, layers(redis, CHANGED))
    with merged(lowers, base / "merged") as shown:
        yield docker_elsewhere.tree(shown)


def saved(redis: Engine, base: Path, form: str) -> Path:
    target = base / "saved.tar"
    succeed(pyoverlay("image", "save", "--root", redis.root, f"--format={form}", CHANGED, target))
    return target


def test_what_redis_wrote_is_one_layer_more(redis: Engine, redis_archive: Path) -> None:
    changes = redis("diff", "redis").splitlines()
    assert "C /data/dump.rdb" in changes
    beneath, above = layers(redis, NAME), layers(redis, CHANGED)
    assert (above[:-1], len(above)) == (beneath, redis_image.LAYERS + 2)
    store = redis.containers.store
    assert [text for layer in above for text in checking.check_layer(store, layer)] == []
    told = succeed(pyoverlay("image", "load", "--root", redis.root, redis_archive)).decode()
    assert told.count("Already exists") == redis_image.LAYERS + 1
    assert (
        inspecting.history(store, redis.commit("redis", CHANGED))[0].created_by
        == "/usr/local/bin/entry-point"
    )


def test_it_is_started_again(redis: Engine) -> None:
    with redis_in(redis, "start", "redis") as root:
        assert ask(root, "GET changed") == "$3\r\nyes"
    assert redis.states()["redis"] == "exited 0"


def test_podman_and_umoci_show_the_same_tree(redis: Engine, tree: dict[bytes, Entry], base: Path) -> None:
    archive = saved(redis, base, "docker-archive")
    for name in ("podman", "umoci"):
        (base / name).mkdir()
    with docker_elsewhere.mounted_by_podman(archive, base / "podman") as shown:
        assert docker_elsewhere.tree(shown) == tree
    assert docker_elsewhere.tree(docker_elsewhere.unpacked_by_umoci(archive, base / "umoci")) == tree


def test_docker_shows_the_same_tree_and_the_same_value(
    redis: Engine, tree: dict[bytes, Entry], base: Path, docker: Docker
) -> None:
    docker("load", "--input", saved(redis, base, "docker-archive"))
    with docker.container(CHANGED, "--entrypoint=/bin/sleep", command="1000") as container:
        own = docker.own_names(container)
        assert docker.tree(container) == {path: entry for path, entry in tree.items() if path not in own}
    assert redis_image.value_in(docker, CHANGED) == redis_image.VALUE
    docker("rmi", CHANGED)


def test_containerd_shows_the_same_tree(
    redis: Engine, tree: dict[bytes, Entry], base: Path, engines_base: Path
) -> None:
    place = engines_base / "ctd-own"
    place.mkdir()
    with Containerd(place) as containerd:
        containerd("images", "import", saved(redis, base, "oci-archive"))
        with containerd.shown(CHANGED) as shown:
            assert docker_elsewhere.tree(shown) == tree
