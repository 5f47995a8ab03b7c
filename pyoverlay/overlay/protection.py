"""What may not be changed because it is immutable or append-only?

The real objects of the upper don't bear these flags: nothing could be copied up into an immutable directory.
They are kept in an attribute, ``protattr``, and what they forbid is refused here, as the VFS does it for the
kernel's overlayfs (fs/overlayfs/util.c: ovl_check_protattr).  An object of a lower has the flags itself.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pyoverlay.layers import syscalls
from pyoverlay.layers.layer import LayerObject
from pyoverlay.layers.marks import Dialect
from pyoverlay.layers.syscalls import error
from pyoverlay.overlay.node import Directory, Node

IMMUTABLE: Final = 1
APPEND_ONLY: Final = 2
_LETTERS: Final = ((APPEND_ONLY, b"a"), (IMMUTABLE, b"i"))


class Protection:
    """Knows and refuses.  What it refuses raises OSError EPERM."""

    def __init__(self, dialect: Dialect) -> None:
        """Read and write ``protattr`` in ``dialect``."""
        self._attribute = dialect.attribute("protattr")

    def of(self, node: Node) -> int:
        """Return `IMMUTABLE`, `APPEND_ONLY`, both or 0."""
        if node.protection is None:
            node.protection = self._read(node)
        return node.protection

    def _read(self, node: Node) -> int:
        if node.upper is None:
            flags = node.real.status_flags()
            immutable = IMMUTABLE if flags & syscalls.STATX_IMMUTABLE else 0
            return immutable | (APPEND_ONLY if flags & syscalls.STATX_APPEND else 0)
        if self._attribute not in node.upper.list_attributes():
            return 0
        value = node.upper.attribute(self._attribute)
        return sum(bit for bit, letter in _LETTERS if letter in value)

    def set(self, node: Node, upper: LayerObject, protection: int) -> None:
        """Protect an object of the upper from now on, or no longer.  Raises OSError."""
        if protection == self.of(node):
            return
        if protection:
            upper.set_attribute(self._attribute, self.value(protection))
        else:
            upper.remove_attribute(self._attribute)
        node.protection = protection
        node.attribute_names = None

    def name_and_value(self, protection: int) -> tuple[bytes, bytes]:
        """Return the attribute that says so on disk."""
        return self._attribute, self.value(protection)

    @staticmethod
    def value(protection: int) -> bytes:
        """Return the value of ``protattr``."""
        return b"".join(letter for bit, letter in _LETTERS if protection & bit)

    def refuse_opening(self, node: Node, flags: int) -> None:
        """fs/namei.c: may_open."""
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if not writes and not flags & os.O_TRUNC:
            return
        protection = self.of(node)
        if protection & IMMUTABLE:
            raise error(errno.EPERM)
        if protection & APPEND_ONLY and (flags & os.O_TRUNC or not flags & os.O_APPEND):
            raise error(errno.EPERM)

    def refuse_change(self, node: Node) -> None:
        """Let nothing be changed of what is protected: attributes, links, names (fs/attr.c: may_setattr)."""
        if self.of(node):
            raise error(errno.EPERM)

    def refuse_if_immutable(self, node: Node) -> None:
        """Let entries be added to what is append-only, and its times be set to now."""
        if self.of(node) & IMMUTABLE:
            raise error(errno.EPERM)

    def refuse_shrinking(self, node: Node) -> None:
        """Let a descriptor from before do what it may, but for what an append-only file is for."""
        if self.of(node) & APPEND_ONLY:
            raise error(errno.EPERM)

    def refuse_removal(self, parent: Directory, node: Node) -> None:
        """fs/namei.c: may_delete."""
        if self.of(parent) or self.of(node):
            raise error(errno.EPERM)
