"""What does one entry of a changeset tar say, and which headers say nothing sensible?

Pure: from the bytes of headers to an `Entry` and back to nothing else. Blocks are read by the standard
library's tarfile, extended headers here: exactly, with times in nanoseconds and attributes as bytes.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.limits import MAX_NAME, MAX_PATH

Kind = Literal["file", "directory", "symlink", "hard link", "character device", "block device", "fifo"]

BLOCK: Final = 512
ENCODING: Final = "utf-8"
ERRORS: Final = "surrogateescape"

XATTR_KEYWORD: Final = b"SCHILY.xattr."
"""In front of an extended attribute's name in a PAX header."""

_KINDS: Final[dict[bytes, Kind]] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
    tarfile.DIRTYPE: "directory",
}
_GNU_MAGIC: Final = b"ustar  \0"
_NUMBER: Final = re.compile(rb"[0-9]{1,19}")
_TIME_DIGITS: Final = 13
_TIME: Final = re.compile(rb"(-?)([0-9]{1,%d})(?:\.([0-9]*))?" % _TIME_DIGITS)
_MAX_ID: Final = (1 << 32) - 2
_MAX_SIZE: Final = (1 << 63) - 1

Fragments = tuple[tuple[int, int], ...]
"""Where a sparse file has data: (offset, length) in bytes, ascending."""


@dataclass(slots=True)
class Entry:
    """One entry.

    Attributes:
        path: where it is, from the layer's root, without leading or trailing slash; empty for the root
            itself.
        kind: what it is.
        mode: permission bits with suid, sgid and sticky.
        uid: the owner's number.
        gid: the group's number.
        mtime: nanoseconds since the epoch.
        size: bytes of a file, holes included; 0 for all else.
        payload: bytes of it that follow in the tar: `size`, less for sparse files.
        target: of a symlink, any bytes; of a hard link, a path like `path`.
        device: major and minor number.
        xattrs: extended attributes by name.
        fragments: where a sparse file's payload belongs; None for all others.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    payload: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    fragments: Fragments | None = None


@dataclass(slots=True)
class Extended:
    """What the headers in front of an entry's own say about it.

    Attributes:
        records: the PAX header's.
        sparse_numbers: the values of GNU.sparse.offset and numbytes, which repeat, in turn (format 0.0).
        name: GNU's long name.
        target: GNU's long link name.
    """

    records: dict[bytes, bytes] = field(default_factory=dict)
    sparse_numbers: list[bytes] = field(default_factory=list)
    name: bytes | None = None
    target: bytes | None = None


def parse_pax(data: bytes, into: Extended) -> None:
    """Read the records of a PAX header: ``LENGTH KEYWORD=VALUE`` and a line's end (pax(1)).

    Raises:
        ImageError: it is malformed.
    """
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 21)
        length = data[position : max(space, 0)]
        end = position + int(length) if _NUMBER.fullmatch(length) else 0
        if not space < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ImageError("an extended header is malformed")
        keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not keyword:
            raise ImageError("an extended header has a record without a keyword")
        if keyword in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            into.sparse_numbers.append(value)
        else:
            into.records[keyword] = value
        position = end


def parse_block(block: bytes) -> tarfile.TarInfo:
    """Read a header block.

    Raises:
        ImageError: it is none: the archive is damaged, or no tar.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, ENCODING, ERRORS)
    except tarfile.HeaderError as error:
        raise ImageError(f"this is no tar header ({error}): the archive is damaged, or no tar") from error
    if block[257:265] == _GNU_MAGIC:
        # GNU's format keeps times where the POSIX one keeps the beginning of a long name.
        info.name = block[:100].partition(b"\0")[0].decode(ENCODING, ERRORS)
    if info.size < 0:
        raise ImageError(f"{shown(encoded(info.name))}: its size is negative")
    return info


def encoded(text: str) -> bytes:
    """Return the bytes that tarfile decoded."""
    return text.encode(ENCODING, ERRORS)


def make_entry(info: tarfile.TarInfo, extended: Extended) -> Entry:
    """Put together what an entry's headers say; its sparse map isn't looked at.

    Raises:
        ImageError: they say what can't be.
    """
    records = extended.records
    name = records.get(b"GNU.sparse.name") or records.get(b"path") or extended.name or encoded(info.name)
    kind = _KINDS.get(info.type)
    if kind is None:
        raise ImageError(f"{shown(name)}: an entry of type {info.type!r}, which no layer may have")
    if info.type == tarfile.AREGTYPE and name.endswith(b"/"):
        kind = "directory"
    path = clean_path(name)
    if not path and kind != "directory":
        raise ImageError(f"{shown(name)!r}: the layer's root can be nothing but a directory")
    entry = Entry(
        path,
        kind,
        info.mode & 0o7777,
        _id(records.get(b"uid"), info.uid, path),
        _id(records.get(b"gid"), info.gid, path),
        _time(records.get(b"mtime"), int(info.mtime), path),
    )
    if kind == "file":
        entry.size = entry.payload = _size(records.get(b"size"), info.size, path)
    elif kind in ("symlink", "hard link"):
        target = records.get(b"linkpath") or extended.target or encoded(info.linkname)
        entry.target = _symlink_target(target, path) if kind == "symlink" else clean_path(target)
    elif kind in ("character device", "block device"):
        entry.device = _device(info, path)
    entry.xattrs = _xattrs(records, path)
    return entry


