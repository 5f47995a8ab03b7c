"""Which Linux system calls does the overlay need that the standard library lacks?

Thin, typed wrappers over libc (ctypes): one function a call, errors as OSError with the
syscall's errno.  This file knows nothing of layers or marks.  System calls without a libc
wrapper are called by number: those numbers are the same on all architectures since Linux 5.1.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import struct
import sys
from collections.abc import Iterable
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

OPEN_TREE_CLONE: Final = 1
MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_ATIME: Final = 0x70

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1024
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
NOW: Final = 1 << 100
"""A time in ns that is none: the kernel's own present, which no clock of ours gives (UTIME_NOW)."""

_SYS_OPEN_TREE: Final = 428
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_SYS_CACHESTAT: Final = 451
_SYS_FCHMODAT2: Final = 452

_MAX_HANDLE_SIZE: Final = 128
_SIGNAL_SET_SIZE: Final = 128
_FICLONE: Final = 0x40049409
# _IOR(0x15, 0, struct fsuuid2), include/uapi/linux/fs.h; Linux 6.9.
_FS_IOC_GETFSUUID: Final = (2 << 30) | (17 << 16) | (0x15 << 8)
# btrfs doesn't know that one. include/uapi/linux/btrfs.h: struct btrfs_ioctl_fs_info_args has fsid at 16.
_BTRFS_IOC_FS_INFO: Final = 0x8400941F

DT_UNKNOWN: Final = 0
DT_CHR: Final = 2
DT_DIR: Final = 4
DT_REG: Final = 8

_STATX_BTIME: Final = 0x800
_STATX_SIZE: Final = 256
_STATX_MASK: Final = struct.Struct("=I")
_STATX_BIRTH: Final = struct.Struct("=80xqI")
_STATX_ATTRIBUTES: Final = struct.Struct("=8xQ")
STATX_IMMUTABLE: Final = 0x10
STATX_APPEND: Final = 0x20

# include/uapi/linux/fs.h; the kernel reads and writes an int, whatever the number says.
GET_FLAGS: Final = 0x80086601
SET_FLAGS: Final = 0x40086602
GET_EXTENDED_FLAGS: Final = 0x801C581F
SET_EXTENDED_FLAGS: Final = 0x401C5820
FLAG_COMMANDS: Final = frozenset({GET_FLAGS, SET_FLAGS, GET_EXTENDED_FLAGS, SET_EXTENDED_FLAGS})

_DIRECTORY_BUFFER_SIZE: Final = 64 * 1024
_DIRENT_HEADER: Final = struct.Struct("=QqHB")


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_int64))


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE_SIZE),
    )


def error(number: int) -> OSError:
    """Make the OSError of an errno."""
    return OSError(number, _message(number))


_message: Final = functools.cache(os.strerror)
"""libc looks for a translation each time."""


def _check(result: int) -> int:
    if result < 0:
        raise error(ctypes.get_errno())
    return result


def rename(old_directory: int, old_name: bytes, new_directory: int, new_name: bytes, flags: int = 0) -> None:
    """Rename between two directory descriptors; ``flags`` as in renameat2(2)."""
    _check(_libc.renameat2(old_directory, old_name, new_directory, new_name, ctypes.c_uint(flags)))


def open_on_same_mount(directory: int, name: bytes, flags: int) -> int:
    """Open a child without following symlinks or entering another mount (openat2(2)).

    Raises OSError EXDEV where ``name`` is a mount point.
    """
    how = struct.pack("=QQQ", flags, 0, RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS)
    return _check(_libc.syscall(_SYS_OPENAT2, directory, name, how, ctypes.c_size_t(len(how))))


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """Open a path that can't lead out of ``directory``, through no symlink on its way (openat2(2)).

    Raises OSError EXDEV where it would lead out, ELOOP for a symlink.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    return _check(_libc.syscall(_SYS_OPENAT2, directory, path, how, ctypes.c_size_t(len(how))))


def clone_mount(descriptor: int) -> int:
    """Clone the mount at an open directory, rooted there, without its submounts (open_tree(2)).

    Returns an O_PATH descriptor of the detached clone.  Raises OSError EPERM without
    CAP_SYS_ADMIN, EINVAL where locked submounts forbid it, ENOSYS before Linux 5.2.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH
    return _check(_libc.syscall(_SYS_OPEN_TREE, descriptor, b"", ctypes.c_uint(flags)))


