"""How does a changeset tar become a directory that an overlay can stack?

Every name is reached from a descriptor of the layer's root, by openat2(2) that follows no symlink and leads
nowhere else, and every object is created anew: what an archive says can't reach outside, nor write through
what it made before. Whiteouts become character devices 0/0, opaque directories get their attribute
(https://github.com/opencontainers/image-spec/blob/main/layer.md).

Marks wait until all else is there, as they speak of the layers below, wherever in the tar they stand.
Directories get their attributes last, the deepest first.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.storing import Privileges
from pyoverlay.images.tar_entries import Entry
from pyoverlay.images.whiteouts import plan
from pyoverlay.layers import marks, syscalls

IMPLIED_MODE: Final = 0o755
"""Of a directory that the tar leaves out and only names as a parent; as docker and containers-storage do."""

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES: Final = 64
_AUFS_OWN: Final = marks.AUFS_PREFIX * 2
_DEVICE_MODES: Final = {
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}

Payload = Callable[[Entry, int], None]
"""Told of each file's content when it is written: the entry, and the CRC-32 of its payload."""


@dataclass(slots=True)
class Unpacked:
    """What became of a tar.

    Attributes:
        implied: directories that it only names as parents; the root, empty, among them if it has no entry.
        warnings: what was left out, for a person.
        entries: how many there were.
        size: bytes of files, as docker counts an image's size.
    """

    implied: list[bytes] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    entries: int = 0
    size: int = 0


