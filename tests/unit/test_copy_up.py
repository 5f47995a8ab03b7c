"""How does an object move to the upper: whole, with all it has, by one step, and with nothing left behind?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.layers import syscalls
from pyoverlay.layers.layer import LayerObject
from pyoverlay.overlay import copy_up
from pyoverlay.overlay.copy_up import CopyUp, CopyUpCancelled, CopyUpNeeded
from tests.harness import Stack as LayerDirectories
from tests.harness import fails_with, snapshot
from tests.harness.content import (
    ACCESS_ACL,
    CAPABILITY,
    NET_RAW,
    attribute,
    is_whiteout,
    left_in_work,
    make_directory,
    make_file,
)
from tests.unit.vfs import Vfs, open_descriptors

ORIGIN = "trusted.overlay.origin"
IMPURE = "trusted.overlay.impure"
OLD_TIMES = (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)

OpenOverlay = Callable[..., Vfs]


def leftovers(stack: LayerDirectories) -> list[str]:
    """What lies in the work directory, but for the inode that all whiteouts share."""
    return left_in_work(stack.work)


def begin(vfs: Vfs, path: bytes) -> CopyUp:
    node = vfs.node(path)
    with pytest.raises(CopyUpNeeded) as needed:
        vfs.fs.open(node.nodeid, os.O_WRONLY)
    assert needed.value.node is node
    return vfs.fs.begin_copy_up(needed.value)


# What a copy has


def make_special_objects(lower: Path) -> None:
    make_file(lower / "file", "content" * 1000)
    make_directory(lower / "directory")
    (lower / "symlink").symlink_to("target")
    os.mkfifo(lower / "fifo")
    os.mknod(lower / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(lower / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(lower / "block", stat.S_IFBLK | 0o600, os.makedev(7, 0))


KINDS = ["file", "directory", "symlink", "fifo", "socket", "null", "block"]


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_has_everything(stack: LayerDirectories, overlay: Vfs, name: str) -> None:
    make_special_objects(stack.lower)
    lower, upper = stack.lower / name, stack.upper / name
    os.chown(lower, 1234, 5678, follow_symlinks=False)
    if name != "symlink":
        lower.chmod(0o2710 if name == "directory" else 0o6751)
    os.setxattr(lower, "trusted.mine", b"\0value", follow_symlinks=False)
    os.utime(lower, ns=OLD_TIMES, follow_symlinks=False)
    before = lower.lstat()
    overlay.set_attribute(name.encode(), b"trusted.asked", b"x")
    after = upper.lstat()
    for field in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_mtime_ns", "st_atime_ns"):
        assert getattr(after, field) == getattr(before, field), field
    assert attribute(upper, "trusted.mine") == b"\0value"
    assert attribute(upper, "trusted.asked") == b"x"
    if name == "file":
        assert upper.read_bytes() == lower.read_bytes()
    if name == "symlink":
        assert os.readlink(upper) == "target"
    assert leftovers(stack) == []
    assert not attribute(lower, "trusted.asked")


def test_capabilities_acls_and_user_attributes_are_kept(stack: LayerDirectories, overlay: Vfs) -> None:
    file = make_file(stack.lower / "file", "content", mode=0o755)
    os.chown(file, 5, 5)
    os.setxattr(file, CAPABILITY, NET_RAW)
    os.setxattr(file, "user.mine", b"1")
    acl = bytes.fromhex(
        "0200000001000700ffffffff02000400e803000004000500ffffffff10000500ffffffff20000400ffffffff"
    )
    os.setxattr(file, ACCESS_ACL, acl)
    capability = attribute(file, CAPABILITY)
    overlay.set_attribute(b"file", b"user.asked", b"x")
    upper = stack.upper / "file"
    assert attribute(upper, CAPABILITY) == capability
    assert attribute(upper, ACCESS_ACL) == acl
    assert attribute(upper, "user.mine") == b"1"
    assert upper.stat().st_mode == file.stat().st_mode


def test_marks_of_the_lower_are_not_copied(stack: LayerDirectories, overlay: Vfs) -> None:
    directory = make_directory(stack.lower / "directory")
    os.setxattr(directory, "trusted.overlay.opaque", b"y")
    os.setxattr(directory, "trusted.overlay.impure", b"y")
    os.setxattr(directory, "trusted.overlay.overlay.opaque", b"nested")
    overlay.change(b"directory", mode=0o700)
    upper = stack.upper / "directory"
    assert attribute(upper, "trusted.overlay.opaque") is None
    assert attribute(upper, "trusted.overlay.impure") is None
    assert attribute(upper, "trusted.overlay.overlay.opaque") == b"nested"


def test_holes_stay_holes(stack: LayerDirectories, overlay: Vfs) -> None:
    file = stack.lower / "sparse"
    with file.open("wb") as opened:
        opened.write(b"head")
        opened.seek(32 << 20)
        opened.write(b"middle")
        opened.truncate(64 << 20)
    overlay.change(b"sparse", mode=0o600)
    copy = stack.upper / "sparse"
    assert copy.stat().st_size == 64 << 20
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as opened:
        assert opened.read(5) == b"head\0"
        opened.seek(32 << 20)
        assert opened.read(7) == b"middle\0"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4 * 1024 * 1024, 9 * 1024 * 1024 + 5])
@pytest.mark.parametrize("way", ["as-it-can", "by-buffer"])
def test_sizes(
    stack: LayerDirectories, overlay: Vfs, monkeypatch: pytest.MonkeyPatch, size: int, way: str
) -> None:
    if way == "by-buffer":

        def refuse(*_arguments: object) -> int:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(syscalls, "clone_file", refuse)
        monkeypatch.setattr(os, "copy_file_range", refuse)
    content = os.urandom(size)
    make_file(stack.lower / "file", content)
    overlay.change(b"file", mode=0o600)
    assert (stack.upper / "file").read_bytes() == content


def test_without_nameless_files(
    stack: LayerDirectories, overlay: Vfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: LayerObject) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), directory.name)

    monkeypatch.setattr(LayerObject, "create_unnamed_file", refuse)
    make_file(stack.lower / "file", "content", mode=0o640)
    job = begin(overlay, b"file")
    assert len(leftovers(stack)) == 1
    job.close()
    assert leftovers(stack) == []
    overlay.change(b"file", user=7)
    assert (stack.upper / "file").read_text() == "content"
    assert leftovers(stack) == []


def test_truncating_to_nothing_copies_no_data(
    stack: LayerDirectories, overlay: Vfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(copy_up, "copy_data", refuse)
    for name in ("opened", "truncated"):
        make_file(stack.lower / name, "content", mode=0o640)
    overlay.write(b"opened", b"new", os.O_TRUNC)
    overlay.change(b"truncated", size=0)
    assert (stack.upper / "opened").read_text() == "new"
    assert (stack.upper / "truncated").stat().st_size == 0
    assert stat.S_IMODE((stack.upper / "truncated").stat().st_mode) == 0o640


# What is marked


def test_origin_and_impure(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "a" / "file")
    overlay.change(b"a/file", mode=0o600)
    for path in (stack.upper / "a", stack.upper / "a" / "file"):
        origin = attribute(path, ORIGIN)
        assert origin is not None and len(origin) > 20
    assert attribute(stack.upper, IMPURE) == b"y"
    assert attribute(stack.upper / "a", IMPURE) == b"y"


def test_a_lower_hard_link_becomes_a_file_of_its_own(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "one", "content")
    os.link(stack.lower / "one", stack.lower / "two")
    lower_inode = overlay.node(b"one").inode
    overlay.change(b"one", mode=0o600)
    assert attribute(stack.upper / "one", ORIGIN) is None
    shown = overlay.fs.attributes(overlay.node(b"one"))
    assert shown.inode == (stack.upper / "one").stat().st_ino != lower_inode
    assert shown.links == 1
    assert overlay.fs.attributes(overlay.node(b"two")).inode == lower_inode
    assert overlay.fs.attributes(overlay.node(b"two")).mode == stat.S_IFREG | 0o644


def test_no_mark_is_written_that_other_engines_refuse(stack: LayerDirectories, overlay: Vfs) -> None:
    make_special_objects(stack.lower)
    for name in KINDS:
        overlay.change(name.encode(), user=3)
    for path in stack.upper.iterdir():
        assert {mark for mark in os.listxattr(path, follow_symlinks=False) if "overlay" in mark} <= {ORIGIN}


# Directories on the way


def test_missing_directories_come_first_as_they_were(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "a" / "b" / "c" / "file", "content")
    for level, path in enumerate(("a/b/c", "a/b", "a"), start=1):
        (stack.lower / path).chmod(0o700 + level)
        os.chown(stack.lower / path, level, level)
        os.utime(stack.lower / path, ns=OLD_TIMES)
    overlay.write(b"a/b/c/file", b"CONTENT")
    for level, path in enumerate(("a/b/c", "a/b", "a"), start=1):
        status = (stack.upper / path).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700 + level, level)
        assert status.st_mtime_ns == OLD_TIMES[1]
    assert os.listdir(stack.upper / "a" / "b") == ["c"]


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_up_changes_no_time_of_the_directory(stack: LayerDirectories, overlay: Vfs, name: str) -> None:
    make_special_objects(stack.lower)
    os.utime(stack.upper, ns=OLD_TIMES)
    overlay.change(name.encode(), user=3)
    assert stack.upper.stat().st_mtime_ns == OLD_TIMES[1]


def test_the_lower_is_not_touched(stack: LayerDirectories, overlay: Vfs) -> None:
    make_special_objects(stack.lower)
    before = snapshot(stack.lower, exact=True)
    for name in KINDS:
        overlay.change(name.encode(), user=3, modification_ns=5)
    overlay.write(b"file", b"other")
    assert snapshot(stack.lower, exact=True) == before


# Nothing is half visible


def test_nothing_shows_before_it_is_published(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file", "content")
    job = begin(overlay, b"file")
    node = overlay.node(b"file")
    assert os.listdir(stack.upper) == leftovers(stack) == []
    job.copy()
    assert os.listdir(stack.upper) == leftovers(stack) == []
    assert node.upper is None and overlay.read(b"file") == b"content"
    job.publish()
    job.close()
    assert os.listdir(stack.upper) == ["file"]
    assert overlay.read(b"file") == b"content"
    assert node.nodeid in overlay.fs.take_copied_up()
    assert overlay.fs.take_copied_up() == []


def test_a_copy_that_was_given_up_leaves_nothing(
    stack: LayerDirectories, overlay: Vfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled between two pieces."""
    pieces = []
    content = os.urandom(9 << 20)
    make_file(stack.lower / "file", content)
    before = open_descriptors()
    job = begin(overlay, b"file")
    copy_range = os.copy_file_range

    def copy_one_piece(source: int, target: int, count: int, from_: int, to: int) -> int:
        pieces.append(count)
        job.cancelled = True
        return copy_range(source, target, count, from_, to)

    monkeypatch.setattr(os, "copy_file_range", copy_one_piece)
    with pytest.raises(CopyUpCancelled):
        job.copy()
    job.close()
    assert len(pieces) == 1
    with pytest.raises(CopyUpCancelled):
        job.publish()
    assert os.listdir(stack.upper) == leftovers(stack) == []
    overlay.stack.cache.close()
    assert open_descriptors() <= before
    monkeypatch.undo()
    overlay.change(b"file", mode=0o600)
    assert (stack.upper / "file").read_bytes() == content