def make_mount_read_only(descriptor: int, *, noatime: bool) -> None:
    """Make a detached mount read-only, and ``noatime`` if asked for (mount_setattr(2), Linux 5.12).

    Raises OSError EPERM for ``noatime`` in a user namespace that inherited the mount.
    """
    if noatime:
        attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME, MOUNT_ATTR_ATIME, 0, 0)
    else:
        attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _libc.syscall(
            _SYS_MOUNT_SETATTR,
            descriptor,
            b"",
            ctypes.c_uint(AT_EMPTY_PATH),
            attributes,
            ctypes.c_size_t(len(attributes)),
        )
    )


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """Mount a file system: mount(2)."""
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), data))


def unmount(target: bytes, flags: int) -> None:
    """Unmount ``target``: umount2(2)."""
    _check(_libc.umount2(target, flags))


def read_directory(descriptor: int) -> list[tuple[bytes, int]]:
    """Read a whole directory from its current position.

    Returns (name, d_type) pairs without ``.`` and ``..``.  ``descriptor`` is open for reading
    (O_PATH will not do).  Raises the OSError of getdents64(2).
    """
    entries: list[tuple[bytes, int]] = []
    buffer = ctypes.create_string_buffer(_DIRECTORY_BUFFER_SIZE)
    header_size = _DIRENT_HEADER.size
    while True:
        size = _check(_libc.getdents64(descriptor, buffer, ctypes.c_size_t(_DIRECTORY_BUFFER_SIZE)))
        if size == 0:
            return entries
        data = buffer.raw[:size]
        position = 0
        while position < size:
            _inode, _offset, length, kind = _DIRENT_HEADER.unpack_from(data, position)
            start = position + header_size
            name = data[start : data.index(0, start)]
            if name != b"." and name != b"..":
                entries.append((name, kind))
            position += length


def set_times(
    directory: int, path: bytes, access_ns: int | None, modification_ns: int | None, *, follow: bool
) -> None:
    """Set times in nanoseconds since the epoch; None leaves one as it is, `NOW` is now: utimensat(2)."""
    if access_ns is not None and modification_ns is not None and NOW not in (access_ns, modification_ns):
        os.utime(path, ns=(access_ns, modification_ns), dir_fd=directory, follow_symlinks=follow)
        return
    times = (_Timespec * 2)()
    for slot, value in zip(times, (access_ns, modification_ns), strict=True):
        if value is None:
            slot.tv_nsec = UTIME_OMIT
        elif value == NOW:
            slot.tv_nsec = UTIME_NOW
        else:
            slot.tv_sec, slot.tv_nsec = divmod(value, 10**9)
    _check(_libc.utimensat(directory, path, times, 0 if follow else AT_SYMLINK_NOFOLLOW))


def set_mode(directory: int, name: bytes, mode: int) -> None:
    """Set the permission bits of a child, no symlink's: fchmodat2(2), Linux 6.6; OSError ENOSYS before."""
    _check(_libc.syscall(_SYS_FCHMODAT2, directory, name, mode, AT_SYMLINK_NOFOLLOW))


def cached_pages(descriptor: int, offset: int, size: int) -> int:
    """Return how many pages of a part of a file are in the page cache: cachestat(2), Linux 6.5.

    Raises OSError: ENOSYS before, EPERM for another's file that the caller may not write to.
    """
    extent = (ctypes.c_uint64 * 2)(offset, size)
    counts = (ctypes.c_uint64 * 5)()
    _check(_libc.syscall(_SYS_CACHESTAT, descriptor, extent, counts, 0))
    return counts[0]


def file_handle(directory: int, name: bytes) -> tuple[int, bytes]:
    """Return (type, opaque handle) of a file: name_to_handle_at(2); symlinks are not followed.

    Raises OSError EOPNOTSUPP where the file system has no handles.
    """
    handle = _FileHandle(handle_bytes=_MAX_HANDLE_SIZE)
    mount_id = ctypes.c_int()
    flags = 0 if name else AT_EMPTY_PATH
    _check(_libc.name_to_handle_at(directory, name, ctypes.byref(handle), ctypes.byref(mount_id), flags))
    return handle.handle_type, bytes(handle.f_handle[: handle.handle_bytes])


def birth_time(directory: int, name: bytes) -> int | None:
    """Return when a file was created, in ns since the epoch, None where that isn't known: statx(2).

    Symlinks are not followed; an empty name means ``directory`` itself, which may be any file.
    """
    answer = _extended_status(directory, name, _STATX_BTIME)
    if not _STATX_MASK.unpack_from(answer)[0] & _STATX_BTIME:
        return None
    seconds, nanoseconds = _STATX_BIRTH.unpack_from(answer)
    return int(seconds) * 10**9 + int(nanoseconds)


