"""What do FUSE messages look like as bytes?

The structs, opcodes and flags of include/uapi/linux/fuse.h that the forwarder reads or rewrites.  Pure: no
I/O, no knowledge of the overlay.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple


class Opcode(enum.IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


ANSWERS_WITH_ENTRY: Final = frozenset(
    {Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE}
)
WITHOUT_ANSWER: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY})
ANSWERED_WITHOUT_FILE_SYSTEM: Final = frozenset({Opcode.INTERRUPT, Opcode.OPENDIR, Opcode.RELEASEDIR})
NAMES_OPEN_DIRECTORY: Final = frozenset({Opcode.READDIRPLUS, Opcode.FSYNCDIR})
MAY_KILL_PRIVILEGES: Final = frozenset({Opcode.WRITE, Opcode.SETATTR, Opcode.OPEN})

# INIT flags
ASYNC_READ: Final = 1 << 0
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
SPLICE_FLAGS: Final = 1 << 7 | 1 << 8 | 1 << 9
DO_READDIRPLUS: Final = 1 << 13
ASYNC_DIO: Final = 1 << 15
PARALLEL_DIROPS: Final = 1 << 18
POSIX_ACL: Final = 1 << 20
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
EXPLICIT_INVAL_DATA: Final = 1 << 25
HANDLE_KILLPRIV_V2: Final = 1 << 28

# Flags in requests that say: the caller may not keep suid, sgid and capabilities.
WRITE_KILL_SUIDGID: Final = 1 << 2
OPEN_KILL_SUIDGID: Final = 1 << 0
FATTR_KILL_SUIDGID: Final = 1 << 11

INIT_EXT: Final = 1 << 30
PASSTHROUGH: Final = 1 << 37

NOTIFY_INVALIDATE_INODE: Final = 2
NOTIFY_STORE: Final = 4

NAME_ONLY: Final = 1 << 63
"""Set in a nodeid of a READDIRPLUS reply within the daemon: the kernel gets name and number only."""

PAGE: Final = 4096

_IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
_REQUEST_FIELDS: Final = struct.Struct("=4xIQQ8xI4x")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT_IN: Final = struct.Struct("=IIII")
_INIT_FLAGS_ABOVE_OFFSET: Final = 56
"""Of ``flags2``, the upper half of the flags, which old kernels don't send."""
_OPENED: Final = struct.Struct("=Ii")
"""``open_flags`` and ``backing_id`` of struct fuse_open_out, after its handle."""
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_INVALIDATE_INODE: Final = struct.Struct("=Qqq")
_STORE: Final = struct.Struct("=QQII")
DIRENT: Final = struct.Struct("=QQII")

IN_HEADER_SIZE: Final = _IN_HEADER.size
OUT_HEADER_SIZE: Final = _OUT_HEADER.size

_ENTRY_INODE_OFFSET: Final = 40
"""Of ``attr.ino`` in struct fuse_entry_out, which begins with the nodeid."""
_ATTRIBUTES_VALID_OFFSET: Final = 24
_ATTRIBUTES_VALID_NSEC_OFFSET: Final = 36
ENTRY_SIZE: Final = 128
_WRITE_FLAGS_OFFSET: Final = IN_HEADER_SIZE + 20
_OPEN_FLAGS_OFFSET: Final = IN_HEADER_SIZE + 4
_SIZE_OFFSET: Final = 16
"""Of the number of bytes in struct fuse_read_in and struct fuse_write_in."""
_SETATTR_VALID_OFFSET: Final = IN_HEADER_SIZE

