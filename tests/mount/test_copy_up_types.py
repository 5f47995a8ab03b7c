"""Are fifos, sockets, devices and symlinks copied up whole, whatever the change that asks for it?"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack
from tests.harness.content import described, make_directory, make_symlink, names

LONG_AGO = (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)  # atime, mtime in nanoseconds

SPECIAL: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o644),
    "char": lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
    "block": lambda path: os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(259, 70_000)),
}
METADATA: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o600),
    "chown": lambda path: os.chown(path, 5, 6),
    "utime": lambda path: os.utime(path, ns=(7, 8)),
    "set attribute": lambda path: os.setxattr(path, "trusted.new", b"value"),
    "link": lambda path: os.link(path, path.with_name("second")),
    "rename": lambda path: path.rename(path.with_name("second")),
}


@pytest.mark.parametrize("change", METADATA)
@pytest.mark.parametrize("special", SPECIAL)
def test_special_files_are_copied_up(
    stack: Stack, mount_overlay: MountFactory, special: str, change: str
) -> None:
    make_directory(stack.lower / "d")
    SPECIAL[special](stack.lower / "d" / "it")
    os.setxattr(stack.lower / "d" / "it", "trusted.kept", b"value")
    os.chown(stack.lower / "d" / "it", 1000, 1001)
    os.chmod(stack.lower / "d" / "it", 0o1711)
    os.utime(stack.lower / "d" / "it", ns=LONG_AGO)
    expected = described(stack.lower / "d" / "it")
    merged = mount_overlay().path
    METADATA[change](merged / "d" / "it")
    name = "second" if change == "rename" else "it"
    seen = described(merged / "d" / name)
    assert described(stack.upper / "d" / name) == seen
    changed = {key for key in expected if expected[key] != seen[key]}
    assert changed <= {
        "chmod": {"mode"},
        "chown": {"owner"},
        "utime": {"atime", "mtime"},
        "set attribute": {"xattrs"},
    }.get(change, set())


def test_opening_special_files_copies_nothing(stack: Stack, mount_overlay: MountFactory) -> None:
    os.mkfifo(stack.lower / "fifo")
    os.mknod(stack.lower / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    merged = mount_overlay().path
    descriptor = os.open(merged / "fifo", os.O_RDWR)
    os.write(descriptor, b"through a lower fifo")
    assert os.read(descriptor, 100) == b"through a lower fifo"
    os.close(descriptor)
    (merged / "null").write_text("swallowed")
    assert names(stack.upper) == []


@pytest.mark.parametrize("change", ["chown", "utime", "set attribute", "link", "rename"])
def test_symlinks_are_copied_up(stack: Stack, mount_overlay: MountFactory, change: str) -> None:
    target = "/some where/" + "long/" * 500
    link = make_symlink(stack.lower / "d" / "it", target)
    os.chown(link, 1000, 1001, follow_symlinks=False)
    os.setxattr(link, "trusted.kept", b"value", follow_symlinks=False)
    os.utime(link, ns=LONG_AGO, follow_symlinks=False)
    expected = described(link)
    merged = mount_overlay().path
    path = merged / "d" / "it"
    {
        "chown": lambda: os.chown(path, 5, 6, follow_symlinks=False),
        "utime": lambda: os.utime(path, ns=(7, 8), follow_symlinks=False),
        "set attribute": lambda: os.setxattr(path, "trusted.new", b"1", follow_symlinks=False),
        "link": lambda: os.link(path, merged / "d" / "second", follow_symlinks=False),
        "rename": lambda: os.rename(path, merged / "d" / "second"),
    }[change]()
    name = "second" if change == "rename" else "it"
    seen = described(merged / "d" / name)
    assert described(stack.upper / "d" / name) == seen
    assert os.readlink(merged / "d" / name) == target == os.readlink(stack.upper / "d" / name)
    ignored = {"atime"} | (
        {"chown": {"owner"}, "utime": {"mtime"}, "set attribute": {"xattrs"}}.get(change, set())
    )
    assert {key: seen[key] for key in seen if key not in ignored} == {
        key: expected[key] for key in expected if key not in ignored
    }
    attributes = os.listxattr(merged / "d" / name, follow_symlinks=False)
    assert "trusted.kept" in attributes