def clean_path(name: bytes) -> bytes:
    """Return a name from an archive as a path from the layer's root.

    A slash in front means the layer's root, as in docker and containerd; ``.`` means nothing.

    Raises:
        ImageError: it leads out of the layer, is too long, or has a NUL byte.
    """
    if b"\0" in name:
        raise ImageError(f"{shown(name)!r}: the name has a NUL byte")
    components = [component for component in name.split(b"/") if component not in (b"", b".")]
    if b".." in components:
        raise ImageError(f"{shown(name)}: the name has '..', which could lead out of the layer")
    path = b"/".join(components)
    if len(path) > MAX_PATH:
        raise ImageError(f"{shown(name)}: the name has {len(path)} bytes; a path has {MAX_PATH} at most")
    for component in components:
        if len(component) > MAX_NAME:
            raise ImageError(
                f"{shown(name)}: a part of the name has {len(component)} bytes; {MAX_NAME} is the most"
            )
    return path


def parse_time(value: bytes, path: bytes) -> int:
    """Read a PAX time: seconds with a fraction, as nanoseconds since the epoch.

    Raises:
        ImageError: it is no time.
    """
    match = _TIME.fullmatch(value)
    if match is None:
        raise ImageError(f"{shown(path)}: {shown(value)!r} is no time")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * 10**9 + int((fraction or b"0")[:9].ljust(9, b"0"))
    return -nanoseconds if sign else nanoseconds


def format_time(nanoseconds: int) -> str:
    """Write a PAX time, without zeros at its end."""
    sign, absolute = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    seconds, fraction = divmod(absolute, 10**9)
    return f"{sign}{seconds}.{fraction:09}".rstrip("0").rstrip(".")


def parse_number(value: bytes, path: bytes) -> int:
    """Read a decimal number that fits a file's size.

    Raises:
        ImageError: it is none.
    """
    if not _NUMBER.fullmatch(value) or int(value) > _MAX_SIZE:
        raise ImageError(f"{shown(path)}: {shown(value)!r} is no number that a header may have")
    return int(value)


def _time(record: bytes | None, header: int, path: bytes) -> int:
    if record is not None:
        return parse_time(record, path)
    # A binary number may have 95 bits.
    if abs(header) >= 10**_TIME_DIGITS:
        raise ImageError(f"{shown(path)}: {header} seconds since 1970 is no time")
    return header * 10**9


def _size(record: bytes | None, header: int, path: bytes) -> int:
    size = header if record is None else parse_number(record, path)
    if size > _MAX_SIZE:
        raise ImageError(f"{shown(path)}: its size, {size} bytes, is more than a file can have")
    return size


def _id(record: bytes | None, header: int, path: bytes) -> int:
    number = header if record is None else parse_number(record, path)
    if not 0 <= number <= _MAX_ID:
        raise ImageError(f"{shown(path)}: its owner or group {number} is none that Linux has")
    return number


def _symlink_target(target: bytes, path: bytes) -> bytes:
    if not target or b"\0" in target or len(target) > MAX_PATH:
        raise ImageError(f"{shown(path)}: the symlink's target is empty, has a NUL byte, or is too long")
    return target


def _device(info: tarfile.TarInfo, path: bytes) -> tuple[int, int]:
    major, minor = info.devmajor, info.devminor
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ImageError(f"{shown(path)}: device {major}:{minor} is none that Linux has")
    if info.type == tarfile.CHRTYPE and major == minor == 0:
        raise ImageError(
            f"{shown(path)}: a character device 0/0 is a whiteout on disk, and none in a layer's tar; "
            "there, write an empty file '.wh.NAME'"
        )
    return major, minor


def _xattrs(records: Mapping[bytes, bytes], path: bytes) -> dict[bytes, bytes]:
    found = {}
    for keyword, value in records.items():
        if keyword.startswith(XATTR_KEYWORD):
            name = keyword.removeprefix(XATTR_KEYWORD)
            if not name or b"\0" in name or len(name) > MAX_NAME:
                raise ImageError(f"{shown(path)}: {shown(name)!r} is no name of an extended attribute")
            found[name] = value
    return found
