"""The system calls that tests need and Python's os module lacks, kept thin; errors are OSError."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
KEEP_SIZE = 1
PUNCH_HOLE = 2
COLLAPSE_RANGE = 8
ZERO_RANGE = 16
INSERT_RANGE = 32

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.fdopendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
for _name in ("readdir64", "telldir", "rewinddir", "closedir"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_SYS_GETDENTS64 = 217 if os.uname().machine == "x86_64" else 61


def _check(result: int, *paths: bytes) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), b" -> ".join(paths))
    return result


def _path(path: os.PathLike[str] | str | bytes) -> bytes:
    return os.fsencode(path)


def renameat2(
    source: os.PathLike[str] | str | bytes,
    target: os.PathLike[str] | str | bytes,
    flags: int,
) -> None:
    """renameat2(2) with paths relative to the current directory."""
    old, new = _path(source), _path(target)
    _check(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, ctypes.c_uint(flags)), old, new)


def link_target(source: os.PathLike[str] | str | bytes, target: os.PathLike[str] | str | bytes) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, which os.link() doesn't pass on."""
    old, new = _path(source), _path(target)
    _check(_libc.linkat(AT_FDCWD, old, AT_FDCWD, new, AT_SYMLINK_FOLLOW), old, new)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode, which os.posix_fallocate() doesn't take."""
    _check(_libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def birth_time(path: os.PathLike[str] | str | bytes) -> int | None:
    """When a file was created, in ns since the epoch; None if statx(2) doesn't tell. Follows no symlink."""
    answer = ctypes.create_string_buffer(256)
    everything, no_follow = ctypes.c_uint(0xFFF), 0x100
    _check(_libc.statx(AT_FDCWD, _path(path), no_follow, everything, answer), _path(path))
    mask, seconds, nanoseconds = struct.unpack_from("=I76xqI", answer)
    return seconds * 10**9 + nanoseconds if mask & 0x800 else None


def utimensat(path: os.PathLike[str] | str | bytes, atime: str | int, mtime: str | int) -> None:
    """utimensat(2): each time is nanoseconds since the epoch, "now" or "omit"."""
    special = {"now": (1 << 30) - 1, "omit": (1 << 30) - 2}
    values: list[int] = []
    for wanted in (atime, mtime):
        values += [0, special[wanted]] if isinstance(wanted, str) else divmod(wanted, 10**9)
    _check(_libc.utimensat(AT_FDCWD, _path(path), (ctypes.c_long * 4)(*values), 0), _path(path))


def mount(
    source: str,
    target: os.PathLike[str] | str,
    kind: str,
    flags: int = 0,
    data: str = "",
) -> None:
    """mount(2)."""
    encoded = os.fsencode(data)
    if len(encoded) > 4095:
        raise OSError(
            errno.E2BIG,
            "mount(2) takes no more than a page of options",
            os.fspath(target),
        )
    arguments = (os.fsencode(source), _path(target), os.fsencode(kind))
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), encoded or None), _path(target))


def umount(target: os.PathLike[str] | str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(_path(target), flags), _path(target))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags))


@dataclass(frozen=True)
class DirectoryEntry:
    """One struct dirent: `offset` is where the next readdir starts, `kind` a DT_ value."""

    inode: int
    offset: int
    kind: int
    name: bytes


class DirectoryStream:
    """A DIR* of the C library: readdir, telldir, seekdir, rewinddir. Close it or use it in a with block."""

    def __init__(self, path: os.PathLike[str] | str | bytes) -> None:
        self._stream = _libc.opendir(_path(path))
        if not self._stream:
            _check(-1, _path(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> DirectoryEntry | None:
        """The next entry, `.` and `..` included, or None at the end."""
        ctypes.set_errno(0)
        entry = _libc.readdir64(self._stream)
        if not entry:
            if ctypes.get_errno():
                _check(-1)
            return None
        inode, offset, _, kind = struct.unpack_from("=QqHB", ctypes.string_at(entry, 19))
        return DirectoryEntry(inode, offset, kind, ctypes.string_at(entry + 19))

    def __iter__(self) -> Iterator[DirectoryEntry]:
        while (entry := self.read()) is not None:
            yield entry

    def tell(self) -> int:
        """telldir(3)."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """seekdir(3) to what tell() returned."""
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        """rewinddir(3)."""
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        if self._stream:
            _libc.closedir(self._stream)
            self._stream = None


def getdents_into(descriptor: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    """getdents64(2) into memory of the caller's; how many bytes of it were filled."""
    return _check(_libc.syscall(_SYS_GETDENTS64, descriptor, buffer, ctypes.c_size_t(len(buffer))))


def getdents(descriptor: int, size: int) -> list[DirectoryEntry]:
    """getdents64(2) with a buffer of `size` bytes; an empty list is the end of the directory."""
    buffer = ctypes.create_string_buffer(size)
    filled = getdents_into(descriptor, buffer)
    entries = []
    position = 0
    while position < filled:
        inode, offset, length, kind = struct.unpack_from("=QqHB", buffer.raw, position)
        name = buffer.raw[position + 19 : position + length].split(b"\0", 1)[0]
        entries.append(DirectoryEntry(inode, offset, kind, name))
        position += length
    return entries
