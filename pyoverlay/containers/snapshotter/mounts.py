"""What must containerd mount to show a snapshot?

The form is containerd's ``mount.Mount``; the words in it are ours and mount.fuse3(8)'s.  Nothing is mounted
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pyoverlay.containers.snapshotter.directories import Directories
from pyoverlay.containers.snapshotter.snapshot import (
    GID_MAPPING,
    UID_MAPPING,
    Kind,
    Snapshot,
    SnapshotArgumentError,
)
from pyoverlay.options import OptionError, join_lowerdir, parse_options
from pyoverlay.privileges import is_administrator

_NUMBERS: Final = re.compile("[0-9:]+")
_SHIFTS: Final = {UID_MAPPING: "uidmapping", GID_MAPPING: "gidmapping"}


@dataclass(frozen=True)
class Mount:
    """A file system type, a source, and options as in fstab(5)."""

    kind: str
    source: str
    options: tuple[str, ...]


class Mounts:
    """Describes mounts of snapshots below one root."""

    def __init__(self, directories: Directories, program: str) -> None:
        """Describe mounts that ``program`` is called for: a path, or a name in containerd's PATH.

        For the type ``fuse3.PROGRAM`` containerd runs ``mount.fuse3 SOURCE TARGET -o OPTIONS -t PROGRAM``,
        and that runs ``PROGRAM SOURCE TARGET -o OPTIONS``.
        """
        self._directories = directories
        self._type = f"fuse3.{program}"
        self._is_administrator = is_administrator()

    def of(self, snapshot: Snapshot, *, read_only: bool = False, unpacked: bool = False) -> Mount:
        """Describe the mount of an active snapshot or a view.

        A tree of one layer needs no overlay and is bound, if its ids aren't shifted.

        Args:
            snapshot: what to show.
            read_only: whether an active snapshot must not be written to.
            unpacked: whether containerd unpacks a layer of an image into it.  For the type ``overlay`` it
                mounts nothing then, but writes into the upper, with the kernel's marks, which are ours:
                several times faster (diff/apply/apply_linux.go).  In a user namespace it does mount it.
        """
        writable = snapshot.kind is Kind.ACTIVE
        if not snapshot.parents:
            return self._bind(snapshot.number, read_only=read_only or not writable)
        shifts = tuple(_shifts(snapshot))
        if not writable and len(snapshot.parents) == 1 and not shifts:
            return self._bind(snapshot.parents[0], read_only=True)
        options = []
        if writable:
            options.append(f"workdir={self._directories.work(snapshot.number)}")
            options.append(f"upperdir={self._directories.layer(snapshot.number)}")
        lowers = (str(self._directories.layer(number)) for number in snapshot.parents)
        options.append(f"lowerdir={join_lowerdir(lowers)}")
        if unpacked and writable and not shifts and self._is_administrator:
            return Mount("overlay", "overlay", tuple(options))
        options += shifts
        if read_only:
            options.append("ro")
        return Mount(self._type, "overlay", tuple(options))

    def _bind(self, number: int, *, read_only: bool) -> Mount:
        layer = str(self._directories.layer(number))
        return Mount("bind", layer, ("ro" if read_only else "rw", "rbind"))


def check_shifts(labels: Mapping[str, str]) -> None:
    """Raise SnapshotArgumentError when labels ask for shifted ids that can't be."""
    for label, option in _SHIFTS.items():
        if label in labels:
            if not _NUMBERS.fullmatch(labels[label]):
                # Not to be another option as well.
                raise SnapshotArgumentError(
                    f"the label {label} is CONTAINER:HOST:COUNT, not {labels[label]!r}"
                )
            try:
                parse_options([f"lowerdir=/,{option}={labels[label]}"], unknown=None, privileged=True)
            except OptionError as failure:
                raise SnapshotArgumentError(f"the label {label}: {failure}") from None


def _shifts(snapshot: Snapshot) -> Iterator[str]:
    for label, option in _SHIFTS.items():
        if label in snapshot.labels:
            yield f"{option}={snapshot.labels[label]}"
