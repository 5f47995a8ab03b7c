"""Who owns an object of a layer, as stat shows it, and how is an owner given to it?

Where none of the options that shift ids is given, owners are those on disk, and `Lookup` doesn't ask.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from pyoverlay.layers.layer import LayerObject
from pyoverlay.options import MountOptions
from pyoverlay.overlay.access_control import ACL_PREFIX
from pyoverlay.overlay.birth import Caller
from pyoverlay.overlay.shown_ids import OVERFLOW_ID, IdMap, ShownIds

CAPABILITY: Final = b"security.capability"


class Ownership:
    """Owners and modes, on disk and shown."""

    def __init__(self, options: MountOptions) -> None:
        """Show and store ids as ``options`` ask."""
        ids = _shown_ids(options)
        self._squashes: Final = ids is not None and ids.squashes
        self.ids: Final = ids
        """None when the ids shown are those on disk."""

    # Shown

    def shown_value(self, name: bytes, value: bytes) -> bytes:
        """Return the value of an extended attribute as it is shown."""
        if self.ids is None:
            return value
        if name.startswith(ACL_PREFIX):
            return self.ids.shown_acl(value)
        return self.ids.shown_capability(value) if name == CAPABILITY else value

    # Stored

    def creator(self, caller: Caller) -> Caller:
        """Return the caller with the ids that are stored for what it creates."""
        if self.ids is None:
            return caller
        return caller._replace(
            user=self.ids.users.creator(caller.user), group=self.ids.groups.creator(caller.group)
        )

    def stored_owner(self, user: int | None, group: int | None) -> tuple[int, int]:
        """Return the owner to store for one that a caller names; None leaves it, and so does -1 on disk.

        Raises OSError EOVERFLOW for an id outside of the map (fs/attr.c: notify_change).
        """
        if self.ids is not None:
            user = None if user is None else self.ids.users.stored(user)
            group = None if group is None else self.ids.groups.stored(group)
        return -1 if user is None else user, -1 if group is None else group

    def stored_value(self, name: bytes, value: bytes) -> bytes:
        """Return the value of an extended attribute as it is stored; raises OSError EINVAL."""
        if self.ids is None:
            return value
        if name.startswith(ACL_PREFIX):
            return self.ids.stored_acl(value)
        return self.ids.stored_capability(value) if name == CAPABILITY else value

    # Given to objects of the upper

    def set_owner(self, place: LayerObject, user: int, group: int) -> None:
        """Set the owner on disk; -1 leaves an id as it is."""
        with self._tolerating_refusal():
            place.set_owner(user, group)

    @contextlib.contextmanager
    def _tolerating_refusal(self) -> Iterator[None]:
        """Where owners are squashed, let one be another on disk: the daemon may have no right to set it."""
        try:
            yield
        except OSError as failure:
            if not self._squashes or failure.errno not in (errno.EPERM, errno.EINVAL):
                raise


def _shown_ids(options: MountOptions) -> ShownIds | None:
    squash = 0 if options.squash_to_root else None
    user = squash if options.squash_to_uid is None else options.squash_to_uid
    group = squash if options.squash_to_gid is None else options.squash_to_gid
    if not options.uidmapping and not options.gidmapping and user is None and group is None:
        return None
    return ShownIds(
        IdMap(options.uidmapping, _overflow_id("overflowuid")),
        IdMap(options.gidmapping, _overflow_id("overflowgid")),
        user,
        group,
    )


def _overflow_id(name: str) -> int:
    """Ask the kernel what it shows for ids that have no place in a map."""
    try:
        with open(f"/proc/sys/kernel/{name}", encoding="ascii") as number:
            return int(number.read())
    except (OSError, ValueError):
        return OVERFLOW_ID
