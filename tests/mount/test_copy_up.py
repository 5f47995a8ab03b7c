"""What moves an object to the upper, what does not, and what of the object and of its parents is kept?"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Entry, MountFactory, Stack, fails_with, run_as, snapshot
from tests.harness.content import (
    ACCESS_ACL,
    CAPABILITY,
    DEFAULT_ACL,
    NET_RAW,
    attribute,
    described,
    left_in_work,
    make_directory,
    make_file,
    make_symlink,
    names,
    posix_acl,
)

LONG_AGO = (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)  # atime, mtime in nanoseconds


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def _open_read_write(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))


TRIGGERS: dict[str, Callable[[Path], object]] = {
    "open read-write": _open_read_write,
    "append": _append,
    "chmod": lambda path: path.chmod(0o640),
    "chown": lambda path: os.chown(path, 0, 5),
    "utime": lambda path: os.utime(path, ns=(5, 6)),
    "truncate": lambda path: os.truncate(path, 3),
    "set attribute": lambda path: os.setxattr(path, "user.new", b"value"),
    "remove attribute": lambda path: os.removexattr(path, "user.kept"),
    "link": lambda path: os.link(path, path.with_name("second")),
    "rename": lambda path: path.rename(path.with_name("second")),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_what_copies_a_file_up(stack: Stack, mount_overlay: MountFactory, trigger: str) -> None:
    make_file(stack.lower / "d" / "file", "content")
    os.setxattr(stack.lower / "d" / "file", "user.kept", b"value")
    mount = mount_overlay()
    TRIGGERS[trigger](mount.path / "d" / "file")
    copied = stack.upper / "d" / ("second" if trigger == "rename" else "file")
    assert copied.is_file()
    assert copied.read_bytes()[:3] == b"con"
    seen = snapshot(mount.path)
    mount.remount()
    assert snapshot(mount.path) == seen


def _readlink_fails(path: Path) -> None:
    with fails_with(errno.EINVAL):
        os.readlink(path)


def _remove_missing_attribute(path: Path) -> None:
    with fails_with(errno.ENODATA):
        os.removexattr(path, "user.missing")


def _replace_missing_attribute(path: Path) -> None:
    with fails_with(errno.ENODATA):
        os.setxattr(path, "user.missing", b"", os.XATTR_REPLACE)


def _refused_chmod(path: Path) -> None:
    with fails_with(errno.EPERM):
        run_as(1000, lambda: path.chmod(0o777))


def _refused_open(path: Path) -> None:
    with fails_with(errno.EACCES):
        run_as(1000, lambda: path.open("ab").close())


def _exclusive_create(path: Path) -> None:
    with fails_with(errno.EEXIST):
        path.touch(exist_ok=False)


def _link_over(path: Path) -> None:
    with fails_with(errno.EEXIST):
        os.link(path.parent / "other", path)


def _remove_directory(path: Path) -> None:
    with fails_with(errno.ENOTEMPTY):
        path.parent.rmdir()


HARMLESS: dict[str, Callable[[Path], object]] = {
    "stat": lambda path: path.stat(),
    "read": lambda path: path.read_bytes(),
    "access": lambda path: os.access(path, os.W_OK),
    "list attributes": os.listxattr,
    "readlink": _readlink_fails,
    "remove a missing attribute": _remove_missing_attribute,
    "refused chmod": _refused_chmod,
    "refused open": _refused_open,
    "exclusive create": _exclusive_create,
    "link over it": _link_over,
    "remove its directory": _remove_directory,
}


@pytest.mark.parametrize("action", HARMLESS)
def test_what_leaves_the_upper_empty(stack: Stack, mount_overlay: MountFactory, action: str) -> None:
    make_file(stack.lower / "d" / "file", "content")
    if action == "link over it":
        make_file(stack.upper / "d" / "other")
    before = snapshot(stack.upper)
    merged = mount_overlay().path
    HARMLESS[action](merged / "d" / "file")
    assert (merged / "d" / "file").read_text() == "content"
    assert list(snapshot(stack.upper)) == list(before)


def _full_file(path: Path) -> None:
    make_file(path, os.urandom(300_000))
    os.setxattr(path, "user.comment", b"a comment\0with zero")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "trusted.secret", b"\x00\xff")
    os.setxattr(path, "security.other", b"label")
    os.chown(path, 1000, 1001)
    os.chmod(path, 0o6751)
    os.setxattr(path, CAPABILITY, NET_RAW)
    os.setxattr(path, ACCESS_ACL, posix_acl(7, 5, 1, {1234: 6}, mask=7))
    os.utime(path, ns=LONG_AGO)


def test_everything_of_a_file_is_kept(stack: Stack, mount_overlay: MountFactory) -> None:
    original = stack.lower / "file"
    _full_file(original)
    expected = described(original)
    content = original.read_bytes()
    os.utime(original, ns=LONG_AGO)
    merged = mount_overlay().path
    assert described(merged / "file") == expected
    os.setxattr(merged / "file", "trusted.trigger", b"")
    os.removexattr(merged / "file", "trusted.trigger")
    assert described(merged / "file") == expected
    assert described(stack.upper / "file") == expected
    assert (stack.upper / "file").read_bytes() == content == (merged / "file").read_bytes()


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6711, 0o1644, 0o0, 0o2640, 0o4000])
def test_suid_sgid_and_sticky_of_anothers_file_are_kept(
    stack: Stack, mount_overlay: MountFactory, mode: int
) -> None:
    make_file(stack.lower / "file", "x")
    os.chown(stack.lower / "file", 1000, 1001)
    os.chmod(stack.lower / "file", mode)
    merged = mount_overlay().path
    os.utime(merged / "file", ns=LONG_AGO)
    for path in (merged / "file", stack.upper / "file"):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, 1000, 1001)


def test_times_survive_a_chmod(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "file", "x")
    os.utime(stack.lower / "file", ns=LONG_AGO)
    merged = mount_overlay().path
    os.chmod(merged / "file", 0o600)
    status = os.stat(merged / "file")
    assert (status.st_atime_ns, status.st_mtime_ns) == LONG_AGO


def test_holes_are_kept(stack: Stack, mount_overlay: MountFactory) -> None:
    size = 64 << 20
    with (stack.lower / "sparse").open("wb") as file:
        file.truncate(size)
        for offset in (0, 5 << 20, (40 << 20) + 4096):
            os.pwrite(file.fileno(), b"data" * 1024, offset)
    merged = mount_overlay().path
    os.chmod(merged / "sparse", 0o600)
    copied = stack.upper / "sparse"
    assert copied.stat().st_size == size
    # The kernel copies in pieces of 1 MiB, so each of the three islands may grow to that.
    assert copied.stat().st_blocks * 512 <= 3 << 20
    with (merged / "sparse").open("rb") as file:
        for offset in (0, 5 << 20, (40 << 20) + 4096):
            assert os.pread(file.fileno(), 8192, offset) == b"data" * 1024 + bytes(4096)
        assert os.pread(file.fileno(), 4096, size - 4096) == bytes(4096)


def test_file_of_nothing_but_a_hole_and_an_empty_one(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "empty")
    make_file(stack.lower / "hole")
    os.truncate(stack.lower / "hole", 1 << 40)
    merged = mount_overlay(check_lowers=False).path
    for name in ("empty", "hole"):
        os.chmod(merged / name, 0o600)
    assert (stack.upper / "empty").stat().st_size == 0
    assert (stack.upper / "hole").stat().st_size == 1 << 40
    assert (stack.upper / "hole").stat().st_blocks == (stack.lower / "hole").stat().st_blocks


def test_truncating_open_keeps_all_but_the_data(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "file", b"x" * 5_000_000, 0o640)
    os.chown(stack.lower / "file", 1000, 1001)
    os.setxattr(stack.lower / "file", "user.kept", b"value")
    merged = mount_overlay().path
    os.close(os.open(merged / "file", os.O_WRONLY | os.O_TRUNC))
    for path in (merged / "file", stack.upper / "file"):
        status = path.stat()
        assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_uid) == (0, 0o640, 1000)
        assert os.getxattr(path, "user.kept") == b"value"
    (merged / "file").write_text("new")
    assert (stack.upper / "file").read_text() == "new"


def _full_directory(path: Path, mode: int) -> Path:
    make_directory(path)
    os.chown(path, 1000, 1001)
    os.chmod(path, mode)
    os.setxattr(path, "user.comment", b"kept")
    os.setxattr(path, "trusted.secret", b"kept")
    os.setxattr(path, DEFAULT_ACL, posix_acl(7, 5, 0, {1234: 7}, mask=7))
    return path


def test_parents_come_first_and_keep_everything(stack: Stack, mount_overlay: MountFactory) -> None:
    modes = {"private": 0o700, "private/setgid": 0o2750, "private/setgid/sticky": 0o1777}
    for path, mode in modes.items():
        _full_directory(stack.lower / path, mode)
    make_file(stack.lower / "private/setgid/sticky/file", "content")
    for path in modes:
        os.utime(stack.lower / path, ns=LONG_AGO)
    expected = {path: described(stack.lower / path) for path in modes}
    merged = mount_overlay().path
    with (merged / "private/setgid/sticky/file").open("a") as file:
        file.write("!")
    for path in modes:
        for seen in (described(merged / path), described(stack.upper / path)):
            seen.pop("atime")
            assert seen == {key: value for key, value in expected[path].items() if key != "atime"}, path
    assert names(stack.upper / "private/setgid/sticky") == ["file"], "nothing else came up"


def test_copy_up_leaves_the_parents_times_alone(stack: Stack, mount_overlay: MountFactory) -> None:
    for name in ("file", "other"):
        make_file(stack.lower / "d" / name)
    make_directory(stack.lower / "d" / "sub")
    os.utime(stack.lower / "d", ns=LONG_AGO)
    os.utime(stack.lower, ns=LONG_AGO)
    os.utime(stack.upper, ns=(3, 4))
    merged = mount_overlay().path
    for name in ("file", "sub", "other"):
        os.chmod(merged / "d" / name, 0o700)
        assert (merged / "d").stat().st_mtime_ns == LONG_AGO[1]
        assert (stack.upper / "d").stat().st_mtime_ns == LONG_AGO[1]
    assert merged.stat().st_mtime_ns == 4
    assert stack.upper.stat().st_mtime_ns == 4


def test_directory_copied_up_alone_brings_nothing_of_its_content(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "d" / "sub" / "file")
    merged = mount_overlay().path
    os.chmod(merged / "d", 0o2700)
    assert list(snapshot(stack.upper)) == [b".", b"d"]
    assert stat.S_IMODE((stack.upper / "d").stat().st_mode) == 0o2700
    assert (merged / "d" / "sub" / "file").exists()


def test_deep_tree_is_copied_up(stack: Stack, mount_overlay: MountFactory) -> None:
    deep = Path(*["level"] * 60)
    make_file(stack.lower / deep / "file", "content")
    merged = mount_overlay().path
    with (merged / deep / "file").open("a") as file:
        file.write(" and more")
    assert (stack.upper / deep / "file").read_text() == "content and more"


@pytest.mark.lowers(3)
def test_copy_up_into_a_tree_of_several_layers(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[2] / "a" / "b" / "lowest", "3")
    make_file(stack.lowers[1] / "a" / "b" / "middle", "2")
    make_file(stack.lowers[0] / "a" / "top", "1")
    os.chmod(stack.lowers[1] / "a" / "b", 0o711)
    mount = mount_overlay()
    (mount.path / "a" / "b" / "lowest").write_text("changed")
    assert stat.S_IMODE((stack.upper / "a" / "b").stat().st_mode) == 0o711, "of the topmost that has it"
    mount.remount()
    assert names(mount.path / "a" / "b") == ["lowest", "middle"]
    assert (mount.path / "a" / "b" / "lowest").read_text() == "changed"


def test_copied_up_objects_carry_no_marks_but_overlays(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", "content")
    mount = mount_overlay()
    os.chmod(mount.path / "d" / "file", 0o600)
    for path in ("d", "d/file"):
        marks = set(os.listxattr(stack.upper / path))
        assert marks <= {"trusted.overlay.origin", "trusted.overlay.impure"}, path
    assert attribute(stack.upper / "d", "trusted.overlay.opaque") is None
    mount.unmount()
    assert left_in_work(stack.work) == []


def test_root_of_the_tree_is_changed_in_the_upper(stack: Stack, mount_overlay: MountFactory) -> None:
    os.chmod(stack.lower, 0o711)
    mount = mount_overlay()
    os.chmod(mount.path, 0o750)
    os.chown(mount.path, 5, 6)
    os.setxattr(mount.path, "user.root", b"yes")
    mount.remount()
    status = mount.path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o750, 5, 6)
    assert os.getxattr(mount.path, "user.root") == b"yes"
    assert stat.S_IMODE(stack.upper.stat().st_mode) == 0o750


def test_whole_tree_is_the_same_after_everything_was_copied_up(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_directory(stack.lower / "d")
    _full_file(stack.lower / "d" / "file")
    make_symlink(stack.lower / "d" / "link", "file")
    os.mkfifo(stack.lower / "d" / "fifo")
    _full_directory(stack.lower / "d" / "sub", 0o3770)
    mount = mount_overlay()
    before: dict[bytes, Entry] = snapshot(mount.path)
    for path in before:
        os.setxattr(bytes(mount.path) + b"/" + path, "trusted.trigger", b"", follow_symlinks=False)
        os.removexattr(bytes(mount.path) + b"/" + path, "trusted.trigger", follow_symlinks=False)
    assert list(snapshot(stack.upper)) == list(before), "all of it is in the upper"
    assert snapshot(mount.path) == before
    mount.remount()
    assert snapshot(mount.path) == before