class Unpacker:
    """Fills one directory from the entries of one tar."""

    def __init__(self, root: int, privileges: Privileges, payload: Payload | None = None) -> None:
        """Fill the directory behind the descriptor `root`, which is empty and nobody else's."""
        self._root = root
        self._may = privileges
        self._payload = payload
        self._user, self._group = os.geteuid(), os.getegid()
        self._directories: dict[bytes, Entry | None] = {b"": None}
        self._open: dict[bytes, int] = {b"": os.dup(root)}
        self._whiteouts: list[bytes] = []
        self._opaque: set[bytes] = set()
        self.result = Unpacked()

    @property
    def opaque_root(self) -> bool:
        """Whether the layer's root is opaque, which overlays don't heed: who stacks must end here."""
        return b"" in self._opaque

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def add(self, entry: Entry, content: Iterable[memoryview]) -> None:
        """Create what an entry says.

        Raises:
            ImageError: it can't be had, as it leads out of the layer, contradicts an earlier entry, or the
                file system refuses it.
        """
        self.result.entries += 1
        try:
            self._add(entry, content)
        except OSError as error:
            raise _failed(entry, error) from error

    def _add(self, entry: Entry, content: Iterable[memoryview]) -> None:
        parent, _, name = entry.path.rpartition(b"/")
        if b".wh." in entry.path and is_aufs_name(entry.path):
            self._mark(entry, name)
            return
        if entry.kind == "directory":
            self._add_directory(entry, parent, name)
            return
        directory = self._directory(parent)
        try:
            if entry.kind == "file":
                self._add_file(entry, directory, name, content)
            elif entry.kind == "hard link":
                self._add_link(entry, directory, name)
            elif entry.kind == "symlink":
                os.symlink(entry.target, name, dir_fd=directory)
                self._finish_named(entry, directory, name)
            elif self._make_node(entry, directory, name):
                self._finish_named(entry, directory, name)
        except FileExistsError as error:
            raise ImageError(
                f"{shown(entry.path)}: the layer has this name twice, which no layer may"
            ) from error

    def finish(self) -> Unpacked:
        """Apply the marks and the directories' attributes.

        Raises:
            ImageError: the file system refuses one.
        """
        self._apply_marks()
        for path in sorted(self._directories, key=_depth, reverse=True):
            try:
                self._finish_directory(path, self._directories[path])
            except OSError as error:
                raise ImageError(f"{shown(path) or '/'}: {error.strerror}") from error
        self.result.implied = sorted(path for path, entry in self._directories.items() if entry is None)
        return self.result

    # Names

    def _directory(self, path: bytes) -> int:
        """Return an O_PATH descriptor of a directory in the layer, created if it isn't there.

        It belongs to the cache: use it before the next call.
        """
        found = self._open.get(path)
        if found is not None:
            return found
        missing: list[bytes] = []
        while True:
            try:
                descriptor = syscalls.open_beneath(self._root, path or b".", _DIRECTORY)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise ImageError(
                        f"{shown(path)}: the layer has a file or symlink there, and an entry below it"
                    ) from error
                if error.errno != errno.ENOENT:
                    raise
                path, _, name = path.rpartition(b"/")
                missing.append(name)
            else:
                break
        while missing:
            name = missing.pop()
            path = path + b"/" + name if path else name
            try:
                os.mkdir(name, 0o700, dir_fd=descriptor)
                inner = syscalls.open_beneath(descriptor, name, _DIRECTORY)
            finally:
                os.close(descriptor)
            self._directories[path] = None
            descriptor = inner
        self._keep_open(path, descriptor)
        return descriptor

    def _keep_open(self, path: bytes, descriptor: int) -> None:
        if len(self._open) >= _OPEN_DIRECTORIES:
            oldest = next(key for key in self._open if key)
            os.close(self._open.pop(oldest))
        self._open[path] = descriptor

    # Objects

    def _add_directory(self, entry: Entry, parent: bytes, name: bytes) -> None:
        if entry.path not in self._directories:
            try:
                os.mkdir(name, 0o700, dir_fd=self._directory(parent))
            except FileExistsError as error:
                raise ImageError(
                    f"{shown(entry.path)}: the layer has this name twice, once as a directory"
                ) from error
        self._directories[entry.path] = entry

    def _add_file(self, entry: Entry, directory: int, name: bytes, content: Iterable[memoryview]) -> None:
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            if entry.fragments is None:
                checksum = 0
                for piece in content:
                    checksum = zlib.crc32(piece, checksum)
                    _write(descriptor, piece)
            else:
                checksum = _write_sparse(descriptor, entry, content)
            self.result.size += entry.size
            self._finish_open(entry, descriptor)
        finally:
            os.close(descriptor)
        if self._payload is not None and entry.payload:
            self._payload(entry, checksum)

    def _add_link(self, entry: Entry, directory: int, name: bytes) -> None:
        parent, _, target = entry.target.rpartition(b"/")
        if marks.is_aufs_mark(target) or not target:
            raise ImageError(f"{shown(entry.path)}: a hard link to {shown(entry.target)}, which is no file")
        try:
            source = syscalls.open_beneath(self._root, parent or b".", _DIRECTORY)
        except OSError as error:
            raise _no_target(entry) from error
        try:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise _no_target(entry) from error
        finally:
            os.close(source)

    def _make_node(self, entry: Entry, directory: int, name: bytes) -> bool:
        if entry.kind != "fifo" and not self._may.devices:
            self._warn(f"{shown(entry.path)}: left out, as only root may make a {entry.kind}")
            return False
        os.mknod(name, _DEVICE_MODES[entry.kind] | 0o600, os.makedev(*entry.device), dir_fd=directory)
        return True

    # Attributes: owner, then mode, as chown clears suid; then capabilities, which it clears as well.

    def _finish_open(self, entry: Entry, descriptor: int) -> None:
        if self._changes_owner(entry):
            os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, self._may.mode(entry))
        if entry.xattrs:
            self._set_xattrs(entry, descriptor)
        os.utime(descriptor, ns=(entry.mtime, entry.mtime))

    def _finish_named(self, entry: Entry, directory: int, name: bytes) -> None:
        """Give attributes to what can't be opened without side effects."""
        if self._changes_owner(entry):
            os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        path = b"/proc/self/fd/%d/%s" % (directory, name)
        if entry.kind != "symlink":
            os.chmod(path, self._may.mode(entry))
        if entry.xattrs:
            self._set_xattrs(entry, path)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)

    def _finish_directory(self, path: bytes, entry: Entry | None) -> None:
        descriptor = syscalls.open_beneath(self._root, path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            if path in self._opaque:
                os.setxattr(descriptor, self._may.dialect.attribute("opaque"), b"y")
            if entry is not None:
                self._finish_open(entry, descriptor)
            else:
                os.fchmod(descriptor, IMPLIED_MODE)
                os.utime(descriptor, ns=(0, 0))
        finally:
            os.close(descriptor)

    def _changes_owner(self, entry: Entry) -> bool:
        return self._may.owners and (entry.uid != self._user or entry.gid != self._group)

    def _set_xattrs(self, entry: Entry, place: int | bytes) -> None:
        kept = self._may.xattrs(entry)
        if len(kept) < len(entry.xattrs):
            self._warn(f"{shown(entry.path)}: some extended attributes were left out")
        for name, value in kept.items():
            try:
                if isinstance(place, int):
                    os.setxattr(place, name, value)
                else:
                    os.setxattr(place, name, value, follow_symlinks=False)
            except OSError as error:
                raise ImageError(
                    f"{shown(entry.path)}: its extended attribute {shown(name)} can't be "
                    f"kept: {error.strerror}"
                ) from error

    def _warn(self, text: str) -> None:
        self.result.warnings.append(text)

    # Marks

    def _mark(self, entry: Entry, name: bytes) -> None:
        components = entry.path.split(b"/")
        if is_aufs_own(entry.path):
            self._warn(f"{shown(entry.path)}: left out, as it is a file of AUFS's own")
            return
        hidden = marks.aufs_hidden_name(name)
        if any(map(marks.is_aufs_mark, components[:-1])):
            raise ImageError(f"{shown(entry.path)}: an entry below a whiteout, which is no directory")
        if name != marks.AUFS_OPAQUE and hidden in (None, b".", b".."):
            raise ImageError(f"{shown(entry.path)}: this whiteout hides no name")
        if entry.kind != "file" or entry.payload:
            raise ImageError(f"{shown(entry.path)}: a name with '.wh.' is a whiteout's: an empty file")
        self._whiteouts.append(entry.path)

    def _apply_marks(self) -> None:
        marks_of_layer = plan(self._whiteouts, self._directories, self._exists)
        for path in [*(path + b"/." for path in sorted(marks_of_layer.opaque)), *marks_of_layer.devices]:
            parent, _, name = path.rpartition(b"/")
            try:
                directory = self._directory(parent.rstrip(b"/"))
                if name != b".":
                    os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory)
                    # Nobody sees its time; but the same tar gives the same directory.
                    os.utime(name, ns=(0, 0), dir_fd=directory, follow_symlinks=False)
            except OSError as error:
                raise ImageError(f"{shown(path)}: {error.strerror}") from error
        self._opaque = marks_of_layer.opaque

    def _exists(self, path: bytes) -> bool:
        try:
            os.close(syscalls.open_beneath(self._root, path, os.O_PATH | os.O_NOFOLLOW))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True


