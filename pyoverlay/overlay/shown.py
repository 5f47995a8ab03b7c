"""What does stat show of a file, and how is that kept?

Every object that the kernel knows has its attributes in memory, so they are kept packed: a third of what
they take as numbers.  The layout is that of ``struct fuse_attr`` (include/uapi/linux/fuse.h): a transport
passes them on as they are.  Pure: it knows neither layers nor nodes.
"""

from __future__ import annotations

import os
import struct
from typing import Final

_PACKED: Final = struct.Struct("=QQQqqqIIIIIIIIII")
SIZE: Final = _PACKED.size
"""Of all attributes, in bytes."""
_SECOND: Final = 1_000_000_000
_LOW_32_BITS: Final = 0xFFFFFFFF
"""Of a device number, which has no more: 12 bits of major, 20 of minor (glibc's makedev as the kernel's)."""


class Attributes(bytes):
    """What stat shows: sizes in bytes, ``blocks`` in units of 512, times in ns since the epoch."""

    __slots__ = ()

    @property
    def inode(self) -> int:
        """Return the inode number."""
        return self._fields()[0]

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self._fields()[1]

    @property
    def blocks(self) -> int:
        """Return what is allocated, in units of 512 bytes."""
        return self._fields()[2]

    @property
    def access_ns(self) -> int:
        """Return when it was last read."""
        fields = self._fields()
        return fields[3] * _SECOND + fields[6]

    @property
    def modification_ns(self) -> int:
        """Return when its data was last changed."""
        fields = self._fields()
        return fields[4] * _SECOND + fields[7]

    @property
    def change_ns(self) -> int:
        """Return when anything of it was last changed."""
        fields = self._fields()
        return fields[5] * _SECOND + fields[8]

    @property
    def mode(self) -> int:
        """Return type and permission bits."""
        return self._fields()[9]

    @property
    def links(self) -> int:
        """Return how many names it has."""
        return self._fields()[10]

    @property
    def user(self) -> int:
        """Return the owner."""
        return self._fields()[11]

    @property
    def group(self) -> int:
        """Return the group."""
        return self._fields()[12]

    @property
    def device(self) -> int:
        """Return the number of the device that a device node is of."""
        return self._fields()[13]

    @property
    def block_size(self) -> int:
        """Return the size of a good read or write."""
        return self._fields()[14]

    def _fields(self) -> tuple[int, ...]:
        return _PACKED.unpack(self)


def pack(status: os.stat_result, inode: int, links: int, user: int, group: int) -> Attributes:
    """Turn a real object's status into what is shown of it, with another number, owner and count of names."""
    access, modification, change = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    return Attributes(
        _PACKED.pack(
            inode,
            status.st_size,
            status.st_blocks,
            access // _SECOND,
            modification // _SECOND,
            change // _SECOND,
            access % _SECOND,
            modification % _SECOND,
            change % _SECOND,
            status.st_mode,
            links,
            user,
            group,
            status.st_rdev & _LOW_32_BITS,
            status.st_blksize,
            0,
        )
    )
