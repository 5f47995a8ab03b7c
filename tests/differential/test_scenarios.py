"""Fixed scenarios on the kernel's overlay and on pyoverlay: answers, tree and upper are the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.differential import layers, operations
from tests.differential.actors import perform
from tests.differential.conftest import PairFactory
from tests.differential.scenarios import ERRORS_WORTH_SEEING, SCENARIOS
from tests.harness import Kind, Mount, make_stack


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(pair: PairFactory, name: str) -> None:
    """Every operation is answered alike; afterwards the same tree shows and the same marks lie on disk."""
    mounts = pair()
    mounts.perform_all(SCENARIOS[name])
    mounts.finish()


def test_untouched(pair: PairFactory) -> None:
    """Without a change: the same tree, the same inode numbers, nothing in the upper."""
    pair().finish()


def test_reading_only_changes_nothing(pair: PairFactory) -> None:
    """Looking at everything copies nothing up."""
    mounts = pair()
    for path in (*layers.FILES, *layers.HIDDEN):
        mounts.perform_all([operations.status(path), operations.read(path), operations.listxattr(path)])
    for path in layers.DIRECTORIES:
        mounts.perform_all([operations.listing(path), operations.listxattr(path)])
    for path in layers.SYMLINKS:
        mounts.perform(operations.readlink(path))
    mounts.finish()


USERXATTR_SCENARIOS = (
    "a merged tree is removed and made again",
    "everything over a whiteout",
    "a directory over a removed directory is opaque",
    "upper directories move",
    "lower files move",
    "an opaque directory of a lower",
    "extended attributes",
    "overlay's own attributes are a user's like any others",
)


@pytest.mark.parametrize("name", USERXATTR_SCENARIOS)
def test_scenario_with_userxattr(pair: PairFactory, base: Path, name: str) -> None:
    """With user.overlay.* as the dialect of marks, the same holds."""
    prefix = "user.overlay."
    directories = [base / f"l{number}" for number in range(1, layers.LAYERS + 1)]
    for directory in directories:
        directory.mkdir()
    layers.build(directories, prefix=prefix)
    mounts = pair("userxattr", prefix=prefix, lowers=directories)
    mounts.perform_all(SCENARIOS[name])
    mounts.finish()


READ_ONLY_OPERATIONS = (
    operations.create(b"new", b"x"),
    operations.unlink(b"plain"),
    operations.mkdir(b"newdir"),
    operations.rmdir(b"hollow"),
    operations.rename(b"plain", b"moved"),
    operations.link(b"plain", b"second"),
    operations.symlink(b"x", b"link"),
    operations.chmod(b"plain", 0o600),
    operations.chown(b"plain", 1, 1),
    operations.truncate(b"plain", 0),
    operations.write(b"plain", 0, b"x"),
    operations.setxattr(b"plain", b"user.x", b"y"),
    operations.mknod(b"pipe", 0o10644),
    operations.utimens(b"plain", 1, 1),
    operations.read(b"plain"),
    operations.unlink(b"missing"),
    operations.create(b"plain", b""),
    operations.copy_up(b"fifo"),
)


def test_mounted_read_only(pair: PairFactory) -> None:
    """With `ro` every change is answered EROFS where the kernel does, and nothing is written."""
    mounts = pair("ro")
    mounts.perform_all(READ_ONLY_OPERATIONS)
    mounts.finish()


def test_the_scenarios_tell_something(base: Path, lowers: list[Path]) -> None:
    """On the kernel's overlay the scenarios succeed and fail in all the ways that matter."""
    seen: dict[str | None, int] = {}
    for number, story in enumerate(SCENARIOS.values()):
        stack = make_stack(base / str(number), lowers=0)
        stack.lowers = lowers
        with Mount(Kind.KERNEL, stack) as mount:
            for operation in story:
                outcome = perform(os.fsencode(mount.path), operation)
                seen[outcome.error] = seen.get(outcome.error, 0) + 1
    assert seen.keys() >= ERRORS_WORTH_SEEING, ERRORS_WORTH_SEEING - seen.keys()
    assert 0.5 < seen[None] / sum(seen.values()) < 0.9
