"""Which open files does the kernel read and write itself, without asking us?

Passthrough (Linux 6.9 and later, for root): the answer to an open names a *backing file*, and reads, writes
and maps of the opened file go to that one directly, through its own page cache.  Upper files are opened so,
and lower ones of a mount that nobody can write.

Rules of the kernel (fs/fuse/iomode.c) that are kept here: while a file is open in passthrough, every open of
it names the same backing file; while it is open through FUSE's page cache, none may be in passthrough.

What we are not told then:

- Reads and writes.  Attributes of a file that is open so are asked of the layer each time (`Node.unseen`).
  The kernel knows of write(2) that it must ask again, but not of what is written to a map: until the last
  file that was opened for reading and writing is closed, and nothing is mapped from it any more, it is told
  not to keep the attributes at all.
- Whose writes must clear suid and sgid, and capabilities where the layer doesn't know them for such.  So a
  file with one of these is never opened for writing in passthrough.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyoverlay.layers.layer import Layer
from pyoverlay.overlay.files import OpenFile
from pyoverlay.overlay.filesystem import OverlayFilesystem
from pyoverlay.overlay.node import NOT_WATCHED, OPEN_UNSEEN, PASSED, WRITTEN_UNSEEN, Node

log = logging.getLogger(__name__)

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_PASSTHROUGH: Final = 1 << 7

_BACKING_OPEN: Final = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE: Final = 0x4004E502  # _IOW(229, 2, uint32_t)
_BACKING_MAP: Final = struct.Struct("=iIQ")
_U32: Final = struct.Struct("=I")
_UNSUITABLE: Final = frozenset({errno.ELOOP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})


@dataclass(slots=True)
class _Opens:
    """How a node is open: through FUSE's page cache, or in passthrough with the backing file ``backing``."""

    cached: int = 0
    passed: int = 0
    backing: int = 0


class Passthrough:
    """Decides for each open file, and keeps the backing files that the kernel was told of."""

    def __init__(
        self, device: int, filesystem: OverlayFilesystem, invalidate_attributes: Callable[[int], None]
    ) -> None:
        """Register backing files at ``device``; nothing is passed through until `enable`.

        ``invalidate_attributes`` makes the kernel ask again for those of a nodeid.
        """
        self._device = device
        self._invalidate_attributes = invalidate_attributes
        self._filesystem = filesystem
        self._enabled = False
        self._writable_mount = filesystem.stack.options.writable
        self._unsuitable: set[Layer] = set()
        self._opens: dict[Node, _Opens] = {}

    def enable(self) -> None:
        """The kernel agreed to passthrough."""
        self._enabled = True
        self._filesystem.settle_unseen = self.settle

    def opened(self, handle: int) -> tuple[int, int]:
        """Decide how a file that was just opened is read and written.

        Returns:
            FOPEN flags and the backing file's number, for struct fuse_open_out.
        """
        if not self._enabled:
            return FOPEN_KEEP_CACHE, 0
        file = self._filesystem.file(handle)
        node = file.node
        opens = self._opens.setdefault(node, _Opens())
        if opens.passed:
            # There is no way back to the page cache now, but one around the backing file.
            by_us = 0 if self._may_pass(file) else FOPEN_DIRECT_IO
            return self._pass(file, opens, FOPEN_PASSTHROUGH | by_us)
        if not opens.cached and self._may_pass(file):
            opens.backing = self._register(file)
            if opens.backing:
                return self._pass(file, opens, FOPEN_PASSTHROUGH)
        opens.cached += 1
        # Pages from before may be older than what was written in passthrough.
        return 0 if node.unseen & PASSED else FOPEN_KEEP_CACHE, 0

    def _pass(self, file: OpenFile, opens: _Opens, flags: int) -> tuple[int, int]:
        opens.passed += 1
        file.node.unseen |= PASSED | OPEN_UNSEEN
        if file.may_map_writable and not file.node.unseen & WRITTEN_UNSEEN:
            file.node.unseen |= WRITTEN_UNSEEN
            # What the kernel was told of them before may be kept for long.
            if file.node.nodeid:
                self._invalidate_attributes(file.node.nodeid)
        return flags, opens.backing

    def _may_pass(self, file: OpenFile) -> bool:
        node = file.node
        if node.upper is None:
            return not self._writable_mount and node.real.layer.cloned
        if not file.writable:
            return True
        try:
            mode = self._filesystem.attributes(node).mode
        except OSError:
            return False
        return not mode & (stat.S_ISUID | stat.S_ISGID) and not self._filesystem.must_drop_capabilities(node)

    def _register(self, file: OpenFile) -> int:
        """Tell the kernel of a backing file; return its number, 0 when it won't have it."""
        layer = file.node.real.layer
        if layer in self._unsuitable:
            return 0
        try:
            if not file.writable:
                return self._open_backing(file.descriptor)
            # The kernel opens it anew with the user's flags.  One that is open for writing itself would count
            # as a writer for as long as it is registered.
            descriptor = file.node.real.open(os.O_RDONLY)
            try:
                return self._open_backing(descriptor)
            finally:
                os.close(descriptor)
        except OSError as failure:
            if failure.errno == errno.EPERM:
                self._enabled = False
            elif failure.errno in _UNSUITABLE:
                self._unsuitable.add(layer)
            log.info("%s: no passthrough: %s", layer.path, failure.strerror)
            return 0

    def _open_backing(self, descriptor: int) -> int:
        # With a mutable argument, what is returned is the call's result.
        number: int = fcntl.ioctl(self._device, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(descriptor, 0, 0)))
        return number

    def released(self, handle: int) -> None:
        """Take back what `opened` decided, before the file is closed."""
        if not self._opens:
            return
        try:
            node = self._filesystem.file(handle).node
        except OSError:
            return
        opens = self._opens.get(node)
        if opens is None:
            return
        if opens.passed:
            opens.passed -= 1
        else:
            opens.cached -= 1
        if opens.passed or opens.cached:
            return
        del self._opens[node]
        if opens.backing:
            fcntl.ioctl(self._device, _BACKING_CLOSE, _U32.pack(opens.backing))

    def settle(self, node: Node) -> None:
        """Trust a node's attributes again if it can't be read or written unseen any more.

        A lease is granted only while nobody has the file open or mapped for writing: fcntl(2), F_SETLEASE.
        """
        opens = self._opens.get(node)
        if opens is not None and opens.passed:
            return
        if node.unseen & WRITTEN_UNSEEN and not _nobody_writes(node):
            return
        node.unseen &= ~NOT_WATCHED
        node.attributes = None


def _nobody_writes(node: Node) -> bool:
    try:
        descriptor = node.real.open(os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
