"""Is a layer the upper of a live mount?

An upper has one writer: a second mount of it would be refused.  A daemon that is about to end, as its mount
has gone, has its upper locked for a moment longer; then it is a matter of waiting.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final, cast

from pyoverlay.fuse import control

_SECONDS_TO_END: Final = 10
_PAUSE_SECONDS: Final = 0.02


def has_writer(layer: Path) -> bool:
    """Tell whether a live pyoverlay mount writes to a layer.

    Waits, some seconds at most, for a daemon whose mount has gone already.

    Args:
        layer: the layer's directory.
    """
    end = time.monotonic() + _SECONDS_TO_END
    while _is_locked(layer):
        if _is_upper_of_mount(layer):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE_SECONDS)
    return False


def _is_locked(layer: Path) -> bool:
    """Whether a daemon holds the lock of an upper; see `pyoverlay.layers.stack`."""
    descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_upper_of_mount(layer: Path) -> bool:
    for answer in control.mounts():
        options = cast("dict[str, object]", answer["options"])
        if options["upperdir"] == str(layer) and _is_mounted(
            cast("int", answer["pid"]), str(answer["target"])
        ):
            return True
    return False


def _is_mounted(daemon: int, target: str) -> bool:
    """Whether a daemon's mount namespace has something mounted there."""
    try:
        table = Path(f"/proc/{daemon}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return any(_unescape(line.split(" ")[4]) == target for line in table.splitlines())


def _unescape(path: str) -> str:
    for octal, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(octal, sign)
    return path
