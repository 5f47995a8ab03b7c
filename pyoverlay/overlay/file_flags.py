"""How are the flags read and changed that lsattr(1) shows and chattr(1) sets?

The twin of ``ovl_fileattr_get`` and ``ovl_fileattr_set`` in fs/overlayfs/inode.c: the real object's, but for
two, which `protection` keeps.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Final, TypeVar

from pyoverlay.layers import syscalls
from pyoverlay.layers.layer import LayerObject
from pyoverlay.layers.syscalls import error
from pyoverlay.overlay.copy_up import CopyUps
from pyoverlay.overlay.node import Node
from pyoverlay.overlay.protection import APPEND_ONLY, IMMUTABLE

Result = TypeVar("Result")

# include/uapi/linux/fs.h: FS_IMMUTABLE_FL and so on; and the same in the flags of struct fsxattr.
_FLAGS: Final = ((IMMUTABLE, 0x10), (APPEND_ONLY, 0x20))
_EXTENDED_FLAGS: Final = ((IMMUTABLE, 0x08), (APPEND_ONLY, 0x10))
_EXTENDED: Final = struct.Struct("=I24s")


class FileFlags:
    """Reads and changes flags of regular files and directories."""

    def __init__(self, copy_ups: CopyUps) -> None:
        """Work on nodes that ``copy_ups`` can move to the upper."""
        self._copy_ups = copy_ups
        self._protection = copy_ups.protection

    def get(self, node: Node) -> int:
        """Return the flags of FS_IOC_GETFLAGS.  Raises OSError ENOTTY where the file system has none."""
        return self._shown(node, _with(node, node.real, syscalls.file_flags), _FLAGS)

    def set(self, node: Node, flags: int) -> None:
        """Set the flags of FS_IOC_SETFLAGS.  Raises CopyUpNeeded or OSError: what the file system says."""
        upper = self._copy_ups.need_upper(node)
        stored = flags & ~sum(bit for _, bit in _FLAGS)
        _with(node, upper, lambda descriptor: syscalls.set_file_flags(descriptor, stored))
        self._protect(node, upper, flags, _FLAGS)

    def get_extended(self, node: Node) -> bytes:
        """Return struct fsxattr.  Raises OSError ENOTTY where the file system has none."""
        flags, rest = _EXTENDED.unpack(_with(node, node.real, syscalls.extended_file_flags))
        return _EXTENDED.pack(self._shown(node, flags, _EXTENDED_FLAGS), rest)

    def set_extended(self, node: Node, value: bytes) -> None:
        """Set struct fsxattr.  Raises CopyUpNeeded or OSError: what the file system says."""
        if len(value) != _EXTENDED.size:
            raise error(errno.EINVAL)
        upper = self._copy_ups.need_upper(node)
        flags, rest = _EXTENDED.unpack(value)
        stored = _EXTENDED.pack(flags & ~sum(bit for _, bit in _EXTENDED_FLAGS), rest)
        _with(node, upper, lambda descriptor: syscalls.set_extended_file_flags(descriptor, stored))
        self._protect(node, upper, flags, _EXTENDED_FLAGS)

    def _shown(self, node: Node, flags: int, bits: tuple[tuple[int, int], ...]) -> int:
        protection = self._protection.of(node)
        return flags | sum(bit for protects, bit in bits if protection & protects)

    def _protect(self, node: Node, upper: LayerObject, flags: int, bits: tuple[tuple[int, int], ...]) -> None:
        self._protection.set(node, upper, sum(protects for protects, bit in bits if flags & bit))
        node.attributes = None


def _with(node: Node, place: LayerObject, action: Callable[[int], Result]) -> Result:
    if not node.is_regular and not node.is_directory:
        raise error(errno.ENOTTY)
    descriptor = place.open_for_flags(directory=node.is_directory)
    try:
        return action(descriptor)
    finally:
        os.close(descriptor)
