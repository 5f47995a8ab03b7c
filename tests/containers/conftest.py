"""Fixtures of the tests with engines: a place for them, pyoverlay as a program, images for several."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import another_user, busybox_image, redis_image
from tests.containers.docker_daemon import Docker
from tests.containers.mount_program import write_mount_program
from tests.containers.podman_store import Podman
from tests.containers.prepared_namespace import PreparedNamespace
from tests.harness import reachable


@pytest.fixture(scope="session")
def prepared_namespace(engines_base: Path) -> Iterator[PreparedNamespace]:
    """A mount namespace in which crun and runc start containers, another user's as well."""
    room = engines_base / "room"
    room.mkdir()
    with PreparedNamespace(
        *reachable.shell_commands(room), *another_user.shell_commands(engines_base)
    ) as namespace:
        yield namespace


@pytest.fixture(scope="session")
def engines_base() -> Iterator[Path]:
    """A directory with a short path for engines' stores, below which each has one of its own."""
    directory = Path(tempfile.mkdtemp(prefix="engines-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def mount_program(engines_base: Path) -> Path:
    """Pyoverlay as a program of this name."""
    return write_mount_program(engines_base, "pyoverlay")


@pytest.fixture(scope="session")
def podman(
    engines_base: Path, prepared_namespace: PreparedNamespace, mount_program: Path
) -> Iterator[Podman]:
    """Podman over pyoverlay."""
    base = engines_base / "podman"
    base.mkdir()
    with Podman(base, prepared_namespace, mount_program) as running:
        yield running


@pytest.fixture(scope="session")
def podman_on_kernel(engines_base: Path, prepared_namespace: PreparedNamespace) -> Iterator[Podman]:
    """Podman on the kernel's overlay."""
    base = engines_base / "kernel"
    base.mkdir()
    with Podman(base, prepared_namespace, None) as running:
        yield running


@pytest.fixture(scope="session")
def docker(engines_base: Path) -> Iterator[Docker]:
    """Docker over pyoverlay."""
    base = engines_base / "docker"
    base.mkdir()
    with Docker(base) as running:
        yield running


@pytest.fixture(scope="session")
def rootless(
    engines_base: Path, prepared_namespace: PreparedNamespace, mount_program: Path
) -> Iterator[Podman]:
    """Podman over pyoverlay, as an ordinary user."""
    base = engines_base / "user"
    base.mkdir()
    variables = another_user.variables(base)
    for directory in (base, *base.iterdir()):
        os.chown(directory, another_user.UID, another_user.UID)
    with Podman(
        base, prepared_namespace, mount_program, before=another_user.BEFORE, variables=variables
    ) as running:
        yield running


@pytest.fixture(scope="session")
def busybox_context(engines_base: Path) -> Path:
    """A directory from which any engine builds the image of `busybox_image`, with a Dockerfile."""
    return busybox_image.write_context(engines_base / "busybox")


@pytest.fixture(scope="session")
def small(podman: Podman, busybox_context: Path) -> str:
    """The image of `busybox_image`, built by podman over pyoverlay."""
    podman.build(busybox_context, "small")
    return "small"


@pytest.fixture(scope="session")
def redis_context(engines_base: Path) -> Path:
    """A directory from which any engine builds the image of `redis_image`, with a Dockerfile."""
    return redis_image.write_context(engines_base / "redis")


@pytest.fixture(scope="session")
def redis_archive(engines_base: Path, podman: Podman, redis_context: Path) -> Path:
    """An OCI archive of a container that podman built and ran over pyoverlay, and committed.

    In its Redis, `redis_image.KEY` has the value `redis_image.VALUE`; the dump is in /data.
    """
    archive = engines_base / "redis.oci.tar"
    podman.build(redis_context, "redis")
    redis_image.commit_with_dump(podman, "redis", "redis-committed")
    podman("save", "--quiet", "--format=oci-archive", f"--output={archive}", "redis-committed")
    return archive
