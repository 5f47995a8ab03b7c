"""What does a whole tree look like? A comparable picture of everything a program can see of it."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One object of a tree. What can't be compared between two trees is None.

    kind: file type bits (stat.S_IFMT); mode: permission bits with suid, sgid and sticky; size in bytes and
    nlink: not for directories; mtime in nanoseconds; rdev: only for devices; target: only for symlinks;
    digest: only for regular files; identity: (inode number, ctime) if the snapshot is exact.
    """

    kind: int
    mode: int
    uid: int
    gid: int
    size: int | None
    mtime: int | None
    nlink: int | None
    rdev: int | None
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    digest: str | None
    identity: tuple[int, int] | None


def snapshot(
    root: Path | bytes,
    *,
    times: bool = True,
    nlink: bool = True,
    xattrs: bool = True,
    exact: bool = False,
) -> dict[bytes, Entry]:
    """Walk `root` and return {path relative to it: Entry}, the root itself as b".".

    times: with modification times; nlink: with the link counts of what isn't a directory; xattrs: with
    extended attributes; exact: with inode numbers and ctimes, to prove that a layer was not touched.
    Reading disturbs no atime. Deep trees are walked by descriptors, so paths beyond PATH_MAX are fine.
    """
    picture: dict[bytes, Entry] = {}
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        picture[b"."] = _entry(os.fstat(top), _proc(top), None, times, nlink, xattrs, exact)
        _walk(top, b"", picture, (times, nlink, xattrs, exact))
    finally:
        os.close(top)
    return picture


def _walk(
    directory: int,
    prefix: bytes,
    picture: dict[bytes, Entry],
    what: tuple[bool, bool, bool, bool],
) -> None:
    for name in sorted(os.fsencode(entry) for entry in os.listdir(directory)):
        path = prefix + name
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        picture[path] = _entry(status, _proc(directory) + b"/" + name, (directory, name), *what)
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(
                name,
                os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_NOFOLLOW,
                dir_fd=directory,
            )
            try:
                _walk(inner, path + b"/", picture, what)
            finally:
                os.close(inner)


def _proc(descriptor: int) -> bytes:
    return b"/proc/self/fd/%d" % descriptor


def _entry(
    status: os.stat_result,
    path: bytes,
    place: tuple[int, bytes] | None,
    times: bool,
    nlink: bool,
    xattrs: bool,
    exact: bool,
) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    follow = place is None
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=None if kind == stat.S_IFDIR else status.st_size,
        mtime=status.st_mtime_ns if times else None,
        nlink=status.st_nlink if nlink and kind != stat.S_IFDIR else None,
        rdev=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None,
        target=os.readlink(path) if kind == stat.S_IFLNK else None,
        xattrs=_xattrs(path, follow) if xattrs else (),
        digest=_digest(*place) if kind == stat.S_IFREG and place is not None else None,
        identity=(status.st_ino, status.st_ctime_ns) if exact else None,
    )


def _xattrs(path: bytes, follow: bool) -> tuple[tuple[bytes, bytes], ...]:
    names = sorted(os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow))
    return tuple((name, os.getxattr(path, name, follow_symlinks=follow)) for name in names)


def _digest(directory: int, name: bytes) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW, dir_fd=directory)
    with open(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