def is_aufs_name(path: bytes) -> bool:
    """Whether a path has a component that can only be a mark's, so that it is never shown."""
    return any(map(marks.is_aufs_mark, path.split(b"/")))


def is_aufs_own(path: bytes) -> bool:
    """Whether a path is one of the files that AUFS made for itself."""
    return any(name.startswith(_AUFS_OWN) and name != marks.AUFS_OPAQUE for name in path.split(b"/"))


def is_whiteout(path: bytes) -> bool:
    """Whether an entry of this path is a whiteout or an opaque mark."""
    return marks.is_aufs_mark(path.rpartition(b"/")[2]) and not is_aufs_own(path)


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1 if path else 0


def _write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _write_sparse(descriptor: int, entry: Entry, content: Iterable[memoryview]) -> int:
    """Write a sparse file's payload where it belongs; return its CRC-32."""
    checksum = 0
    fragments = iter(entry.fragments or ())
    offset = left = 0
    for piece in content:
        checksum = zlib.crc32(piece, checksum)
        while piece:
            if not left:
                offset, left = next(fragments)
            written = os.pwrite(descriptor, piece[:left], offset)
            offset += written
            left -= written
            piece = piece[written:]
    os.ftruncate(descriptor, entry.size)
    return checksum


def _no_target(entry: Entry) -> ImageError:
    return ImageError(
        f"{shown(entry.path)}: a hard link to {shown(entry.target)}, which is no file of this layer before it"
    )


def _failed(entry: Entry, error: OSError) -> ImageError:
    if error.errno == errno.EINVAL and entry.uid:
        return ImageError(
            f"{shown(entry.path)}: its owner {entry.uid}:{entry.gid} has no place in this user namespace; "
            "map more users and groups into it"
        )
    return ImageError(f"{shown(entry.path)}: {error.strerror}")
