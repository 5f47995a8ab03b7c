"""How is a map read and written of a file that became shorter? By system calls, which stop at its end.

Touching a page beyond the file's last one is a SIGBUS; and a map of the kernel's overlay may go on to show an
older file than the descriptor that it was made through.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from tests.differential.operation import Map


def touchable(mapped: Map) -> int:
    """How many bytes of a map lie in the file as it is now: beyond its last page there is SIGBUS."""
    pages = -(-os.fstat(mapped.descriptor).st_size // mmap.PAGESIZE)
    return min(len(mapped.memory), pages * mmap.PAGESIZE)


def read_without_signal(memory: mmap.mmap, size: int) -> bytes:
    """What a map shows, up to where touching it would end in SIGBUS: a system call stops there."""
    descriptor = os.memfd_create("shown")
    try:
        with memoryview(memory) as view, contextlib.suppress(OSError):
            os.write(descriptor, view[:size])
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def write_without_signal(memory: mmap.mmap, offset: int, content: bytes) -> int:
    """Writes into a map, up to where touching it would end in SIGBUS."""
    descriptor = os.memfd_create("content")
    try:
        os.write(descriptor, content)
        with memoryview(memory) as view:
            return os.preadv(descriptor, [view[offset : offset + len(content)]], 0)
    finally:
        os.close(descriptor)
