"""Which mode and ACLs does a new object get from its directory's default ACL?

Pure: it reads and writes values of the extended attributes ``system.posix_acl_*`` and may not touch a file.
Whether a caller may do something is the kernel's decision (``default_permissions``), not made here.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

ACL_PREFIX: Final = b"system.posix_acl_"
HEADER: Final = struct.Struct("<I")
"""struct posix_acl_xattr_header (include/uapi/linux/posix_acl_xattr.h): version."""
ENTRY: Final = struct.Struct("<HHI")
"""struct posix_acl_xattr_entry: tag, permissions, user or group id."""
_VERSION: Final = 2
_PERMISSIONS: Final = 0o7


class Tag(enum.IntEnum):
    """Whom an entry is about; in this order in every valid ACL (fs/posix_acl.c: posix_acl_valid)."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


_TAGS: Final = frozenset(Tag)
_NAMED: Final = frozenset({Tag.USER, Tag.GROUP})
_REQUIRED: Final = (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER)


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a new object starts with.

    Attributes:
        mode: the mode, its permission bits limited by the default ACL, everything else as asked for.
        access: the value of system.posix_acl_access to set; None when `mode` says it all.
        default: the value of system.posix_acl_default to set; None when the object is no directory.
    """

    mode: int
    access: bytes | None
    default: bytes | None


@dataclass(slots=True)
class _Entry:
    tag: Tag
    permissions: int
    identity: int


def inherit(default: bytes, mode: int, *, directory: bool) -> Inherited:
    """Apply a directory's default ACL to an object created in it (fs/posix_acl.c: posix_acl_create).

    A default ACL takes the place of the caller's umask: apply the umask where there is none, not here.
    Symbolic links inherit nothing; don't ask for them.

    Args:
        default: the directory's system.posix_acl_default.
        mode: the mode that the caller asked for, umask not applied.
        directory: whether the new object is a directory.

    Returns:
        The object's mode and ACLs.

    Raises:
        ValueError: `default` is no valid ACL.
    """
    entries = _parse(default)
    limited = _limit(entries, mode)
    extended = any(entry.tag in _NAMED or entry.tag is Tag.MASK for entry in entries)
    return Inherited(limited, _format(entries) if extended else None, default if directory else None)


def _limit(entries: list[_Entry], mode: int) -> int:
    """Leave in entries and mode only what both grant (fs/posix_acl.c: posix_acl_create_masq)."""
    by_tag = {entry.tag: entry for entry in entries}
    # With a mask, the group's bits of a mode stand for the mask, and the group's own entry stays as it is.
    group_class = by_tag.get(Tag.MASK, by_tag[Tag.GROUP_OBJ])
    for entry, shift in ((by_tag[Tag.USER_OBJ], 6), (group_class, 3), (by_tag[Tag.OTHER], 0)):
        entry.permissions &= mode >> shift
        mode &= ~(_PERMISSIONS << shift) | entry.permissions << shift
    return mode


def _parse(acl: bytes) -> list[_Entry]:
    """Read an ACL (fs/posix_acl.c: posix_acl_from_xattr) and check it (posix_acl_valid)."""
    if len(acl) < HEADER.size or (len(acl) - HEADER.size) % ENTRY.size:
        raise ValueError(f"an ACL can't be {len(acl)} bytes long")
    (version,) = HEADER.unpack_from(acl)
    if version != _VERSION:
        raise ValueError(f"ACL of version {version}, not {_VERSION}")
    entries = [_entry(*fields) for fields in ENTRY.iter_unpack(acl[HEADER.size :])]
    tags = [entry.tag for entry in entries]
    if tags != sorted(tags):
        raise ValueError("the entries of an ACL are out of order")
    if any(tags.count(tag) != 1 for tag in _REQUIRED):
        raise ValueError("an ACL needs one entry each for owner, group and others")
    if tags.count(Tag.MASK) > 1 or (Tag.MASK not in tags and not _NAMED.isdisjoint(tags)):
        raise ValueError("an ACL that names users or groups needs one mask")
    return entries


def _entry(tag: int, permissions: int, identity: int) -> _Entry:
    if tag not in _TAGS or permissions & ~_PERMISSIONS:
        raise ValueError(f"an ACL has an entry of tag {tag:#x} with permissions {permissions:#o}")
    return _Entry(Tag(tag), permissions, identity)


def _format(entries: list[_Entry]) -> bytes:
    packed = (ENTRY.pack(entry.tag, entry.permissions, entry.identity) for entry in entries)
    return HEADER.pack(_VERSION) + b"".join(packed)
