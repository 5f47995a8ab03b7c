"""Which kernel interfaces does the benchmark use that the standard library lacks?"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyoverlay.layers import syscalls

_CLONE_NEWNS: Final = 0x00020000
_MS_RDONLY: Final = 1
_MS_REMOUNT: Final = 32
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 1 << 19
_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2
_PR_SET_CHILD_SUBREAPER: Final = 36
_FS_TOPDIR_FL: Final = 0x00020000

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
"""How mountinfo writes white space and backslashes."""

MOUNT_ENVIRONMENT: Final = {"LIBMOUNT_FORCE_MOUNT2": "always", "LC_ALL": "C"}
"""For mount(8): fsconfig(2), which newer ones use, takes 256 bytes of an option, too few for many lowers."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def enter_private_mount_namespace() -> None:
    """Let nobody else see, copy or keep what is mounted from now on: unshare(2).

    What others unmount goes here, too (MS_SLAVE): this copy of their mount would keep it alive.
    """
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None))


def adopt_orphans() -> None:
    """Become the parent of daemons that descend from this process: prctl(2), PR_SET_CHILD_SUBREAPER."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def spread_directories(directory: Path) -> None:
    """Let ext4 put what is made in each directory of ``directory`` in another place: chattr(1), ``+T``.

    ext4 uses an inode again only minutes after its file was removed, and until then looks at it anew for each
    new file (fs/ext4/ialloc.c: recently_deleted).  So to make a file costs ten times as much where the trial
    before has removed its own.  Other file systems have no such flag, and need none.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            syscalls.set_file_flags(descriptor, syscalls.file_flags(descriptor) | _FS_TOPDIR_FL)
    finally:
        os.close(descriptor)


def bind_mount(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Show a directory at another place: mount(2), MS_BIND."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None), str(target))
    if read_only:
        flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY
        _check(_libc.mount(None, os.fsencode(target), None, flags, None), str(target))


def mount_file_system(kind: str, target: Path) -> None:
    """Mount a file system that needs no device, such as fusectl: mount(2)."""
    _check(_libc.mount(kind.encode(), os.fsencode(target), kind.encode(), 0, None), str(target))


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount; ``lazy`` detaches what is busy: umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH if lazy else 0), str(target))


def drop_caches() -> None:
    """Write everything to disk, then forget clean pages, dentries and inodes of all file systems: proc(5)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def cache_drops() -> int:
    """Return how often anybody has dropped caches since the machine started: /proc/vmstat."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("drop_pagecache ", "drop_slab ")))


def processor_seconds(pid: int) -> float:
    """Return the CPU time of a process with its ended threads, 0 when it has gone: clock_getcpuclockid(3)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def resident_bytes(pid: int) -> int:
    """Return what a process has in memory, 0 when it has gone: proc(5), VmRSS."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def children(pid: int) -> list[int]:
    """Return the direct children of a process that still run, oldest first."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(directory.name))
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


@dataclass(frozen=True)
class MountPoint:
    """A line of /proc/self/mountinfo."""

    target: Path
    kind: str
    minor: int
    """Of the mounted file system's device number: the name of a FUSE connection."""

    @property
    def is_fuse(self) -> bool:
        """Tell a FUSE mount, whatever its subtype."""
        return self.kind == "fuse" or self.kind.startswith("fuse.")


def mount_points(below: Path) -> list[MountPoint]:
    """Return what is mounted at or below a directory, the latest mount first: proc_pid_mountinfo(5)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        target = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        if target.is_relative_to(below):
            found.append(MountPoint(target, after.split()[0], int(fields[2].partition(":")[2])))
    return found[::-1]


def abort_fuse(minor: int) -> None:
    """End a FUSE connection whose daemon hangs: all its callers get ENOTCONN.

    Raises OSError when there is no such connection, or fusectl isn't mounted.
    """
    (fuse_connections() / str(minor) / "abort").write_text("1")


def fuse_connections() -> Path:
    """Return where FUSE connections are shown; mounts fusectl there if need be."""
    directory = Path("/sys/fs/fuse/connections")
    if not os.path.ismount(directory):
        mount_file_system("fusectl", directory)
    return directory
