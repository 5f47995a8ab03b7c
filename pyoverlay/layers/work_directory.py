"""Where are objects prepared before they show, and where does what was discarded wait for its removal?

In the work directory, on the upper's file system.  It knows nothing of copy-up, or of who checks and locks it
(`stack`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
from collections import deque
from collections.abc import Iterator
from typing import Final

from pyoverlay.layers.layer import LayerObject

log = logging.getLogger(__name__)

_NEVER_LINKED: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV})
_NOT_LINKED: Final = _NEVER_LINKED | {errno.EMLINK, errno.ENOENT}
"""Why a whiteout can't be one more name of the last one, though it can be made."""

_MOST_DISCARDED: Final = 1024
"""Directories that wait for their removal."""
_REMOVED_AT_ONCE: Final = 16
"""Names that are unlinked before somebody looks for requests again: some 0.2 ms."""


class WorkDirectory:
    """The directory ``workdir/work``: where objects are prepared before one rename or link shows them.

    It lies on the upper's file system.  Names in it are ours alone: ``#`` and a hexadecimal number, as
    the kernel's.
    """

    def __init__(self, root: LayerObject) -> None:
        """Use the directory ``root``, and hold it open until `close`."""
        self.root = root
        root.hold_open()
        self._numbers = itertools.count()
        self._whiteout: LayerObject | None = None
        self._shares_whiteouts = True
        self._discarded: deque[_Discarded] = deque()

    def new_name(self) -> bytes:
        """Return a name that nothing in the work directory has."""
        return b"#%x" % next(self._numbers)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[bytes]:
        """Give a name to prepare an object under; what still has it when an error leaves is removed."""
        name = self.new_name()
        try:
            yield name
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self.root.remove_tree(name)
            raise

    def discard(self, name: bytes) -> None:
        """Have the directory ``name`` here removed when there is time for it, at the latest by `clean`.

        It was moved here with whiteouts in it: nobody waits until each of them is unlinked.  The kernel's
        next mount cleans up after a crash, as it does itself.
        """
        self._discarded.append(_Discarded(self.root, name))
        while len(self._discarded) > _MOST_DISCARDED:
            self.remove_discarded()

    def remove_discarded(self) -> bool:
        """Remove a part of what was discarded, so little that others can wait; tell whether there is more."""
        if not self._discarded:
            return False
        oldest = self._discarded[0]
        try:
            is_gone = oldest.remove(_REMOVED_AT_ONCE)
        except OSError as failure:
            log.warning("%s in the work directory can't be removed: %s", os.fsdecode(oldest.name), failure)
            is_gone = True
        if is_gone:
            self._discarded.popleft()
        return bool(self._discarded)

    def make_whiteout(self, directory: LayerObject, name: bytes) -> None:
        """Make a whiteout of the upper, or here.  Raises OSError EEXIST.

        All are names of one inode, as the kernel's are: another name costs a fraction of another inode
        (fs/overlayfs/dir.c: ovl_whiteout).
        """
        if self._shares_whiteouts:
            try:
                directory.link(self._shared_whiteout(), name)
                return
            except OSError as failure:
                if failure.errno not in _NOT_LINKED:
                    raise
                self._shares_whiteouts = failure.errno not in _NEVER_LINKED
                self._drop_shared_whiteout()
        directory.make_special(name, stat.S_IFCHR, 0)

    def _shared_whiteout(self) -> LayerObject:
        if self._whiteout is None:
            name = self.new_name()
            self.root.make_special(name, stat.S_IFCHR, 0)
            self._whiteout = self.root.child(name)
        return self._whiteout

    def _drop_shared_whiteout(self) -> None:
        """Use another one next time: this one has all the names that an inode may have, or is gone."""
        if self._whiteout is not None:
            with contextlib.suppress(OSError):
                self.root.remove_file(self._whiteout.name)
            self._whiteout = None

    def close(self) -> None:
        """Let go of the directory."""
        self.root.close()

    def clean(self) -> None:
        """Remove whatever a former mount left, but the marks of incompatible features."""
        self._whiteout = None
        self._discarded.clear()
        for name, _kind in self.root.list_entries():
            if name != b"incompat":
                self.root.remove_tree(name)


class _Discarded:
    """A directory on its way out."""

    def __init__(self, work: LayerObject, name: bytes) -> None:
        self.name = name
        self._work = work
        self._entries: list[tuple[bytes, int]] | None = None

    def remove(self, most: int) -> bool:
        """Remove ``most`` of the entries; tell whether the directory has gone, too."""
        directory = self._work.child(self.name)
        if self._entries is None:
            self._entries = directory.list_entries()
        for _ in range(min(most, len(self._entries))):
            directory.remove_tree(self._entries.pop()[0])
        if not self._entries:
            self._work.remove_tree(self.name)
        self._work.layer.cache.forget(directory)
        return not self._entries
