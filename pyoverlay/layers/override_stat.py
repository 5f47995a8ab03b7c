"""How is an owner, mode and type that a layer can't have itself written into an extended attribute?

The grammar of ``override_stat``: containers/storage and fuse-overlayfs keep in it what a program is to see of
an object where the daemon may not chown, or a file system knows but one owner.  Pure: names and values only.
It may not read a layer.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import Final

from pyoverlay.layers.marks import XATTR_NAME_MAX

_ESCAPE: Final = b"user.containers.override_"
"""What goes before users' attributes of names that are the layer's own (encode_xattr_name)."""
_SECURITY: Final = b"security."
_ACL: Final = b"system.posix_acl_"
_PERMISSIONS: Final = 0o7777
_LARGEST_ID: Final = 2**32 - 2
_LARGEST_MAJOR: Final = 2**12 - 1
_LARGEST_MINOR: Final = 2**20 - 1


@dataclass(frozen=True, slots=True)
class Spelling:
    """One of the names that the record has.

    Attributes:
        attribute: the extended attribute that holds the record.
        stores_security: whether users' ``security.*`` attributes are stored with it, where the daemon may set
            them: as ``user.containers.override_security.*``.
    """

    attribute: bytes
    stores_security: bool = False

    def _is_reserved(self, name: bytes) -> bool:
        if name.startswith(_ESCAPE) or name in _RECORDS:
            return True
        return self.stores_security and name.startswith(_SECURITY)

    def to_disk(self, name: bytes) -> bytes:
        """Return where a user's attribute is kept in a layer of this spelling.

        A user who could write a record would make themselves root.

        Raises:
            OSError: EOPNOTSUPP for a name that is too long once escaped.
        """
        if not self._is_reserved(name):
            return name
        escaped = _ESCAPE + name
        if len(escaped) > XATTR_NAME_MAX:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), name)
        return escaped

    def from_disk(self, name: bytes) -> bytes | None:
        """Return the name under which users know an attribute of a layer's object; None hides it."""
        if name.startswith(_ESCAPE):
            inner = name.removeprefix(_ESCAPE)
            return inner if self._is_reserved(inner) else None
        return None if is_acl(name) or self._is_reserved(name) else name


def is_acl(name: bytes) -> bool:
    """Whether an attribute is an ACL, of which there are none beside records: it would name other owners."""
    return name.startswith(_ACL)


PRIVILEGED: Final = Spelling(b"security.fuseoverlayfs.override_stat")
"""Needs CAP_SYS_ADMIN; ``xattr_permissions=1``."""
CONTAINERS: Final = Spelling(b"user.containers.override_stat", stores_security=True)
"""What containers/storage writes with ``force_mask``; ``xattr_permissions=2``."""
FUSE_OVERLAYFS: Final = Spelling(b"user.fuseoverlayfs.override_stat")
"""What fuse-overlayfs writes with ``xattr_permissions=2``."""
SPELLINGS: Final = (PRIVILEGED, CONTAINERS, FUSE_OVERLAYFS)
"""The one that a layer's root has counts in the layer; of several the first (direct_load_data_source)."""
_RECORDS: Final = frozenset(spelling.attribute for spelling in SPELLINGS)


def spelling_among(names: list[bytes]) -> Spelling | None:
    """Return the spelling of a layer whose root has the attributes ``names``; None: it keeps no records."""
    return next((spelling for spelling in SPELLINGS if spelling.attribute in names), None)


@dataclass(frozen=True, slots=True)
class Record:
    """What is to be shown of an object.

    Attributes:
        user: its owner, from 0 to 2**32 - 2; ``group`` likewise.
        mode: permission bits with suid, sgid and sticky, and the type (stat.S_IFMT), 0 where none is told.
        device: st_rdev of a device; 0 for others.
    """

    user: int
    group: int
    mode: int
    device: int = 0