# What a request has at least after its header: bytes, and names that end with a NUL.
_SHAPES: Final[dict[int, tuple[int, int]]] = {
    int(opcode): (IN_HEADER_SIZE + size, names)
    for opcode, size, names in (
        (Opcode.LOOKUP, 0, 1),
        (Opcode.FORGET, 8, 0),
        (Opcode.GETATTR, 16, 0),
        (Opcode.SETATTR, 88, 0),
        (Opcode.SYMLINK, 0, 2),
        (Opcode.MKNOD, 16, 1),
        (Opcode.MKDIR, 8, 1),
        (Opcode.UNLINK, 0, 1),
        (Opcode.RMDIR, 0, 1),
        (Opcode.RENAME, 8, 2),
        (Opcode.LINK, 8, 1),
        (Opcode.OPEN, 8, 0),
        (Opcode.READ, 40, 0),
        (Opcode.WRITE, 40, 0),
        (Opcode.RELEASE, 24, 0),
        (Opcode.FSYNC, 16, 0),
        (Opcode.SETXATTR, 8, 1),
        (Opcode.GETXATTR, 8, 1),
        (Opcode.LISTXATTR, 8, 0),
        (Opcode.REMOVEXATTR, 0, 1),
        (Opcode.FLUSH, 24, 0),
        (Opcode.INIT, 16, 0),
        (Opcode.OPENDIR, 8, 0),
        (Opcode.READDIR, 40, 0),
        (Opcode.RELEASEDIR, 24, 0),
        (Opcode.FSYNCDIR, 16, 0),
        (Opcode.GETLK, 48, 0),
        (Opcode.SETLK, 48, 0),
        (Opcode.SETLKW, 48, 0),
        (Opcode.ACCESS, 8, 0),
        (Opcode.CREATE, 16, 1),
        (Opcode.INTERRUPT, 8, 0),
        (Opcode.BMAP, 16, 0),
        (Opcode.IOCTL, 32, 0),
        (Opcode.POLL, 24, 0),
        (Opcode.NOTIFY_REPLY, 40, 0),
        (Opcode.BATCH_FORGET, 8, 0),
        (Opcode.FALLOCATE, 32, 0),
        (Opcode.READDIRPLUS, 40, 0),
        (Opcode.RENAME2, 16, 2),
        (Opcode.LSEEK, 24, 0),
        (Opcode.COPY_FILE_RANGE, 56, 0),
        (Opcode.SYNCFS, 8, 0),
        (Opcode.TMPFILE, 16, 1),
        (Opcode.STATX, 24, 0),
        (Opcode.COPY_FILE_RANGE_64, 56, 0),
    )
}
_ANY_SHAPE: Final = (IN_HEADER_SIZE, 0)
_NAMES_OF_TWO_FILES: Final = frozenset({Opcode.RENAME, Opcode.RENAME2})
_NAMES_OF_ATTRIBUTES: Final = frozenset({Opcode.GETXATTR, Opcode.REMOVEXATTR})
_NO_FILE_NAMES: Final = frozenset({b"", b".", b".."})
_ENDED_NO_FILE_NAMES: Final = frozenset(name + b"\0" for name in _NO_FILE_NAMES)
_SIZED: Final = frozenset({Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS})
_FORGET_ONE_SIZE: Final = 16
# As plain numbers: they are compared once a request.
_SETXATTR: Final = int(Opcode.SETXATTR)
_TMPFILE: Final = int(Opcode.TMPFILE)
_WRITE: Final = int(Opcode.WRITE)
_BATCH_FORGET: Final = int(Opcode.BATCH_FORGET)


class RequestHeader(NamedTuple):
    """struct fuse_in_header, without its padding."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    user: int
    group: int
    pid: int


class ReplyHeader(NamedTuple):
    """struct fuse_out_header; ``error`` is 0 or a negative errno, ``unique`` 0 in notifications."""

    length: int
    error: int
    unique: int


class InitRequest(NamedTuple):
    """struct fuse_init_in; ``flags`` has all 64."""

    major: int
    minor: int
    max_readahead: int
    flags: int


Buffer = bytes | bytearray | memoryview


def _number(structure: struct.Struct, message: Buffer, offset: int) -> int:
    """Read one number; raises ValueError when the message ends before it."""
    try:
        return int(structure.unpack_from(message, offset)[0])
    except struct.error:
        raise ValueError(f"a FUSE message of {len(message)} bytes ends too early") from None


def request_header(message: Buffer) -> RequestHeader:
    """Read a request's header; raises ValueError when the message is shorter."""
    if len(message) < IN_HEADER_SIZE:
        raise ValueError(f"a FUSE request of {len(message)} bytes has no whole header")
    return RequestHeader(*_IN_HEADER.unpack_from(message)[:7])


def request_fields(message: Buffer) -> tuple[int, int, int, int]:
    """Read what every request is looked at for: opcode, unique, nodeid, pid.

    Raises ValueError when the message is shorter than a header.
    """
    if len(message) < IN_HEADER_SIZE:
        raise ValueError(f"a FUSE request of {len(message)} bytes has no whole header")
    return _REQUEST_FIELDS.unpack_from(message)


def is_well_formed(opcode: int, message: Buffer, most: int) -> bool:
    """Tell whether a request has all that its opcode asks for, names that can be names, and sane sizes.

    The kernel sends no others, and whoever answers a request need not look again.  ``most`` bounds what may
    be asked for at once, in bytes.  An unknown opcode has no shape.
    """
    minimum, names = _SHAPES.get(opcode, _ANY_SHAPE)
    if len(message) < minimum:
        return False
    if names:
        return _has_names(opcode, bytes(message[minimum:]), names)
    if opcode in _SIZED:
        return _number(_U32, message, IN_HEADER_SIZE + _SIZE_OFFSET) <= most
    if opcode == _WRITE:
        return _number(_U32, message, IN_HEADER_SIZE + _SIZE_OFFSET) <= len(message) - minimum
    if opcode == _BATCH_FORGET:
        return len(message) - minimum == _number(_U32, message, IN_HEADER_SIZE) * _FORGET_ONE_SIZE
    return True


