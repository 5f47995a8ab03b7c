"""How does a layer say "gone", "opaque", "moved", "copied up": the grammar of overlay marks.

Names and values only, in each dialect (kernel overlayfs with ``trusted.overlay.*`` or ``user.overlay.*``,
AUFS and OCI names, fuse-overlayfs's attribute). Pure: this module may not read a layer, and doesn't know
which marks the mount's options follow, nor what a mark does to the merged view.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from dataclasses import dataclass
from typing import Final, Literal

Mark = Literal[
    "opaque",
    "redirect",
    "metacopy",
    "origin",
    "impure",
    "whiteout",
    "nlink",
    "upper",
    "uuid",
    "protattr",
]
"""The names of overlayfs's extended attributes, without prefix (fs/overlayfs/util.c: ovl_xattr_table)."""

XATTR_NAME_MAX: Final = 255
"""Bytes in an extended attribute's name (include/uapi/linux/limits.h)."""

_ESCAPE: Final = b"overlay."


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where overlayfs keeps its extended attributes.

    Attributes:
        prefix: what their names begin with, including the last dot.
    """

    prefix: bytes

    def attribute(self, mark: Mark) -> bytes:
        """Return the full name of a mark's extended attribute."""
        return self.prefix + mark.encode()


TRUSTED: Final = Dialect(b"trusted.overlay.")
"""Needs CAP_SYS_ADMIN in the initial user namespace."""
USER: Final = Dialect(b"user.overlay.")
"""What the option ``userxattr`` chooses."""


# Whiteouts and opaque directories


def is_whiteout_device(mode: int, rdev: int) -> bool:
    """Whether a file of this st_mode and st_rdev is a whiteout: a character device 0/0."""
    return rdev == 0 and stat.S_ISCHR(mode)


AUFS_PREFIX: Final = b".wh."
"""A file ``.wh.NAME`` hides NAME in the layers below (also the OCI image specification's whiteout)."""
AUFS_OPAQUE: Final = b".wh..wh..opq"
"""A directory with an entry of this name is opaque."""
_AUFS_META: Final = b".wh..wh."


def aufs_whiteout(name: bytes) -> bytes:
    """Return the name of the file that hides `name`."""
    return AUFS_PREFIX + name


def is_aufs_mark(name: bytes) -> bool:
    """Whether an entry of this name is a mark, which is never shown and can't be created."""
    return name.startswith(AUFS_PREFIX)


def aufs_hidden_name(name: bytes) -> bytes | None:
    """Return the name that an entry `name` hides; None when it hides none, like AUFS's own files."""
    if not name.startswith(AUFS_PREFIX) or name.startswith(_AUFS_META):
        return None
    return name.removeprefix(AUFS_PREFIX) or None


_FUSE_OVERLAYFS_OPAQUE: Final = b"user.fuseoverlayfs.opaque"
OPAQUE_ATTRIBUTES: Final = (
    TRUSTED.attribute("opaque"),
    USER.attribute("opaque"),
    _FUSE_OVERLAYFS_OPAQUE,
)
"""The extended attributes that make a directory opaque when `is_opaque` says so of their value."""


def is_opaque(attribute: bytes, value: bytes) -> bool:
    """Whether `value` of one of `OPAQUE_ATTRIBUTES` makes the directory opaque: nothing below it shows.

    The kernel wants just ``y`` (fs/overlayfs/util.c: ovl_get_dir_xattr_val), fuse-overlayfs a leading ``y``.
    """
    return value.startswith(b"y") if attribute == _FUSE_OVERLAYFS_OPAQUE else value == b"y"


def holds_xattr_whiteouts(attribute: bytes, value: bytes) -> bool:
    """Whether `value` of one of `OPAQUE_ATTRIBUTES` says that a lower directory holds xattr whiteouts.

    Those are empty regular files with the mark ``whiteout``; the directory itself still merges.
    """
    return attribute != _FUSE_OVERLAYFS_OPAQUE and value == b"x"


