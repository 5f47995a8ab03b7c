"""Does an image of podman over pyoverlay run under containerd, too, and with the same files?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import docker_elsewhere, redis_image
from tests.containers.containerd_daemon import CommandError, Containerd
from tests.containers.podman_store import Podman
from tests.mount.command import wait_for


@pytest.fixture(scope="module")
def containerd(redis_archive: Path) -> Iterator[Containerd]:
    """A containerd with the image."""
    base = Path(tempfile.mkdtemp(prefix="ctd-"))
    try:
        with Containerd(base) as running:
            running("images", "import", redis_archive)
            yield running
    finally:
        shutil.rmtree(base)


@pytest.fixture(scope="module")
def image(containerd: Containerd) -> str:
    """What containerd calls it."""
    (name,) = containerd("images", "ls", "--quiet").split()
    return name


def test_redis_answers(containerd: Containerd, image: str) -> None:
    name = containerd.new_name()
    containerd("run", "--detach", image, name)
    try:
        wait_for(lambda: _answer(containerd, name, "PING") == "PONG")
        assert _answer(containerd, name, "GET", redis_image.KEY) == redis_image.VALUE
        assert _answer(containerd, name, "SET", "other", "value") == "OK"
        assert _answer(containerd, name, "SAVE") == "OK"
        assert _answer(containerd, name, "GET", "other") == "value"
    finally:
        containerd("tasks", "rm", "--force", name)
        containerd("containers", "rm", name)


def _answer(containerd: Containerd, container: str, *words: str) -> str:
    command = ["redis-cli", "-s", redis_image.SOCKET, *words]
    try:
        return containerd("tasks", "exec", f"--exec-id={containerd.new_name()}", container, *command).strip()
    except CommandError as failure:
        return str(failure)


def test_its_files_are_the_same_as_on_the_kernels_overlay(
    containerd: Containerd, image: str, podman_on_kernel: Podman, redis_archive: Path
) -> None:
    (loaded,) = podman_on_kernel("load", "--quiet", f"--input={redis_archive}").split()[-1:]
    with containerd.shown(image) as here, podman_on_kernel.mounted(loaded) as there:
        ours, kernels = docker_elsewhere.tree(here), docker_elsewhere.tree(there)
    assert len(ours) > 1000
    assert sorted(ours.keys() ^ kernels.keys()) == []
    assert {path: (ours[path], kernels[path]) for path in ours if ours[path] != kernels[path]} == {}
    assert b"data/dump.rdb" in ours and b"packages" not in ours
