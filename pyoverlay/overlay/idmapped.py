"""How is an object reached in a lower whose mount shifts ids already, when the overlay is to shift them?

podman 4 asks for both where the kernel can idmap mounts: the lowers lie on idmapped mounts, and uidmapping=
says the same shift again, for the upper.  The mount's shift is undone here, so that every layer has ids on
disk and `ShownIds` shifts them once.  The mount's map can't be asked for: it is taken to be the overlay's.
"""

from __future__ import annotations

import os
from typing import Final

from pyoverlay.layers.layer import Layer, LayerObject
from pyoverlay.layers.override_stat import Record, shown
from pyoverlay.overlay.access_control import ACL_PREFIX
from pyoverlay.overlay.shown_ids import IdMap, ShownIds

_CAPABILITY: Final = b"security.capability"


def undo_shift(layer: Layer, ids: ShownIds) -> None:
    """Let all objects of a lower have the ids on disk, which its mount shows shifted as ``ids`` says.

    It has no other objects yet.  An id that the mount can't show is left what it shows for it.
    """

    class IdmappedObject(LayerObject):
        """An object of this layer."""

        __slots__ = ()

        def status(self, descriptor: int | None = None) -> os.stat_result:
            """Return the status with the owner on disk."""
            seen = super().status(descriptor)
            user, group = _on_disk(ids.users, seen.st_uid), _on_disk(ids.groups, seen.st_gid)
            return shown(seen, Record(user, group, seen.st_mode, seen.st_rdev))

        def status_of(self, name: bytes) -> os.stat_result:
            """Return the status with the owner on disk of what has a name in this directory."""
            return self.child(name).status()

        def attribute(self, name: bytes) -> bytes:
            """Return the value of an extended attribute with the ids on disk, or raise OSError ENODATA."""
            value = super().attribute(name)
            if name.startswith(ACL_PREFIX):
                return ids.stored_acl(value)
            return ids.stored_capability(value) if name == _CAPABILITY else value

    descriptor = layer.root.fd
    layer.root = IdmappedObject(layer, None, b"")
    layer.root.hold(descriptor)


def _on_disk(ids: IdMap, seen: int) -> int:
    stored = ids.stored_or_none(seen)
    return seen if stored is None else stored
