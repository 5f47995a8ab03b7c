"""How does data get from a layer's page cache to the kernel's FUSE without a copy of ours?

splice(2) moves references to its pages through a pipe; the kernel copies once, into the pages of whoever
reads.  It can't be told not to wait for the disk, as preadv2(2) can: so only data is spliced of which all
pages are there, and the last has come from the disk.  It knows descriptors and requests, and nothing of the
overlay.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import Final

from pyoverlay.fuse import wire
from pyoverlay.fuse.device import READAHEAD
from pyoverlay.layers import syscalls

_LEAST: Final = 64 * 1024
"""Bytes below which it costs less to copy them than to make the four system calls more."""
_MOST: Final = READAHEAD
"""Bytes in one answer."""
_PIPE: Final = 2 * _MOST
"""Bytes that the pipe has room for: each page of the data, which may begin within one, and the header."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_NEVER: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP})
"""Without the right to so large a pipe, or without splice(2)."""
_CALLER_IS_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})


class Splicing:
    """Answers reads of what is in the page cache."""

    def __init__(self, device: int) -> None:
        """Answer to ``device``, an open /dev/fuse."""
        self._device = device
        self._pipe: tuple[int, int] | None = None
        self._works = True

    def answer(self, unique: int, descriptor: int, size: int, offset: int) -> bool:
        """Answer the READ ``unique`` with ``size`` bytes at ``offset`` of an open file.

        Returns:
            Whether it was answered; else nothing has happened, and it is to be read in another way: part of
            the data isn't there, the file ends before, or this kernel or file system can't splice.
        """
        if not (self._works and _LEAST <= size <= _MOST and self._is_there(descriptor, size, offset)):
            return False
        try:
            reading, writing = self._empty_pipe()
            os.write(writing, wire.answer_header(unique, size))
            left = size
            while left:
                moved = os.splice(descriptor, writing, left, offset_src=offset + size - left)
                if not moved:
                    self.close()  # it was truncated meanwhile
                    return False
                left -= moved
        except OSError as failure:
            self._take_back(failure)
            return False
        return self._hand_over(reading, size)

    def _is_there(self, descriptor: int, size: int, offset: int) -> bool:
        """Tell whether all of it is in the page cache, and its last byte has been read from the disk."""
        pages = (offset + size - 1) // _PAGE - offset // _PAGE + 1
        try:
            if syscalls.cached_pages(descriptor, offset, size) < pages:
                return False
        except OSError as failure:
            # Another's file may be refused (EPERM), and a file system: the next file may not be.
            self._works = failure.errno != errno.ENOSYS
            return False
        try:
            return os.preadv(descriptor, [bytearray(1)], offset + size - 1, os.RWF_NOWAIT) == 1
        except OSError:
            return False

    def _empty_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _PIPE)
        return self._pipe

    def _hand_over(self, reading: int, size: int) -> bool:
        try:
            os.splice(reading, self._device, wire.OUT_HEADER_SIZE + size)
        except OSError as failure:
            self.close()
            return failure.errno in _CALLER_IS_GONE
        return True

    def _take_back(self, failure: OSError) -> None:
        """Forget an answer that was begun; and never begin one again where it can't work."""
        if failure.errno in _NEVER:
            self._works = False
        self.close()

    def close(self) -> None:
        """Close the pipe, and forget what is in it."""
        for descriptor in self._pipe or ():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._pipe = None
