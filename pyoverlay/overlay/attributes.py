"""How are owner, mode, times, size and extended attributes read and changed?

The twin of fs/overlayfs/inode.c (setattr) and xattrs.c.  A change copies the object up first.  Who may do
what has been decided by the kernel above us (default_permissions).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final, NamedTuple

from pyoverlay.layers import marks
from pyoverlay.layers.layer import Layer
from pyoverlay.layers.syscalls import NOW, error
from pyoverlay.overlay.access_control import ACL_PREFIX
from pyoverlay.overlay.birth import Caller
from pyoverlay.overlay.copy_up import CopyUps
from pyoverlay.overlay.node import Directory, Node
from pyoverlay.overlay.ownership import CAPABILITY
from pyoverlay.privileges import keeps_set_group_id

_DEFAULT_ACL: Final = b"system.posix_acl_default"
_TRUSTED_PREFIX: Final = b"trusted."
_LISTED: Final = (b"security.", b"user.", b"trusted.", ACL_PREFIX)
"""Attributes of these names are stored with a file: listxattr(2) tells of each that getxattr(2) has."""
_MOST_ABSENT: Final = 256


class Change(NamedTuple):
    """What a setattr asks for; None leaves a thing as it is.

    Size in bytes; times in ns since the epoch, or `NOW`.
    """

    mode: int | None = None
    user: int | None = None
    group: int | None = None
    size: int | None = None
    access_ns: int | None = None
    modification_ns: int | None = None


_NOTHING: Final = Change()
_PRESENT: Final = Change(access_ns=NOW, modification_ns=NOW)
_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_NO_SUCH_ATTRIBUTE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


class AttributeChanges:
    """Reads and changes attributes."""

    def __init__(self, copy_ups: CopyUps) -> None:
        """Work on nodes that ``copy_ups`` can move to the upper."""
        self._copy_ups = copy_ups
        self._lookup = copy_ups.lookup
        self._dialect = copy_ups.stack.dialect
        self._ownership = copy_ups.ownership
        self._has_acls = copy_ups.stack.has_acls
        self._absent: set[tuple[Layer, int, bytes]] = set()
        """Where a layer has answered, for a type of files, that an attribute isn't there: it can have it."""

    def change(
        self, node: Node, change: Change, descriptor: int | None = None, caller: Caller | None = None
    ) -> None:
        """Apply ``change``; ``descriptor`` is the caller's own, open for writing, if it has one.

        ``caller`` is who asks for a change of nothing, at which sgid may fall.

        Raises CopyUpNeeded or OSError.
        """
        self._refuse_protected(node, change, descriptor)
        user, group = self._ownership.stored_owner(change.user, change.group)
        upper = self._copy_ups.need_upper(node, with_data=change.size != 0)
        _note_change(node)
        if change.mode is not None and change.mode & _SET_IDS:
            node.privileged = True
        if change.size is not None:
            self._truncate(node, change.size, descriptor)
        if change.user is not None or change.group is not None or change == _NOTHING:
            # chown(2) clears suid, sgid and capabilities itself, also the one that names no owner: it is
            # the only change that arrives empty.  Not sgid, where the caller isn't in the group: we are root.
            if caller is None:
                self.kill_privileges_if_asked(node)
            else:
                self._clear_set_group_id(node, caller)
            self._ownership.set_owner(upper, user, group)
        if change.mode is not None:
            upper.set_mode(stat.S_IMODE(change.mode))
        if change.access_ns is not None or change.modification_ns is not None:
            upper.set_times(change.access_ns, change.modification_ns)

    def _refuse_protected(self, node: Node, change: Change, descriptor: int | None) -> None:
        """fs/attr.c: may_setattr; fs/open.c: do_ftruncate."""
        protection = self._copy_ups.protection
        if change == _PRESENT:
            protection.refuse_if_immutable(node)
        elif change.size is not None and descriptor is not None:
            protection.refuse_shrinking(node)
        elif change != _NOTHING:
            protection.refuse_change(node)

    def _truncate(self, node: Node, size: int, descriptor: int | None) -> None:
        assert node.upper is not None
        if not node.is_regular:
            raise error(errno.EINVAL)
        if descriptor is not None:
            os.ftruncate(descriptor, size)
        else:
            opened = node.upper.open(os.O_WRONLY)
            try:
                # As truncate(2), which moves no time on XFS and btrfs if the size stays; ftruncate(2) does.
                os.truncate(f"/proc/self/fd/{opened}", size)
            finally:
                os.close(opened)
        self.data_changed(node)

    def data_changed(self, node: Node) -> None:
        """Clear what mustn't outlast a change of a file's data: capabilities, and set-id bits if asked."""
        self.drop_capabilities(node)
        self.kill_privileges_if_asked(node)

    def drop_capabilities(self, node: Node) -> None:
        """Clear a file's capabilities where its file system doesn't know them for such."""
        if not node.real.clears_capabilities and CAPABILITY in self._lookup.attribute_names(node):
            with contextlib.suppress(OSError):
                node.real.remove_attribute(CAPABILITY)
            _note_other_attributes(node)

    def kill_privileges_if_asked(self, node: Node) -> None:
        """Clear suid, sgid and capabilities when an unprivileged caller changed the data."""
        for caller in node.privilege_killers:
            self.kill_privileges(node, caller)

    def kill_privileges(self, node: Node, caller: Caller) -> None:
        """Clear suid, sgid (see `_drops_set_group_id`) and capabilities at a change of ``caller``'s.

        The node is in the upper.  fs/attr.c: setattr_should_drop_suidgid.  That there is nothing to clear is
        remembered, as the kernel does it (S_NOSEC): each write of an unprivileged caller asks for it.
        """
        if not node.privileged:
            return
        assert node.upper is not None
        mode = node.upper.status().st_mode
        kept = mode & ~stat.S_ISUID
        if self._drops_set_group_id(node, mode, caller):
            kept &= ~stat.S_ISGID
        if kept != mode:
            node.upper.set_mode(stat.S_IMODE(kept))
        node.attributes = None
        try:
            node.upper.remove_attribute(CAPABILITY)
        except OSError as failure:
            if failure.errno not in _NO_SUCH_ATTRIBUTE:
                return
        node.privileged = bool(kept & _SET_IDS)

    def would_drop_set_ids(self, node: Node, caller: Caller) -> bool:
        """Tell whether a chown(2) of ``caller``'s that names no owner would clear a file's set-id bits."""
        mode = self._lookup.attributes(node).mode
        return bool(mode & stat.S_ISUID) or self._drops_set_group_id(node, mode, caller)

    def _clear_set_group_id(self, node: Node, caller: Caller) -> None:
        if node.is_directory:
            return
        assert node.upper is not None
        mode = node.upper.status().st_mode
        if self._drops_set_group_id(node, mode, caller):
            node.upper.set_mode(stat.S_IMODE(mode & ~stat.S_ISGID))
        node.attributes = None

    def _drops_set_group_id(self, node: Node, mode: int, caller: Caller) -> bool:
        """Tell whether sgid falls at a change of ``caller``'s: fs/attr.c: setattr_should_drop_sgid."""
        if not mode & stat.S_ISGID or node.is_directory:
            return False
        if mode & stat.S_IXGRP:
            return True
        owner = self._lookup.attributes(node)
        if caller.group == owner.group:
            return False
        return not keeps_set_group_id(caller.pid, owner.user, owner.group)

    # Extended attributes

    def get(self, node: Node, name: bytes) -> bytes:
        """Return the value of an extended attribute, as the user calls it.

        Raises OSError ENODATA, EOPNOTSUPP.
        """
        if name == CAPABILITY and not node.privileged:
            raise error(errno.ENODATA)  # asked at the first write to a file, and at each chown(2)
        self._refuse_acl_if_off(name)
        name_on_disk = marks.to_disk(self._dialect, name)
        real = node.real
        kind = (real.layer, node.file_type, name_on_disk)
        if kind in self._absent and name_on_disk not in self._lookup.attribute_names(node):
            raise error(errno.ENODATA)
        try:
            value = real.attribute(name_on_disk)
        except OSError as failure:
            if failure.errno == errno.ENODATA and name_on_disk.startswith(_LISTED):
                self._note_absent(kind)
            raise
        return self._ownership.shown_value(name, value)

    def _note_absent(self, kind: tuple[Layer, int, bytes]) -> None:
        """Take note that ENODATA is the answer where a list of attributes lacks this one.

        Not so for attributes that a file system makes up, which it needn't list, or doesn't have at all.
        """
        if len(self._absent) >= _MOST_ABSENT:
            self._absent.clear()
        self._absent.add(kind)

    def names(self, node: Node, *, trusted: bool) -> list[bytes]:
        """List the extended attributes; ``trusted`` ones only for those who may see them.

        fs/overlayfs/xattrs.c: ovl_listxattr.
        """
        on_disk = self._lookup.present_attributes(node)
        if not on_disk:
            return []
        shown = (marks.from_disk(self._dialect, name) for name in on_disk)
        return [
            name
            for name in shown
            if name is not None
            and (trusted or not name.startswith(_TRUSTED_PREFIX))
            and (self._has_acls or not name.startswith(ACL_PREFIX))
        ]

    def set(self, node: Node, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; ``flags`` as in setxattr(2).  Raises CopyUpNeeded or OSError."""
        self._refuse_acl_if_off(name)
        name_on_disk = marks.to_disk(self._dialect, name)
        stored = self._ownership.stored_value(name, value)
        self._copy_ups.protection.refuse_change(node)
        upper = self._copy_ups.need_upper(node)
        upper.set_attribute(name_on_disk, stored, flags)
        node.privileged = True
        _note_other_attributes(node)

    def remove(self, node: Node, name: bytes) -> None:
        """Remove an extended attribute; one that isn't there copies nothing up.

        Raises CopyUpNeeded or OSError ENODATA.
        """
        self._refuse_acl_if_off(name)
        name_on_disk = marks.to_disk(self._dialect, name)
        self._copy_ups.protection.refuse_change(node)
        if node.upper is None:
            if name == _DEFAULT_ACL and not node.is_directory:
                return
            node.real.attribute(name_on_disk)
        upper = self._copy_ups.need_upper(node)
        upper.remove_attribute(name_on_disk)
        _note_other_attributes(node)

    def _refuse_acl_if_off(self, name: bytes) -> None:
        if not self._has_acls and name.startswith(ACL_PREFIX):
            raise error(errno.EOPNOTSUPP)


def _note_change(node: Node) -> None:
    """Forget what stat shows of a node."""
    node.attributes = None
    if isinstance(node, Directory):
        node.inheritance = None


def _note_other_attributes(node: Node) -> None:
    """Forget what stat shows of a node, and which extended attributes it has."""
    _note_change(node)
    node.attribute_names = None
