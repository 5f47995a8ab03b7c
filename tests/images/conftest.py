"""Fixtures of the tests of images."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.images.store import Store


@pytest.fixture
def store(base: Path) -> Store:
    return Store(base / "store")


@pytest.fixture
def store_in_memory(base: Path) -> Iterator[Store]:
    """A store that is made and removed many times: ext4 doesn't take inodes that were just given up."""
    place = base / "memory"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    yield Store(place / "store")
    subprocess.run(["umount", place], check=True)