def _has_names(opcode: int, text: bytes, count: int) -> bool:
    if opcode == _SETXATTR:
        return text.find(b"\0") > 0
    if not text.endswith(b"\0") or text.count(b"\0") != count:
        return False
    if opcode in _NAMES_OF_ATTRIBUTES:
        return len(text) > 1
    if count == 1:
        return opcode == _TMPFILE or not (b"/" in text or text in _ENDED_NO_FILE_NAMES)
    files = text[:-1].split(b"\0") if opcode in _NAMES_OF_TWO_FILES else [text[: text.index(b"\0")]]
    return not any(name in _NO_FILE_NAMES or b"/" in name for name in files)


def reply_header(message: Buffer) -> ReplyHeader:
    """Read a reply's header; raises ValueError when the message is shorter."""
    if len(message) < OUT_HEADER_SIZE:
        raise ValueError(f"a FUSE reply of {len(message)} bytes has no whole header")
    return ReplyHeader(*_OUT_HEADER.unpack_from(message))


def answer_header(unique: int, size: int) -> bytes:
    """Make the header of the reply that answers a request with a body of ``size`` bytes."""
    return _OUT_HEADER.pack(OUT_HEADER_SIZE + size, 0, unique)


def error_reply(unique: int, error: int) -> bytes:
    """Make the reply that fails a request with a positive errno."""
    return _OUT_HEADER.pack(OUT_HEADER_SIZE, -error, unique)


def opcode_name(opcode: int) -> str:
    """Return an opcode's name, its number where we don't know one."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return str(opcode)


def init_request(message: Buffer) -> InitRequest:
    """Read the INIT request; raises ValueError when it is too short."""
    if len(message) < IN_HEADER_SIZE + _INIT_IN.size:
        raise ValueError("a FUSE INIT request is too short")
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(message, IN_HEADER_SIZE)
    if flags & INIT_EXT and len(message) >= _INIT_FLAGS_ABOVE_OFFSET + _U32.size:
        flags |= _number(_U32, message, _INIT_FLAGS_ABOVE_OFFSET) << 32
    return InitRequest(major, minor, max_readahead, flags)


def limit_size(message: bytearray | memoryview, most: int) -> None:
    """Let a READ, READDIR or READDIRPLUS ask for ``most`` bytes at most."""
    offset = IN_HEADER_SIZE + _SIZE_OFFSET
    _U32.pack_into(message, offset, min(_number(_U32, message, offset), most))


def set_init_flags(message: bytearray | memoryview, flags: int, max_readahead: int) -> None:
    """Change what an INIT request offers; ``flags`` are the lower half."""
    _U32.pack_into(message, IN_HEADER_SIZE + 8, max_readahead)
    _U32.pack_into(message, IN_HEADER_SIZE + 12, flags & 0xFFFFFFFF)


def init_reply(
    unique: int, minor: int, *, flags: int, max_readahead: int, max_write: int, max_background: int
) -> bytes:
    """Make the reply to INIT.  Sizes in bytes; ``max_write`` bounds reads and writes alike.

    With passthrough, backing files may be on file systems that aren't stacked themselves, and others, as the
    kernel's overlayfs, may be stacked on this one (``max_stack_depth`` 1).
    """
    body = _INIT_OUT.pack(
        7,
        minor,
        max_readahead,
        flags & 0xFFFFFFFF,
        max_background,
        max_background * 3 // 4,
        max_write,
        1,
        max_write // PAGE,
        0,
        flags >> 32,
        1 if flags & PASSTHROUGH else 0,
    )
    return answer_header(unique, len(body)) + body


def init_reply_minor(message: Buffer) -> int:
    """Return the protocol minor that an INIT reply speaks."""
    return _number(_U32, message, OUT_HEADER_SIZE + 4)


def invalidate_attributes(nodeid: int) -> bytes:
    """Make the notification that makes the kernel ask again for an inode's attributes, keeping its pages."""
    return _notification(NOTIFY_INVALIDATE_INODE, _INVALIDATE_INODE.pack(nodeid, -1, 0))


def invalidate_listing(nodeid: int) -> bytes:
    """Make the notification that makes the kernel drop what it keeps of a directory's listing."""
    return _notification(NOTIFY_INVALIDATE_INODE, _INVALIDATE_INODE.pack(nodeid, 0, 0))


