"""What may a transport ask of the overlay?

`OverlayFilesystem` is the one face of the semantics: it knows nodeids and handles, and hands each question
to the room that answers it.  It is plain sequential Python: no FUSE, no threads.  An operation that needs a
regular file's data in the upper raises `CopyUpNeeded` before it has changed anything, one that needs a large
directory read raises `LoadNeeded`; whoever calls sees to it and asks again.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from pyoverlay.layers.stack import Stack
from pyoverlay.layers.syscalls import error
from pyoverlay.overlay.attributes import AttributeChanges, Change
from pyoverlay.overlay.birth import Caller
from pyoverlay.overlay.copy_up import CopyUp, CopyUpNeeded, CopyUps
from pyoverlay.overlay.file_flags import FileFlags
from pyoverlay.overlay.files import Files, OpenFile, is_for_writing
from pyoverlay.overlay.listing import Listing, LoadNeeded, NameOnly
from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.namespace import Namespace
from pyoverlay.overlay.node import LOWER_BIRTH_TOLD, NOT_WATCHED, OPENED, Directory, Node
from pyoverlay.overlay.ownership import CAPABILITY
from pyoverlay.overlay.ranges import RangeCopy, Ranges, RangeWork
from pyoverlay.overlay.shown import Attributes

__all__ = [
    "Attributes",
    "Caller",
    "Change",
    "CopyUpNeeded",
    "LoadNeeded",
    "NameOnly",
    "Node",
    "OverlayFilesystem",
    "RangeCopy",
    "RangeWork",
]

Result = TypeVar("Result")


class OverlayFilesystem:
    """A mounted stack, without the mount.

    Objects are named by nodeid (the root is 1), open files by handle; directories aren't opened.  Every node
    that `lookup`, a creating method or a listing returns is to be counted with `remember`, if the kernel is
    told of it.
    """

    def __init__(self, stack: Stack) -> None:
        """Serve ``stack``, whose work directory is prepared."""
        self.stack = stack
        self._lookup = Lookup(stack)
        self.nodes = self._lookup.nodes
        self._listing = Listing(self._lookup)
        self._copy_ups = CopyUps(self._lookup)
        self._attributes = AttributeChanges(self._copy_ups)
        self._files = Files(self._lookup, self._copy_ups, self._attributes)
        self._ranges = Ranges(self._files, self._attributes, self._copy_ups.protection)
        self.flags = FileFlags(self._copy_ups)
        self._namespace = Namespace(self._lookup, self._listing, self._copy_ups)
        self.settle_unseen: Callable[[Node], None] = _settle_nothing
        """Called with a node that was read or written without our being told, before its attributes are."""
        self.admit_open: Callable[[int, int, int], None] = _admit_open
        """Called with nodeid, flags and thread of an open(2) to write, or by a former nodeid; may raise."""
        self.data_changed: Callable[[int], None] = _ignore_change
        """Called with the nodeid of a file of which a SETATTR has changed the data."""
        self._handles: dict[int, OpenFile] = {}
        self._next_handle = itertools.count(1)

    # Nodes

    def node(self, nodeid: int) -> Node:
        """Return a node that the kernel knows; raises OSError ESTALE."""
        node = self.nodes.get(nodeid)
        if node is None:
            raise error(errno.ESTALE)
        return node

    def directory(self, nodeid: int) -> Directory:
        """Return a directory that the kernel knows; raises OSError ESTALE, ENOTDIR."""
        node = self.node(nodeid)
        if not isinstance(node, Directory):
            raise error(errno.ENOTDIR)
        return node

    def lookup(self, parent: int, name: bytes) -> Node:
        """Find a name; raises OSError ENOENT, EPERM, EINVAL, ELOOP."""
        directory = self.directory(parent)
        if self._lookup.wants_loading(directory):
            self._listing.load(directory)
        return self._lookup.find(directory, name)

    def remember(self, node: Node) -> None:
        """Count one lookup of a node: the kernel was told of it."""
        self.nodes.remember(node)

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take back lookups, as FORGET does."""
        self.nodes.forget(nodeid, lookups)

    def attributes(self, node: Node) -> Attributes:
        """Return what stat shows of a node."""
        if node.unseen & NOT_WATCHED:
            self.settle_unseen(node)
        return self._lookup.attributes(node)

    @staticmethod
    def birth_time(node: Node) -> int | None:
        """Return when a node's real object was created, in ns since the epoch, None where nobody knows."""
        if node.upper is None:
            node.unseen |= LOWER_BIRTH_TOLD
        else:
            node.unseen &= ~LOWER_BIRTH_TOLD
        return node.real.birth_time()

    def take_copied_up(self) -> list[int]:
        """Return the nodeids of what was copied up since the last call: what the kernel caches is old."""
        moved = self._copy_ups.moved
        if not moved:
            return []
        self._copy_ups.moved = []
        return [node.nodeid for node in moved if node.nodeid]

    def tidy_up(self) -> bool:
        """Do a fraction of a millisecond of the work that nobody waits for; tell whether there is more."""
        work = self.stack.work
        return work is not None and work.remove_discarded()

    def take_changed_listings(self) -> list[int]:
        """Return the nodeids of directories, since the last call, of which a kept listing is old.

        Where names change by a request, the kernel knows that itself.
        """
        changed = self.nodes.changed_listings
        if not changed:
            return []
        self.nodes.changed_listings = []
        return [directory.nodeid for directory in changed if directory.nodeid]

    # Copy-up

    def begin_copy_up(self, need: CopyUpNeeded) -> CopyUp:
        """Begin what an operation asked for.  Raises OSError."""
        return self._copy_ups.begin(need.node, with_data=need.with_data)

    def run(self, operation: Callable[[], Result]) -> Result:
        """Run an operation of this file system with all the copy-ups that it needs, waiting for each."""
        while True:
            try:
                return operation()
            except CopyUpNeeded as need:
                self._copy_ups.run(need.node, with_data=need.with_data)
            except LoadNeeded as need:
                try:
                    need.load.run()
                    need.load.publish()
                finally:
                    need.load.close()

    # Attributes

    def change_attributes(
        self, nodeid: int, change: Change, handle: int | None = None, caller: Caller | None = None
    ) -> Node:
        """Apply a change; ``handle`` is the open file that the caller has, if any.

        ``caller`` is needed for a change of nothing, see `would_drop_set_ids`.
        """
        node = self.node(nodeid)
        opened = self._handles.get(handle) if handle is not None else None
        descriptor = opened.descriptor if isinstance(opened, OpenFile) and opened.writable else None
        self._attributes.change(node, change, descriptor, caller)
        if change.size is not None:
            self.data_changed(nodeid)
        return node

    def kill_privileges(self, nodeid: int, caller: Caller) -> None:
        """Clear suid, sgid and capabilities of a file that an unprivileged caller writes to.

        The right to was shown at its open, and they fall before the data is written (fs/attr.c:
        file_remove_privs).
        """
        node = self.nodes.get(nodeid)
        if node is not None and node.is_regular and node.upper is not None:
            self._attributes.kill_privileges(node, caller)

    def kill_privileges_later(self, nodeid: int, caller: Caller) -> Node | None:
        """Let a file lose suid, sgid and capabilities with a change of ``caller``'s that may be refused.

        It is returned, if it can lose any, and `spare_privileges` is to be called when that change
        is over, done or failed.
        """
        node = self.nodes.get(nodeid)
        if node is None or not node.is_regular or not node.privileged:
            return None
        node.privilege_killers += (caller,)
        return node

    @staticmethod
    def spare_privileges(node: Node, caller: Caller) -> None:
        """Take back what `kill_privileges_later` left to a change of ``caller``'s, which is over."""
        killers = list(node.privilege_killers)
        killers.remove(caller)
        node.privilege_killers = tuple(killers)

    def would_drop_set_ids(self, node: Node, caller: Caller) -> bool:
        """Tell whether a change of nothing, which a chown(2) without an owner is, clears set-id bits."""
        return self._attributes.would_drop_set_ids(node, caller)

    def may_be_written(self, node: Node) -> bool:
        """Tell whether anybody has the file open for writing."""
        return any(opened.node is node and opened.writable for opened in self._handles.values())

    def must_drop_capabilities(self, node: Node) -> bool:
        """Tell whether a file has capabilities that a write leaves on unless we take them off."""
        return not node.real.clears_capabilities and CAPABILITY in self._lookup.attribute_names(node)

    def extended_attribute(self, nodeid: int, name: bytes) -> bytes:
        """Return the value of an extended attribute."""
        return self._attributes.get(self.node(nodeid), name)

    def extended_attributes(self, nodeid: int, *, trusted: bool) -> list[bytes]:
        """List extended attributes; ``trusted`` ones only for those who may see them."""
        return self._attributes.names(self.node(nodeid), trusted=trusted)

    def set_extended_attribute(self, nodeid: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; ``flags`` as in setxattr(2)."""
        self._attributes.set(self.node(nodeid), name, value, flags)

    def remove_extended_attribute(self, nodeid: int, name: bytes) -> None:
        """Remove an extended attribute."""
        self._attributes.remove(self.node(nodeid), name)

    def read_link(self, nodeid: int) -> bytes:
        """Return a symlink's target."""
        return self.node(nodeid).real.read_link()

    def status_of_file_system(self) -> os.statvfs_result:
        """Return statvfs of the upper, else of the topmost lower."""
        return (self.stack.upper or self.stack.lowers[0]).status_of_file_system()

    # Names

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[Node, int]:
        """Create a regular file; return it with the handle that it is open under."""
        node, opened = self._namespace.create(self.directory(parent), name, mode, flags, caller)
        return node, self._new_handle(opened)

    def create_unnamed(self, parent: int, mode: int, flags: int, caller: Caller) -> tuple[Node, int]:
        """Create a regular file without a name; return it with the handle that it is open under."""
        node, opened = self._namespace.create_unnamed(self.directory(parent), mode, flags, caller)
        return node, self._new_handle(opened)

    def make_special(self, parent: int, name: bytes, mode: int, device: int, caller: Caller) -> Node:
        """Create a fifo, socket, device or regular file."""
        return self._namespace.make_special(self.directory(parent), name, mode, device, caller)

    def make_directory(self, parent: int, name: bytes, mode: int, caller: Caller) -> Node:
        """Create a directory."""
        return self._namespace.make_directory(self.directory(parent), name, mode, caller)

    def make_symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Node:
        """Create a symlink."""
        return self._namespace.make_symlink(self.directory(parent), name, target, caller)

    def link(self, nodeid: int, parent: int, name: bytes) -> Node:
        """Give a file one more name."""
        return self._namespace.link(self.node(nodeid), self.directory(parent), name)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is no directory."""
        self._namespace.unlink(self.directory(parent), name)

    def remove_directory(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._namespace.remove_directory(self.directory(parent), name)

    def rename(self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Rename or exchange; ``flags`` as in renameat2(2)."""
        self._namespace.rename(
            self.directory(old_parent), old_name, self.directory(new_parent), new_name, flags
        )

    # Open files, and listings

    def open(self, nodeid: int, flags: int, pid: int = 0) -> int:
        """Open a regular file for the thread ``pid``; return its handle."""
        node = self.node(nodeid)
        if nodeid != node.nodeid or is_for_writing(flags) or flags & os.O_TRUNC:
            self.admit_open(nodeid, flags, pid)
        opened = self._files.open(node, flags)
        opened.nodeid = nodeid
        node.unseen |= OPENED
        return self._new_handle(opened)

    def file(self, handle: int) -> OpenFile:
        """Return an open file; raises OSError EBADF."""
        opened = self._handles.get(handle)
        if not isinstance(opened, OpenFile):
            raise error(errno.EBADF)
        return opened

    def descriptor_for_reading(self, handle: int) -> int:
        """Return the descriptor to read an open file from, valid until it is released."""
        return self._files.descriptor_for_reading(self.file(handle))

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write to an open file; return the bytes written."""
        return self._files.write(self.file(handle), offset, data)

    def write_through(self, handle: int, offset: int, data: bytes) -> int:
        """Write to a file that is open for synchronous writes, as `write` does, in any thread."""
        file = self.file(handle)
        try:
            return self._files.write(file, offset, data)
        finally:
            file.node.attributes = None  # somebody may have asked meanwhile

    def find_range(self, handle: int, offset: int, whence: int) -> int:
        """Return where data or a hole of an open file begins: lseek(2), SEEK_DATA and SEEK_HOLE."""
        return self._ranges.find(self.file(handle), offset, whence)

    def allocation(self, handle: int, mode: int, offset: int, length: int, caller: Caller) -> RangeWork:
        """Begin a fallocate(2) of an open file; see `Ranges.allocation`."""
        return self._ranges.allocation(self.file(handle), mode, offset, length, caller)

    def copy_of_range(
        self, source: int, target: int, positions: tuple[int, int], length: int, caller: Caller
    ) -> RangeCopy:
        """Begin a copy_file_range(2) between two open files; see `Ranges.copy`."""
        return self._ranges.copy(self.file(source), self.file(target), positions, length, caller)

    def read_directory(self, nodeid: int, offset: int) -> Iterator[tuple[bytes, Node | NameOnly, int]]:
        """Iterate over (name, node, next offset) from an offset on; 0 begins anew.

        When it ends without an entry, `take_changed_listings` is to be asked before somebody is told so.
        """
        return self._listing.read(self.directory(nodeid), offset)

    def descriptor_for_sync(self, nodeid: int) -> int | None:
        """Return a new descriptor of a directory to fsync, None when it isn't in the upper."""
        directory = self.directory(nodeid)
        return None if directory.upper is None else directory.upper.open_for_listing()

    def release(self, handle: int) -> None:
        """Close an open file."""
        opened = self._handles.pop(handle, None)
        if opened is not None:
            opened.close()

    def _new_handle(self, opened: OpenFile) -> int:
        handle = next(self._next_handle)
        self._handles[handle] = opened
        return handle

    def close(self) -> None:
        """Close what is still open."""
        for handle in list(self._handles):
            self.release(handle)


def _settle_nothing(_node: Node) -> None:
    """Know of nobody who reads or writes unseen."""


def _admit_open(_nodeid: int, _flags: int, _pid: int) -> None:
    """Know of nothing that mustn't be opened."""


def _ignore_change(_nodeid: int) -> None:
    """Know of nobody who reads the data unseen."""
