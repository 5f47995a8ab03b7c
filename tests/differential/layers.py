"""The lower layers that the differential tests stand on: small, made from nothing, with one of everything.

Three layers, topmost first, which hold every type, every mark that the kernel's overlayfs and pyoverlay both
read, attributes that copy-up must keep, and names that are hidden, replaced and merged across layers. All
times lie in 2001, so that a time that an operation made anew can be told from one that it had to keep.
"""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from pathlib import Path

OLD_SECONDS = 1_000_000_000
"""Every object in a layer has a modification time near this one (September 2001)."""

RECENT_SECONDS = 1_600_000_000
"""A time after this one was made by the clock during a test."""

LAYERS = 3

# Names that exist in the merged view of the layers, by what they are; the generator of changes draws from
# them.
FILES = (
    b"plain",
    b"empty",
    b"big",
    b"sparse",
    b"suid",
    b"rich",
    b"hard-a",
    b"hard-b",
    b"was-directory",
    b"dir/one",
    b"dir/two",
    b"dir/sub/deep",
    b"dir/sub/deeper/deepest",
    b"merged/top",
    b"merged/middle",
    b"merged/bottom",
    b"opaque/only",
    b"sticky/foreign",
    b"names/new\nline",
    b"names/\xff\xfe-bytes",
)
DIRECTORIES = (
    b"dir",
    b"dir/sub",
    b"dir/sub/deeper",
    b"merged",
    b"opaque",
    b"sticky",
    b"setgid",
    b"inherit",
    b"names",
    b"hollow",
    b"was-file",
)
SYMLINKS = (b"to-plain", b"to-dir", b"dangling", b"dir/up")
SPECIALS = (b"fifo", b"socket", b"null")

RICH_ATTRIBUTES = (b"user.colour", b"user.empty", b"trusted.secret", b"security.capability")
"""The extended attributes of the file `rich`, besides its ACL."""

HIDDEN = (b"gone", b"dir/gone", b"merged/gone", b"opaque/below")


def build(lowers: list[Path], *, prefix: str = "trusted.overlay.") -> None:
    """Fills the directories `lowers` (topmost first, `LAYERS` of them, empty).

    Args:
        lowers: the layers' root directories.
        prefix: of overlay's own attributes: `trusted.overlay.`, or `user.overlay.` for userxattr mounts.
    """
    top, middle, bottom = lowers
    _fill_bottom(bottom)
    _fill_middle(middle, prefix)
    _fill_top(top)
    for layer in lowers:
        make_old(layer)


def _fill_bottom(layer: Path) -> None:
    generator = random.Random(7)
    _file(layer / "plain", b"plain as the day\n")
    _file(layer / "empty", b"")
    _file(layer / "big", generator.randbytes(3 * 1024 * 1024 + 17))
    _file(layer / "suid", b"#!/bin/false\n", 0o6755)
    _file(layer / "gone", b"never seen\n")
    _file(layer / "was-directory/inside", b"never seen\n")
    _file(layer / "was-file", b"never seen\n")
    _file(layer / "hollow/gone", b"never seen\n")
    _file(layer / "dir/one", b"one\n")
    _file(layer / "dir/gone", b"never seen\n")
    _file(layer / "dir/sub/deep", b"deep\n", 0o640)
    _file(layer / "dir/sub/deeper/deepest", b"deepest\n")
    _file(layer / "merged/bottom", b"bottom\n")
    _file(layer / "merged/middle", b"not this one\n")
    _file(layer / "merged/top", b"not this one\n")
    _file(layer / "merged/gone", b"never seen\n")
    _file(layer / "opaque/below", b"never seen\n")
    _sparse(layer / "sparse")
    _linked(layer)
    _rich(layer / "rich")
    _specials(layer)
    _directories(layer)
    (layer / "to-plain").symlink_to("plain")
    (layer / "to-dir").symlink_to("dir/sub")
    (layer / "dangling").symlink_to("nowhere/at/all")
    (layer / "dir/up").symlink_to("../plain")
    _file(layer / os.fsdecode(b"names/new\nline"), b"newline\n")
    _file(layer / os.fsdecode(b"names/\xff\xfe-bytes"), b"bytes\n")


