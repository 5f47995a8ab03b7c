"""How does an object move to the upper?

The twin of fs/overlayfs/copy_up.c.  Everything is prepared in the work directory and published by one link or
rename; until then the lower shows.  A regular file's data may take long: `CopyUp.copy` works on descriptors
of its own and may run in any thread, while `begin` and `publish` belong to the thread that owns the
file system.  Nothing here knows threads, though.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final

from pyoverlay.layers import marks, syscalls
from pyoverlay.layers.layer import LayerObject
from pyoverlay.layers.stack import Stack
from pyoverlay.layers.syscalls import error
from pyoverlay.layers.work_directory import WorkDirectory
from pyoverlay.overlay.access_control import ACL_PREFIX
from pyoverlay.overlay.copied_data import copy_data, copy_flags
from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.node import Directory, Node, names_of
from pyoverlay.overlay.protection import Protection

_NO_UNNAMED_FILE: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
_MUST_BE_KEPT: Final = (b"security.", ACL_PREFIX)


class CopyUpNeeded(Exception):  # noqa: N818 - it asks for something, nothing failed
    """An operation needs a regular file in the upper first: copy it up, then try again.

    ``with_data`` is false when the file is about to be truncated to nothing.
    """

    def __init__(self, node: Node, *, with_data: bool = True) -> None:
        """Ask for ``node``."""
        super().__init__(node.name)
        self.node = node
        self.with_data = with_data


class CopyUpCancelled(Exception):  # noqa: N818
    """Everybody who waited for a copy-up has been killed."""


class CopyUps:
    """Moves objects to the upper."""

    def __init__(self, lookup: Lookup) -> None:
        """Copy up what ``lookup`` found."""
        self.lookup: Final = lookup
        self.stack: Final[Stack] = lookup.stack
        self.ownership: Final = lookup.ownership
        self.protection: Final = Protection(lookup.stack.dialect)
        self.moved: list[Node] = []
        """Nodes that were copied up since somebody took note of it: what the kernel caches of them is old."""

    # What an operation calls

    def need_upper(self, node: Node, *, with_data: bool = True) -> LayerObject:
        """Return the place of ``node`` in the upper, moving it there if that needs no data.

        Raises CopyUpNeeded for a regular file in a lower, OSError EROFS without an upper.
        """
        if node.upper is not None:
            return node.upper
        if self.stack.upper is None:
            raise error(errno.EROFS)
        if isinstance(node, Directory):
            return self.directory(node)
        if node.is_regular:
            raise CopyUpNeeded(node, with_data=with_data)
        return self._special(node)

    def directory(self, directory: Directory) -> LayerObject:
        """Copy up a directory after those above it that are missing in the upper."""
        if directory.upper is not None:
            return directory.upper
        if self.stack.upper is None:
            raise error(errno.EROFS)
        if directory.unlinked:
            raise error(errno.ENOENT)
        missing = [directory]
        parent = directory.parent
        while parent is not None and parent.upper is None:
            missing.append(parent)
            parent = parent.parent
        while len(missing) > 1:
            self._directory(missing.pop())
        return self._directory(directory)

    def begin(self, node: Node, *, with_data: bool = True) -> CopyUp:
        """Begin to copy up a regular file; its directories come first.

        Raises OSError.
        """
        if not node.unlinked:
            assert node.parent is not None
            self.directory(node.parent)
        self.lookup.verify_data(node)
        return CopyUp(self, node, with_data=with_data)

    def run(self, node: Node, *, with_data: bool = True) -> None:
        """Copy up a regular file, waiting for all of it."""
        job = self.begin(node, with_data=with_data)
        try:
            job.copy()
            job.publish()
        finally:
            job.close()

    # Directories, symlinks, fifos, sockets, devices

    def _directory(self, directory: Directory) -> LayerObject:
        parent = directory.parent
        assert parent is not None and parent.upper is not None and directory.lower is not None
        work = self.work
        lower = directory.lower
        status = lower.status()
        with work.temporary() as temporary:
            work.root.make_directory(temporary, 0o700)
            prepared = work.root.child(temporary)
            self._copy_metadata(lower, status, prepared, has_origin=True)
            self._copy_directory_flags(directory, lower, prepared)
            prepared.set_times(status.st_atime_ns, status.st_mtime_ns)
            if self.stack.options.fsync == "strict":
                prepared.sync()
            with self._keeping_times(parent.upper):
                work.root.rename(temporary, parent.upper, directory.name, syscalls.RENAME_NOREPLACE)
        self.stack.cache.forget(prepared)
        directory.upper = parent.upper.child(directory.name)
        directory.version += 1
        _note_cover(parent, directory.name)
        self.mark_impure(parent)
        self.take_note(directory, parent)
        return directory.upper

    def _copy_directory_flags(self, directory: Directory, lower: LayerObject, prepared: LayerObject) -> None:
        protection = self.protection.of(directory)
        if protection:
            prepared.set_attribute(*self.protection.name_and_value(protection))
        # A daemon without privilege may be unable to open it: then it can't have set flags, either.
        with contextlib.suppress(PermissionError), contextlib.ExitStack() as opened:
            source = lower.open_for_flags(directory=True)
            opened.callback(os.close, source)
            target = prepared.open_for_flags(directory=True)
            opened.callback(os.close, target)
            copy_flags(source, target)

    def _special(self, node: Node) -> LayerObject:
        lower = node.lower
        assert lower is not None
        status = lower.status()
        if node.unlinked:
            return self._unlinked_special(node, lower, status)
        parent = node.parent
        assert parent is not None
        upper_parent = self.directory(parent)
        work = self.work
        with work.temporary() as temporary:
            self._make_twin(lower, status, work.root, temporary)
            broken_link = status.st_nlink > 1
            prepared = work.root.child(temporary)
            self._copy_metadata(lower, status, prepared, has_origin=not broken_link)
            with self._keeping_times(upper_parent):
                work.root.rename(temporary, upper_parent, node.name, syscalls.RENAME_NOREPLACE)
        self.settle(node, upper_parent.child(node.name), broken_link=broken_link)
        assert node.upper is not None
        return node.upper

    def _unlinked_special(self, node: Node, lower: LayerObject, status: os.stat_result) -> LayerObject:
        """Copy up an object that has no name left: its twin loses its name in the work directory at once."""
        work = self.work
        with work.temporary() as temporary:
            self._make_twin(lower, status, work.root, temporary)
            twin = work.root.child(temporary)
            self._copy_metadata(lower, status, twin, has_origin=False)
            twin.hold_open()
            work.root.remove_file(temporary)
        node.upper = twin
        self.take_note(node)
        return twin

    @staticmethod
    def _make_twin(lower: LayerObject, status: os.stat_result, work: LayerObject, name: bytes) -> None:
        if stat.S_ISLNK(status.st_mode):
            work.make_symlink(name, lower.read_link())
        else:
            work.make_special(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)

    def _copy_metadata(
        self, lower: LayerObject, status: os.stat_result, prepared: LayerObject, *, has_origin: bool
    ) -> None:
        """Copy owner, mode, attributes and times in an order in which none undoes another."""
        self.ownership.set_owner(prepared, status.st_uid, status.st_gid)
        if not stat.S_ISLNK(status.st_mode):
            prepared.set_mode(stat.S_IMODE(status.st_mode))
        for name in self.kept(lower.list_attributes()):
            with _tolerating(name):
                prepared.set_attribute(name, lower.attribute(name))
        if has_origin:
            with _optional_mark():
                prepared.set_attribute(self.stack.dialect.attribute("origin"), self.origin(lower))
        prepared.set_times(status.st_atime_ns, status.st_mtime_ns)

    # Parts that the copy of a regular file shares

    @property
    def work(self) -> WorkDirectory:
        """The work directory."""
        work = self.stack.work
        if work is None:
            raise error(errno.EROFS)
        return work

    def kept(self, names: Iterable[bytes]) -> list[bytes]:
        """Return those of the names of attributes that a copy gets: all but the overlay's own."""
        return [name for name in names if self._is_kept(name)]

    def _is_kept(self, name: bytes) -> bool:
        if name.startswith(ACL_PREFIX) and not self.stack.stores_acls:
            return False
        return not marks.is_own_attribute(self.stack.dialect, name)

    def origin(self, lower: LayerObject) -> bytes:
        """Return the value of ``origin`` for a copy of ``lower``; empty when its handle can't be told."""
        if lower.layer.uuid is None:
            return b""
        try:
            kind, handle = lower.handle()
            return marks.encode_origin(kind, handle, lower.layer.uuid)
        except (OSError, ValueError):
            return b""

    def settle(self, node: Node, upper: LayerObject, *, broken_link: bool) -> None:
        """Let ``node`` be its copy from now on."""
        node.upper = upper
        node.lost_names = 0
        parent = node.parent
        if parent is not None:
            _note_cover(parent, node.name)
        if broken_link:
            # Each name of a lower hard link becomes a file of its own (the kernel with index=off).
            node.inode = self.lookup.numbers.number(upper.layer, upper.status().st_ino)
            for directory, _name in names_of(node):
                self.lookup.nodes.change_listing(directory)
        elif parent is not None:
            self.mark_impure(parent)
        self.take_note(node, parent)

    def mark_impure(self, directory: Directory) -> None:
        """Tell the kernel that entries here have others' inode numbers (ovl_set_impure)."""
        upper = directory.upper
        if upper is None or directory.impure:
            return
        name = self.stack.dialect.attribute("impure")
        with _optional_mark():
            if name not in upper.list_attributes():
                upper.set_attribute(name, b"y")
        directory.impure = True

    def take_note(self, node: Node, parent: Directory | None = None) -> None:
        """Remember that ``node`` is another object on disk now, and that its directory got a new ctime."""
        for changed in (node, parent):
            if changed is not None:
                changed.attributes = None
                changed.attribute_names = None
                self.moved.append(changed)

    @contextlib.contextmanager
    def _keeping_times(self, directory: LayerObject) -> Iterator[None]:
        """Restore a directory's times: a copy-up is no change of its contents."""
        before = directory.status()
        yield
        with contextlib.suppress(OSError):
            directory.set_times(before.st_atime_ns, before.st_mtime_ns)

    def publish(self, descriptor: int, temporary: bytes | None, node: Node) -> None:
        """Give the prepared copy of a regular file its name in the upper."""
        parent = node.parent
        assert parent is not None and parent.upper is not None
        with self._keeping_times(parent.upper):
            if temporary is None:
                parent.upper.link_descriptor(descriptor, node.name)
            else:
                self.work.root.rename(temporary, parent.upper, node.name, syscalls.RENAME_NOREPLACE)
        if self.stack.options.fsync == "strict":
            parent.upper.sync()


