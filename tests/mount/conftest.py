"""Fixtures that several files of tests on a mount share."""

import os
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, snapshot
from tests.harness.content import make_directory, make_file, make_symlink


@pytest.fixture
def merged(stack: Stack, mount_overlay: MountFactory) -> Path:
    """A tree with names of both layers, of which everything is in the caches."""
    for name in ("low", "both"):
        make_file(stack.lower / "d" / name, f"{name} of the lower")
    make_file(stack.upper / "d" / "both", "both of the upper")
    make_file(stack.upper / "d" / "up", "up of the upper")
    make_symlink(stack.lower / "d" / "link", "low")
    make_file(stack.lower / "d" / "sub" / "deep", "deep")
    make_directory(stack.lower / "e")
    path: Path = mount_overlay().path
    _warm(path)
    return path


def _warm(root: Path) -> None:
    snapshot(root)
    for name in ("new", "d/new", "e/new", "d/sub/new"):
        assert not os.path.lexists(root / name)
