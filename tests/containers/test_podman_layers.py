"""Is an image that podman builds over pyoverlay the very image that it builds over fuse-overlayfs?

Many files are added, and changed by a second layer; with the same times the layers must be the same bytes.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman_store import Podman
from tests.containers.prepared_namespace import PreparedNamespace

FILES, LONG_FILES = 500, 10_000
TIMESTAMP = 1_000_000_000

# The second layer changes every hundredth file, removes others, and makes a directory anew.
_CHANGE = (
    "cd /many && for each in */*00; do echo changed > $each; done && rm */*50 && "
    "rm -r directory-1 && mkdir directory-1 && echo new > directory-1/new && "
    "chmod 700 directory-2 && for each in directory-3/*1; do ln $each $each-link; done && "
    f"find /many | xargs touch -d @{TIMESTAMP}"
)


@pytest.fixture
def context(base: Path, busybox_context: Path, long: bool) -> Path:
    """What is built: busybox and a tar file with many files of a fixed time."""
    count = LONG_FILES if long else FILES
    source = base / "many"
    for number in range(count):
        directory = source / f"directory-{number // (count // 10)}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{1000 + number}").write_text(f"content of file {number}\n" * (number % 40))

    def at_fixed_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = TIMESTAMP
        return member

    directory = base / "context"
    directory.mkdir()
    with tarfile.open(directory / "many.tar", "w") as archive:
        archive.add(source, "many", filter=at_fixed_time)
    with tarfile.open(directory / "bin.tar", "w") as archive:
        archive.add(busybox_context / "bin", "bin", filter=at_fixed_time)
    (directory / "Dockerfile").write_text(f"FROM scratch\nADD bin.tar /\nADD many.tar /\nRUN {_CHANGE}\n")
    return directory


@pytest.fixture
def fuse_overlayfs(base: Path, prepared_namespace: PreparedNamespace) -> Iterator[Podman]:
    """Podman over fuse-overlayfs."""
    directory = base / "f"
    directory.mkdir()
    with Podman(directory, prepared_namespace, "/usr/bin/fuse-overlayfs") as running:
        yield running


def test_layers_are_the_same(podman: Podman, fuse_overlayfs: Podman, context: Path) -> None:
    layers = {}
    for name, engine in (("pyoverlay", podman), ("fuse-overlayfs", fuse_overlayfs)):
        begin = time.monotonic()
        engine.build(context, "many", f"--timestamp={TIMESTAMP}", "--no-cache")
        print(f"over {name}: {time.monotonic() - begin:.1f} s")
        layers[name] = engine.inspect("many")["RootFS"]["Layers"]
    assert len(layers["pyoverlay"]) == 3
    assert layers["pyoverlay"] == layers["fuse-overlayfs"]
