"""What does creating a name do, over nothing, over a whiteout, in a directory of a lower?"""

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, snapshot
from tests.harness.content import (
    is_opaque,
    is_whiteout,
    left_in_work,
    make_directory,
    make_file,
    make_whiteout,
    names,
)

MAKERS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("new"),
    "directory": Path.mkdir,
    "symlink": lambda path: path.symlink_to("target"),
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "char": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "block": lambda path: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 100_000)),
    "regular by mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
}


@pytest.mark.parametrize(
    "place", ["of the root", "in a lower directory", "in a merged directory", "in a new one"]
)
@pytest.mark.parametrize("maker", MAKERS)
def test_new_objects_go_to_the_upper(
    stack: Stack, mount_overlay: MountFactory, maker: str, place: str
) -> None:
    make_file(stack.lower / "low" / "file")
    make_file(stack.lower / "both" / "file")
    make_directory(stack.upper / "both")
    mount = mount_overlay()
    (mount.path / "new").mkdir()
    directory = {
        "of the root": "",
        "in a lower directory": "low",
        "in a merged directory": "both",
        "in a new one": "new",
    }[place]
    MAKERS[maker](mount.path / directory / "made")
    made, on_disk = os.lstat(mount.path / directory / "made"), os.lstat(stack.upper / directory / "made")
    for field in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_mtime_ns", "st_ino"):
        assert getattr(made, field) == getattr(on_disk, field), field
    assert made.st_nlink == on_disk.st_nlink
    assert "made" in names(mount.path / directory)
    assert os.listxattr(stack.upper / directory / "made", follow_symlinks=False) == [], "no marks"
    seen = snapshot(mount.path)
    mount.remount()
    assert snapshot(mount.path) == seen


@pytest.mark.parametrize("maker", MAKERS)
def test_new_objects_replace_a_whiteout(stack: Stack, mount_overlay: MountFactory, maker: str) -> None:
    make_file(stack.lower / "d" / "name", "old")
    mount = mount_overlay()
    (mount.path / "d" / "name").unlink()
    assert is_whiteout(stack.upper / "d" / "name")
    MAKERS[maker](mount.path / "d" / "name")
    made, on_disk = os.lstat(mount.path / "d" / "name"), os.lstat(stack.upper / "d" / "name")
    assert (made.st_mode, made.st_rdev) == (on_disk.st_mode, on_disk.st_rdev)
    assert names(stack.upper / "d") == ["name"]
    assert names(mount.path / "d") == ["name"]
    if maker == "directory":
        assert is_opaque(stack.upper / "d" / "name")
    seen = snapshot(mount.path)
    mount.remount()
    assert snapshot(mount.path) == seen
    mount.unmount()
    assert left_in_work(stack.work) == []


def test_removed_and_remade_directory_shows_no_old_content(stack: Stack, mount_overlay: MountFactory) -> None:
    for name in ("d/a", "d/sub/b", "d/sub/deep/c", "top/x"):
        make_file(stack.lower / name, "old")
    make_file(stack.upper / "d" / "sub" / "mine", "upper")
    mount = mount_overlay()
    for _ in range(2):
        for directory in ("d", "top"):
            _remove_tree(mount.path / directory)
            assert is_whiteout(stack.upper / directory)
            (mount.path / directory).mkdir()
            assert is_opaque(stack.upper / directory)
        for _ in range(2):
            assert list(snapshot(mount.path)) == [b".", b"d", b"top"]
            for hidden in ("d/a", "d/sub", "d/sub/b", "top/x"):
                assert not (mount.path / hidden).exists()
            mount.remount()
    (mount.path / "d" / "sub").mkdir()
    assert not is_opaque(stack.upper / "d" / "sub"), "nothing lies below it any more"
    mount.remount()
    assert names(mount.path / "d" / "sub") == []


def _remove_tree(path: Path) -> None:
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(Path(entry.path))
        else:
            os.unlink(entry.path)
    path.rmdir()


def test_plain_mkdir_leaves_no_marks_on_disk(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "low")
    merged = mount_overlay().path
    for path in ("a", "a/b", "low/c"):
        (merged / path).mkdir()
        assert os.listxattr(stack.upper / path) == []
        assert names(stack.upper / path) in ([], ["b"])


def test_directory_made_over_a_removed_file_and_file_over_a_removed_directory(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "file", "old")
    make_file(stack.lower / "directory" / "inner")
    mount = mount_overlay()
    (mount.path / "file").unlink()
    (mount.path / "file").mkdir()
    (mount.path / "directory" / "inner").unlink()
    (mount.path / "directory").rmdir()
    (mount.path / "directory").write_text("now a file")
    for _ in range(2):
        assert names(mount.path / "file") == []
        assert (mount.path / "directory").read_text() == "now a file"
        mount.remount()
    assert is_opaque(stack.upper / "file")


