"""What does an entry of a tar look like on disk, for whoever unpacks it?

Root keeps owners and makes devices; others can't, and a layer of theirs says so nowhere: their directories
stay passable, their files readable, and what names an owner falls away. Pure, but for asking once who we are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyoverlay import privileges
from pyoverlay.images.tar_entries import Entry
from pyoverlay.layers import marks

_NEVER: Final = (b"security.selinux",)
"""What this host's policy decides, whatever another host's said."""
_CAPABILITY: Final = b"security.capability"
_FUSE_OVERLAYFS: Final = b"user.fuseoverlayfs."


@dataclass(frozen=True, slots=True)
class Privileges:
    """What who unpacks may do.

    Attributes:
        owners: whether files can be given to others.
        devices: whether device nodes can be made.
        dialect: where overlay marks are kept.
    """

    owners: bool
    devices: bool
    dialect: marks.Dialect

    @classmethod
    def of_this_process(cls) -> Privileges:
        """Ask what this process may do."""
        administrator = privileges.is_administrator()
        several_users = _mapped_users() > 1
        return cls(
            owners=os.geteuid() == 0 and several_users,
            devices=administrator,
            dialect=marks.TRUSTED if administrator else marks.USER,
        )

    def mode(self, entry: Entry) -> int:
        """Return the permission bits that an entry gets."""
        if self.owners:
            return entry.mode
        # Without its owner, a set-user-id program would give away the rights of whoever unpacked it.
        mode = entry.mode & 0o1777
        return mode | (0o700 if entry.kind == "directory" else 0o400)

    def xattr(self, name: bytes) -> bytes | None:
        """Return the name under which an extended attribute is kept; None: it falls away.

        What looks like a mark of an overlay is a user's attribute, not a mark: an image may not redirect the
        lookups of whoever mounts it. It is kept as overlayfs keeps such attributes, escaped.
        """
        if name in _NEVER or name.startswith(_FUSE_OVERLAYFS):
            return None
        if not self.owners and not name.startswith(b"user."):
            return None
        # Root of a user namespace may set capabilities, but nothing else of these two.
        if not self.devices and name.startswith((b"trusted.", b"security.")) and name != _CAPABILITY:
            return None
        if name.startswith(self.dialect.prefix):
            return marks.to_disk(self.dialect, name)
        foreign = any(name.startswith(dialect.prefix) for dialect in (marks.TRUSTED, marks.USER))
        return None if foreign else name

    def xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        """Return the extended attributes that an entry gets."""
        kept = {}
        for name, value in entry.xattrs.items():
            stored = self.xattr(name)
            if stored is not None:
                kept[stored] = value
        return kept


def _mapped_users() -> int:
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[2]) for line in lines)
