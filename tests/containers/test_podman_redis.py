"""Is Redis on Debian built, run and committed by podman over pyoverlay, and the same everywhere else?"""

from __future__ import annotations

from pathlib import Path

from tests.containers import docker_elsewhere, redis_image
from tests.containers.podman_store import Podman


def test_it_has_six_layers(podman: Podman, redis_archive: Path) -> None:
    assert len(podman.inspect("redis")["RootFS"]["Layers"]) == redis_image.LAYERS


def test_the_dump_survives(podman: Podman, redis_archive: Path) -> None:
    assert redis_image.value_in(podman, "redis-committed") == redis_image.VALUE


def test_it_runs_on_the_kernels_overlay(
    podman_on_kernel: Podman, podman: Podman, redis_archive: Path
) -> None:
    """The exported image, loaded by podman on the kernel's overlay, works and is the same tree."""
    (loaded,) = podman_on_kernel("load", "--quiet", f"--input={redis_archive}").split()[-1:]
    assert redis_image.value_in(podman_on_kernel, loaded) == redis_image.VALUE
    with podman.mounted("redis-committed") as here, podman_on_kernel.mounted(loaded) as there:
        ours, kernels = docker_elsewhere.tree(here), docker_elsewhere.tree(there)
    assert len(ours) > 1000
    assert sorted(ours.keys() ^ kernels.keys()) == []
    assert {path: (ours[path], kernels[path]) for path in ours if ours[path] != kernels[path]} == {}
    assert b"data/dump.rdb" in ours and b"packages" not in ours
