"""How is an object in one layer reached and acted on?

A layer is a directory held by a descriptor.  An object in it is named by its parent object and
its name there, never by a path that is walked again from ``/``, and symlinks in a layer are never
followed.  Every raw operation on a layer goes through this file.  It does not know how layers
stack, nor what marks mean.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from pyoverlay.layers import syscalls

if TYPE_CHECKING:
    from pyoverlay.layers.recorded import Records

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_UNKNOWN_CALL: Final = frozenset({errno.ENOSYS, errno.EPERM})
"""What a kernel says of a system call that it doesn't know, and what a container's filter may say of it."""

DIRECTORY_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DescriptorCache:
    """A bounded set of open directory descriptors, shared by the layers of a stack.

    Nodes hold no descriptor; the directories in use lately keep theirs open here.  Eviction gives a
    second chance to what was used since the last round.  Only the thread that owns the file system may
    use it: a worker thread works on descriptors of its own.
    """

    def __init__(self, capacity: int) -> None:
        """Hold at most ``capacity`` descriptors."""
        self.capacity: Final = max(capacity, 16)
        self._objects: deque[LayerObject] = deque()

    def add(self, directory: LayerObject) -> None:
        """Take over the descriptor that ``directory`` has just opened."""
        while len(self._objects) >= self.capacity:
            oldest = self._objects.popleft()
            if oldest.used or oldest is directory.parent:
                oldest.used = False
                self._objects.append(oldest)
            elif not oldest.held:
                oldest.close()
        self._objects.append(directory)

    def forget(self, directory: LayerObject) -> None:
        """Close the descriptor of a directory that has gone; its slot is given up in its turn."""
        if not directory.held:
            directory.close()

    def close(self) -> None:
        """Close every descriptor."""
        while self._objects:
            cached = self._objects.popleft()
            if not cached.held:
                cached.close()


class Layer:
    """One layer directory, opened.

    ``path`` is what the user called it; ``device`` and ``inode`` identify its root; ``uuid`` is its
    file system's, or None.  ``cloned`` says that it is reached through a private read-only clone of
    its mount, so that the kernel itself refuses writes.  ``records`` says how it keeps owners that it can't
    have itself (`recorded`), None for layers that have them.  ``idmapped`` says that the layer's mount shows
    other ids than are on disk; it is asked for in lowers of a mount that shifts ids itself.
    """

    __slots__ = (
        "_readable_root",
        "cache",
        "cloned",
        "device",
        "has_submounts",
        "idmapped",
        "inode",
        "operations",
        "path",
        "records",
        "root",
        "uuid",
        "writable",
    )

    def __init__(self, path: str, descriptor: int, cache: DescriptorCache, *, writable: bool) -> None:
        """Take over ``descriptor``, an O_PATH or O_RDONLY descriptor of the layer's root directory.

        A lower (``writable`` false) is cloned where the kernel allows it; the clone replaces the
        descriptor.
        """
        self.path = path
        self.cache = cache
        self.writable = writable
        self.operations = 0
        self.records: Records | None = None
        self.idmapped = False
        self.cloned = False
        if not writable:
            descriptor = self._clone(descriptor)
        status = os.fstat(descriptor)
        self.has_submounts: Final = not self.cloned and not writable
        """Whether other mounts, our own among them, may show inside: they must not be entered."""
        self.device = status.st_dev
        self.inode = status.st_ino
        self.root = LayerObject(self, None, b"")
        self.root.hold(descriptor)
        self._readable_root = self._open_root()
        self.uuid = None if self._readable_root < 0 else syscalls.file_system_uuid(self._readable_root)

    def _clone(self, descriptor: int) -> int:
        try:
            clone = syscalls.clone_mount(descriptor)
        except OSError as failure:
            return self._keep_uncloned(descriptor, failure)
        try:
            self._protect(clone)
        except OSError as failure:
            os.close(clone)
            return self._keep_uncloned(descriptor, failure)
        os.close(descriptor)
        self.cloned = True
        return clone

    @staticmethod
    def _protect(clone: int) -> None:
        try:
            syscalls.make_mount_read_only(clone, noatime=True)
        except PermissionError:
            # Nothing moves atimes on a read-only mount; the flag only says so once more.
            syscalls.make_mount_read_only(clone, noatime=False)

    def _keep_uncloned(self, descriptor: int, failure: OSError) -> int:
        log.info("%s is used without a private clone of its mount: %s", self.path, failure.strerror)
        return descriptor

    def _open_root(self) -> int:
        """Open the root for what O_PATH can't do; -1 when it may not be read."""
        try:
            return self.root.open_for_listing()
        except OSError:
            return -1

    def open_handle(self, kind: int, handle: bytes) -> LayerObject:
        """Open an object of this layer's file system by its file handle; close it after use."""
        self.operations += 1
        return self.held_by(syscalls.open_handle(self._readable_root, kind, handle, os.O_PATH))

    def held_by(self, descriptor: int) -> LayerObject:
        """Name the object of this layer that is open as ``descriptor``, which it takes over."""
        named = type(self.root)(self, None, b"")
        named.hold(descriptor)
        return named

    def status_of_file_system(self) -> os.statvfs_result:
        """Return statvfs(3) of the layer's file system."""
        self.operations += 1
        return os.statvfs(self.root.reopening_path())

    def close(self) -> None:
        """Close the layer's root."""
        self.root.close()
        if self._readable_root >= 0:
            os.close(self._readable_root)
            self._readable_root = -1