def set_directory_handle(message: bytearray | memoryview, handle: int) -> None:
    """Give a READDIRPLUS or FSYNCDIR another handle."""
    _U64.pack_into(message, IN_HEADER_SIZE, handle)


def store_data(nodeid: int, size: int) -> bytes:
    """Begin the notification that puts a file's first ``size`` bytes, which follow, in the page cache."""
    return _notification(NOTIFY_STORE, _STORE.pack(nodeid, 0, size, 0), size)


def _notification(kind: int, body: bytes, following: int = 0) -> bytes:
    """Write a notification of which as many bytes as ``following`` come after ``body``."""
    return _OUT_HEADER.pack(OUT_HEADER_SIZE + len(body) + following, kind, 0) + body


def interrupted_unique(message: Buffer) -> int:
    """Return which request an INTERRUPT is about."""
    return _number(_U64, message, IN_HEADER_SIZE)


def kills_privileges(opcode: int, message: Buffer) -> bool:
    """Tell whether a request says that suid, sgid and capabilities must go (FUSE_HANDLE_KILLPRIV_V2)."""
    if opcode == Opcode.WRITE:
        return bool(_number(_U32, message, _WRITE_FLAGS_OFFSET) & WRITE_KILL_SUIDGID)
    if opcode == Opcode.SETATTR:
        return bool(_number(_U32, message, _SETATTR_VALID_OFFSET) & FATTR_KILL_SUIDGID)
    if opcode == Opcode.OPEN:
        return bool(_number(_U32, message, _OPEN_FLAGS_OFFSET) & OPEN_KILL_SUIDGID)
    return False


def entry_nodeid(reply: Buffer, offset: int = OUT_HEADER_SIZE) -> int:
    """Return the nodeid of the struct fuse_entry_out at ``offset`` of a reply; 0 says there is none."""
    return _number(_U64, reply, offset)


def set_entry_inode(reply: bytearray | memoryview, inode: int, offset: int = OUT_HEADER_SIZE) -> None:
    """Set st_ino in the struct fuse_entry_out at ``offset`` of a reply."""
    if len(reply) < offset + ENTRY_SIZE:
        raise ValueError(f"a FUSE reply of {len(reply)} bytes has no whole entry")
    _U64.pack_into(reply, offset + _ENTRY_INODE_OFFSET, inode)


def leave_attributes_invalid(reply: bytearray | memoryview) -> None:
    """Let the kernel ask for the attributes in a reply with an entry again when it wants them."""
    _U64.pack_into(reply, OUT_HEADER_SIZE + _ATTRIBUTES_VALID_OFFSET, 0)
    _U32.pack_into(reply, OUT_HEADER_SIZE + _ATTRIBUTES_VALID_NSEC_OFFSET, 0)


def opened_handle(opcode: int, reply: Buffer) -> int:
    """Return the handle in a reply to OPEN or CREATE."""
    return _number(_U64, reply, _opened_offset(opcode))


def set_opened(opcode: int, reply: bytearray | memoryview, flags: int, backing: int) -> None:
    """Say in a reply to OPEN or CREATE how the file is read and written (FOPEN flags, backing file)."""
    offset = _opened_offset(opcode) + _U64.size
    if len(reply) < offset + _OPENED.size:
        raise ValueError(f"a FUSE reply of {len(reply)} bytes has no whole struct fuse_open_out")
    _OPENED.pack_into(reply, offset, flags, backing)


def _opened_offset(opcode: int) -> int:
    return OUT_HEADER_SIZE + (ENTRY_SIZE if opcode == Opcode.CREATE else 0)


def released_handle(message: Buffer) -> int:
    """Return which handle a RELEASE is about."""
    return _number(_U64, message, IN_HEADER_SIZE)


def directory_entries(reply: Buffer) -> Iterator[int]:
    """Yield the offset of each struct fuse_direntplus in a READDIRPLUS reply."""
    position = OUT_HEADER_SIZE
    end = len(reply)
    while position + ENTRY_SIZE + DIRENT.size <= end:
        yield position
        name_length = DIRENT.unpack_from(reply, position + ENTRY_SIZE)[2]
        position += (ENTRY_SIZE + DIRENT.size + name_length + 7) & ~7


def leave_name_only(reply: bytearray | memoryview, offset: int) -> None:
    """Take the nodeid from the struct fuse_direntplus at ``offset``: the kernel will look the name up."""
    _U64.pack_into(reply, offset, 0)


def set_directory_entry_inode(reply: bytearray | memoryview, inode: int, offset: int) -> None:
    """Set st_ino and d_ino in the struct fuse_direntplus at ``offset``."""
    set_entry_inode(reply, inode, offset)
    _U64.pack_into(reply, offset + ENTRY_SIZE, inode)
