"""Which open files does the kernel read and write itself, without asking us?

Passthrough (Linux 6.9 and later, for root): the answer to an open names a *backing file*, and reads, writes
and maps of the opened file go to that one directly, through its own page cache.  Upper files are opened so,
and those of lowers that are programs, or of a mount that nobody can write, or if all are asked for.

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyoverlay.fuse.backings import Backings
from pyoverlay.layers.syscalls import error
from pyoverlay.overlay.files import OpenFile, is_for_writing
from pyoverlay.overlay.filesystem import OverlayFilesystem
from pyoverlay.overlay.node import NOT_WATCHED, OPEN_UNSEEN, PASSED, WRITER_CAME, WRITTEN_UNSEEN, Node

log = logging.getLogger(__name__)

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_PASSTHROUGH: Final = 1 << 7

_MOST_SENT_BACK: Final = 1024
_SMALLEST_LOWER: Final = 16 * 1024
"""Bytes below which naming a lower's file to the kernel costs more than reading it, as measured."""
_ELF: Final = b"\x7fELF"
_ELF_TYPE: Final = slice(16, 18)
_PROGRAM_TYPES: Final = frozenset({b"\x02\0", b"\0\x02", b"\x03\0", b"\0\x03"})
"""ET_EXEC and ET_DYN, in either byte order: elf(5)."""
_ARCHIVE: Final = b"!<arch>\n"
"""How a static library begins: ar(5)."""


@dataclass(slots=True)
class _Opens:
    """How a nodeid is open: through FUSE's page cache, or in passthrough with the file ``backing``."""

    cached: int = 0
    passed: int = 0
    backing: int = 0
    of_lower: bool = False
    """Whether the backing file is a lower's: then nothing is open for writing."""


