"""How is a merged directory listed?

The twin of fs/overlayfs/readdir.c.  A directory is merged as a whole, once (`merging`); each entry's places
are settled when it is looked up.  Each name keeps its position in the listing for as long as it stays,
whatever comes and goes, so that no reader misses it or sees it twice.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Final, NamedTuple

from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.merging import DirectoryLoad
from pyoverlay.overlay.node import Directory, ListingOrder, Node

_FIRST_POSITION: Final = 2
"""Of a name; positions 0 and 1 are those of ``.`` and ``..``.  An offset is the next entry's, at least."""
_EPOCH_SHIFT: Final = 20
_EPOCHS: Final = 1 << 11
_LONG_EPOCH_SHIFT: Final = 32


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


class Listing:
    """Loads directories and lists them.

    Offsets belong to the directory, not to a reader: the kernel keeps what it was told, and goes on at any of
    its offsets, for any reader.  An offset names a position (`ListingOrder`), and in its upper bits the epoch
    that its listing began in.  So the kernel, which joins answers where offsets meet, joins none from before
    a change with one from after it (fs/fuse/readdir.c: fuse_add_dirent_to_cache).
    """

    def __init__(self, lookup: Lookup) -> None:
        """List what ``lookup`` finds."""
        self._lookup = lookup

    def read(self, directory: Directory, offset: int) -> Iterator[tuple[bytes, Node | NameOnly, int]]:
        """Return an iterator over (name, node, offset of the next entry) from ``offset`` on; 0 begins anew.

        ``.`` and ``..`` come first.  Names that have gone meanwhile are left out; those that have come since
        somebody began to read need not show.  Raises LoadNeeded, OSError.
        """
        self.load(directory)
        order = directory.listing_order
        if order is None:
            order = directory.listing_order = ListingOrder(directory.entries, _FIRST_POSITION)
        elif offset == 0 and order.outdated:
            order.renew(directory.entries)
        epoch, position = _epoch_and_position(offset) if offset else (order.epoch, 0)
        return self._entries(directory, order, epoch, position)

    def _entries(
        self, directory: Directory, order: ListingOrder, epoch: int, begin: int
    ) -> Iterator[tuple[bytes, Node | NameOnly, int]]:
        names, positions = order.names, order.positions
        zero = _offset_of_position_0(epoch, order.next_position)
        first = bisect.bisect_left(positions, begin)
        if begin < 1:
            yield b".", directory, zero | 1
        if begin < _FIRST_POSITION:
            yield b"..", directory.parent or directory, zero | _FIRST_POSITION
        found = begin < _FIRST_POSITION
        for index in range(first, len(names)):
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
            found = True
            yield name, entry, zero | positions[index] + 1
        if not found:
            self._end(directory, order, epoch)

    def _end(self, directory: Directory, order: ListingOrder, epoch: int) -> None:
        """Tell the end to a reader: if the directory has changed since it began, nobody else may be told so.

        The kernel may have noted the change before it noted the first answer, and would take the whole for
        a listing from after it.
        """
        if order.outdated or order.epoch != epoch:
            self._lookup.nodes.changed_listings.append(directory)

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


def _offset_of_position_0(epoch: int, next_position: int) -> int:
    """Return what the offsets of a listing have in common.

    They stay below 2^31 where they can: a program of 32 bits may know no larger ones.
    """
    if epoch < _EPOCHS and next_position < 1 << _EPOCH_SHIFT:
        return epoch << _EPOCH_SHIFT
    return (epoch + 1) << _LONG_EPOCH_SHIFT


def _epoch_and_position(offset: int) -> tuple[int, int]:
    long_epoch = offset >> _LONG_EPOCH_SHIFT
    if long_epoch:
        return long_epoch - 1, offset & (1 << _LONG_EPOCH_SHIFT) - 1
    return offset >> _EPOCH_SHIFT, offset & (1 << _EPOCH_SHIFT) - 1
