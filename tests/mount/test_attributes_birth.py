"""Birth times: those of the layers' objects, as statx(2) tells them."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack
from tests.harness.content import make_directory, make_file, make_symlink
from tests.harness.libc import birth_time


@pytest.fixture
def merged(stack: Stack, mount_overlay: MountFactory) -> Path:
    """A tree with objects of several types in both layers."""
    for layer in (stack.lower, stack.upper):
        make_file(layer / layer.name, "content")
        make_directory(layer / "merged")
        make_symlink(layer / f"link in {layer.name}", "nowhere")
        os.mkfifo(layer / f"fifo in {layer.name}")
    path: Path = mount_overlay().path
    return path


def test_they_are_the_layers(stack: Stack, merged: Path) -> None:
    for name in os.listdir(stack.lower):
        shown = birth_time(merged / name)
        assert shown == birth_time((stack.upper if name == "merged" else stack.lower) / name)
        assert shown is not None
    for name in os.listdir(stack.upper):
        assert birth_time(merged / name) == birth_time(stack.upper / name)
    assert birth_time(merged) == birth_time(stack.upper)


def test_asking_for_one_shows_all_other_attributes(stack: Stack, merged: Path) -> None:
    os.chown(merged / "u", 12, 34)
    os.utime(merged / "u", ns=(10**18 + 5, 1))
    os.mknod(merged / "device", stat.S_IFBLK | 0o640, os.makedev(300, 70000))
    for name in os.listdir(merged):
        birth_time(merged / name)
        status = os.lstat(merged / name)
        os.utime(merged / name, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
        birth_time(merged / name)  # the first to ask after a change: it fills the cache
        asked_so = os.lstat(merged / name)
        expected = os.lstat(stack.upper / name)
        for field in ("mode", "uid", "gid", "size", "blocks", "rdev", "mtime_ns", "atime_ns", "ctime_ns"):
            assert getattr(asked_so, f"st_{field}") == getattr(expected, f"st_{field}"), (name, field)
        assert (asked_so.st_ino, asked_so.st_nlink) == (status.st_ino, status.st_nlink)


def test_a_copy_was_born_when_it_was_copied(stack: Stack, merged: Path) -> None:
    os.chmod(merged / "l1", 0o600)
    assert birth_time(merged / "l1") == birth_time(stack.upper / "l1")
    assert birth_time(stack.upper / "l1") != birth_time(stack.lower / "l1")


def test_a_new_file_and_one_that_was_asked_while_it_is_written(stack: Stack, merged: Path) -> None:
    with open(merged / "new", "w") as file:
        assert birth_time(merged / "new") == birth_time(stack.upper / "new")
        file.write("content")
        file.flush()
        assert birth_time(merged / "new") == birth_time(stack.upper / "new")
        assert (merged / "new").stat().st_size == 7


@pytest.mark.parametrize("look", [os.fspath, os.stat, lambda path: os.listdir(path.parent)])
def test_a_copy_whose_original_was_asked_before(
    stack: Stack, merged: Path, look: Callable[[Path], object]
) -> None:
    assert birth_time(merged / "l1") == birth_time(stack.lower / "l1")
    os.chmod(merged / "l1", 0o600)
    look(merged / "l1")
    assert birth_time(merged / "l1") == birth_time(stack.upper / "l1")
    assert (merged / "l1").stat().st_mode & 0o777 == 0o600
