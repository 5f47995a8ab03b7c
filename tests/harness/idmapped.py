"""How does the kernel show a directory with other ids? By an idmapped mount: mount_setattr(2)."""

import contextlib
import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.harness import libc

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 4

_library = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def idmapped(directory: Path, target: Path, users: str, groups: str) -> Iterator[Path]:
    """Mount `directory` at `target` with maps as in /proc/PID/uid_map: lines of ON_DISK SHOWN COUNT."""
    tree = _call(_SYS_OPEN_TREE, libc.AT_FDCWD, os.fsencode(directory), _OPEN_TREE_CLONE)
    try:
        with _user_namespace(users, groups) as namespace:
            change = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
            _call(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, change, len(change))
        _call(_SYS_MOVE_MOUNT, tree, b"", libc.AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)
    try:
        yield target
    finally:
        libc.umount(target, libc.MNT_DETACH)


@contextlib.contextmanager
def creating_as(identity: int) -> Iterator[None]:
    """Let the files that root makes belong to `identity`: an idmapped mount takes none of others."""
    _library.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    _library.setfsuid(identity)
    _library.setfsgid(identity)
    try:
        yield
    finally:
        _library.setfsuid(os.geteuid())
        _library.setfsgid(os.getegid())
        _library.prctl(_PR_SET_SECUREBITS, 0, 0, 0, 0)


@contextlib.contextmanager
def _user_namespace(users: str, groups: str) -> Iterator[int]:
    """A descriptor of a user namespace with these maps, which nobody else uses."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        _library.unshare(0x10000000)  # CLONE_NEWUSER
        os.write(told, b"x")
        signal.pause()
    try:
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        Path(f"/proc/{pid}/uid_map").write_text(users, encoding="ascii")
        Path(f"/proc/{pid}/gid_map").write_text(groups, encoding="ascii")
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        yield namespace
    finally:
        os.close(namespace)


def _call(number: int, *arguments: int | bytes) -> int:
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_library.syscall(number, *wide))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
