"""How does pyfuse3 ask the overlay?

`OverlayOperations` translates: pyfuse3's arguments into calls of `OverlayFilesystem`, nodes into entries,
OSError into an errno.  It decides nothing.  What waits (copies, fsync, reads that miss the page cache)
waits in worker threads.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from pyoverlay.fuse.copying import CopyUpQueue
from pyoverlay.fuse.loading import DirectoryLoads
from pyoverlay.fuse.reading import QuickReads
from pyoverlay.fuse.wire import NAME_ONLY
from pyoverlay.overlay.filesystem import (
    Caller,
    Change,
    CopyUpNeeded,
    LoadNeeded,
    NameOnly,
    Node,
    OverlayFilesystem,
)
from pyoverlay.privileges import acts_as_owner, has_administration

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


class Transport(Protocol):
    """What the operations need of the way to the kernel."""

    def make_room_for_reply(self) -> None:
        """Pass on replies that wait, so that the next one, which follows, finds room."""

    def invalidate_attributes(self, nodeid: int) -> None:
        """Make the kernel ask again for a node's attributes."""

    def invalidate_listings(self, nodeids: Sequence[int]) -> None:
        """Make the kernel ask again for directories' names, and wait for those who read them."""


def _answers(handler: Handler) -> Handler:
    """Turn whatever a handler raises into an errno: anything but FUSEError would end the mount."""

    @functools.wraps(handler)
    async def answer(self: OverlayOperations, *arguments: object) -> object:
        try:
            return await handler(self, *arguments)
        except FUSEError:
            raise
        except OSError as failure:
            raise FUSEError(failure.errno or errno.EIO) from None
        except Exception:
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from None
        finally:
            await self._pass_on()

    return answer  # type: ignore[return-value]


