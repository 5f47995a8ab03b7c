"""How do a file's data and flags get to its copy?

Blocks are shared where the file system can, and holes are kept.  It knows descriptors, and nothing of the
overlay.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from pyoverlay.layers import syscalls

_PIECE: Final = 4 * 1024 * 1024
_NO_REFLINK: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM})
_NO_RANGE_COPY: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
_NO_FLAGS: Final = frozenset({errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP})
_COPIED_FLAGS: Final = 0x88
"""FS_SYNC_FL and FS_NOATIME_FL."""


def copy_flags(source: int, target: int) -> None:
    """Copy what of lsattr(1)'s flags acts in the VFS (fs/overlayfs/copy_up.c: ovl_copy_fileattr)."""
    try:
        copied = syscalls.file_flags(source) & _COPIED_FLAGS
        if copied:
            syscalls.set_file_flags(target, syscalls.file_flags(target) & ~_COPIED_FLAGS | copied)
    except OSError as failure:
        if failure.errno not in _NO_FLAGS:
            raise


def copy_data(source: int, target: int, size: int, before_each_piece: Callable[[], None]) -> None:
    """Share the blocks if the file system can; else copy the extents and keep the holes.

    Args:
        source: a descriptor to read from, of a file of ``size`` bytes.
        target: a descriptor of an empty file.
        size: in bytes.
        before_each_piece: is called before each 4 MiB at most; what it raises ends the copy.

    Raises OSError.
    """
    try:
        syscalls.clone_file(source, target)
        return
    except OSError as failure:
        if failure.errno not in _NO_REFLINK:
            raise
    copy = _copy_range
    position = 0
    for start, end in _extents(source, size):
        position = start
        while position < end:
            before_each_piece()
            try:
                copied = copy(source, target, position, min(end - position, _PIECE))
            except OSError as failure:
                if copy is _copy_by_buffer or failure.errno not in _NO_RANGE_COPY:
                    raise
                copy = _copy_by_buffer
                continue
            if copied == 0:
                break
            position += copied
    if position < size:
        os.ftruncate(target, size)  # it ends with a hole


def _copy_range(source: int, target: int, position: int, length: int) -> int:
    return os.copy_file_range(source, target, length, position, position)


def _copy_by_buffer(source: int, target: int, position: int, length: int) -> int:
    data = os.pread(source, min(length, 1024 * 1024), position)
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], position + written)
    return len(data)


def _extents(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of the parts of a file that hold data: lseek(2), SEEK_DATA."""
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as failure:
            if failure.errno == errno.ENXIO:
                return
            if failure.errno != errno.EINVAL:
                raise
            start, end = position, size
        yield start, end
        position = end
