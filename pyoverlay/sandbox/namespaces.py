"""Which system calls does a sandbox need that neither the standard library nor the layers have?

Thin, typed wrappers over libc; errors are OSErrors with the call's errno.  (os.unshare needs Python 3.12.)
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000

MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MS_STRICTATIME: Final = 0x1000000

_PR_SET_PDEATHSIG: Final = 1
_RESOLVE_IN_ROOT: Final = 0x10
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR_RDONLY: Final = 0x01
# Numbers that are the same on all architectures, as the calls are younger than Linux 5.1.
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442


def _check(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def unshare(flags: int) -> None:
    """Leave namespaces for new ones: unshare(2).  A new pid namespace is the next child's, not ours."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def make_mounts_follow() -> None:
    """Let no mount made or ended here be seen elsewhere, but the reverse: MS_SLAVE, mount_namespaces(7).

    What the host unmounts then isn't kept alive by the copy of the mount that is here.
    """
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None))


def make_mounts_private() -> None:
    """Let no mount made or ended here be seen elsewhere, nor the reverse: MS_PRIVATE, mount_namespaces(7)."""
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))


def change_root(new_root: str) -> None:
    """Make the mount at `new_root` the root of this mount namespace, and leave all else: pivot_root(2).

    The caller must have a mount namespace of its own, with private mounts.
    """
    os.chdir(new_root)
    # Both names are one directory: the old root is stacked over the new one, and detached from there.
    _check(_libc.pivot_root(b".", b"."))
    _check(_libc.umount2(b".", ctypes.c_int(2)))
    os.chdir("/")


def die_with_parent(signal_number: int) -> None:
    """Have `signal_number` sent to this process when its parent ends: PR_SET_PDEATHSIG."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0))


def open_in_root(root: int, path: str) -> int:
    """Open `path` with O_PATH as if the directory `root` were ``/``, also to symlinks: openat2(2)."""
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    name = os.fsencode(path)
    return _check(_libc.syscall(_SYS_OPENAT2, root, name, how, ctypes.c_size_t(len(how))))


def make_mounts_read_only(path: str) -> None:
    """Make the mount at `path` and all below it read-only: mount_setattr(2), Linux 5.12."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        flags = ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE)
        size = ctypes.c_size_t(len(attributes))
        _check(_libc.syscall(_SYS_MOUNT_SETATTR, descriptor, b"", flags, attributes, size))
    finally:
        os.close(descriptor)
