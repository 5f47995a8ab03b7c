"""Is a layer in the store still what it was when it came in?

Its tar is made again, from the record and the files, and must have the digest that names it; and each of the
tar's entries must look in the directory as unpacking makes it, with nothing besides.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Final

from pyoverlay.images import whiteouts
from pyoverlay.images.digests import Digest
from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.record import RecordedTar
from pyoverlay.images.store import Store
from pyoverlay.images.storing import Privileges
from pyoverlay.images.tar_entries import Entry
from pyoverlay.images.tar_reader import TarReader
from pyoverlay.images.unpacked_layer import LayerRecord
from pyoverlay.images.unpacking import IMPLIED_MODE, is_aufs_name, is_whiteout
from pyoverlay.layers import marks, syscalls

_TYPES: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
_ACCESS_LIST: Final = b"system.posix_acl_access"
_SMALLEST_ACCESS_LIST: Final = 4 + 3 * 8
"""Bytes of a list with owner, group and others alone (include/uapi/linux/posix_acl_xattr.h)."""
_KEPT_TIMES: Final = range(-(2**31) * 10**9, 2**34 * 10**9)
"""Nanoseconds that every file system keeps; ext4 and others cut what is beyond (struct inode's 34 bits)."""


def check_layer(store: Store, diff_id: Digest) -> list[str]:
    """Compare a layer with what it was.

    Returns:
        What differs, each for a person; nothing when the layer is whole.
    """
    known = store.record_of(diff_id)
    if known is None:
        return ["it isn't there, or its layer.json is damaged; load its image again"]
    problems: list[str] = []
    try:
        with store.open_record(diff_id) as record:
            comparison = _Comparison(store.layer_directory(diff_id), known, problems.append)
            try:
                reader = comparison.compare(RecordedTar(record, comparison.root, problems.append))
            finally:
                os.close(comparison.root)
    except ImageError as error:
        return [*problems, str(error)]
    except OSError as error:
        return [*problems, f"its directory can't be read: {error}"]
    if reader.digest() != diff_id and not problems:
        problems.append("its record was changed")
    return problems


def is_sound(store: Store, diff_id: Digest) -> bool:
    """Whether the store has a layer that can be used.

    A layer isn't brought to the disk before it is used, as that may take long on a busy machine. If the
    machine was started anew since it was unpacked, it is looked at once, as `check_layer` does.
    """
    if store.record_of(diff_id) is None:
        return False
    if not store.is_doubtful(diff_id):
        return True
    if check_layer(store, diff_id):
        return False
    store.settle(diff_id)
    return True


class _Comparison:
    def __init__(self, directory: Path, known: LayerRecord, tell: Callable[[str], None]) -> None:
        self.root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._may: Privileges = known.privileges()
        self._implied = known.implied
        self._tell = tell
        self._expected: dict[bytes, Entry | None] = {b"": None}
        self._marks: list[bytes] = []

    def compare(self, tar: RecordedTar) -> TarReader:
        reader = TarReader(tar)
        for entry in reader:
            if b".wh." in entry.path and is_aufs_name(entry.path):
                if is_whiteout(entry.path):
                    self._marks.append(entry.path)
            elif entry.kind not in ("character device", "block device") or self._may.devices:
                self._expected[entry.path] = entry
        self._expected.update((path, self._expected.get(path)) for path in self._implied)
        directories = {
            path for path, entry in self._expected.items() if entry is None or entry.kind == "directory"
        }
        plan = whiteouts.plan(self._marks, directories, self._expected.__contains__)
        for path, expected in self._expected.items():
            self._look_at(path, expected, opaque=path in plan.opaque)
        self._look_for_others(set(plan.devices))
        return reader

    def _look_at(self, path: bytes, entry: Entry | None, *, opaque: bool) -> None:
        try:
            descriptor = syscalls.open_beneath(self.root, path or b".", os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            if entry is None or not entry.payload:
                self._tell(f"/{shown(path)} is missing")
            return
        try:
            for what in self._differences(descriptor, path, entry, opaque=opaque):
                self._tell(f"/{shown(path)} has another {what} than it had")
        finally:
            os.close(descriptor)

    def _differences(
        self, descriptor: int, path: bytes, entry: Entry | None, *, opaque: bool
    ) -> Iterator[str]:
        status = os.fstat(descriptor)
        if entry is None:
            entry = Entry(path, "directory", IMPLIED_MODE, os.geteuid(), os.getegid(), 0)
        if entry.kind == "hard link":
            if not self._is_linked(entry, status):
                yield "identity"
            return
        if stat.S_IFMT(status.st_mode) != _TYPES[entry.kind]:
            yield "type"
            return
        if entry.kind == "symlink" and os.readlink(b"", dir_fd=descriptor) != entry.target:
            yield "target"
        yield from self._other_status(status, entry)
        if not self._has_xattrs(path, entry, opaque=opaque):
            yield "set of extended attributes"

    def _other_status(self, status: os.stat_result, entry: Entry) -> Iterator[str]:
        # An access control list has the last word about the lower bits, and is compared itself.
        compared = 0o7000 if _ACCESS_LIST in self._may.xattrs(entry) else 0o7777
        if entry.kind != "symlink" and (status.st_mode ^ self._may.mode(entry)) & compared:
            yield "mode"
        if entry.kind in ("character device", "block device") and status.st_rdev != os.makedev(*entry.device):
            yield "device number"
        if entry.kind == "file" and status.st_size != entry.size:
            yield "size"
        if self._may.owners and (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
            yield "owner"
        if entry.mtime in _KEPT_TIMES and status.st_mtime_ns != entry.mtime:
            yield "modification time"

    def _is_linked(self, entry: Entry, status: os.stat_result) -> bool:
        try:
            target = syscalls.open_beneath(self.root, entry.target, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return os.path.samestat(os.fstat(target), status)
        finally:
            os.close(target)

    def _has_xattrs(self, path: bytes, entry: Entry, *, opaque: bool) -> bool:
        wanted = self._may.xattrs(entry)
        if opaque:
            wanted[self._may.dialect.attribute("opaque")] = b"y"
        parent, _, name = path.rpartition(b"/")
        if not name:
            parent, name = b"", b"."
        directory = syscalls.open_beneath(self.root, parent or b".", os.O_PATH | os.O_DIRECTORY)
        try:
            place = b"/proc/self/fd/%d/%s" % (directory, name)
            names = {os.fsencode(text) for text in os.listxattr(place, follow_symlinks=False)}
            names.discard(b"security.selinux")
            found = {name: os.getxattr(place, name, follow_symlinks=False) for name in names}
        finally:
            os.close(directory)
        if _ACCESS_LIST not in found and len(wanted.get(_ACCESS_LIST, b"")) == _SMALLEST_ACCESS_LIST:
            # One that says what a mode can say becomes the mode (fs/posix_acl.c: posix_acl_equiv_mode).
            del wanted[_ACCESS_LIST]
        return found == wanted

    def _look_for_others(self, devices: set[bytes]) -> None:
        missing = set(devices)
        # What is in a directory that was added needs no further word, however deep it is.
        for path, status in _walk(self.root, self._expected):
            if marks.is_whiteout_device(status.st_mode, status.st_rdev) and path in devices:
                missing.discard(path)
            elif path not in self._expected:
                self._tell(f"/{shown(path)} was added")
        for path in sorted(missing):
            self._tell(f"/{shown(path)}: its whiteout is missing")


def _walk(root: int, entered: Container[bytes]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield what is below a layer's root; of its directories, only those in `entered` are looked into."""
    pending: list[bytes] = [b""]
    while pending:
        path = pending.pop()
        descriptor = syscalls.open_beneath(root, path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in _names(descriptor):
                inner = path + b"/" + name if path else name
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                yield inner, status
                if stat.S_ISDIR(status.st_mode) and inner in entered:
                    pending.append(inner)
        finally:
            os.close(descriptor)


def _names(descriptor: int) -> Iterable[bytes]:
    return [os.fsencode(name) for name in os.listdir(descriptor)]
