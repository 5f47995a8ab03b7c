"""How is a merged directory listed?

The twin of fs/overlayfs/readdir.c.  A directory is merged as a whole, once, by names only; each entry's
places are settled when it is looked up.  A reader works on the names as they were when it began, so
its offsets neither repeat nor skip a name that stayed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from pyoverlay.layers import marks, syscalls
from pyoverlay.layers.layer import LayerObject
from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.node import Directory, Node

_FIRST_NAME = 3
"""Offsets 1 and 2 follow ``.`` and ``..``; that of the name number i follows as i + 3."""


class Unreachable(NamedTuple):
    """An entry that is listed though its lookup fails (a redirect that may not be followed)."""

    inode: int
    mode: int


class DirectoryReader:
    """An open directory: the names that one reader sees, from its first entry on."""

    def __init__(self, directory: Directory) -> None:
        """Read ``directory``; the names are taken at the first entry."""
        self.directory = directory
        self.names: list[bytes] | None = None


class Listing:
    """Loads directories and serves readers."""

    def __init__(self, lookup: Lookup) -> None:
        """List what ``lookup`` finds."""
        self._lookup = lookup

    def read(self, reader: DirectoryReader, offset: int) -> Iterator[tuple[bytes, Node | Unreachable, int]]:
        """Yield (name, node, offset of the next entry) from ``offset`` on; 0 begins anew.

        ``.`` and ``..`` come first.  Names that have gone meanwhile are left out.
        """
        directory = reader.directory
        if offset == 0 or reader.names is None:
            self.load(directory)
            reader.names = [] if directory.unlinked else list(directory.entries)
        if offset < 1:
            yield b".", directory, 1
        if offset < 2:
            yield b"..", directory.parent or directory, 2
        first = max(offset - 2, 0)
        for index in range(first, len(reader.names)):
            name = reader.names[index]
            try:
                entry: Node | Unreachable = self._lookup.find(directory, name)
            except FileNotFoundError:
                continue
            except OSError:
                entry = self._unreachable(directory, name)
            yield name, entry, index + _FIRST_NAME

    def _unreachable(self, directory: Directory, name: bytes) -> Unreachable:
        known = directory.entries[name]
        assert isinstance(known, tuple)
        first = known[0].child(name)
        status = first.status()
        return Unreachable(self._lookup.numbers.number(first.layer, status.st_ino), status.st_mode)

    def load(self, directory: Directory) -> None:
        """Read all layers' entries of a directory, once."""
        if directory.loaded or directory.unlinked:
            return
        merge = _Merge(self._lookup)
        for contributor in directory.contributors():
            merge.add(contributor, is_upper=contributor is directory.upper)
        known = directory.entries
        directory.entries = {name: known.get(name, places) for name, places in merge.visible.items()}
        directory.covered = merge.covered
        directory.loaded = True

    def is_empty(self, directory: Directory) -> bool:
        """Tell whether the merged directory shows no entry.

        fs/overlayfs/readdir.c: ovl_check_empty_dir.
        """
        self.load(directory)
        for name in list(directory.entries):
            try:
                self._lookup.find(directory, name)
            except FileNotFoundError:
                continue
            except OSError:
                return False
            return False
        return True


class _Merge:
    """The names of one directory, gathered from its layers, topmost first."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self.visible: dict[bytes, tuple[LayerObject, ...]] = {}
        self.covered: set[bytes] = set()
        self._closed: set[bytes] = set()
        """Names that nothing below adds to: whiteouts, and what is no directory."""
        self._closed_by_upper: set[bytes] = set()
        self._places: dict[tuple[LayerObject, ...], tuple[LayerObject, ...]] = {}

    def add(self, directory: LayerObject, *, is_upper: bool) -> None:
        """Merge one layer's directory below those that were added before."""
        entries = directory.list_entries()
        hidden = {
            hidden_name
            for name, _kind in entries
            if name.startswith(marks.AUFS_PREFIX) and (hidden_name := marks.aufs_hidden_name(name))
        }
        checks_attributes = not directory.layer.writable and self._has_attribute_whiteouts(directory)
        closed: set[bytes] = set(hidden)
        alone = (directory,)
        for name, kind in entries:
            if name.startswith(marks.AUFS_PREFIX):
                continue
            if kind == syscalls.DT_UNKNOWN or (kind == syscalls.DT_CHR):
                kind = self._look_closer(directory, name)
            elif checks_attributes and kind == syscalls.DT_REG and self._is_whiteout(directory, name):
                kind = syscalls.DT_CHR
            self._place(name, kind, alone, closed)
        self._closed |= closed
        if is_upper:
            self._closed_by_upper = closed
        else:
            self._closed_by_upper = self._closed_by_upper - hidden

    def _place(self, name: bytes, kind: int, alone: tuple[LayerObject, ...], closed: set[bytes]) -> None:
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

    def _look_closer(self, directory: LayerObject, name: bytes) -> int:
        """Settle an entry whose d_type doesn't tell: DT_CHR is returned for whiteouts only."""
        status = directory.child(name).status()
        if marks.is_whiteout_device(status.st_mode, status.st_rdev):
            return syscalls.DT_CHR
        return syscalls.DT_DIR if stat.S_ISDIR(status.st_mode) else syscalls.DT_REG

    def _has_attribute_whiteouts(self, directory: LayerObject) -> bool:
        return self._lookup.directory_marks(directory).has_attribute_whiteouts

    def _is_whiteout(self, directory: LayerObject, name: bytes) -> bool:
        attribute = self._lookup.stack.dialect.attribute("whiteout")
        candidate = directory.child(name)
        return candidate.status().st_size == 0 and attribute in candidate.list_attributes()
