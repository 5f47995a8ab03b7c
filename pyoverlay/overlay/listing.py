"""How is a merged directory listed?

The twin of fs/overlayfs/readdir.c.  A directory is merged as a whole, once (`merging`); each entry's places
are settled when it is looked up.  A reader works on the names as they were when it began, so its offsets
neither repeat nor skip a name that stayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.merging import DirectoryLoad
from pyoverlay.overlay.node import Directory, Node

_FIRST_NAME: Final = 3
"""Offsets 1 and 2 follow ``.`` and ``..``; that of the name number i follows as i + 3."""


class LoadNeeded(Exception):  # noqa: N818 - it asks for something, nothing failed
    """An operation needs a large directory read first: run ``load`` (in any thread), then try again."""

    def __init__(self, load: DirectoryLoad) -> None:
        """Ask for ``load``."""
        super().__init__(load.directory.name)
        self.load = load


class NameOnly(NamedTuple):
    """An entry that is listed without what stat shows of it; whoever wants to know looks it up.

    One whose lookup fails (a redirect that may not be followed), or a file that has, or had, several names:
    the kernel counts a name down when its removal is answered, and would do so from the count after the
    removal, were a listing of another of its directories to tell it first.  With none left in its books,
    it refuses to link the file (fs/namei.c: vfs_link).
    """

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

    def read(self, reader: DirectoryReader, offset: int) -> Iterator[tuple[bytes, Node | NameOnly, int]]:
        """Return an iterator over (name, node, offset of the next entry) from ``offset`` on; 0 begins anew.

        ``.`` and ``..`` come first.  Names that have gone meanwhile are left out.  Raises LoadNeeded,
        OSError.
        """
        directory = reader.directory
        if offset == 0 or reader.names is None:
            self.load(directory)
            reader.names = [] if directory.unlinked else list(directory.entries)
        return self._entries(directory, reader.names, offset)

    def _entries(
        self, directory: Directory, names: list[bytes], offset: int
    ) -> Iterator[tuple[bytes, Node | NameOnly, int]]:
        if offset < 1:
            yield b".", directory, 1
        if offset < 2:
            yield b"..", directory.parent or directory, 2
        for index in range(max(offset - 2, 0), len(names)):
            name = names[index]
            entry: Node | NameOnly
            try:
                entry = node = self._lookup.find(directory, name)
            except FileNotFoundError:
                continue
            except OSError:
                entry = self._unreachable(directory, name)
            else:
                if node.link_key:
                    entry = NameOnly(node.inode, node.file_type)
            yield name, entry, index + _FIRST_NAME

    def _unreachable(self, directory: Directory, name: bytes) -> NameOnly:
        known = directory.entries[name]
        assert isinstance(known, tuple)
        first = known[0].child(name)
        status = first.status_on_disk()
        return NameOnly(self._lookup.numbers.number(first.layer, status.st_ino), status.st_mode)

    def load(self, directory: Directory) -> None:
        """Read all layers' entries of a directory, once.  Raises LoadNeeded for a large one."""
        if directory.loaded or directory.unlinked:
            return
        load = DirectoryLoad(self._lookup, directory)
        if load.is_large:
            raise LoadNeeded(load)
        try:
            load.run()
            load.publish()
        finally:
            load.close()

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
