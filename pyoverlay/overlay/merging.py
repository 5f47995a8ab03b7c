"""Which names does a merged directory show, and which layers have them?

The names of all layers' directories are gathered, topmost first, and the marks among them applied.
`DirectoryLoad.run` works on descriptors of its own and may run in any thread; beginning and publishing
belong to the thread that owns the file system.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from pyoverlay.layers import marks, syscalls
from pyoverlay.layers.layer import LayerObject
from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.node import Directory, Node

_LARGE: Final = 64 * 1024
"""Bytes of directory, about a thousand entries: what is read in passing is smaller."""

Places = tuple[LayerObject, ...]


class DirectoryLoad:
    """The reading of one directory."""

    def __init__(self, lookup: Lookup, directory: Directory) -> None:
        """Open the directory in each layer.  Raises OSError."""
        self.directory = directory
        self._lookup = lookup
        self._whiteout_attribute: Final = lookup.stack.dialect.attribute("whiteout")
        self._sources: list[_Source] = []
        self._merge = _Merge()
        self._version = -1
        self._open()

    def _open(self) -> None:
        self._version = self.directory.version
        try:
            for contributor in self.directory.contributors():
                marked = not contributor.layer.writable and _has_attribute_whiteouts(
                    self._lookup, contributor
                )
                self._sources.append(_Source(contributor, has_attribute_whiteouts=marked))
        except BaseException:
            self.close()
            raise

    @property
    def is_large(self) -> bool:
        """Whether reading it would keep others waiting."""
        return sum(source.size for source in self._sources) > _LARGE

    def run(self) -> None:
        """Read and merge all names.  May run in any thread.  Raises OSError."""
        self._merge = _Merge()
        for source in self._sources:
            self._merge.add(source, self._whiteout_attribute)
        self._merge.finish()

    @property
    def is_outdated(self) -> bool:
        """Whether names have changed since this reading began."""
        return self.directory.version != self._version

    def begin_anew(self) -> None:
        """Take the layers as they are now: what was read is forgotten.  Raises OSError."""
        self.close()
        self._open()

    def publish(self) -> None:
        """Let the directory know its entries.  Names that changed meanwhile make it read again."""
        directory = self.directory
        try:
            if directory.loaded or directory.unlinked:
                return
            if self.is_outdated:
                self.begin_anew()
                self.run()
            entries = self._merge.entries
            # Of a large directory few are known.
            entries.update((name, known) for name, known in directory.entries.items() if name in entries)
            directory.entries = entries
            directory.covered = self._merge.covered
            directory.loaded = True
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptors."""
        for source in self._sources:
            source.close()
        self._sources = []


def _has_attribute_whiteouts(lookup: Lookup, directory: LayerObject) -> bool:
    return lookup.attribute_marks(directory).has_attribute_whiteouts


class _Source:
    """One layer's directory, open for reading."""

    def __init__(self, place: LayerObject, *, has_attribute_whiteouts: bool) -> None:
        self.place = place
        self.has_attribute_whiteouts = has_attribute_whiteouts
        self.descriptor = place.open_for_listing()
        self.size = os.fstat(self.descriptor).st_size

    def entries(self) -> list[tuple[bytes, int]]:
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return syscalls.read_directory(self.descriptor)

    def status(self, name: bytes) -> os.stat_result:
        return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)

    def has_attribute(self, name: bytes, attribute: bytes) -> bool:
        path = b"/proc/self/fd/%d/%s" % (self.descriptor, name)
        return os.fsdecode(attribute) in os.listxattr(path, follow_symlinks=False)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class _Merge:
    """The names of one directory, gathered from its layers, topmost first."""

    def __init__(self) -> None:
        self.visible: dict[bytes, Places] = {}
        self.entries: dict[bytes, Node | Places] = {}
        """What is visible, when all is merged."""
        self.covered: set[bytes] = set()
        self._closed: set[bytes] = set()
        """Names that nothing below adds to: whiteouts, and what is no directory."""
        self._closed_by_upper: set[bytes] = set()
        """Of those the upper's, until a lower has told whether it would show the name."""
        self._places: dict[Places, Places] = {}

    def add(self, source: _Source, whiteout_attribute: bytes) -> None:
        """Merge one layer's directory below those that were added before."""
        entries = source.entries()
        hidden = _hidden_by_aufs_marks(entries)
        closed: set[bytes] = set(hidden)
        alone = (source.place,)
        for name, kind in entries:
            if name.startswith(marks.AUFS_PREFIX):
                continue
            if kind in (syscalls.DT_UNKNOWN, syscalls.DT_CHR):
                kind = _look_closer(source, name)
            elif source.has_attribute_whiteouts and kind == syscalls.DT_REG:
                kind = _look_for_attribute(source, name, whiteout_attribute)
            self._place(name, kind, alone, closed)
        self._closed |= closed
        if source.place.layer.writable:
            self._closed_by_upper = closed
        else:
            self._closed_by_upper = self._closed_by_upper - hidden

    def finish(self) -> None:
        """Let go of what only the merging needs, in the thread that does it."""
        self.entries.update(self.visible)
        self.visible = {}
        self._closed = set()

    def _place(self, name: bytes, kind: int, alone: Places, closed: set[bytes]) -> None:
        is_whiteout = kind == syscalls.DT_CHR
        if kind != syscalls.DT_DIR:
            closed.add(name)
        if name in self._closed:
            if name in self._closed_by_upper and not is_whiteout:
                self.covered.add(name)
            self._closed_by_upper.discard(name)
            return
        above = self.visible.get(name)
        if above is None:
            if not is_whiteout:
                self.visible[name] = alone
            return
        if not is_whiteout and len(above) == 1 and above[0].layer.writable:
            self.covered.add(name)
        if kind == syscalls.DT_DIR:
            together = above + alone
            self.visible[name] = self._places.setdefault(together, together)


def _hidden_by_aufs_marks(entries: list[tuple[bytes, int]]) -> set[bytes]:
    return {
        hidden
        for name, _kind in entries
        if name.startswith(marks.AUFS_PREFIX) and (hidden := marks.aufs_hidden_name(name)) is not None
    }


def _look_closer(source: _Source, name: bytes) -> int:
    """Settle an entry whose d_type doesn't tell: DT_CHR is returned for whiteouts only."""
    with contextlib.suppress(FileNotFoundError):
        status = source.status(name)
        if not marks.is_whiteout_device(status.st_mode, status.st_rdev):
            return syscalls.DT_DIR if stat.S_ISDIR(status.st_mode) else syscalls.DT_REG
    return syscalls.DT_CHR


def _look_for_attribute(source: _Source, name: bytes, attribute: bytes) -> int:
    """Settle a regular file in a directory that has whiteouts made of attributes."""
    if source.status(name).st_size == 0 and source.has_attribute(name, attribute):
        return syscalls.DT_CHR
    return syscalls.DT_REG
