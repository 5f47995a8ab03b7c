"""Which files does the kernel know as backing files, and for how long?

The ioctls of /dev/fuse that name one (include/uapi/linux/fuse.h: FUSE_DEV_IOC_BACKING_OPEN).  A registered
file costs the kernel an open file, and us no descriptor.  A few of the lowers' are kept when the last who had
them open has gone, as programs are opened again and again; never the upper's, which may be removed and must
give back their room then.  It knows nodeids as mere keys.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from typing import Final

from pyoverlay.layers.layer import Layer

_BACKING_OPEN: Final = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE: Final = 0x4004E502  # _IOW(229, 2, uint32_t)
_BACKING_MAP: Final = struct.Struct("=iIQ")
_U32: Final = struct.Struct("=I")
_UNSUITABLE: Final = frozenset({errno.ELOOP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})
_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})
MOST_IDLE: Final = 128
"""How many backing files are kept that nobody has open."""


class Backings:
    """The backing files of one mount, each named by a number of the kernel's, which is never 0."""

    def __init__(self, device: int) -> None:
        """Register files at the FUSE device ``device``; its end is theirs."""
        self._device = device
        self._unsuitable: set[Layer] = set()
        self._idle: dict[int, int] = {}
        """Backing files that nobody has open, by nodeid, the longest idle first."""

    def open(self, layer: Layer, descriptor: int) -> int:
        """Register a file of ``layer`` that is open as ``descriptor``.

        Returns:
            Its number; 0 when the layer's file system can't have backing files.

        Raises OSError.
        """
        if layer in self._unsuitable:
            return 0
        try:
            return self._open(descriptor)
        except OSError as failure:
            if failure.errno in _UNSUITABLE:
                self._unsuitable.add(layer)
            if failure.errno not in _SHORTAGE or not self._idle:
                raise
        self.close_idle()
        return self._open(descriptor)

    def _open(self, descriptor: int) -> int:
        # With a mutable argument, what is returned is the call's result.
        number: int = fcntl.ioctl(self._device, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(descriptor, 0, 0)))
        return number

    def close(self, backing: int) -> None:
        """Let the kernel forget a backing file, as soon as nobody has it open."""
        fcntl.ioctl(self._device, _BACKING_CLOSE, _U32.pack(backing))

    def take(self, nodeid: int, layer: Layer, descriptor: int) -> int:
        """Return the number of a lower's file that was kept; else register it, as `open` does."""
        return self._idle.pop(nodeid, 0) or self.open(layer, descriptor)

    def keep(self, nodeid: int, backing: int) -> None:
        """Close a lower's file some time later: the one that has been idle for longest makes room for it."""
        self._idle[nodeid] = backing
        if len(self._idle) > MOST_IDLE:
            self.close(self._idle.pop(next(iter(self._idle))))

    def close_idle(self) -> None:
        """Close what is kept."""
        while self._idle:
            self.close(self._idle.popitem()[1])
