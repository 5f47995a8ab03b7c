"""How are a caller read from a request, and nodes written into an answer, where pyfuse3 doesn't do it?

What the fast path and the answers beside pyfuse3 share.  Translation only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyoverlay.fuse import messages
from pyoverlay.layers.syscalls import NOW
from pyoverlay.overlay.filesystem import Caller, Change, Node, OverlayFilesystem


def caller_of(message: memoryview, umask: int) -> Caller:
    """Return who sent a request."""
    user, group, pid = messages.CALLER.unpack_from(message)
    return Caller(user, group, umask, pid)


def sets_times_to_now(message: memoryview) -> bool:
    """Tell whether a SETATTR asks for the present, which is another right than to set any time."""
    now = messages.FATTR_ATIME_NOW | messages.FATTR_MTIME_NOW
    valid: int = messages.COUNT.unpack_from(message, messages.BODY)[0]
    return valid & now == now


def change_of(message: memoryview) -> tuple[Change, int | None]:
    """Return the change that a SETATTR asks for, and the open file that it is asked through, if any."""
    valid, handle, size, access, modification, access_ns, modification_ns, mode, user, group = (
        messages.SETATTR.unpack_from(message, messages.BODY)
    )
    change = Change(
        mode=mode if valid & messages.FATTR_MODE else None,
        user=user if valid & messages.FATTR_UID else None,
        group=group if valid & messages.FATTR_GID else None,
        size=size if valid & messages.FATTR_SIZE else None,
        access_ns=_time(valid, messages.FATTR_ATIME, messages.FATTR_ATIME_NOW, access, access_ns),
        modification_ns=_time(
            valid, messages.FATTR_MTIME, messages.FATTR_MTIME_NOW, modification, modification_ns
        ),
    )
    return change, handle if valid & messages.FATTR_FH else None


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    """Return a time that SETATTR asks for, in ns since the epoch."""
    if valid & now:
        return NOW
    if not valid & given:
        return None
    signed = seconds - (1 << 64) if seconds >> 63 else seconds
    return signed * 1_000_000_000 + nanoseconds


class Answers:
    """Writes what is told of nodes, and counts those that the kernel learns of."""

    def __init__(self, filesystem: OverlayFilesystem, opened: Callable[[int], tuple[int, int]]) -> None:
        """Tell of ``filesystem``; ``opened`` decides how an opened handle is read and written."""
        timeout = filesystem.stack.options.timeout
        self.validity: Final = messages.Validity(timeout)
        self._not_kept = messages.Validity(timeout, attributes=0)
        self._filesystem = filesystem
        self._opened = opened

    def entry(self, node: Node) -> bytes:
        """Write struct fuse_entry_out."""
        shown = self._filesystem.attributes(node)
        self._filesystem.remember(node)
        return messages.entry_answer(node.nodeid, shown, self.validity_of(node))

    def attributes(self, node: Node) -> bytes:
        """Write struct fuse_attr_out."""
        shown = self._filesystem.attributes(node)
        return messages.attributes_answer(shown, self.validity_of(node))

    def extended_attributes(self, node: Node) -> bytes:
        """Write struct fuse_statx_out."""
        shown = self._filesystem.attributes(node)
        birth = self._filesystem.birth_time(node)
        return messages.extended_attributes_answer(shown, birth, self.validity_of(node))

    def opened(self, handle: int) -> bytes:
        """Write struct fuse_open_out for a regular file."""
        return messages.opened_answer(handle, *self._opened(handle))

    def created(self, node: Node, handle: int) -> bytes:
        """Write struct fuse_entry_out and fuse_open_out of a file that was just created."""
        shown = self._filesystem.attributes(node)
        self._filesystem.remember(node)
        opened = self.opened(handle)
        return messages.entry_answer(node.nodeid, shown, self.validity_of(node)) + opened

    def validity_of(self, node: Node) -> messages.Validity:
        """Tell how long the kernel may keep what it is told of a node."""
        return self.validity if not node.unseen or node.may_be_kept else self._not_kept
