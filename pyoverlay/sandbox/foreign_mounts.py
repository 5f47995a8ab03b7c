"""Which of the host's file systems has a sandbox no use for, and how is it rid of them?

A mount namespace starts as a copy of another, and each copied mount keeps its file system alive: a disk can't
be taken away and a FUSE daemon doesn't end, though the host has unmounted them.  Container runtimes leave all
of it with pivot_root(2); the processes that serve and watch a sandbox live in a copy to its end, and detach
what they don't need.  This file knows nothing of overlays.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Final

from pyoverlay.layers import syscalls

# What the daemon opens by path while it serves: its descriptors, the mount table, its socket.
_ALWAYS_NEEDED: Final = ("/", "/proc", "/dev", "/run", "/tmp")
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


def detach_foreign_mounts(*needed: str) -> None:
    """Detach, in this mount namespace, every mount that nothing needed lies on.

    Args:
        needed: paths that this process and its children will still open; what they have open stays usable
            anyway.

    What can't be detached stays: a user namespace may not part some mounts from others.
    """
    with open("/proc/self/mountinfo", "rb") as table:
        points = [_mount_point(line) for line in table]
    for point in foreign(points, [*_ALWAYS_NEEDED, *needed, *_paths_of_python()]):
        with contextlib.suppress(OSError):
            syscalls.unmount(point, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)


def foreign(points: list[bytes], needed: Iterable[str]) -> list[bytes]:
    """Choose the mount points to detach, in the order in which to do it.

    Args:
        points: all mount points, absolute, the oldest mount first.
        needed: paths to keep.

    Returns:
        Those on which nothing needed lies, the newest first (it may cover an older one at the same place);
        none that goes with another of them, as a path through a mount whose daemon hangs must not be walked.
    """
    kept: set[bytes] = set()
    for path in needed:
        real = os.fsencode(os.path.realpath(path))
        kept.update((real, *_directories_above(real)))
    chosen = [point for point in points if point not in kept]
    places = set(chosen)
    return [point for point in reversed(chosen) if places.isdisjoint(_directories_above(point))]


def _directories_above(path: bytes) -> Iterator[bytes]:
    while path != b"/":
        path = os.path.dirname(path)
        yield path


def _mount_point(line: bytes) -> bytes:
    """Return the fifth field of a line of mountinfo, where blanks and the like are escaped in octal."""
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[4])


def _paths_of_python() -> list[str]:
    """Return where modules that aren't imported yet, and what they load, come from."""
    return [sys.prefix, sys.base_prefix, *filter(None, sys.path), os.path.dirname(os.__file__)]
