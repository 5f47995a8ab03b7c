"""Is a directory the upper of a live mount?

An upper has one writer.  A daemon whose mount has gone is about to end, and has its upper locked for a moment
longer: whoever mounts that upper anew, as a container's shim does at once, only has to wait.  The moment is
longer while another mount namespace, a copy made for another container, say, still has the mount.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final, cast

from pyoverlay.fuse import control

_SECONDS_TO_END: Final = 60
_SECONDS_BEFORE_ASKING: Final = 0.3
"""Most daemons that are about to end have ended then; one that hangs doesn't answer for long."""
_PAUSE_SECONDS: Final = 0.01


def is_upper_of_live_mount(upper: str) -> bool:
    """Tell whether a live pyoverlay mount writes to a directory.

    Waits, some seconds at most, while it is only locked: by a daemon that is about to end, or to begin.

    Args:
        upper: the directory.

    Raises:
        OSError: it can't be opened.
    """
    begin = time.monotonic()
    descriptor = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while _is_locked(descriptor):
            waited = time.monotonic() - begin
            if waited > _SECONDS_TO_END:
                return False
            if waited > _SECONDS_BEFORE_ASKING and _is_upper_of_mount(upper):
                return True
            time.sleep(_PAUSE_SECONDS)
        return False
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Whether a daemon holds the lock of an upper, see `pyoverlay.layers.stack`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_upper_of_mount(upper: str) -> bool:
    for answer in control.mounts():
        used = cast("dict[str, str | None]", answer["options"])["upperdir"]
        if used is not None and _is_same(used, upper) and _is_mounted(answer["pid"], answer["target"]):
            return True
    return False


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        # A daemon in another mount namespace may mean a directory that isn't in this one.
        return False


def _is_mounted(daemon: int, target: str) -> bool:
    """Whether a daemon's mount namespace has something mounted there."""
    try:
        with open(f"/proc/{daemon}/mountinfo", "rb") as file:
            table = file.read()
    except OSError:
        return False
    return any(_unescape(line.split(b" ")[4]) == os.fsencode(target) for line in table.splitlines())


def _unescape(path: bytes) -> bytes:
    """Read a path of mountinfo: proc_pid_mountinfo(5)."""
    for octal, sign in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(octal, sign)
    return path