def status_flags(directory: int, name: bytes) -> int:
    """Return ``stx_attributes`` of a file, found as by `birth_time`: statx(2)."""
    return int(_STATX_ATTRIBUTES.unpack_from(_extended_status(directory, name, 0))[0])


def _extended_status(directory: int, name: bytes, wanted: int) -> ctypes.Array[ctypes.c_char]:
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = AT_SYMLINK_NOFOLLOW | (0 if name else AT_EMPTY_PATH)
    _check(_libc.statx(directory, name, flags, ctypes.c_uint(wanted), answer))
    return answer


def open_handle(mount_descriptor: int, kind: int, handle: bytes, flags: int) -> int:
    """Open a file by its handle: open_by_handle_at(2).

    Raises OSError EPERM without CAP_DAC_READ_SEARCH, ESTALE when the file has gone.
    """
    if len(handle) > _MAX_HANDLE_SIZE:
        raise error(errno.EINVAL)
    structure = _FileHandle(handle_bytes=len(handle), handle_type=kind)
    structure.f_handle[: len(handle)] = list(handle)
    return _check(_libc.open_by_handle_at(mount_descriptor, ctypes.byref(structure), flags | os.O_CLOEXEC))


def file_system_uuid(descriptor: int) -> bytes | None:
    """Return the 16-byte UUID of the file system behind an open file, None where it tells none."""
    answer = bytearray(17)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_GETFSUUID, answer)
    except OSError:
        return _btrfs_uuid(descriptor)
    return bytes(answer[1:17]) if answer[0] == 16 else None


def _btrfs_uuid(descriptor: int) -> bytes | None:
    answer = bytearray(1024)
    try:
        fcntl.ioctl(descriptor, _BTRFS_IOC_FS_INFO, answer)
    except OSError:
        return None
    return bytes(answer[16:32])


def clone_file(source: int, target: int) -> None:
    """Make ``target`` share all of ``source``'s blocks: FICLONE, ioctl_ficlonerange(2)."""
    fcntl.ioctl(target, _FICLONE, source)


def mount_id(descriptor: int) -> int:
    """Return the id of the mount that a descriptor was opened through (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise error(errno.ENOENT)


def is_idmapped(descriptor: int) -> bool:
    """Tell whether the mount that a descriptor was opened through shows other ids: proc_pid_mountinfo(5)."""
    wanted = str(mount_id(descriptor))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if fields[0] == wanted:
                return "idmapped" in fields[5].split(",")
    return False


def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Allocate, free or zero a range of an open file; ``mode`` as in fallocate(2)."""
    _check(
        _libc.fallocate(
            ctypes.c_int(descriptor), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)
        )
    )


def file_flags(descriptor: int) -> int:
    """Return the flags that lsattr(1) shows of an open file: FS_IOC_GETFLAGS."""
    answer = bytearray(8)
    fcntl.ioctl(descriptor, GET_FLAGS, answer)
    return int.from_bytes(answer[:4], sys.byteorder)


def set_file_flags(descriptor: int, flags: int) -> None:
    """Set the flags that chattr(1) sets of an open file: FS_IOC_SETFLAGS."""
    fcntl.ioctl(descriptor, SET_FLAGS, flags.to_bytes(8, sys.byteorder))


def extended_file_flags(descriptor: int) -> bytes:
    """Return struct fsxattr of an open file: FS_IOC_FSGETXATTR."""
    answer = bytearray(28)
    fcntl.ioctl(descriptor, GET_EXTENDED_FLAGS, answer)
    return bytes(answer)


def set_extended_file_flags(descriptor: int, value: bytes) -> None:
    """Set struct fsxattr of an open file: FS_IOC_FSSETXATTR."""
    fcntl.ioctl(descriptor, SET_EXTENDED_FLAGS, value)


def signal_descriptor(signals: Iterable[int]) -> int:
    """Return a descriptor that is readable while one of these signals, all of them blocked, is pending.

    signalfd(2).  Nothing is to be read from it: then the signal stays pending.
    """
    mask = sum(1 << (number - 1) for number in signals)
    signal_set = struct.pack("=Q", mask).ljust(_SIGNAL_SET_SIZE, b"\0")
    return _check(_libc.signalfd(-1, signal_set, os.O_CLOEXEC | os.O_NONBLOCK))
