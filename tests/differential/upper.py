"""What does an upper directory hold on disk, in a form in which the kernel's and pyoverlay's can be compared?

Everything that lies there counts: whiteouts, opaque marks, contents, modes, owners, attributes, kept times;
but for what the table in `allowed` lets differ.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path
from typing import Any

from tests.differential.allowed import MARKS, WHITEOUT_FIELDS
from tests.differential.layers import RECENT_SECONDS
from tests.harness import Entry, snapshot

RECENT = -1
"""Stands for a modification time from during the test: the two mounts ran at different times."""


def without_mark(entry: Entry, prefix: str) -> Entry:
    """The entry without its opaque mark."""
    mark = os.fsencode(prefix + "opaque")
    return dataclasses.replace(entry, xattrs=tuple(pair for pair in entry.xattrs if pair[0] != mark))


def on_disk(upper: Path, *, prefix: str = "trusted.overlay.") -> dict[bytes, Entry]:
    """A picture of the upper directory itself, not of a mount, without what may differ."""
    return {path: _comparable(entry, prefix) for path, entry in snapshot(upper).items()}


def _comparable(entry: Entry, prefix: str) -> Entry:
    left_out = {os.fsencode(prefix + name) for name in MARKS}
    xattrs = tuple((name, value) for name, value in entry.xattrs if name not in left_out)
    entry = dataclasses.replace(entry, xattrs=xattrs)
    if is_whiteout(entry):
        blank: dict[str, Any] = {field: () if field == "xattrs" else None for field in WHITEOUT_FIELDS}
        return dataclasses.replace(entry, **blank)
    return with_coarse_time(entry)


def is_whiteout(entry: Entry) -> bool:
    """Whether an object of a layer is the mark that hides a name."""
    return entry.kind == stat.S_IFCHR and entry.rdev == 0


def with_coarse_time(entry: Entry) -> Entry:
    """The entry with a time of today replaced by `RECENT`; a time that was kept or set stays exact."""
    if entry.mtime is not None and entry.mtime > RECENT_SECONDS * 10**9:
        return dataclasses.replace(entry, mtime=RECENT)
    return entry


def leftovers(work: Path) -> list[str]:
    """What an unmounted overlay left in its work directory, but for the empty directories."""
    found = []
    for directory, subdirectories, files in os.walk(work):
        names = files + [name for name in subdirectories if name.startswith("#")]
        found += [os.path.join(directory, name) for name in names]
    return sorted(found)
