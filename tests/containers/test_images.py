"""Does the redis image that podman built come in, and go out to every engine as the same tree?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.images import checking, image_checking, inspecting, saving
from pyoverlay.images.digests import Digest
from pyoverlay.images.saving import Form, Wanted
from pyoverlay.images.stacking import lower_directories
from pyoverlay.images.store import Store
from tests.containers import docker_elsewhere, redis_image
from tests.containers.containerd_daemon import Containerd
from tests.containers.docker_daemon import Docker
from tests.harness import Entry
from tests.images.merged import merged
from tests.images.storing import load

NAME = "localhost/redis-committed:latest"


@pytest.fixture(scope="module")
def redis(engines_base: Path, redis_archive: Path) -> tuple[Store, Digest]:
    """A store with the image, and the image's ID."""
    store = Store(engines_base / "images")
    (image,), watched = load(store, redis_archive)
    assert image.names == [NAME]
    assert list(watched.existed.values()) == [False] * (redis_image.LAYERS + 1)
    return store, image.image_id


@pytest.fixture
def tree(redis: tuple[Store, Digest], base: Path) -> Iterator[dict[bytes, Entry]]:
    """The image's tree, as the kernel's overlay shows our layers."""
    store, image_id = redis
    with merged(lower_directories(store, inspecting.layers_of(store, image_id)), base / "merged") as shown:
        yield docker_elsewhere.tree(shown)


def save(redis: tuple[Store, Digest], target: Path, form: Form) -> Path:
    store, image_id = redis
    saving.save(store, [Wanted(image_id, [NAME])], str(target), form, "none")
    return target


def test_its_layers_are_sound_and_shared(redis: tuple[Store, Digest], redis_archive: Path) -> None:
    store, image_id = redis
    assert [text for layer in store.layers() for text in checking.check_layer(store, layer)] == []
    assert image_checking.check_image(store, image_id) == []
    _, watched = load(store, redis_archive)
    assert list(watched.existed.values()) == [True] * (redis_image.LAYERS + 1)
    described = inspecting.inspect(store, image_id)
    assert described["Config"]["Entrypoint"] == ["/usr/local/bin/entry-point"]
    assert len(described["RootFS"]["Layers"]) == redis_image.LAYERS + 1


def test_podman_and_umoci_show_the_same_tree(
    redis: tuple[Store, Digest], tree: dict[bytes, Entry], base: Path
) -> None:
    archive = save(redis, base / "saved.tar", "docker-archive")
    for name in ("podman", "umoci"):
        (base / name).mkdir()
    with docker_elsewhere.mounted_by_podman(archive, base / "podman") as shown:
        assert docker_elsewhere.tree(shown) == tree
    assert docker_elsewhere.tree(docker_elsewhere.unpacked_by_umoci(archive, base / "umoci")) == tree


def test_docker_shows_the_same_tree(
    redis: tuple[Store, Digest], tree: dict[bytes, Entry], base: Path, docker: Docker
) -> None:
    docker("load", "--input", save(redis, base / "saved.tar", "docker-archive"))
    assert docker.inspect(NAME)["Id"] == redis[1]
    with docker.container(NAME, "--entrypoint=/bin/sleep", command="1000") as container:
        own = docker.own_names(container)
        assert docker.tree(container) == {path: entry for path, entry in tree.items() if path not in own}
    docker("save", "--output", base / "theirs.tar", NAME)
    (image,), _ = load(Store(base / "elsewhere"), base / "theirs.tar")
    assert (image.image_id, image.names) == (redis[1], [NAME])
    docker("rmi", NAME)


def test_containerd_shows_the_same_tree(
    redis: tuple[Store, Digest], tree: dict[bytes, Entry], base: Path, engines_base: Path
) -> None:
    place = engines_base / "ctd"
    place.mkdir()
    with Containerd(place) as containerd:
        containerd("images", "import", save(redis, base / "saved.tar", "oci-archive"))
        with containerd.shown(NAME) as shown:
            assert docker_elsewhere.tree(shown) == tree