class Passthrough:
    """Decides for each open file, and keeps the backing files that the kernel was told of."""

    def __init__(
        self, device: int, filesystem: OverlayFilesystem, invalidate_attributes: Callable[[int], None]
    ) -> None:
        """Register backing files at ``device``; nothing is passed through until `enable`.

        ``invalidate_attributes`` makes the kernel ask again for those of a nodeid.
        """
        self._invalidate_attributes = invalidate_attributes
        self._filesystem = filesystem
        self._backings = Backings(device)
        self._enabled = False
        options = filesystem.stack.options
        self._passes_all_lowers = not options.writable or options.passthrough == "all"
        self._opens: dict[int, _Opens] = {}
        self._sent_back: set[tuple[int, int]] = set()
        """Nodeids and threads that were sent back to look the name up."""

    def enable(self) -> None:
        """The kernel agreed to passthrough."""
        self._enabled = True
        self._filesystem.settle_unseen = self.settle
        self._filesystem.admit_open = self.admit
        self._filesystem.data_changed = self.data_changed

    # Before a file is opened

    def admit(self, nodeid: int, flags: int, pid: int) -> None:
        """Keep what is open in passthrough over a lower's file from being opened to write, by this nodeid.

        It is superseded: the thread ``pid`` is sent back, looks the name up and comes with another nodeid.
        If it comes with the same one, it has no name to look up: /proc/self/fd, or a file that is mounted.
        Flags that are 0 are the kernel's own, which opens a file to ask for what lsattr(1) shows
        (fs/fuse/ioctl.c: fuse_priv_ioctl_prepare): it has no name either, and doesn't try again.

        Raises OSError ESTALE, which makes fs/namei.c: do_filp_open try again; ETXTBSY.
        """
        node = self._filesystem.node(nodeid)
        if nodeid == node.nodeid:
            opens = self._opens.get(nodeid)
            if opens is None or not opens.of_lower:
                return
            self._supersede(nodeid)
        if flags == 0:
            return
        caller = nodeid, pid
        if caller not in self._sent_back:
            if len(self._sent_back) == _MOST_SENT_BACK:
                self._sent_back.clear()
            self._sent_back.add(caller)
            raise error(errno.ESTALE)
        if is_for_writing(flags) or flags & os.O_TRUNC:
            raise error(errno.ETXTBSY)

    def data_changed(self, nodeid: int) -> None:
        """Take note of a truncate(2): who has the lower's file open in passthrough goes on with that."""
        opens = self._opens.get(nodeid)
        if opens is not None and opens.of_lower and self._filesystem.node(nodeid).nodeid == nodeid:
            self._supersede(nodeid)

    def _supersede(self, nodeid: int) -> None:
        node = self._filesystem.node(nodeid)
        self._filesystem.nodes.supersede(node)
        # Who was sent back isn't sent back again, whoever opens the file before.
        node.unseen |= WRITER_CAME
        self._invalidate_attributes(nodeid)

    # When it is open

    def opened(self, handle: int) -> tuple[int, int]:
        """Decide how a file that was just opened is read and written.

        Returns:
            FOPEN flags and the backing file's number, for struct fuse_open_out.
        """
        if not self._enabled:
            return FOPEN_KEEP_CACHE, 0
        file = self._filesystem.file(handle)
        node = file.node
        nodeid = file.nodeid = file.nodeid or node.nodeid
        opens = self._opens.get(nodeid)
        if opens is None:
            opens = self._opens[nodeid] = _Opens()
        superseded = nodeid != node.nodeid
        if opens.passed:
            # There is no way back to the page cache now, but one around the backing file.
            shares = not superseded if opens.of_lower else self._may_pass_upper(file)
            return self._pass(file, opens, FOPEN_PASSTHROUGH | (0 if shares else FOPEN_DIRECT_IO))
        if superseded:
            opens.cached += 1
            return FOPEN_DIRECT_IO, 0
        if not opens.cached and self._may_pass(file) and self._back(handle, opens):
            return self._pass(file, opens, FOPEN_PASSTHROUGH)
        opens.cached += 1
        # Pages from before may be older than what was written in passthrough.
        return 0 if node.unseen & PASSED else FOPEN_KEEP_CACHE, 0

    def _pass(self, file: OpenFile, opens: _Opens, flags: int) -> tuple[int, int]:
        opens.passed += 1
        if not opens.of_lower:
            node = file.node
            node.unseen |= PASSED | OPEN_UNSEEN
            if file.may_map_writable and not node.unseen & WRITTEN_UNSEEN:
                node.unseen |= WRITTEN_UNSEEN
                # What the kernel was told of them before may be kept for long.
                self._invalidate_attributes(file.nodeid)
        return flags, opens.backing

    def _may_pass(self, file: OpenFile) -> bool:
        node = file.node
        if node.upper is not None:
            return self._may_pass_upper(file)
        if node.unseen & WRITER_CAME or not node.real.layer.cloned or _size(file) < _SMALLEST_LOWER:
            return False
        return self._passes_all_lowers or _is_program_text(file)

    def _may_pass_upper(self, file: OpenFile) -> bool:
        if not file.writable:
            return True
        node = file.node
        try:
            mode = self._filesystem.attributes(node).mode
        except OSError:
            return False
        return not mode & (stat.S_ISUID | stat.S_ISGID) and not self._filesystem.must_drop_capabilities(node)

    def _back(self, handle: int, opens: _Opens) -> bool:
        """Give a nodeid that isn't open yet its backing file; False when the kernel won't have it."""
        file = self._filesystem.file(handle)
        real = file.node.real
        opens.of_lower = file.node.upper is None
        try:
            if opens.of_lower:
                opens.backing = self._backings.take(file.nodeid, real.layer, file.descriptor)
            elif not file.writable:
                # The file may have been copied up since it was opened.
                descriptor = self._filesystem.descriptor_for_reading(handle)
                opens.backing = self._backings.open(real.layer, descriptor)
            else:
                # The kernel opens it anew with the user's flags.  This one counts as a writer for as long as
                # it is registered: while anybody has the file open, when `settle` asks for no lease.
                opens.backing = self._backings.open(real.layer, file.descriptor)
        except OSError as failure:
            log.info("%s: no passthrough: %s", real.layer.path, failure.strerror)
            if failure.errno == errno.EPERM:
                self._enabled = False
        if not opens.backing:
            opens.of_lower = False
        return opens.backing != 0

    # When it is closed

    def released(self, handle: int) -> None:
        """Take back what `opened` decided, before the file is closed."""
        if not self._opens:
            return
        try:
            file = self._filesystem.file(handle)
        except OSError:
            return
        opens = self._opens.get(file.nodeid)
        if opens is None:
            return
        if opens.passed:
            opens.passed -= 1
        else:
            opens.cached -= 1
        if opens.passed or opens.cached:
            return
        del self._opens[file.nodeid]
        if opens.of_lower and file.node.upper is None:
            self._backings.keep(file.nodeid, opens.backing)
        elif opens.backing:
            self._backings.close(opens.backing)

    def settle(self, node: Node) -> None:
        """Trust a node's attributes again if it can't be read or written unseen any more.

        A lease is granted only while nobody has the file open or mapped for writing: fcntl(2), F_SETLEASE.
        """
        opens = self._opens.get(node.nodeid)
        if opens is not None and opens.passed:
            return
        if node.unseen & WRITTEN_UNSEEN and not _nobody_writes(node):
            return
        node.unseen &= ~NOT_WATCHED
        node.attributes = None


def _size(file: OpenFile) -> int:
    """Return the size in bytes of a lower's file, which doesn't change."""
    known = file.node.attributes
    return known.size if known is not None else os.fstat(file.descriptor).st_size


def _is_program_text(file: OpenFile) -> bool:
    """Tell whether a lower's file is executed, or begins as a program or library: looked at once a node.

    A look costs no more than the first read of whoever opens it.
    """
    node = file.node
    if node.program_text is None:
        try:
            start = os.pread(file.descriptor, _ELF_TYPE.stop, 0)
        except OSError:
            return False
        node.program_text = _begins_program_text(start)
    return node.program_text or file.executed


def _begins_program_text(start: bytes) -> bool:
    """Tell a program or shared library in ELF, or a static library, by its first bytes."""
    return (start.startswith(_ELF) and start[_ELF_TYPE] in _PROGRAM_TYPES) or start.startswith(_ARCHIVE)


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