class LayerObject:
    """An object in a layer: a parent object and a name in it.

    The pair is all there is: no descriptor is kept but in the cache, or where ``hold`` was called (the
    root; an object that lost its last name while the kernel still knows it).  A rename changes the
    pair in place, so everything below follows.
    """

    __slots__ = ("fd", "held", "layer", "name", "parent", "used")
    clears_capabilities: ClassVar[bool] = True
    """Whether the file system drops a file's capabilities by itself when its data is changed."""

    def __init__(self, layer: Layer, parent: LayerObject | None, name: bytes) -> None:
        """Name an object; no I/O, it need not exist."""
        self.layer = layer
        self.parent = parent
        self.name = name
        self.fd = -1
        self.held = False
        self.used = False

    def child(self, name: bytes) -> LayerObject:
        """Name an object in this directory; no I/O."""
        return type(self)(self.layer, self, name)

    # Descriptors

    def hold(self, descriptor: int) -> None:
        """Reach the object through ``descriptor`` from now on, whatever happens to its name."""
        if self.fd >= 0 and self.fd != descriptor and not self.held:
            # The cache still lists it and skips it when its turn comes.
            os.close(self.fd)
        self.fd = descriptor
        self.held = True

    def hold_open(self) -> None:
        """Hold the object by a descriptor of its own: it is about to lose its name."""
        if not self.held:
            self.hold(self.open(os.O_PATH))

    def close(self) -> None:
        """Close the object's descriptor, if it has one."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.held = False

    def descriptor(self) -> int:
        """Return this directory's O_PATH descriptor, opened step by step from the nearest open parent.

        It belongs to the cache: use it at once, don't keep it.
        """
        if self.fd >= 0:
            self.used = True
            return self.fd
        missing = [self]
        ancestor = self.parent
        while ancestor is not None and ancestor.fd < 0:
            missing.append(ancestor)
            ancestor = ancestor.parent
        while missing:
            missing.pop()._open_directory()
        return self.fd

    def _open_directory(self) -> None:
        assert self.parent is not None
        layer = self.layer
        layer.operations += 1
        if layer.has_submounts:
            fd = syscalls.open_on_same_mount(self.parent.fd, self.name, DIRECTORY_FLAGS)
        else:
            fd = os.open(self.name, DIRECTORY_FLAGS, dir_fd=self.parent.fd)
        self.fd = fd
        self.used = True
        layer.cache.add(self)

    def open_on_same_mount(self) -> None:
        """Open this directory, unless it is a mount point; its parent is open.  Raises OSError EXDEV."""
        if self.fd >= 0:
            return
        assert self.parent is not None
        self.layer.operations += 1
        self.fd = syscalls.open_on_same_mount(self.parent.descriptor(), self.name, DIRECTORY_FLAGS)
        self.used = True
        self.layer.cache.add(self)

    def _place(self) -> tuple[int, bytes]:
        assert self.parent is not None
        self.layer.operations += 1
        return self.parent.descriptor(), self.name

    def reopening_path(self) -> bytes:
        """Return the /proc path of the held or cached descriptor: reopening it never walks a name."""
        return b"/proc/self/fd/%d" % self.fd

    def _attribute_path(self) -> tuple[bytes, bool]:
        """Return (path, follow) for the *xattr calls, which take no directory descriptor."""
        if self.held:
            self.layer.operations += 1
            return self.reopening_path(), True
        directory, name = self._place()
        return b"/proc/self/fd/%d/%s" % (directory, name), False

    def open(self, flags: int) -> int:
        """Open the object; the caller owns the descriptor.  Symlinks give ELOOP (but with O_PATH)."""
        if self.held:
            self.layer.operations += 1
            if flags & os.O_PATH:
                return os.dup(self.fd)
            return os.open(self.reopening_path(), flags | os.O_CLOEXEC)
        directory, name = self._place()
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        if self.layer.has_submounts:
            return syscalls.open_on_same_mount(directory, name, flags)
        return os.open(name, flags, dir_fd=directory)

    def open_for_listing(self) -> int:
        """Open this directory for reading its entries; the caller owns the descriptor."""
        self.layer.operations += 1
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.descriptor())

    # Reading

    def status(self, descriptor: int | None = None) -> os.stat_result:
        """Return lstat(2) of the object; through ``descriptor``, where the caller has it open."""
        if descriptor is not None or self.held:
            self.layer.operations += 1
            return os.fstat(self.fd if descriptor is None else descriptor)
        if self.layer.has_submounts:
            descriptor = self.open(os.O_PATH)
            try:
                return os.fstat(descriptor)
            finally:
                os.close(descriptor)
        directory, name = self._place()
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    status_on_disk = status
    """The same, whatever a layer that keeps records says of the object."""

    def status_of(self, name: bytes) -> os.stat_result:
        """Return the status of the object that has a name in this directory."""
        layer = self.layer
        if layer.has_submounts:
            return self.child(name).status()
        layer.operations += 1
        return os.stat(name, dir_fd=self.descriptor(), follow_symlinks=False)

    def birth_time(self) -> int | None:
        """Return when the object was created, in ns since the epoch, None where that isn't known."""
        return self._ask(syscalls.birth_time)

    def status_flags(self) -> int:
        """Return ``stx_attributes`` of statx(2)."""
        return self._ask(syscalls.status_flags)

    def _ask(self, question: Callable[[int, bytes], Answer]) -> Answer:
        """Ask something of (directory, name), or of (descriptor, nothing) where the object has one."""
        if self.held:
            self.layer.operations += 1
            return question(self.fd, b"")
        if self.layer.has_submounts:
            descriptor = self.open(os.O_PATH)
            try:
                return question(descriptor, b"")
            finally:
                os.close(descriptor)
        return question(*self._place())

    def open_for_flags(self, *, directory: bool) -> int:
        """Open a regular file or directory to ask for its flags or set them; the caller owns it."""
        return self.open_for_listing() if directory else self.open(os.O_RDONLY | os.O_NONBLOCK)

    def list_entries(self) -> list[tuple[bytes, int]]:
        """Return the (name, d_type) pairs of this directory."""
        descriptor = self.open_for_listing()
        try:
            return syscalls.read_directory(descriptor)
        finally:
            os.close(descriptor)

    def read_link(self) -> bytes:
        """Return the target of this symlink."""
        if self.held:
            self.layer.operations += 1
            return os.readlink(b"", dir_fd=self.fd)
        directory, name = self._place()
        return os.readlink(name, dir_fd=directory)

    def handle(self) -> tuple[int, bytes]:
        """Return the object's file handle (type, bytes)."""
        if self.held:
            self.layer.operations += 1
            return syscalls.file_handle(self.fd, b"")
        return syscalls.file_handle(*self._place())

    def list_attributes(self) -> list[bytes]:
        """Return the names of the extended attributes; none where the file system has none."""
        path, follow = self._attribute_path()
        try:
            return [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow)]
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return []
            raise

    def attribute(self, name: bytes) -> bytes:
        """Return the value of an extended attribute, or raise OSError ENODATA."""
        path, follow = self._attribute_path()
        return os.getxattr(path, name, follow_symlinks=follow)

    # Changing

    def set_attribute(self, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; ``flags`` as in setxattr(2)."""
        path, follow = self._attribute_path()
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def remove_attribute(self, name: bytes) -> None:
        """Remove an extended attribute, or raise OSError ENODATA."""
        path, follow = self._attribute_path()
        os.removexattr(path, name, follow_symlinks=follow)

    def set_mode(self, mode: int) -> None:
        """Set the permission bits; the object is no symlink."""
        if self.held:
            self.layer.operations += 1
            os.chmod(self.reopening_path(), mode)
            return
        try:
            syscalls.set_mode(*self._place(), mode)
        except OSError as failure:
            if failure.errno not in _UNKNOWN_CALL:
                raise
            self._set_mode_through_descriptor(mode)

    def _set_mode_through_descriptor(self, mode: int) -> None:
        descriptor = self.open(os.O_PATH)
        try:
            os.chmod(b"/proc/self/fd/%d" % descriptor, mode)
        finally:
            os.close(descriptor)

    def set_owner(self, user: int, group: int) -> None:
        """Set owner and group; -1 leaves one as it is."""
        if self.held:
            self.layer.operations += 1
            os.chown(self.reopening_path(), user, group)
            return
        directory, name = self._place()
        os.chown(name, user, group, dir_fd=directory, follow_symlinks=False)

    def set_times(self, access_ns: int | None, modification_ns: int | None) -> None:
        """Set times in nanoseconds since the epoch; None leaves one as it is."""
        if self.held:
            self.layer.operations += 1
            path = self.reopening_path()
            syscalls.set_times(syscalls.AT_FDCWD, path, access_ns, modification_ns, follow=True)
            return
        directory, name = self._place()
        syscalls.set_times(directory, name, access_ns, modification_ns, follow=False)

    # Names in this directory

    def create_file(self, name: bytes, flags: int, mode: int) -> int:
        """Create a regular file with O_EXCL and return its descriptor."""
        self.layer.operations += 1
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, mode, dir_fd=self.descriptor())

    def create_unnamed_file(self, flags: int = os.O_RDWR, mode: int = 0o600) -> int:
        """Create a regular file without a name (O_TMPFILE) and return its descriptor."""
        self.layer.operations += 1
        flags |= os.O_TMPFILE | os.O_CLOEXEC
        return os.open(b".", flags, mode, dir_fd=self.descriptor())

    def unnamed(self, descriptor: int) -> LayerObject:
        """Name the nameless file of this layer that is open as ``descriptor``; it is held."""
        return self.layer.held_by(os.open(b"/proc/self/fd/%d" % descriptor, os.O_PATH | os.O_CLOEXEC))

    def settle(self, parent: LayerObject, name: bytes) -> None:
        """Be reached by a name from now on: a nameless file was given one."""
        self.close()
        self.parent, self.name = parent, name

    def link_descriptor(self, descriptor: int, name: bytes) -> None:
        """Give an open file the name ``name`` here; EEXIST when it is taken."""
        self.layer.operations += 1
        os.link(b"/proc/self/fd/%d" % descriptor, name, dst_dir_fd=self.descriptor(), follow_symlinks=True)

    def link(self, source: LayerObject, name: bytes) -> None:
        """Give ``source`` one more name here; EEXIST when it is taken."""
        if source.held:
            self.link_descriptor(source.fd, name)
            return
        assert source.parent is not None
        self.layer.operations += 1
        origin = source.parent
        # Opening one directory may close another that isn't held.
        stays_open = origin is self or origin.held
        target = self.descriptor() if stays_open else os.dup(self.descriptor())
        try:
            os.link(
                source.name, name, src_dir_fd=origin.descriptor(), dst_dir_fd=target, follow_symlinks=False
            )
        finally:
            if not stays_open:
                os.close(target)

    def make_directory(self, name: bytes, mode: int) -> None:
        """Create a directory: mkdirat(2)."""
        self.layer.operations += 1
        os.mkdir(name, mode, dir_fd=self.descriptor())

    def make_special(self, name: bytes, mode: int, device: int) -> None:
        """Create a fifo, socket, device or whiteout: mknodat(2); ``mode`` has the type."""
        self.layer.operations += 1
        os.mknod(name, mode, device, dir_fd=self.descriptor())

    def make_symlink(self, name: bytes, target: bytes) -> None:
        """Create a symlink."""
        self.layer.operations += 1
        os.symlink(target, name, dir_fd=self.descriptor())

    def remove_file(self, name: bytes) -> None:
        """Remove a name that is no directory."""
        self.layer.operations += 1
        os.unlink(name, dir_fd=self.descriptor())

    def remove_directory(self, name: bytes) -> None:
        """Remove an empty directory."""
        self.layer.operations += 1
        os.rmdir(name, dir_fd=self.descriptor())

    def rename(self, name: bytes, target: LayerObject, target_name: bytes, flags: int = 0) -> None:
        """Rename ``name`` here to ``target_name`` in ``target``; flags as in renameat2(2)."""
        self.layer.operations += 1
        if target is self:
            directory = self.descriptor()
            syscalls.rename(directory, name, directory, target_name, flags)
            return
        source = os.dup(self.descriptor())
        try:
            syscalls.rename(source, name, target.descriptor(), target_name, flags)
        finally:
            os.close(source)

    def sync(self) -> None:
        """Write this directory to stable storage: fsync(2)."""
        descriptor = self.open_for_listing()
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove_tree(self, name: bytes) -> None:
        """Remove ``name`` and everything below it, with constant stack depth.

        Raises OSError EXDEV before anything in a directory that something else is mounted on is touched.
        """
        try:
            self.remove_file(name)
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
        if not stat.S_ISDIR(self.child(name).status_on_disk().st_mode):
            self.remove_file(name)
            return
        pending = [self.child(name)]
        while pending:
            directory = pending[-1]
            directory.open_on_same_mount()
            subdirectories = _remove_files(directory)
            if subdirectories:
                pending.extend(directory.child(entry) for entry in subdirectories)
                continue
            pending.pop()
            assert directory.parent is not None
            directory.parent.remove_directory(directory.name)
            directory.layer.cache.forget(directory)


def _remove_files(directory: LayerObject) -> list[bytes]:
    """Remove what is no directory in ``directory``; return the names of its subdirectories."""
    subdirectories = []
    for name, kind in directory.list_entries():
        if kind == syscalls.DT_UNKNOWN:
            is_directory = stat.S_ISDIR(directory.child(name).status_on_disk().st_mode)
        else:
            is_directory = kind == syscalls.DT_DIR
        if is_directory:
            subdirectories.append(name)
        else:
            directory.remove_file(name)
    return subdirectories