def _note_cover(parent: Directory, name: bytes) -> None:
    """Take note that the upper has ``name`` now, above a lower's; a reading under way must begin anew."""
    parent.version += 1
    if parent.loaded:
        parent.covered.add(name)


class CopyUp:
    """One regular file on its way to the upper."""

    def __init__(self, owner: CopyUps, node: Node, *, with_data: bool) -> None:
        """Open the source and the copy; nothing shows yet.  Raises OSError."""
        assert node.lower is not None
        self.node = node
        self.cancelled = False
        self._owner = owner
        self._lower = node.lower
        self._with_data = with_data
        self._source = -1
        self._target = -1
        self._temporary: bytes | None = None
        self._origin = b""
        self._attributes: list[bytes] = []
        self._protection = 0
        self._status: os.stat_result
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._source = self._lower.open(os.O_RDONLY)
        self._status = self._original.status()
        self._attributes = self._owner.kept(self._owner.lookup.attribute_names(self.node))
        self._protection = self._owner.protection.of(self.node)
        work = self._owner.work
        try:
            self._target = work.root.create_unnamed_file()
        except OSError as failure:
            if failure.errno not in _NO_UNNAMED_FILE:
                raise
            self._temporary = work.new_name()
            self._target = work.root.create_file(self._temporary, os.O_RDWR, 0o600)
        if not self._broken_link:
            self._origin = self._owner.origin(self._lower)

    @property
    def _original(self) -> LayerObject:
        return self._lower.layer.held_by(self._source)

    @property
    def _copy(self) -> LayerObject:
        assert self._owner.stack.upper is not None
        return self._owner.stack.upper.held_by(self._target)

    @property
    def _broken_link(self) -> bool:
        return self._status.st_nlink > 1

    def copy(self) -> None:
        """Copy data and metadata, and write them to stable storage.  May run in any thread.

        Raises OSError, or CopyUpCancelled after ``cancelled`` was set.
        """
        # Data first: writing clears capabilities, chown clears them and suid, and times come last.
        if self._with_data:
            copy_data(self._source, self._target, self._status.st_size, self._refuse_cancelled)
        status = self._status
        copy = self._copy
        self._owner.ownership.set_owner(copy, status.st_uid, status.st_gid)
        copy.set_mode(stat.S_IMODE(status.st_mode))
        self._copy_attributes(self._original, copy)
        copy_flags(self._source, self._target)
        if self._with_data or not status.st_size:
            os.utime(self._target, ns=(status.st_atime_ns, status.st_mtime_ns))
        # Else it keeps the time of now, when it lost its data: truncating what is empty may move no time.
        self._refuse_cancelled()
        if not self._owner.stack.options.volatile:
            os.fsync(self._target)

    def _refuse_cancelled(self) -> None:
        if self.cancelled:
            raise CopyUpCancelled

    def _copy_attributes(self, original: LayerObject, copy: LayerObject) -> None:
        for name in self._attributes:
            with _tolerating(name):
                copy.set_attribute(name, original.attribute(name))
        if self._protection:
            copy.set_attribute(*self._owner.protection.name_and_value(self._protection))
        if not self._broken_link:
            with _optional_mark():
                copy.set_attribute(self._owner.stack.dialect.attribute("origin"), self._origin)

    def publish(self) -> None:
        """Show the copy in place of the lower.  A file that lost its last name meanwhile stays nameless."""
        node = self.node
        self._refuse_cancelled()
        if node.unlinked:
            self._keep_nameless()
            return
        self._owner.publish(self._target, self._temporary, node)
        self._temporary = None
        assert node.parent is not None and node.parent.upper is not None
        upper = node.parent.upper.child(node.name)
        self._owner.settle(node, upper, broken_link=self._broken_link)

    def _keep_nameless(self) -> None:
        upper_layer = self._owner.stack.upper
        assert upper_layer is not None
        self.node.upper = upper_layer.root.unnamed(self._target)
        self._owner.take_note(self.node)

    def close(self) -> None:
        """Close what is open; a copy that wasn't published is gone."""
        for descriptor in (self._source, self._target):
            if descriptor >= 0:
                os.close(descriptor)
        self._source = self._target = -1
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._owner.work.root.remove_file(self._temporary)
            self._temporary = None


@contextlib.contextmanager
def _tolerating(name: bytes) -> Iterator[None]:
    """Let the upper lack support for an attribute, but for those that access depends on.

    fs/overlayfs/copy_up.c: ovl_must_copy_xattr.
    """
    try:
        yield
    except OSError as failure:
        if failure.errno != errno.EOPNOTSUPP or name.startswith(_MUST_BE_KEPT):
            raise


@contextlib.contextmanager
def _optional_mark() -> Iterator[None]:
    """Let a mark be missing that only keeps inode numbers: not all objects can have ``user.*`` attributes.

    fs/overlayfs/copy_up.c: ovl_set_origin_fh.
    """
    try:
        yield
    except OSError as failure:
        if failure.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