# Redirects


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where the lookup of a directory (or of a metacopy file's data) goes on in the layers below.

    Attributes:
        names: the path's components; exactly one when it isn't absolute.
        absolute: whether they are walked from the root of the layers, or the one name replaces
            the looked-up one in the same parent.
    """

    names: tuple[bytes, ...]
    absolute: bool


def parse_redirect(value: bytes) -> Redirect:
    """Read the mark ``redirect``.

    As in the kernel, a NUL byte ends the value (fs/overlayfs/util.c: ovl_get_redirect_xattr). Names that are
    empty, ``.`` or ``..`` are refused here, so that no redirect leaves its layer; the kernel's lookup refuses
    them with EACCES.

    Args:
        value: the attribute's value.

    Returns:
        The redirect.

    Raises:
        ValueError: the value is malformed; the kernel answers EINVAL.
    """
    path = value.partition(b"\0")[0]
    absolute = path.startswith(b"/")
    names = tuple(path[1:].split(b"/")) if absolute else (path,)
    if any(name in (b"", b".", b"..") or b"/" in name for name in names):
        raise ValueError(f"malformed redirect {value!r}")
    return Redirect(names, absolute)


# Origins

_ORIGIN: Final = struct.Struct("=BBBBB16s")
"""struct ovl_fb (fs/overlayfs/overlayfs.h): version, magic, len, flags, type, uuid; the handle follows."""
_ORIGIN_VERSION: Final = 0
_ORIGIN_MAGIC: Final = 0xFB
_BIG_ENDIAN: Final = 1
_ANY_ENDIAN: Final = 2
_PATH_UPPER: Final = 4
_KNOWN_FLAGS: Final = _BIG_ENDIAN | _ANY_ENDIAN | _PATH_UPPER
_CPU_ENDIAN: Final = _BIG_ENDIAN if sys.byteorder == "big" else 0
MAX_HANDLE_SIZE: Final = 128
"""Bytes in a file handle (include/linux/exportfs.h: MAX_HANDLE_SZ)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The lower object that an object of the upper was copied up from.

    Attributes:
        handle_type: the file handle's type, as name_to_handle_at(2) returns it.
        handle: the file handle, opaque to everyone but its file system.
        uuid: 16 bytes, the UUID of the file system that it belongs to; zeros where that has none.
        upper: whether it was made from an object in an upper layer.
    """

    handle_type: int
    handle: bytes
    uuid: bytes
    upper: bool = False


def encode_origin(handle_type: int, handle: bytes, uuid: bytes) -> bytes:
    """Write the mark ``origin`` for a lower object (fs/overlayfs/copy_up.c: ovl_encode_real_fh).

    Args:
        handle_type: 1 to 254 (0 is a file system's root, 255 invalid).
        handle: the file handle, 1 to 128 bytes.
        uuid: the file system's UUID, 16 bytes.

    Returns:
        The attribute's value.

    Raises:
        ValueError: an argument has no place in the format.
    """
    if not 0 < handle_type < 0xFF:
        raise ValueError(f"file handle type {handle_type} is not 1 to 254")
    if not 0 < len(handle) <= MAX_HANDLE_SIZE:
        raise ValueError(f"file handle of {len(handle)} bytes, not 1 to {MAX_HANDLE_SIZE}")
    if len(uuid) != 16:
        raise ValueError(f"UUID of {len(uuid)} bytes, not 16")
    length = _ORIGIN.size + len(handle)
    return _ORIGIN.pack(_ORIGIN_VERSION, _ORIGIN_MAGIC, length, _CPU_ENDIAN, handle_type, uuid) + handle


def decode_origin(value: bytes) -> Origin | None:
    """Read the mark ``origin`` (fs/overlayfs/namei.c: ovl_check_fb_len, ovl_get_fh).

    Args:
        value: the attribute's value.

    Returns:
        The origin; None when it is unknown, which is what an empty value says, and what follows from a newer
        version, unknown flags, the other byte order or a malformed value.
    """
    if len(value) <= _ORIGIN.size:
        return None
    version, magic, length, flags, handle_type, uuid = _ORIGIN.unpack_from(value)
    if magic != _ORIGIN_MAGIC or version > _ORIGIN_VERSION or flags & ~_KNOWN_FLAGS:
        return None
    if not flags & _ANY_ENDIAN and flags & _BIG_ENDIAN != _CPU_ENDIAN:
        return None
    if not _ORIGIN.size < length <= len(value):
        return None
    return Origin(handle_type, value[_ORIGIN.size : length], uuid, bool(flags & _PATH_UPPER))


# Attributes on disk and as users see them


def is_own_attribute(dialect: Dialect, name: bytes) -> bool:
    """Whether the on-disk attribute `name` is a mark of this dialect, and not a user's, escaped."""
    return name.startswith(dialect.prefix) and not name.startswith(_ESCAPE, len(dialect.prefix))


def to_disk(dialect: Dialect, name: bytes) -> bytes:
    """Return where a user's attribute is kept (fs/overlayfs/xattrs.c: ovl_xattr_escape_name).

    A name that looks like a mark of ours is kept under another, so that an overlay can be stored in an
    overlay: ``trusted.overlay.X`` as ``trusted.overlay.overlay.X``.

    Args:
        dialect: the mount's.
        name: the attribute that the user named, to get, set or remove.

    Returns:
        Its name in the layers.

    Raises:
        OSError: EINVAL when the name is the bare prefix, EOPNOTSUPP when the escaped name would be too long.
    """
    if not name.startswith(dialect.prefix):
        return name
    rest = name.removeprefix(dialect.prefix)
    if not rest:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    escaped = dialect.prefix + _ESCAPE + rest
    if len(escaped) > XATTR_NAME_MAX:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), name)
    return escaped


def from_disk(dialect: Dialect, name: bytes) -> bytes | None:
    """Return the name under which a listing shows an attribute of a layer's object; None hides it."""
    if not name.startswith(dialect.prefix):
        return name
    rest = name.removeprefix(dialect.prefix)
    return dialect.prefix + rest.removeprefix(_ESCAPE) if rest.startswith(_ESCAPE) else None