@pytest.mark.parametrize(
    "call", ["chown", "chmod", "setxattr", "utime", "fsync", "copy_file_range", "ftruncate", "link"]
)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failure_leaves_nothing(
    stack: LayerDirectories, overlay: Vfs, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    make_file(stack.lower / "file", "content")
    os.truncate(stack.lower / "file", 1 << 16)  # it ends with a hole
    os.setxattr(stack.lower / "file", "user.x", b"y")
    overlay.node(b"file")
    before = open_descriptors()

    def fail(*_arguments: object, **_others: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with fails_with(error):
            overlay.write(b"file", b"CONTENT")
    assert os.listdir(stack.upper) == leftovers(stack) == []
    assert overlay.read(b"file") == b"content".ljust(1 << 16, b"\0")
    overlay.stack.cache.close()
    assert open_descriptors() <= before
    overlay.write(b"file", b"CONTENT")
    assert (stack.upper / "file").read_bytes() == b"CONTENT".ljust(1 << 16, b"\0")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "file"])
@pytest.mark.parametrize("step", ["set_owner", "set_times", "rename"])
def test_a_failure_with_what_has_no_data_leaves_nothing(
    stack: LayerDirectories, overlay: Vfs, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    make_special_objects(stack.lower)
    before = overlay.fs.attributes(overlay.node(name.encode()))

    def fail(*_arguments: object, **_others: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(LayerObject, step, fail)
        with fails_with(errno.ENOSPC):
            overlay.set_attribute(name.encode(), b"trusted.x", b"y")
    assert os.listdir(stack.upper) == leftovers(stack) == []
    assert overlay.fs.attributes(overlay.node(name.encode())) == before
    overlay.set_attribute(name.encode(), b"trusted.x", b"y")
    assert attribute(stack.upper / name, "trusted.x") == b"y"


@pytest.mark.parametrize(("fsync", "expected"), [("auto", 1), ("strict", 2), ("volatile", 0)])
def test_data_is_synced_before_it_shows(
    stack: LayerDirectories,
    open_overlay: OpenOverlay,
    monkeypatch: pytest.MonkeyPatch,
    fsync: str,
    expected: int,
) -> None:
    make_file(stack.lower / "file", "content")
    vfs = open_overlay(fsync=fsync)
    shown_when_synced = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        shown_when_synced.append(os.listdir(stack.upper))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    vfs.change(b"file", mode=0o600)
    assert len(shown_when_synced) == expected
    assert shown_when_synced[:1] == [[]][:expected]


# While it runs


def test_a_file_that_is_unlinked_while_it_is_copied(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file", "content")
    reading = overlay.open(b"file")
    node = overlay.node(b"file")
    job = begin(overlay, b"file")
    overlay.unlink(b"file")
    overlay.create(b"file", b"another")
    job.copy()
    job.publish()
    job.close()
    handle = overlay.fs.open(node.nodeid, os.O_RDWR)
    overlay.fs.write(handle, 0, b"CONTENT")
    assert os.pread(overlay.fs.descriptor_for_reading(reading), 100, 0) == b"CONTENT"
    assert overlay.fs.attributes(node).links == 0
    assert (stack.upper / "file").read_text() == "another"
    assert leftovers(stack) == []


def test_an_unlinked_object_without_data_is_copied_without_a_name(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    make_special_objects(stack.lower)
    for name in ("symlink", "fifo"):
        node = overlay.node(name.encode())
        overlay.unlink(name.encode())
        overlay.run(lambda node=node: overlay.fs.set_extended_attribute(node.nodeid, b"trusted.x", b"y"))  # type: ignore[misc]
        assert overlay.fs.extended_attribute(node.nodeid, b"trusted.x") == b"y"
        assert overlay.fs.attributes(node).links == 0
        assert is_whiteout(stack.upper / name)
    assert leftovers(stack) == []


def test_a_descriptor_opened_before_reads_the_copy(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file", "content")
    reading = overlay.open(b"file")
    assert os.pread(overlay.fs.descriptor_for_reading(reading), 100, 0) == b"content"
    overlay.write(b"file", b"CONTENT")
    assert os.pread(overlay.fs.descriptor_for_reading(reading), 100, 0) == b"CONTENT"
    before = open_descriptors()
    overlay.fs.release(reading)
    assert open_descriptors() == before - 2


def test_a_read_only_overlay_copies_nothing(stack: LayerDirectories, open_overlay: OpenOverlay) -> None:
    make_special_objects(stack.lower)
    vfs = open_overlay(upperdir=None, workdir=None)
    for name in KINDS:
        with fails_with(errno.EROFS):
            vfs.change(name.encode(), user=3)


def test_removing_an_attribute_that_is_not_there_copies_nothing(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    make_special_objects(stack.lower)
    for name in KINDS:
        nodeid = overlay.node(name.encode()).nodeid
        with fails_with(errno.ENODATA):
            overlay.run(lambda nodeid=nodeid: overlay.fs.remove_extended_attribute(nodeid, b"trusted.absent"))  # type: ignore[misc]
    assert os.listdir(stack.upper) == []
