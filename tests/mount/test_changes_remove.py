"""What does removing a name leave on disk, and when is a directory empty?"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, pyoverlay_only, snapshot
from tests.harness.content import (
    is_whiteout,
    left_in_work,
    make_directory,
    make_file,
    make_opaque,
    make_symlink,
    make_whiteout,
    names,
)
from tests.mount.daemons import wait_until


def test_removing_a_lower_file_leaves_a_whiteout_and_copies_nothing(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "d" / "sub" / "file", "content")
    make_file(stack.lower / "d" / "sub" / "other", "content")
    os.chmod(stack.lower / "d" / "sub", 0o2711)
    mount = mount_overlay()
    (mount.path / "d" / "sub" / "file").unlink()
    assert list(snapshot(stack.upper)) == [b".", b"d", b"d/sub", b"d/sub/file"]
    assert is_whiteout(stack.upper / "d" / "sub" / "file")
    assert stat.S_IMODE((stack.upper / "d" / "sub").stat().st_mode) == 0o2711
    for _ in range(2):
        assert names(mount.path / "d" / "sub") == ["other"]
        with fails_with(errno.ENOENT):
            (mount.path / "d" / "sub" / "file").stat()
        mount.remount()


def test_removing_an_upper_file_leaves_nothing(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.upper / "mine")
    make_file(stack.lower / "d" / "low")
    merged = mount_overlay().path
    (merged / "d" / "new").touch()
    (merged / "d" / "new").unlink()
    (merged / "mine").unlink()
    assert list(snapshot(stack.upper)) == [b".", b"d"]


def test_removing_a_copied_up_file_leaves_a_whiteout(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "file", "old")
    mount = mount_overlay()
    (mount.path / "file").write_text("changed")
    (mount.path / "file").unlink()
    assert is_whiteout(stack.upper / "file")
    mount.remount()
    assert names(mount.path) == []


@pytest.mark.parametrize("kind_of_object", ["symlink", "fifo", "device", "empty directory"])
def test_objects_of_every_type_are_removed(
    stack: Stack, mount_overlay: MountFactory, kind_of_object: str
) -> None:
    path = stack.lower / "it"
    makers: dict[str, Callable[[], None]] = {
        "symlink": lambda: path.symlink_to("dangling"),
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "empty directory": path.mkdir,
    }
    makers[kind_of_object]()
    mount = mount_overlay()
    it = mount.path / "it"
    if kind_of_object == "empty directory":
        with fails_with(errno.EISDIR):
            it.unlink()
        it.rmdir()
    else:
        with fails_with(errno.ENOTDIR):
            it.rmdir()
        it.unlink()
    assert is_whiteout(stack.upper / "it")
    mount.remount()
    assert names(mount.path) == []


@pytest.mark.lowers(3)
def test_one_whiteout_hides_all_lowers(stack: Stack, mount_overlay: MountFactory) -> None:
    for layer in stack.lowers:
        make_file(layer / "d" / "file", layer.name)
    mount = mount_overlay()
    (mount.path / "d" / "file").unlink()
    mount.remount()
    assert not (mount.path / "d" / "file").exists()


@pytest.mark.lowers(2)
def test_removing_a_name_that_no_lower_shows_any_more_leaves_nothing(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lowers[1] / "hidden")
    make_whiteout(stack.lowers[0] / "hidden")
    make_file(stack.lowers[1] / "opaque" / "file")
    make_opaque(stack.lowers[0] / "opaque")
    merged = mount_overlay().path
    for name in ("hidden", "opaque/file"):
        (merged / name).write_text("new")
        (merged / name).unlink()
        assert not (merged / name).exists()
    assert names(stack.upper / "opaque") == []


@pytest.mark.lowers(2)
def test_directories_that_are_not_empty(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "low" / "x")
    make_file(stack.lowers[1] / "both" / "x")
    make_directory(stack.lowers[0] / "both")
    make_directory(stack.upper / "both")
    make_file(stack.upper / "up" / "x")
    merged = mount_overlay().path
    before = snapshot(stack.upper, xattrs=False)
    for name in ("low", "both", "up"):
        with fails_with(errno.ENOTEMPTY):
            (merged / name).rmdir()
    assert snapshot(stack.upper, xattrs=False) == before


def test_directory_that_holds_only_whiteouts_is_empty(stack: Stack, mount_overlay: MountFactory) -> None:
    for name in ("a", "b"):
        make_file(stack.lower / "d" / name)
        make_whiteout(stack.upper / "d" / name)
    make_file(stack.lower / "e" / "x")
    mount = mount_overlay()
    (mount.path / "e" / "x").unlink()
    assert names(stack.upper / "d") == ["a", "b"]
    for name in ("d", "e"):
        assert names(mount.path / name) == []
        (mount.path / name).rmdir()
        assert is_whiteout(stack.upper / name)
    mount.remount()
    assert names(mount.path) == []


@pyoverlay_only
def test_upper_directory_with_stale_whiteouts_is_removed_for_good(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    """The kernel passes a directory without a lower straight through, and calls this one not empty."""
    make_whiteout(stack.upper / "d" / "stale")
    make_file(stack.lower / "other")
    merged = mount_overlay().path
    assert names(merged / "d") == []
    (merged / "d").rmdir()
    assert names(stack.upper) == []
    assert names(merged) == ["other"]


def test_removing_a_lower_directory_that_was_never_copied_up(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_directory(stack.lower / "parent" / "d")
    make_file(stack.lower / "parent" / "x")
    mount = mount_overlay()
    (mount.path / "parent" / "d").rmdir()
    assert is_whiteout(stack.upper / "parent" / "d")
    assert names(stack.upper / "parent") == ["d"]
    mount.remount()
    assert names(mount.path / "parent") == ["x"]


def test_removing_a_whole_tree_leaves_one_whiteout(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(40):
        make_file(stack.lower / "d" / f"sub{number % 5}" / f"file{number}", "content")
    make_symlink(stack.lower / "d" / "link", "sub1")
    mount = mount_overlay()
    (mount.path / "d" / "sub1" / "mine").touch()
    _remove_tree(mount.path / "d")
    assert is_whiteout(stack.upper / "d")
    assert names(stack.upper) == ["d"]
    wait_until(lambda: left_in_work(stack.work) == [], "the removal of the whiteouts")
    mount.remount()
    assert names(mount.path) == []
    mount.unmount()
    assert left_in_work(stack.work) == []


def test_unmounting_at_once_leaves_no_whiteouts_behind(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(3000):
        make_file(stack.lower / "d" / f"file{number}")
    mount = mount_overlay()
    _remove_tree(mount.path / "d")
    mount.unmount()
    assert left_in_work(stack.work) == []
    assert is_whiteout(stack.upper / "d")


def _remove_tree(path: Path) -> None:
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(Path(entry.path))
        else:
            os.unlink(entry.path)
    path.rmdir()


def test_removing_what_is_not_there(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "gone")
    make_file(stack.lower / "file")
    make_whiteout(stack.upper / "gone")
    merged = mount_overlay().path
    for path, number in (
        ("nothing", errno.ENOENT),
        ("gone", errno.ENOENT),
        ("file/x", errno.ENOTDIR),
        ("nowhere/x", errno.ENOENT),
        ("n" * 256, errno.ENAMETOOLONG),
    ):
        with fails_with(number):
            os.unlink(merged / path)
        with fails_with(number):
            os.rmdir(merged / path)
    with fails_with(errno.EBUSY):
        merged.rmdir()


def test_removing_moves_the_parents_times(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file")
    os.utime(stack.lower / "d", ns=(1, 1))
    merged = mount_overlay().path
    (merged / "d" / "file").unlink()
    parent = (merged / "d").stat()
    assert parent.st_mtime_ns == parent.st_ctime_ns > 10**18


def test_open_directory_whose_content_goes(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "sub" / "file")
    merged = mount_overlay().path
    descriptor = os.open(merged / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.unlink("sub/file", dir_fd=descriptor)
        os.rmdir("sub", dir_fd=descriptor)
        assert os.listdir(descriptor) == []
        os.rmdir(merged / "d")
        assert os.fstat(descriptor).st_nlink in (0, 1)
        with fails_with(errno.ENOENT):
            os.stat("sub", dir_fd=descriptor)
    finally:
        os.close(descriptor)


def test_whiteouts_of_many_names_share_the_space_of_few(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(100):
        make_file(stack.lower / "d" / f"file{number}")
    mount = mount_overlay()
    for number in range(100):
        (mount.path / "d" / f"file{number}").unlink()
    assert all(is_whiteout(stack.upper / "d" / f"file{number}") for number in range(100))
    mount.remount()
    assert names(mount.path / "d") == []
    (mount.path / "d").rmdir()
    assert names(mount.path) == []
