"""What does an upper directory hold on disk, in a form in which the kernel's and pyoverlay's can be compared?

Everything that lies there counts: whiteouts, opaque marks, contents, modes, owners, attributes, kept times.
What may differ is listed here with its reason, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

from tests.differential.layers import RECENT_SECONDS
from tests.harness import Entry, snapshot

MARKS_THAT_MAY_DIFFER = {
    "origin": "optional, a file handle: its effect, st_ino after copy-up, is compared in the merged view",
    "impure": "a hint beside origin that a directory's d_ino must be looked up; shows nothing by itself",
    "uuid": "a random number that the kernel gives a fresh upper for f_fsid; FUSE has its own f_fsid",
}
"""Overlay's own attributes that are left out, by the name after the prefix."""

WHITEOUT_FIELDS_THAT_MAY_DIFFER = {
    "mode": "any mode makes a whiteout; the kernel makes 000, mknod under a umask another",
    "nlink": "the kernel keeps one whiteout and links it everywhere; a whiteout of its own is as good",
    "mtime": "follows from the shared inode",
    "xattrs": "a shared inode may carry none",
}
"""Fields of a whiteout that are left out: whiteouts are compared by type and device number alone."""

NEEDLESS_MARKS = {
    (
        "rename",
        "ENOTEMPTY",
    ): "the kernel marks an upper directory before it finds the target not empty",
}
"""Operations that fail and leave an opaque mark on their first name, hiding nothing: name and errno."""

NEEDLESS_COPIES = {
    ("setxattr", "ENODATA"): "the kernel copies up, then finds that XATTR_REPLACE has nothing to replace",
}
"""Operations that change nothing, for which the kernel copies up and pyoverlay needn't: name and errno."""


def without_mark(entry: Entry, prefix: str) -> Entry:
    """The entry without its opaque mark."""
    mark = os.fsencode(prefix + "opaque")
    return dataclasses.replace(entry, xattrs=tuple(pair for pair in entry.xattrs if pair[0] != mark))


RECENT = -1
"""Stands for a modification time from during the test: the two mounts ran at different times."""


def on_disk(upper: Path, *, prefix: str = "trusted.overlay.") -> dict[bytes, Entry]:
    """A picture of the upper directory itself, not of a mount, without what may differ."""
    return {path: _comparable(entry, prefix) for path, entry in snapshot(upper).items()}


def _comparable(entry: Entry, prefix: str) -> Entry:
    if entry.kind == stat.S_IFCHR and entry.rdev == 0:
        return dataclasses.replace(entry, mode=0, nlink=None, mtime=None, xattrs=())
    left_out = {os.fsencode(prefix + name) for name in MARKS_THAT_MAY_DIFFER}
    xattrs = tuple((name, value) for name, value in entry.xattrs if name not in left_out)
    return with_coarse_time(dataclasses.replace(entry, xattrs=xattrs))


def with_coarse_time(entry: Entry) -> Entry:
    """The entry with a time of today replaced by `RECENT`; a time that was kept or set stays exact."""
    if entry.mtime is not None and entry.mtime > RECENT_SECONDS * 10**9:
        return dataclasses.replace(entry, mtime=RECENT)
    return entry


def whiteouts(upper: Path) -> set[bytes]:
    """The paths of all whiteouts in an upper directory."""
    return {
        path
        for path, entry in snapshot(upper, xattrs=False).items()
        if entry.kind == stat.S_IFCHR and entry.rdev == 0
    }


def leftovers(work: Path) -> list[str]:
    """What an unmounted overlay left in its work directory, but for the empty directories."""
    found = []
    for directory, subdirectories, files in os.walk(work):
        names = files + [name for name in subdirectories if name.startswith("#")]
        found += [os.path.join(directory, name) for name in names]
    return sorted(found)