class OverlayOperations(pyfuse3.Operations):
    """pyfuse3's view of an overlay."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, filesystem: OverlayFilesystem, transport: Transport, queue: CopyUpQueue) -> None:
        """Serve ``filesystem``."""
        super().__init__()
        options = filesystem.stack.options
        self.enable_acl = filesystem.stack.has_acls
        self._filesystem = filesystem
        self._transport = transport
        self._queue = queue
        self._loads = DirectoryLoads()
        self._reads = QuickReads()
        self._timeout = options.timeout
        self._skips_sync = options.volatile

    async def _pass_on(self) -> None:
        for nodeid in self._filesystem.take_copied_up():
            self._transport.invalidate_attributes(nodeid)
        listed = self._filesystem.take_changed_listings()
        if listed:
            # A thread more: those that copy may all be taken.
            await trio.to_thread.run_sync(
                self._transport.invalidate_listings, listed, limiter=trio.CapacityLimiter(1)
            )
        self._transport.make_room_for_reply()

    async def _run(self, pid: int, operation: Callable[[], Result]) -> Result:
        """Run an operation with all the copies and readings that it asks for."""
        while True:
            try:
                return operation()
            except CopyUpNeeded as need:
                await self._queue.perform(need, pid)
            except LoadNeeded as need:
                await self._loads.perform(need)

    # Translation

    def _show(self, node: Node) -> EntryAttributes:
        attributes = self._filesystem.attributes(node)
        entry = EntryAttributes()
        entry.st_mode = ModeT(attributes.mode)
        entry.st_nlink = attributes.links
        entry.st_uid = attributes.user
        entry.st_gid = attributes.group
        entry.st_rdev = attributes.device
        entry.st_size = attributes.size
        entry.st_blocks = attributes.blocks
        entry.st_blksize = attributes.block_size
        entry.st_atime_ns = attributes.access_ns
        entry.st_mtime_ns = attributes.modification_ns
        entry.st_ctime_ns = attributes.change_ns
        entry.entry_timeout = self._timeout
        entry.attr_timeout = self._timeout if node.may_be_kept else 0
        return entry

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = self._show(node)
        entry.st_ino = InodeT(node.inode)
        return entry

    def _entry(self, node: Node) -> EntryAttributes:
        """Show a node that the kernel is told of; the forwarder puts the inode number beside the nodeid."""
        entry = self._show(node)
        self._filesystem.remember(node)
        entry.st_ino = InodeT(node.nodeid)
        return entry

    @staticmethod
    def _caller(ctx: RequestContext) -> Caller:
        return Caller(ctx.uid, ctx.gid, ctx.umask, ctx.pid)

    # Names

    @_answers
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name; that there is none is remembered as well."""
        try:
            node = await self._run(ctx.pid, lambda: self._filesystem.lookup(parent_inode, name))
        except FileNotFoundError:
            absent = EntryAttributes()
            absent.st_ino = InodeT(0)
            absent.entry_timeout = self._timeout
            return absent
        return self._entry(node)

    @_answers
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back lookups."""
        for nodeid, lookups in inode_list:
            self._filesystem.forget(nodeid, lookups)

    @_answers
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a fifo, socket, device or regular file."""
        caller = self._caller(ctx)
        return self._entry(
            await self._run(
                ctx.pid,
                lambda: self._filesystem.make_special(parent_inode, name, mode, rdev, caller),
            )
        )

    @_answers
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a directory."""
        caller = self._caller(ctx)
        return self._entry(
            await self._run(
                ctx.pid, lambda: self._filesystem.make_directory(parent_inode, name, mode, caller)
            )
        )

    @_answers
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a symlink."""
        caller = self._caller(ctx)
        return self._entry(
            await self._run(
                ctx.pid, lambda: self._filesystem.make_symlink(parent_inode, name, target, caller)
            )
        )

    @_answers
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Give a file one more name."""
        return self._entry(
            await self._run(ctx.pid, lambda: self._filesystem.link(inode, new_parent_inode, new_name))
        )

    @_answers
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name that is no directory."""
        await self._run(ctx.pid, lambda: self._filesystem.unlink(parent_inode, name))

    @_answers
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._run(ctx.pid, lambda: self._filesystem.remove_directory(parent_inode, name))

    @_answers
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename or exchange."""
        await self._run(
            ctx.pid,
            lambda: self._filesystem.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags),
        )

    # Attributes

    @_answers
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Show a node's attributes."""
        return self._attributes(self._filesystem.node(inode))

    @_answers
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change attributes."""
        change = Change(
            mode=attr.st_mode if fields.update_mode else None,
            user=attr.st_uid if fields.update_uid else None,
            group=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            access_ns=attr.st_atime_ns if fields.update_atime else None,
            modification_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        caller = None
        if change == Change():
            caller = self._caller(ctx)
            if not self._may_clear_set_ids(inode, caller):
                raise FUSEError(errno.EPERM)
        return self._attributes(
            await self._run(ctx.pid, lambda: self._filesystem.change_attributes(inode, change, fh, caller))
        )

    def _may_clear_set_ids(self, inode: InodeT, caller: Caller) -> bool:
        """Tell whether a change of nothing may clear set-id bits, if there are any.

        It is a chown(2) that names no owner, of which fs/attr.c: notify_change makes a chmod, or a write(2),
        whose right was shown at open(2).  The kernel above us lets both pass, and asks for both alike.
        """
        node = self._filesystem.node(inode)
        shown = self._filesystem.attributes(node)
        if node.is_directory or not self._filesystem.would_drop_set_ids(node, caller):
            return True
        return (
            caller.user == shown.user or self._filesystem.may_be_written(node) or _acts_as_owner(caller.pid)
        )

    @_answers
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Return a symlink's target."""
        return FileNameT(self._filesystem.read_link(inode))

    @_answers
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Return an extended attribute."""
        return self._filesystem.extended_attribute(inode, name)

    @_answers
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """List extended attributes, trusted ones to the privileged."""
        names = self._filesystem.extended_attributes(inode, trusted=True)
        if any(name.startswith(b"trusted.") for name in names) and not _may_see_trusted(ctx.pid):
            names = [name for name in names if not name.startswith(b"trusted.")]
        return [XAttrNameT(name) for name in names]

    @_answers
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute."""
        await self._run(ctx.pid, lambda: self._filesystem.set_extended_attribute(inode, name, value))

    @_answers
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        await self._run(ctx.pid, lambda: self._filesystem.remove_extended_attribute(inode, name))

    @_answers
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Show the file system that changes go to."""
        shown = StatvfsData()
        status = self._filesystem.status_of_file_system()
        shown.f_bsize = status.f_bsize
        shown.f_frsize = status.f_frsize
        shown.f_blocks = status.f_blocks
        shown.f_bfree = status.f_bfree
        shown.f_bavail = status.f_bavail
        shown.f_files = status.f_files
        shown.f_ffree = status.f_ffree
        shown.f_favail = status.f_favail
        shown.f_namemax = status.f_namemax
        return shown

    # Files

    @_answers
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file; its pages stay cached, since all changes come through us."""
        handle = await self._run(ctx.pid, lambda: self._filesystem.open(inode, flags, ctx.pid))
        return FileInfo(fh=FileHandleT(handle), keep_cache=True)

    @_answers
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create a file and open it."""
        caller = self._caller(ctx)
        node, handle = await self._run(
            ctx.pid, lambda: self._filesystem.create(parent_inode, name, mode, flags, caller)
        )
        return FileInfo(fh=FileHandleT(handle), keep_cache=True), self._entry(node)

    @_answers
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read; what isn't in the page cache, nor soon will be, is waited for in a worker thread."""
        descriptor = self._filesystem.descriptor_for_reading(fh)
        data = self._reads.read(descriptor, memoryview(bytearray(size)), off)
        if data is None:
            return await trio.to_thread.run_sync(os.pread, descriptor, size, off)
        return bytes(data)

    @_answers
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write, in a worker thread when it is to be waited for the disk."""
        if not self._filesystem.file(fh).synchronous:
            return self._filesystem.write(fh, off, buf)
        return await trio.to_thread.run_sync(self._filesystem.write_through, fh, off, buf)

    @_answers
    async def flush(self, fh: FileHandleT) -> None:
        """Have no more FLUSH: nothing is held back until a close."""
        raise FUSEError(errno.ENOSYS)

    @_answers
    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        self._filesystem.release(fh)

    @_answers
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Write a file to stable storage; with ``volatile``, never again."""
        if self._skips_sync:
            raise FUSEError(errno.ENOSYS)
        file = self._filesystem.file(fh)
        if file.node.upper is not None:
            sync = os.fdatasync if datasync else os.fsync
            await trio.to_thread.run_sync(sync, self._filesystem.descriptor_for_reading(fh))

    # Directories

    @_answers
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List a directory with everything that stat shows; its handle is its nodeid."""
        entries = await self._run(0, lambda: self._filesystem.read_directory(fh, start_id))
        told = False
        for name, listed, next_offset in entries:
            try:
                entry = self._listed(name, listed)
            except OSError:
                if not told:
                    raise
                break  # the entries before it count as looked up: they must be told
            told = True
            if not pyfuse3.readdir_reply(token, FileNameT(name), entry, next_offset):
                if not entry.st_ino & NAME_ONLY:
                    self._filesystem.forget(entry.st_ino, 1)
                break

    def _listed(self, name: bytes, listed: Node | NameOnly) -> EntryAttributes:
        if isinstance(listed, NameOnly):
            return self._name_only(listed.inode, listed.mode)
        if name in (b".", b".."):
            return self._name_only(listed.inode, listed.file_type)
        return self._entry(listed)

    @staticmethod
    def _name_only(inode: int, mode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode | NAME_ONLY)
        entry.st_mode = ModeT(mode)
        return entry

    @_answers
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Write a directory to stable storage; its handle is its nodeid."""
        if self._skips_sync:
            raise FUSEError(errno.ENOSYS)
        descriptor = self._filesystem.descriptor_for_sync(fh)
        if descriptor is None:
            return
        try:
            await trio.to_thread.run_sync(os.fsync, descriptor)
        finally:
            os.close(descriptor)

    @_answers
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Leave it to the kernel (default_permissions)."""
        raise FUSEError(errno.ENOSYS)


def _may_see_trusted(pid: int) -> bool:
    """Tell whether a thread has CAP_SYS_ADMIN in the daemon's own user namespace."""
    return _has_here(has_administration, pid)


def _acts_as_owner(pid: int) -> bool:
    """Tell whether a thread has CAP_FOWNER in the daemon's own user namespace."""
    return _has_here(acts_as_owner, pid)


def _has_here(capability: Callable[[int], bool], pid: int) -> bool:
    try:
        same_namespace = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
        return same_namespace and capability(pid)
    except OSError:
        return False
