"""How are lowers, upper and work directory opened, checked, locked and cleaned?

The twin of fs/overlayfs/super.c: everything that can be wrong with the layers is found here, before
anything is created on disk.  It knows nothing of lookup or copy-up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import resource
import time
from collections.abc import Iterator
from typing import Final

from pyoverlay.layers import marks, syscalls
from pyoverlay.layers.layer import DescriptorCache, Layer, LayerObject
from pyoverlay.layers.override_stat import CONTAINERS, FUSE_OVERLAYFS, PRIVILEGED, Spelling
from pyoverlay.layers.recorded import begin_records, keep_records, spelling_of
from pyoverlay.layers.work_directory import WorkDirectory
from pyoverlay.options import MountOptions, OverlayError

log = logging.getLogger(__name__)

_DESCRIPTORS_LEFT_TO_FILES: Final = 4
_MOST_DIRECTORY_DESCRIPTORS: Final = 4096
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PAUSES_OF_LOCKING: Final = (0.001, 0.005, 0.02)
"""Seconds between tries."""


class LayerError(OverlayError):
    """A layer directory can't be used as the options ask."""


class Stack:
    """The layers of one mount: ``lowers`` topmost first, and ``upper`` with ``work``, or neither.

    ``dialect`` is the spelling of the marks that we write.  ``traps`` are the (device, inode) pairs of
    upper and work directory: a lower that contains them must not show them (the kernel's ELOOP).
    """

    def __init__(self, options: MountOptions) -> None:
        """Open and check every layer; nothing on disk is changed.

        Raises LayerError with the layers closed again.
        """
        self.options = options
        self.dialect: Final = marks.USER if options.userxattr else marks.TRUSTED
        self.cache = DescriptorCache(_directory_descriptor_limit(options))
        self.upper: Layer | None = None
        self.work: WorkDirectory | None = None
        self.traps: frozenset[tuple[int, int]] = frozenset()
        self._work_base: Layer | None = None
        self._locks: list[int] = []
        self.lowers: tuple[Layer, ...] = ()
        try:
            for path in _read_only_layers(options):
                descriptor = _open_directory(path, "lowerdir")
                # The clone by which the layer is held is in no mount table.
                idmapped = options.shifts_ids and syscalls.is_idmapped(descriptor)
                lower = Layer(path, descriptor, self.cache, writable=False)
                lower.idmapped = idmapped
                self.lowers = (*self.lowers, lower)
                _recognise_records("lowerdir", lower)
            if options.writable:
                self._open_upper()
            _refuse_overlaps(self._roots())
        except BaseException:
            self.close()
            raise

    def _roots(self) -> list[tuple[str, Layer]]:
        roots = [("lowerdir", layer) for layer in self.lowers]
        if self.upper is not None:
            roots.append(("upperdir", self.upper))
        if self._work_base is not None:
            roots.append(("workdir", self._work_base))
        return roots

    def _open_upper(self) -> None:
        upper_path, work_path = self.options.upperdir, self.options.workdir
        assert upper_path is not None
        if work_path is None:
            raise LayerError(f"upperdir={upper_path} needs a work directory: give workdir= as well")
        upper = _open_directory(upper_path, "upperdir")
        self.upper = Layer(upper_path, upper, self.cache, writable=True)
        work = _open_directory(work_path, "workdir")
        self._work_base = Layer(work_path, work, self.cache, writable=True)
        if syscalls.mount_id(upper) != syscalls.mount_id(work) or self.upper.device != self._work_base.device:
            raise LayerError(
                f"upperdir={upper_path} and workdir={work_path} are on different mounts: "
                "choose a work directory beside the upper, on the same file system"
            )
        _refuse_nesting(self.upper, self._work_base)
        self._lock(upper_path, self.upper, "upperdir")
        self._lock(work_path, self._work_base, "workdir")
        self._refuse_incompatible(work_path)
        self.traps = frozenset((layer.device, layer.inode) for layer in (self.upper, self._work_base))
        self._choose_records(self.upper)

    def _choose_records(self, upper: Layer) -> None:
        """Keep owners in attributes where the options ask for it, or the upper was begun so."""
        asked = _SPELLINGS_ASKED_FOR[self.options.xattr_permissions]
        found = spelling_of(upper)
        if found is not None and asked and found not in asked:
            raise LayerError(
                f"upperdir={upper.path} keeps owners and modes in {os.fsdecode(found.attribute)}, which "
                f"xattr_permissions={self.options.xattr_permissions} doesn't use: leave that option out"
            )
        spelling = found or next(iter(asked), None)
        if spelling is not None:
            keep_records(upper, spelling)
            _check_root("upperdir", upper)

    @property
    def stores_acls(self) -> bool:
        """Whether the upper can have ACLs; where owners are kept in attributes, ACLs would name others."""
        return self.upper is None or self.upper.records is None

    @property
    def has_acls(self) -> bool:
        """Whether the mount has ACLs."""
        return self.options.acl and self.stores_acls

    def _lock(self, path: str, layer: Layer, option: str) -> None:
        """Lock a directory for the life of the mount: flock(2), gone with the process that holds it."""
        descriptor = layer.root.open_for_listing()
        self._locks.append(descriptor)
        for pause in (*_PAUSES_OF_LOCKING, None):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                # Whoever only looks whether it is locked has it locked for a moment.
                if pause is not None:
                    time.sleep(pause)
        raise LayerError(f"{option}={path} is in use by another pyoverlay mount: unmount that one first")

    def _refuse_incompatible(self, work_path: str) -> None:
        """Refuse what a former mount marked as unusable (fs/overlayfs/readdir.c: ovl_workdir_cleanup)."""
        assert self._work_base is not None
        incompatible = self._work_base.root.child(b"work").child(b"incompat")
        try:
            features = incompatible.list_entries()
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise LayerError(
                f"workdir={work_path} holds a file {work_path}/work where a directory belongs: remove it"
            ) from None
        except OSError as error:
            raise LayerError(f"can't read {work_path}/work/incompat: {error.strerror}") from error
        for name, _kind in features:
            feature = os.fsdecode(name)
            raise LayerError(
                f"workdir={work_path} was left by a mount with the feature '{feature}', whose changes may be"
                f" incomplete: check the upper, then remove {work_path}/work/incompat/{feature}"
            )

    def prepare_work_directory(self) -> None:
        """Create and empty ``workdir/work``; with ``volatile``, leave the mark that says so.

        The first call that changes anything on disk.  Raises LayerError.
        """
        if self._work_base is None:
            return
        base = self._work_base.root
        # As the kernel does; a daemon that may not chown may have no right to pass through it, either.
        keeps_owners = self.upper is not None and self.upper.records is None
        mode = 0o000 if os.geteuid() == 0 and keeps_owners else 0o700
        try:
            with contextlib.suppress(FileExistsError):
                base.make_directory(b"work", mode)
            self._prepare_records()
            self.work = WorkDirectory(self._work_base.root.child(b"work"))
            self.work.clean()
            if self.options.volatile:
                self._mark_volatile(self.work.root)
        except OSError as error:
            raise LayerError(f"can't prepare workdir={self.options.workdir}: {error.strerror}") from error

    def _prepare_records(self) -> None:
        """Make the upper one that keeps records, and the work directory as well, where they are prepared."""
        upper = self.upper
        if upper is None or upper.records is None or self._work_base is None:
            return
        keep_records(self._work_base, upper.records.spelling, upper.records.disk_mode)
        recorded = next((layer.root for layer in self.lowers if layer.records is not None), None)
        try:
            begin_records(upper, recorded)
        except OSError as error:
            raise LayerError(
                f"upperdir={upper.path} can't have the attribute "
                f"{os.fsdecode(upper.records.spelling.attribute)} that xattr_permissions="
                f"{self.options.xattr_permissions} keeps owners and modes in: {error.strerror}"
            ) from error

    @staticmethod
    def _mark_volatile(work: LayerObject) -> None:
        """fs/overlayfs/super.c: ovl_create_volatile_dirty."""
        directory = work
        for name in (b"incompat", b"volatile"):
            with contextlib.suppress(FileExistsError):
                directory.make_directory(name, 0o700)
            directory = directory.child(name)
        os.close(directory.create_file(b"dirty", os.O_WRONLY, 0o600))

    def clean_work_directory(self) -> None:
        """Remove the temporary objects of this mount."""
        if self.work is not None:
            self.work.clean()

    def operations(self) -> int:
        """Return how many system calls were made on the layers since they were opened."""
        return sum(layer.operations for _option, layer in self._roots())

    def close(self) -> None:
        """Close all layers and give up the locks."""
        self.cache.close()
        if self.work is not None:
            self.work.close()
        for _option, layer in self._roots():
            layer.close()
        # The upper's last: who waits for it wants the work directory as well.
        for descriptor in reversed(self._locks):
            os.close(descriptor)
        self._locks.clear()


