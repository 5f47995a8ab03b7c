"""How are ranges of open files found, allocated, freed and copied?

The twin of ``ovl_llseek``, ``ovl_fallocate`` and ``ovl_copy_file_range`` in fs/overlayfs/file.c: the real
files' file system does the work, and shares blocks where it can.  What may take long is a `RangeWork`, which
runs in any thread; nothing here knows threads, though.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, Protocol

from pyoverlay.layers import syscalls
from pyoverlay.layers.syscalls import error
from pyoverlay.overlay.attributes import AttributeChanges
from pyoverlay.overlay.birth import Caller
from pyoverlay.overlay.files import Files, OpenFile
from pyoverlay.overlay.protection import Protection
from pyoverlay.privileges import keeps_set_id_bits

_PIECE: Final = 16 * 1024 * 1024
"""How much is copied before anybody who wants to stop it is heard: a moment's work where it isn't shared."""
_WHENCES: Final = frozenset({os.SEEK_DATA, os.SEEK_HOLE})
_KEEP_SIZE: Final = 1
"""FALLOC_FL_KEEP_SIZE."""
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


class RangeWork(Protocol):
    """A change of an open file's data that may take long."""

    stopped: bool
    """Set by whoever wants it to end early, if it can."""

    def run(self) -> None:
        """Do it, in any thread.  Raises OSError."""

    def settle(self) -> None:
        """Take note of what was done, in the thread that owns the file system; also after a failure."""


class Allocation:
    """One fallocate(2)."""

    def __init__(self, file: OpenFile, mode: int, offset: int, length: int) -> None:
        """Change ``length`` bytes at ``offset``; ``mode`` as in fallocate(2)."""
        self.stopped = False
        self._file = file
        self._arguments = (mode, offset, length)

    def run(self) -> None:
        """Do it.  Raises OSError: what the upper's file system says."""
        syscalls.allocate(self._file.descriptor, *self._arguments)

    def settle(self) -> None:
        """Forget the attributes."""
        self._file.node.attributes = None


class RangeCopy:
    """One copy_file_range(2), piece by piece.

    ``copied`` says how far it came, in bytes: less than was asked for at the end of the source, where the
    disk is full, or when it was stopped.
    """

    def __init__(self, source: int, target: OpenFile, positions: tuple[int, int], length: int) -> None:
        """Copy ``length`` bytes from the descriptor ``source`` to ``target``, between two positions."""
        self.copied = 0
        self.stopped = False
        self._source = source
        self._target = target
        self._positions = positions
        self._length = length

    def run(self) -> None:
        """Do it.  Raises OSError when nothing could be copied, EXDEV where the kernel can't copy so."""
        source_position, target_position = self._positions
        while self.copied < self._length and not (self.stopped and self.copied):
            asked = min(self._length - self.copied, _PIECE)
            try:
                copied = os.copy_file_range(
                    self._source,
                    self._target.descriptor,
                    asked,
                    source_position + self.copied,
                    target_position + self.copied,
                )
            except OSError:
                if self.copied:
                    return
                raise
            self.copied += copied
            if copied < asked:
                # At the source's end, or where only whole blocks are shared: who wants the rest asks again.
                return

    def settle(self) -> None:
        """Forget the attributes."""
        self._target.node.attributes = None


class Ranges:
    """Finds and changes ranges of open files."""

    def __init__(self, files: Files, attributes: AttributeChanges, protection: Protection) -> None:
        """Work on what ``files`` opened."""
        self._protection = protection
        self._files = files
        self._attributes = attributes

    def find(self, file: OpenFile, offset: int, whence: int) -> int:
        """Return where data or a hole begins at or after ``offset``: lseek(2), SEEK_DATA and SEEK_HOLE.

        Raises OSError ENXIO, EINVAL.
        """
        if whence not in _WHENCES:
            raise error(errno.EINVAL)
        return os.lseek(self._files.current_descriptor(file), offset, whence)

    def allocation(self, file: OpenFile, mode: int, offset: int, length: int, caller: Caller) -> RangeWork:
        """Begin a fallocate(2) of ``caller``'s."""
        self._protection.refuse_if_immutable(file.node)
        if mode & ~_KEEP_SIZE:
            self._protection.refuse_shrinking(file.node)
        self._begin_change(file, caller)
        return Allocation(file, mode, offset, length)

    def copy(
        self,
        source: OpenFile,
        target: OpenFile,
        positions: tuple[int, int],
        length: int,
        caller: Caller,
    ) -> RangeCopy:
        """Begin a copy_file_range(2) of ``length`` bytes from one open file to another, or the same."""
        self._protection.refuse_if_immutable(target.node)
        self._begin_change(target, caller)
        return RangeCopy(self._files.descriptor_for_reading(source), target, positions, length)

    def _begin_change(self, file: OpenFile, caller: Caller) -> None:
        """fs/inode.c: file_remove_privs; the capabilities are taken from the real file by its file system."""
        if not file.writable:
            raise error(errno.EBADF)
        file.node.attributes = None
        self._attributes.drop_capabilities(file.node)
        if file.node.real.status().st_mode & _SET_ID and not keeps_set_id_bits(caller.pid):
            self._attributes.kill_privileges(file.node, caller)