def _fill_middle(layer: Path, prefix: str) -> None:
    whiteout(layer / "gone")
    _file(layer / "was-directory", b"a file since the middle layer\n")
    _file(layer / "was-file/inside", b"a directory since the middle layer\n")
    whiteout(layer / "dir/gone")
    whiteout(layer / "hollow/gone")
    _file(layer / "dir/two", b"two\n")
    _file(layer / "merged/middle", b"middle\n")
    whiteout(layer / "merged/gone")
    _file(layer / "merged/top", b"not this one either\n")
    _file(layer / "opaque/only", b"only\n")
    os.setxattr(layer / "opaque", prefix + "opaque", b"y")


def _fill_top(layer: Path) -> None:
    _file(layer / "merged/top", b"top\n", 0o600)
    os.chmod(layer / "merged", 0o711)
    os.chown(layer / "merged", 1000, 1000)


def _file(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"head")
        file.seek(1 << 20)
        file.write(b"middle")
        file.truncate(4 << 20)


def _linked(layer: Path) -> None:
    _file(layer / "hard-a", b"two names\n")
    os.link(layer / "hard-a", layer / "hard-b")


def _rich(path: Path) -> None:
    _file(path, b"rich\n", 0o750)
    os.chown(path, 1000, 1001)
    os.setxattr(path, "user.colour", b"green\0blue")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "trusted.secret", b"\x01\x02")
    os.setxattr(path, "security.capability", capability())
    os.setxattr(path, "system.posix_acl_access", access_list(user=65534))


def _specials(layer: Path) -> None:
    os.mkfifo(layer / "fifo", 0o620)
    os.mknod(layer / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    back = Path.cwd()
    os.chdir(layer)  # a socket's address holds at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(back)


def _directories(layer: Path) -> None:
    (layer / "sticky").mkdir()
    _file(layer / "sticky/foreign", b"somebody's\n", 0o666)
    os.chown(layer / "sticky/foreign", 1001, 1001)
    (layer / "sticky").chmod(0o1777)
    (layer / "setgid").mkdir()
    os.chown(layer / "setgid", 1000, 1001)
    (layer / "setgid").chmod(0o2777)
    (layer / "inherit").mkdir()
    (layer / "inherit").chmod(0o777)
    os.setxattr(layer / "inherit", "system.posix_acl_default", access_list(user=1000))


def whiteout(path: Path) -> None:
    """Puts the mark that hides `path`'s name in the layers below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, 0)


def capability() -> bytes:
    """The value of security.capability that gives cap_net_raw (struct vfs_cap_data, revision 2)."""
    revision, effective, net_raw = 0x02000000, 1, 1 << 13
    return struct.pack("<IIIII", revision | effective, net_raw, 0, 0, 0)


def access_list(user: int) -> bytes:
    """A POSIX ACL (version 2): `user` may read and write, the group read, others nothing."""
    nobody = 0xFFFFFFFF
    entries = ((1, 7, nobody), (2, 6, user), (4, 5, nobody), (16, 7, nobody), (32, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def make_old(layer: Path) -> None:
    """Gives every object of a layer a modification time of its own in September 2001."""
    # Deepest first: setting a child's times leaves its directory's alone, making one does not.
    number = 0
    for directory, subdirectories, files in os.walk(layer, topdown=False):
        for name in sorted(files) + sorted(subdirectories):
            number += 1
            _age(Path(directory, name), number)
    _age(layer, number + 1)


def _age(path: Path, number: int) -> None:
    seconds = (OLD_SECONDS + number) * 1_000_000_000 + 123_456_789
    os.utime(path, ns=(seconds, seconds), follow_symlinks=False)