_SPELLINGS_ASKED_FOR: Final[dict[int, tuple[Spelling, ...]]] = {
    0: (),
    1: (PRIVILEGED,),
    2: (CONTAINERS, FUSE_OVERLAYFS),
}
"""By xattr_permissions; the first is what a fresh upper gets."""


def _recognise_records(option: str, layer: Layer) -> None:
    spelling = spelling_of(layer)
    if spelling is not None:
        keep_records(layer, spelling)
        _check_root(option, layer)


def _check_root(option: str, layer: Layer) -> None:
    try:
        layer.root.status()
    except OSError as error:
        assert layer.records is not None
        name = os.fsdecode(layer.records.spelling.attribute)
        raise LayerError(
            f"{option}={layer.path}: the attribute {name} can't be read ({error.strerror}): it should be "
            "USER:GROUP:MODE:TYPE, like 0:0:0755:dir"
        ) from None


def _read_only_layers(options: MountOptions) -> tuple[str, ...]:
    """Return the lowers; the upper of a read-only mount is one more of them."""
    if options.upperdir is not None and not options.writable:
        return (options.upperdir, *options.lowerdir)
    return options.lowerdir


def _directory_descriptor_limit(options: MountOptions) -> int:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = soft // _DESCRIPTORS_LEFT_TO_FILES - len(options.lowerdir)
    return min(left, _MOST_DIRECTORY_DESCRIPTORS)