def test_mknod_of_a_whiteout_is_refused(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "f")
    merged = mount_overlay().path
    with fails_with(errno.EPERM):
        os.mknod(merged / "new", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    with fails_with(errno.EEXIST):
        os.mknod(merged / "f", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.mknod(merged / "block", stat.S_IFBLK | 0o600, os.makedev(0, 0))
    assert names(merged) == ["block", "f"]


@pytest.mark.parametrize("maker", [maker for maker in MAKERS if maker != "file"])
@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_existing_names_are_not_replaced(
    stack: Stack, mount_overlay: MountFactory, maker: str, layer: str
) -> None:
    make_file((stack.lower if layer == "lower" else stack.upper) / "d" / "name", "content")
    merged = mount_overlay().path
    with fails_with(errno.EEXIST):
        MAKERS[maker](merged / "d" / "name")
    assert (merged / "d" / "name").read_text() == "content"
    if layer == "lower":
        assert names(stack.upper) == []


@pytest.mark.parametrize("maker", MAKERS)
def test_creating_in_impossible_places(stack: Stack, mount_overlay: MountFactory, maker: str) -> None:
    make_file(stack.lower / "file")
    make_file(stack.lower / "gone" / "x")
    make_whiteout(stack.upper / "gone")
    merged = mount_overlay().path
    for path, number in (
        ("nowhere/new", errno.ENOENT),
        ("gone/new", errno.ENOENT),
        ("file/new", errno.ENOTDIR),
        ("n" * 256, errno.ENAMETOOLONG),
    ):
        with fails_with(number):
            MAKERS[maker](merged / path)
    assert names(merged) == ["file"]


def test_parents_times_move_when_a_name_is_made(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "d")
    os.utime(stack.lower / "d", ns=(1, 1))
    merged = mount_overlay().path
    (merged / "d" / "new").touch()
    made = (merged / "d" / "new").stat()
    parent = (merged / "d").stat()
    assert parent.st_mtime_ns == parent.st_ctime_ns
    assert abs(parent.st_mtime_ns - made.st_ctime_ns) < 10**9
    assert (stack.upper / "d").stat().st_mtime_ns == parent.st_mtime_ns


def test_created_names_keep_their_contents_through_a_whiteout_cycle(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "name", "lower")
    mount = mount_overlay()
    for number in range(5):
        (mount.path / "name").unlink()
        assert is_whiteout(stack.upper / "name")
        (mount.path / "name").write_text(f"round {number}")
        assert (mount.path / "name").read_text() == f"round {number}"
    mount.remount()
    assert (mount.path / "name").read_text() == "round 4"


def test_sockets_and_fifos_made_in_the_tree_work(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "d")
    merged = mount_overlay().path
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(merged / "d" / "socket"))
        listening.listen()
        client.connect(str(merged / "d" / "socket"))
        accepted, _ = listening.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
    assert stat.S_ISSOCK(os.lstat(stack.upper / "d" / "socket").st_mode)
    os.mkfifo(merged / "d" / "fifo")
    descriptor = os.open(merged / "d" / "fifo", os.O_RDWR)
    os.write(descriptor, b"through")
    assert os.read(descriptor, 10) == b"through"
    os.close(descriptor)


@pytest.mark.lowers(2)
def test_read_only_tree_refuses_every_change(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "d" / "file", "content")
    make_file(stack.lowers[0] / "d" / "other")
    make_directory(stack.lowers[0] / "empty")
    merged = mount_overlay(read_only=True).path
    _refuses_every_change(merged)
    assert (merged / "d" / "file").read_text() == "content"


def test_tree_mounted_ro_refuses_every_change(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", "content")
    make_file(stack.upper / "d" / "other")
    make_directory(stack.lower / "empty")
    before = snapshot(stack.upper, xattrs=False)
    merged = mount_overlay("ro").path
    _refuses_every_change(merged)
    assert (merged / "d" / "file").read_text() == "content"
    assert snapshot(stack.upper, xattrs=False) == before


def _refuses_every_change(merged: Path) -> None:
    file, new = merged / "d" / "file", merged / "d" / "new"
    attempts: list[Callable[[], object]] = [
        *(lambda maker=maker: maker(new) for maker in MAKERS.values()),
        lambda: file.open("ab"),
        lambda: file.open("wb"),
        file.unlink,
        (merged / "empty").rmdir,
        lambda: file.rename(new),
        lambda: os.link(file, new),
        lambda: file.chmod(0o600),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file),
        lambda: os.truncate(file, 0),
        lambda: os.setxattr(file, "user.new", b""),
        lambda: os.removexattr(file, "user.new"),
    ]
    for attempt in attempts:
        with fails_with(errno.EROFS):
            attempt()
