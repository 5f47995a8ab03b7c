"""How are open files read and written?

The twin of fs/overlayfs/file.c.  A descriptor opened before a copy-up reads the copy afterwards, as the
kernel's does (``ovl_real_fdget``).  Reads and writes are those of the real file.
"""

from __future__ import annotations

import os
from typing import Final

from pyoverlay.overlay.attributes import AttributeChanges
from pyoverlay.overlay.copy_up import CopyUps
from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.node import OPENED, Node

# O_APPEND: the kernel above us says where to write.  O_DIRECT: its alignment is not ours to keep.
KEPT_FLAGS: Final = os.O_ACCMODE | os.O_SYNC | os.O_DSYNC


MOST_GIVEN: Final = 64 * 1024
"""Bytes of a lower's file so small that it is given to the kernel: whoever opens it reads all of it."""

EXECUTED: Final = 0x20
"""``__FMODE_EXEC`` of include/linux/fs.h, which the kernel adds to the flags when execve(2) opens a file."""


def is_for_writing(flags: int) -> bool:
    """Tell whether open(2)'s ``flags`` ask for more than reading."""
    return flags & os.O_ACCMODE != os.O_RDONLY


class OpenFile:
    """An open regular file of the merged tree."""

    __slots__ = (
        "_descriptor",
        "executed",
        "may_map_writable",
        "node",
        "nodeid",
        "of_upper",
        "retired",
        "synchronous",
        "writable",
    )

    def __init__(self, node: Node, descriptor: int | None, flags: int) -> None:
        """Take over ``descriptor``, opened on the node's real object with ``flags``.

        None stands for one that is opened to read when it is first asked for.
        """
        self.node = node
        self.nodeid = node.nodeid
        """By which of the node's nodeids it was opened; 0 for a new file, unknown to the kernel as yet."""
        self._descriptor = descriptor
        self.of_upper = node.upper is not None
        """Whether the descriptor is the upper's, and no lower's."""
        self.writable = is_for_writing(flags)
        self.may_map_writable = flags & os.O_ACCMODE == os.O_RDWR
        self.executed = bool(flags & EXECUTED)
        self.synchronous = bool(flags & (os.O_SYNC | os.O_DSYNC))
        self.retired: list[int] = []
        """Descriptors of the lower that reads in other threads may still be using."""

    @property
    def descriptor(self) -> int:
        """The descriptor of what was opened.  Raises OSError when it is opened only now."""
        if self._descriptor is None:
            self._descriptor = self.node.real.open(os.O_RDONLY)
            self.of_upper = self.node.upper is not None
        return self._descriptor

    def turn_to(self, upper: int) -> None:
        """Go on with the descriptor ``upper`` of the copy in the upper."""
        if self._descriptor is not None:
            self.retired.append(self._descriptor)
        self._descriptor = upper
        self.of_upper = True

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        for descriptor in self.retired:
            os.close(descriptor)


def _is_known_small_lower(node: Node) -> bool:
    """Tell whether a file is likely read without us.

    It could be opened before, and the kernel was given all of its data then, or has read it since.
    """
    if node.upper is not None or not node.unseen & OPENED:
        return False
    return node.attributes is not None and node.attributes.size <= MOST_GIVEN


class Files:
    """Opens files, and keeps descriptors pointed at the real one."""

    def __init__(self, lookup: Lookup, copy_ups: CopyUps, attributes: AttributeChanges) -> None:
        """Open what ``lookup`` found."""
        self._lookup = lookup
        self._copy_ups = copy_ups
        self._attributes = attributes

    def open(self, node: Node, flags: int) -> OpenFile:
        """Open a regular file; writing, or truncating, copies it up first.

        Raises CopyUpNeeded; OSError EPERM for a file of metadata only, or one that is protected.
        """
        truncates = bool(flags & os.O_TRUNC)
        self._copy_ups.protection.refuse_opening(node, flags)
        if is_for_writing(flags) or truncates:
            self._copy_ups.need_upper(node, with_data=not truncates)
        else:
            self._lookup.verify_data(node)
            if _is_known_small_lower(node):
                return OpenFile(node, None, flags)
        descriptor = node.real.open(flags & (KEPT_FLAGS | os.O_TRUNC))
        if truncates:
            node.attributes = None
            self._attributes.data_changed(node)
        return OpenFile(node, descriptor, flags)

    def descriptor_for_reading(self, file: OpenFile) -> int:
        """Return the descriptor to read from now: the copy's, if the file was copied up meanwhile."""
        if file.node.upper is not None:
            # Reading may move the upper file's atime.
            file.node.attributes = None
        return self.current_descriptor(file)

    @staticmethod
    def current_descriptor(file: OpenFile) -> int:
        """Return the descriptor of what the file is now, to ask where its data is."""
        node = file.node
        if node.upper is not None and not file.of_upper and not file.writable:
            file.turn_to(node.upper.open(os.O_RDONLY))
        return file.descriptor

    def write(self, file: OpenFile, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data`` at ``offset``, or as much as there is room for; return the bytes written.

        Raises OSError ENOSPC and the like when nothing could be written.
        """
        file.node.attributes = None
        self._attributes.drop_capabilities(file.node)
        written = 0
        while written < len(data):
            try:
                written += os.pwrite(file.descriptor, data[written:] if written else data, offset + written)
            except OSError:
                if written:
                    return written
                raise
        return written
