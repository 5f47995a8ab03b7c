"""Which user and group does the mount show for those on disk, and which are stored for a caller's?

Pure: numbers and values of extended attributes, both ways. What isn't mapped is shown as the overflow id and
can't be stored, as on the kernel's idmapped mounts. It may not touch a file.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyoverlay.layers.syscalls import error
from pyoverlay.options import IdRange
from pyoverlay.overlay.access_control import ENTRY, HEADER, Tag

OVERFLOW_ID: Final = 65534
"""What the kernel shows for an id that has no place in a map (/proc/sys/kernel/overflowuid's default)."""

_NOBODY: Final = 2**32 - 2
"""The last valid id, whom no user of a system is given."""

_CAPABILITY: Final = struct.Struct("<I16s")
"""struct vfs_cap_data (include/uapi/linux/capability.h): magic with revision and flags, the two sets."""
_CAPABILITY_OF_NAMESPACE: Final = struct.Struct("<I16sI")
"""struct vfs_ns_cap_data: the same, and the user who is root where the capabilities count."""
_REVISION: Final = 0xFF000000
_REVISION_2: Final = 0x02000000
_REVISION_3: Final = 0x03000000


class IdMap:
    """The ids of one kind, users' or groups'. No ranges: each id is itself."""

    __slots__ = ("_overflow", "_to_disk", "_to_shown")

    def __init__(self, ranges: tuple[IdRange, ...] = (), overflow: int = OVERFLOW_ID) -> None:
        """Map ``ranges``, which overlap on neither side; ``overflow`` stands for everybody else."""
        self._to_shown = ranges
        self._to_disk = tuple((shown, on_disk, count) for on_disk, shown, count in ranges)
        self._overflow = overflow

    def shown_or_none(self, on_disk: int) -> int | None:
        """Return the id shown for one on disk, None when it has none."""
        return _mapped(on_disk, self._to_shown)

    def shown(self, on_disk: int) -> int:
        """Return the id shown for one on disk, the overflow id when it has none."""
        shown = self.shown_or_none(on_disk)
        return self._overflow if shown is None else shown

    def stored_or_none(self, shown: int) -> int | None:
        """Return the id on disk for one that a caller names, None when it has none."""
        return _mapped(shown, self._to_disk)

    def stored(self, shown: int, number: int = errno.EOVERFLOW) -> int:
        """Return the id on disk for one that a caller names; raises OSError ``number`` when it has none."""
        stored = self.stored_or_none(shown)
        if stored is None:
            raise error(number)
        return stored

    def creator(self, shown: int) -> int:
        """Return the id on disk for what a caller creates.

        For callers outside of the map it is the overflow id, as with fuse-overlayfs (idmapped mounts refuse
        them): engines make mount points as the host's root in trees that are a container's.
        """
        stored = self.stored_or_none(shown)
        return self._overflow if stored is None else stored


def _mapped(identity: int, ranges: tuple[IdRange, ...]) -> int | None:
    if not ranges:
        return identity
    for first, first_mapped, count in ranges:
        if 0 <= identity - first < count:
            return first_mapped + identity - first
    return None


@dataclass(frozen=True, slots=True)
class ShownIds:
    """Both maps, and whom all owners are squashed to.

    Squashing is about the owners that stat shows: whoever is named in an ACL stays who it is.
    """

    users: IdMap
    groups: IdMap
    squash_user: int | None = None
    squash_group: int | None = None

    @property
    def squashes(self) -> bool:
        """Whether the owner that is stored hardly matters, so that failing to store it doesn't either."""
        return self.squash_user is not None or self.squash_group is not None

    def owner(self, user: int, group: int) -> tuple[int, int]:
        """Return the user and group that stat shows for those on disk."""
        return (
            self.users.shown(user) if self.squash_user is None else self.squash_user,
            self.groups.shown(group) if self.squash_group is None else self.squash_group,
        )

    # Access control lists: system.posix_acl_*

    def shown_acl(self, value: bytes) -> bytes:
        """Return an ACL on disk as it is shown.

        An entry for who isn't shown must grant nothing, also to those who run as the overflow id. The kernel
        shows -1 for it, which FUSE would refuse together with the whole ACL.
        """

        def user(on_disk: int) -> int:
            shown = self.users.shown_or_none(on_disk)
            return _NOBODY if shown is None else shown

        def group(on_disk: int) -> int:
            shown = self.groups.shown_or_none(on_disk)
            return _NOBODY if shown is None else shown

        return _map_acl(value, user, group)

    def stored_acl(self, value: bytes) -> bytes:
        """Return a caller's ACL as it is stored; raises OSError EINVAL for a name outside of the map."""

        def user(shown: int) -> int:
            return self.users.stored(shown, errno.EINVAL)

        def group(shown: int) -> int:
            return self.groups.stored(shown, errno.EINVAL)

        return _map_acl(value, user, group)

    # Capabilities: security.capability

    def shown_capability(self, value: bytes) -> bytes:
        """Return a file's capabilities on disk as they are shown.

        Those of the root on disk count where root is who is shown for it (security/commoncap.c:
        get_vfs_caps_from_disk). Raises OSError ENODATA when nobody is.
        """
        parsed = _parse_capability(value)
        if parsed is None:
            return value
        flags, sets, root = parsed
        shown = self.users.shown_or_none(root)
        if shown is None:
            raise error(errno.ENODATA)
        return value if shown == root else _format_capability(flags, sets, shown)

    def stored_capability(self, value: bytes) -> bytes:
        """Return a caller's capabilities as they are stored (security/commoncap.c: cap_convert_nscap).

        Raises OSError EINVAL for a root outside of the map.
        """
        parsed = _parse_capability(value)
        if parsed is None:
            return value
        flags, sets, root = parsed
        stored = self.users.stored(root, errno.EINVAL)
        return value if stored == root else _format_capability(flags, sets, stored)


def _map_acl(value: bytes, user: Callable[[int], int], group: Callable[[int], int]) -> bytes:
    """Map the ids of those named in an ACL; one that is malformed is the file system's to refuse."""
    if (len(value) - HEADER.size) % ENTRY.size:
        return value
    mapped = bytearray(value[: HEADER.size])
    for tag, permissions, identity in ENTRY.iter_unpack(value[HEADER.size :]):
        named = identity
        if tag == Tag.USER:
            named = user(identity)
        elif tag == Tag.GROUP:
            named = group(identity)
        mapped += ENTRY.pack(tag, permissions, named)
    return bytes(mapped)


def _parse_capability(value: bytes) -> tuple[int, bytes, int] | None:
    """Return (flags, sets, root's user id); None for what is neither revision 2 nor 3."""
    if len(value) == _CAPABILITY.size:
        magic, sets = _CAPABILITY.unpack(value)
        return (magic & ~_REVISION, sets, 0) if magic & _REVISION == _REVISION_2 else None
    if len(value) == _CAPABILITY_OF_NAMESPACE.size:
        magic, sets, root = _CAPABILITY_OF_NAMESPACE.unpack(value)
        return (magic & ~_REVISION, sets, root) if magic & _REVISION == _REVISION_3 else None
    return None


def _format_capability(flags: int, sets: bytes, root: int) -> bytes:
    if root == 0:
        return _CAPABILITY.pack(_REVISION_2 | flags, sets)
    return _CAPABILITY_OF_NAMESPACE.pack(_REVISION_3 | flags, sets, root)
