"""How are the bodies of FUSE requests read, and those of answers written?

The structs of include/uapi/linux/fuse.h that are answered without pyfuse3; what the forwarder looks at on the
way to pyfuse3 is in `wire`.  Pure: no I/O, no knowledge of the overlay beyond `Attributes`.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from pyoverlay.fuse.wire import DIRENT, ENTRY_SIZE, IN_HEADER_SIZE
from pyoverlay.overlay.shown import SIZE as ATTRIBUTES_SIZE
from pyoverlay.overlay.shown import Attributes

BODY: Final = IN_HEADER_SIZE
"""Where a request's body begins."""

# Requests: what follows the header, as named in fuse.h

CALLER: Final = struct.Struct("=24xIII")  # uid, gid and pid, from the header itself
NUMBER: Final = struct.Struct("=Q")  # FORGET's nlookup, LINK's oldnodeid, RENAME's newdir, any fh
COUNT: Final = struct.Struct("=II")  # BATCH_FORGET; GETXATTR's and SETXATTR's size
FORGET_ONE: Final = struct.Struct("=QQ")
FLAGS: Final = struct.Struct("=II")  # OPEN
CREATE: Final = struct.Struct("=IIII")  # flags, mode, umask, open_flags
MKNOD: Final = struct.Struct("=IIII")  # mode, rdev, umask
MKDIR: Final = struct.Struct("=II")  # mode, umask
RENAME2: Final = struct.Struct("=QII")  # newdir, flags
READ: Final = struct.Struct("=QQI")  # fh, offset, size; READDIRPLUS as well
READ_SIZE: Final = 40
WRITE: Final = struct.Struct("=QQI")  # fh, offset, size
SETATTR: Final = struct.Struct("=I4xQQ8xQQ8xII4xI4xII4x")
"""valid, fh, size, atime, mtime, atimensec, mtimensec, mode, uid, gid."""
ALLOCATE: Final = struct.Struct("=QqqI4x")  # fh, offset, length, mode
SEEK: Final = struct.Struct("=QqI4x")  # fh, offset, whence
_COPY_RANGE: Final = struct.Struct("=QqQQqQ8x")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len."""
CONTROL: Final = struct.Struct("=12xI8xII")  # cmd, in_size, out_size

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_CHANGES: Final = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8

# Answers

_ENTRY_VALID: Final = struct.Struct("=QQQII")  # generation, entry_valid, attr_valid and their nanoseconds
_ATTRIBUTES_VALID: Final = struct.Struct("=QII")
_OPENED: Final = struct.Struct("=QIi")
_SIZE: Final = struct.Struct("=II")
_STATFS: Final = struct.Struct("=QQQQQIII28x")

_CONTROLLED: Final = struct.Struct("=iIII")
_STATX_VALID: Final = struct.Struct("=QII16x")
_STATX: Final = struct.Struct("=IIQIIIH2xQQQQqI4xqI4xqI4xqI4xII120x")
_BASIC_STATS: Final = 0x7FF
_BIRTH_TIME: Final = 0x800

_SECOND: Final = 1_000_000_000
_FILE_TYPE_SHIFT: Final = 12
_FILE_TYPE_BITS: Final = 15


def name_at(message: memoryview, offset: int) -> bytes:
    """Return the name that ends a message, without its NUL."""
    return bytes(message[offset:-1])


def unique_of(message: memoryview) -> int:
    """Return the number of a request."""
    return int(NUMBER.unpack_from(message, 8)[0])


def two_names_at(message: memoryview, offset: int) -> tuple[bytes, bytes]:
    """Return the two names that end a message."""
    first, _, second = bytes(message[offset:-1]).partition(b"\0")
    return first, second


def ranges_to_copy(message: memoryview) -> tuple[int, int, tuple[int, int], int]:
    """Return what a COPY_FILE_RANGE asks for: source and target (handles), their positions, the length."""
    source, position, _, target, target_position, length = _COPY_RANGE.unpack_from(message, BODY)
    return source, target, (position, target_position), length


class Validity:
    """How long the kernel may keep what it is told, written as FUSE wants it."""

    def __init__(self, names: float, attributes: float | None = None) -> None:
        """Let names be kept for ``names`` seconds, attributes as long unless said otherwise."""
        name, name_ns = _seconds(names)
        self.attributes = attribute, attribute_ns = _seconds(names if attributes is None else attributes)
        self.of_attributes = _ATTRIBUTES_VALID.pack(attribute, attribute_ns, 0)
        """Struct fuse_attr_out, but for the attributes that end it."""
        self.of_entry = _ENTRY_VALID.pack(0, name, attribute, name_ns, attribute_ns)
        """Struct fuse_entry_out, between the nodeid that begins it and the attributes that end it."""
        self.absent = bytes(NUMBER.size) + _ENTRY_VALID.pack(0, name, 0, name_ns, 0) + bytes(ATTRIBUTES_SIZE)
        """The answer to a lookup that finds nothing: it may be kept, too."""


def _seconds(time: float) -> tuple[int, int]:
    whole = int(time)
    return whole, int((time - whole) * _SECOND)


def attributes_answer(shown: Attributes, validity: Validity) -> bytes:
    """Write struct fuse_attr_out."""
    return validity.of_attributes + shown


def extended_attributes_answer(shown: Attributes, birth_ns: int | None, validity: Validity) -> bytes:
    """Write struct fuse_statx_out; ``birth_ns`` is None where nobody knows when the file was created."""
    return _STATX_VALID.pack(*validity.attributes, 0) + _STATX.pack(
        _BASIC_STATS | (0 if birth_ns is None else _BIRTH_TIME),
        shown.block_size,
        0,
        shown.links,
        shown.user,
        shown.group,
        shown.mode,
        shown.inode,
        shown.size,
        shown.blocks,
        0,
        *divmod(shown.access_ns, _SECOND),
        *divmod(birth_ns or 0, _SECOND),
        *divmod(shown.change_ns, _SECOND),
        *divmod(shown.modification_ns, _SECOND),
        os.major(shown.device),
        os.minor(shown.device),
    )


def entry_answer(nodeid: int, shown: Attributes, validity: Validity) -> bytes:
    """Write struct fuse_entry_out."""
    return NUMBER.pack(nodeid) + validity.of_entry + shown


def opened_answer(handle: int, flags: int, backing: int) -> bytes:
    """Write struct fuse_open_out."""
    return _OPENED.pack(handle, flags, backing)


def size_answer(size: int) -> bytes:
    """Write struct fuse_write_out or fuse_getxattr_out."""
    return _SIZE.pack(size, 0)


def position_answer(position: int) -> bytes:
    """Write struct fuse_lseek_out or fuse_copy_file_range_out."""
    return NUMBER.pack(position)


def control_answer(value: bytes) -> bytes:
    """Write struct fuse_ioctl_out, and what the call returns in memory."""
    return _CONTROLLED.pack(0, 0, 0, 0) + value


def file_system_answer(status: os.statvfs_result) -> bytes:
    """Write struct fuse_statfs_out."""
    return _STATFS.pack(
        status.f_blocks,
        status.f_bfree,
        status.f_bavail,
        status.f_files,
        status.f_ffree,
        status.f_bsize,
        status.f_namemax,
        status.f_frsize,
    )


def directory_entry(entry: bytes, inode: int, mode: int, name: bytes, next_offset: int) -> bytes:
    """Write struct fuse_direntplus: ``entry`` as `entry_answer` wrote it, or `NAME_ONLY_ENTRY`."""
    padding = -len(name) & 7
    kind = mode >> _FILE_TYPE_SHIFT & _FILE_TYPE_BITS
    return entry + DIRENT.pack(inode, next_offset, len(name), kind) + name + bytes(padding)


def directory_entry_size(name: bytes) -> int:
    """Return how many bytes a name takes in an answer to READDIRPLUS."""
    return ENTRY_SIZE + DIRENT.size + (len(name) + 7 & ~7)


NAME_ONLY_ENTRY: Final = bytes(ENTRY_SIZE)
"""Tells no nodeid: the kernel looks the name up when somebody asks for it."""
