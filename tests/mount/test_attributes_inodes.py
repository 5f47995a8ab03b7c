"""st_ino, st_dev, st_nlink: the real numbers, the same before and after a copy-up and a remount."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Kind, MountFactory, Stack, make_stack
from tests.harness.content import make_directory, make_file, make_symlink
from tests.harness.libc import DirectoryStream, umount
from tests.harness.libc import mount as mount_file_system

PATHS = ("d", "d/file", "d/link", "d/fifo", "d/sub", "d/sub/deep")


@pytest.fixture
def tree(stack: Stack) -> Stack:
    """A lower with an object of every kind that a copy-up may renumber."""
    make_file(stack.lower / "d" / "file", "content")
    make_symlink(stack.lower / "d" / "link", "file")
    os.mkfifo(stack.lower / "d" / "fifo")
    make_file(stack.lower / "d" / "sub" / "deep", "deep")
    return stack


def _inodes(root: Path) -> dict[str, int]:
    return {path: os.lstat(root / path).st_ino for path in PATHS}


def test_numbers_are_the_lowers_and_stay_over_copy_up_and_remount(
    tree: Stack, mount_overlay: MountFactory
) -> None:
    mount = mount_overlay()
    before = _inodes(mount.path)
    assert before == _inodes(tree.lower)
    for path in reversed(PATHS):
        os.chown(mount.path / path, 5, 6, follow_symlinks=False)
        assert _inodes(mount.path) == before, path
    with (mount.path / "d" / "file").open("rb") as opened:
        assert os.fstat(opened.fileno()).st_ino == before["d/file"]
    mount.remount()
    assert _inodes(mount.path) == before
    assert {path: os.lstat(tree.upper / path).st_ino for path in PATHS} != before


def test_numbers_stay_when_only_the_names_move(tree: Stack, mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    before = _inodes(mount.path)
    (mount.path / "d" / "file").rename(mount.path / "moved")
    (mount.path / "d" / "link").rename(mount.path / "d" / "sub" / "moved")
    for _ in range(2):
        assert (mount.path / "moved").stat().st_ino == before["d/file"]
        assert (mount.path / "d" / "sub" / "moved").lstat().st_ino == before["d/link"]
        mount.remount()


def test_truncating_open_keeps_the_number(tree: Stack, mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    before = (mount.path / "d" / "file").stat().st_ino
    (mount.path / "d" / "file").write_text("new")
    for _ in range(2):
        assert (mount.path / "d" / "file").stat().st_ino == before
        mount.remount()


@pytest.mark.lowers(3)
def test_merged_directory_has_the_number_of_its_topmost_lower(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    for layer in stack.lowers[1:]:
        make_file(layer / "d" / layer.name)
    mount = mount_overlay()
    number = (mount.path / "d").stat().st_ino
    assert number == (stack.lowers[1] / "d").stat().st_ino
    (mount.path / "d" / "new").touch()
    for _ in range(2):
        assert (mount.path / "d").stat().st_ino == number
        mount.remount()


def test_root_has_the_uppers_number(stack: Stack, mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    for _ in range(2):
        assert mount.path.stat().st_ino == stack.upper.stat().st_ino
        make_file(mount.path / "new")
        with os.scandir(mount.path) as entries:
            assert [entry.inode() for entry in entries] == [(mount.path / "new").stat().st_ino]
        with DirectoryStream(mount.path) as stream:
            assert {entry.inode for entry in stream if entry.name == b"."} == {stack.upper.stat().st_ino}
        mount.remount()


@pytest.mark.lowers(2)
def test_root_of_a_read_only_tree_has_its_topmost_lowers_number(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    assert mount_overlay(read_only=True).path.stat().st_ino == stack.lowers[0].stat().st_ino


def test_new_objects_have_the_uppers_numbers(tree: Stack, mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    make_file(mount.path / "d" / "new" / "file", "new")
    for _ in range(2):
        for path in ("d/new", "d/new/file"):
            assert (mount.path / path).stat().st_ino == (tree.upper / path).stat().st_ino
        mount.remount()


def test_one_device_number_everywhere(tree: Stack, mount_overlay: MountFactory) -> None:
    make_file(tree.upper / "d" / "mine")
    merged = mount_overlay().path
    devices = {os.lstat(merged / path).st_dev for path in (*PATHS, ".", "d/mine")}
    assert len(devices) == 1
    assert devices != {tree.upper.stat().st_dev}
    os.chmod(merged / "d" / "file", 0o600)
    (merged / "new").mkdir()
    assert {os.lstat(merged / path).st_dev for path in ("d/file", "new")} == devices


def test_no_two_files_have_one_number(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(100):
        make_file((stack.lower, stack.upper)[number % 2] / "d" / f"file{number}")
    mount = mount_overlay()
    for number in range(0, 100, 4):
        os.chmod(mount.path / "d" / f"file{number}", 0o600)
    for number in range(100, 150):
        make_file(mount.path / "d" / f"file{number}")
    for _ in range(2):
        numbers = [(mount.path / "d" / f"file{number}").stat().st_ino for number in range(150)]
        assert len(set(numbers)) == 150
        mount.remount()


def test_link_counts(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "low" / "sub" / "file")
    make_file(stack.lower / "both" / "sub" / "file")
    make_directory(stack.upper / "both" / "other")
    mount = mount_overlay()
    make_directory(mount.path / "new" / "a")
    make_directory(mount.path / "new" / "b")
    for _ in range(2):
        assert (mount.path / "both").stat().st_nlink == 1, "nobody counts the directories of a merged one"
        assert mount.path.stat().st_nlink == 1
        assert (mount.path / "new").stat().st_nlink == 4
        assert (mount.path / "low" / "sub" / "file").stat().st_nlink == 1
        mount.remount()
    (mount.path / "new" / "a").rmdir()
    assert (mount.path / "new").stat().st_nlink == 3


def test_links_of_a_lower_keep_one_number_while_untouched(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a", "content")
    os.link(stack.lower / "a", stack.lower / "b")
    merged = mount_overlay().path
    first, second = (merged / "a").stat(), (merged / "b").stat()
    assert (first.st_ino, first.st_nlink) == (second.st_ino, 2) == ((stack.lower / "a").stat().st_ino, 2)


@pytest.fixture
def two_file_systems(base: Path) -> Iterator[Stack]:
    """A stack whose one lower lies on another file system than its other lower and its upper."""
    stack = make_stack(base / "two", lowers=2)
    mount_file_system("tmpfs", stack.lowers[0], "tmpfs", data="mode=755")
    yield stack
    umount(stack.lowers[0])


def test_layers_on_several_file_systems(
    kind: Kind, two_file_systems: Stack, mount_overlay: MountFactory
) -> None:
    """With xino the numbers are unique, stay over copy-up and remount, and listings agree with stat."""
    stack = two_file_systems
    for layer in (*stack.lowers, stack.upper):
        for number in range(20):
            make_file(layer / "d" / f"{layer.name}-{number}", "x")
    mount = mount_overlay("xino=on" if kind is Kind.KERNEL else "xino=auto", stack=stack)
    directory = mount.path / "d"

    def numbers() -> dict[str, int]:
        return {name: (directory / name).stat().st_ino for name in os.listdir(directory)}

    before = numbers()
    assert len(set(before.values())) == 60
    assert len({(directory / name).stat().st_dev for name in before} | {directory.stat().st_dev}) == 1
    for name in ("l1-3", "l2-5", "u-7"):
        (directory / name).write_text("changed")
    for _ in range(2):
        assert numbers() == before
        assert {entry.name: entry.inode() for entry in os.scandir(directory)} == before
        mount.remount()