def _open_directory(path: str, option: str) -> int:
    try:
        return os.open(path, _DIRECTORY)
    except OSError as error:
        if error.errno == errno.ENOENT:
            reason = "no such directory: create it, or correct the path"
        elif error.errno == errno.ENOTDIR:
            reason = "not a directory: a layer is a directory of extracted files"
        else:
            reason = error.strerror or "it can't be opened"
        raise LayerError(f"{option}={path}: {reason}") from None


def _ancestors(layer: Layer) -> Iterator[tuple[int, int]]:
    """Yield (device, inode) of each directory above a layer's root, up to the root of its mount."""
    descriptor = os.open(layer.path, _DIRECTORY)
    try:
        mount = syscalls.mount_id(descriptor)
        identity = (layer.device, layer.inode)
        while True:
            parent = os.open(b"..", _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = parent
            status = os.fstat(descriptor)
            above = (status.st_dev, status.st_ino)
            if above == identity or syscalls.mount_id(descriptor) != mount:
                return
            identity = above
            yield above
    finally:
        os.close(descriptor)


def _refuse_nesting(upper: Layer, work: Layer) -> None:
    """fs/overlayfs/super.c: ovl_workdir_ok."""
    upper_root, work_root = (upper.device, upper.inode), (work.device, work.inode)
    if upper_root == work_root or upper_root in set(_ancestors(work)) or work_root in set(_ancestors(upper)):
        raise LayerError(
            f"workdir={work.path} and upperdir={upper.path} must be separate directories, neither inside "
            "the other"
        )


def _refuse_overlaps(roots: list[tuple[str, Layer]]) -> None:
    """Refuse a lower that is, or lies inside, another layer (fs/overlayfs/super.c: ovl_check_layer).

    A lower that *contains* the upper or the work directory is fine, as it is for the kernel.
    """
    owners: dict[tuple[int, int], str] = {}
    for option, layer in roots:
        identity = (layer.device, layer.inode)
        if identity in owners:
            raise LayerError(f"{option}={layer.path} is the same directory as {owners[identity]}")
        owners[identity] = f"{option}={layer.path}"
    for option, layer in roots:
        if option != "lowerdir":
            continue
        for identity in _ancestors(layer):
            if identity in owners:
                raise LayerError(f"{option}={layer.path} overlaps: it lies inside {owners[identity]}")