_VALUE: Final = re.compile(
    rb"([0-9]{1,10}):([0-9]{1,10}):([0-7]{1,7})(?::([a-z]+)(?:-([0-9]+)-([0-9]+)[^:]*)?)?\0?"
)
_TYPES: Final = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_NAMES: Final = {kind: name for name, kind in _TYPES.items()}
_DEVICES: Final = frozenset({stat.S_IFBLK, stat.S_IFCHR})


def parse(value: bytes) -> Record:
    """Read ``user:group:octal-mode[:type]`` (containers/storage, pkg/idtools: parseOverrideXattr).

    Without the type's name, those bits of the mode tell it that fuse-overlayfs leaves there.

    Raises:
        ValueError: it is malformed, or says what no object can be.
    """
    matched = _VALUE.fullmatch(value)
    if matched is None:
        raise ValueError(f"{value!r} is not USER:GROUP:MODE:TYPE")
    user, group, mode = int(matched[1]), int(matched[2]), int(matched[3], 8)
    if max(user, group) > _LARGEST_ID:
        raise ValueError(f"{value!r} names an id that nobody can have")
    named = matched[4]
    kind = stat.S_IFMT(mode) if named is None else _TYPES.get(named)
    if kind is None or (kind and kind not in _NAMES) or mode & ~(_PERMISSIONS | stat.S_IFMT(0o177777)):
        raise ValueError(f"{value!r} names a type that there isn't")
    return Record(user, group, kind | mode & _PERMISSIONS, _device(value, kind, matched[5], matched[6]))


def _device(value: bytes, kind: int, major: bytes | None, minor: bytes | None) -> int:
    if kind not in _DEVICES:
        if major is not None:
            raise ValueError(f"{value!r} numbers what is no device")
        return 0
    if major is None or minor is None:
        raise ValueError(f"{value!r} is a device without its numbers")
    if int(major) > _LARGEST_MAJOR or int(minor) > _LARGEST_MINOR:
        raise ValueError(f"{value!r} numbers a device that there can't be")
    number = os.makedev(int(major), int(minor))
    if number == 0 and kind == stat.S_IFCHR:
        # It would be a whiteout, which lists as one only where it is one on disk.
        raise ValueError(f"{value!r} is a whiteout's device")
    return number


def format_record(record: Record) -> bytes:
    """Write a record as containers/storage does (FormatContainersOverrideXattrDevice); it has a type."""
    kind = stat.S_IFMT(record.mode)
    name = _NAMES[kind]
    if kind in _DEVICES:
        name += b"-%d-%d" % (os.major(record.device), os.minor(record.device))
    return b"%d:%d:%04o:%s" % (record.user, record.group, record.mode & _PERMISSIONS, name)


def may_bear_record(mode: int) -> bool:
    """Whether an object that has this st_mode on disk can have a record: others can't have ``user.*``."""
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def shown(status: os.stat_result, record: Record) -> os.stat_result:
    """Return what stat is to show of an object that has ``status`` on disk, and a record.

    Raises:
        ValueError: the record makes a directory of what is none, or the other way round.
    """
    on_disk = stat.S_IFMT(status.st_mode)
    kind = stat.S_IFMT(record.mode) or on_disk
    if (kind == stat.S_IFDIR) != (on_disk == stat.S_IFDIR):
        raise ValueError("a record can't make a directory of a file, or a file of a directory")
    fields = (kind | record.mode & _PERMISSIONS, *status[1:4], record.user, record.group, *status[6:])
    rest = {name: getattr(status, name) for name in _UNNUMBERED}
    return os.stat_result(fields, rest | {"st_rdev": record.device})


_UNNUMBERED: Final = (
    "st_atime",
    "st_mtime",
    "st_ctime",
    "st_atime_ns",
    "st_mtime_ns",
    "st_ctime_ns",
    "st_blksize",
    "st_blocks",
)
"""Fields of os.stat_result beyond the ten that it has as a tuple."""


def after_change_of_owner(mode: int) -> int:
    """Return the mode that chown(2) leaves: suid falls, and sgid where the group may execute.

    fs/attr.c: setattr_should_drop_suidgid; directories keep theirs.
    """
    if stat.S_ISDIR(mode):
        return mode
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
