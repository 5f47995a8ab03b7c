"""Where do the layers of snapshots lie, how are they made, measured and removed?

``ROOT/snapshots/NUMBER/fs`` is a snapshot's own layer, ``ROOT/snapshots/NUMBER/work`` the work directory
while it is written to.  A directory whose number no snapshot has belongs to nobody: something ended between
two steps, or the snapshot was removed.  It knows numbers, not names; what lies in a layer isn't its business.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyoverlay.containers.snapshotter.snapshot import SnapshotError, Usage
from pyoverlay.images.removing import remove_tree
from pyoverlay.layers.layer import DescriptorCache, Layer

log = logging.getLogger(__name__)

_BLOCK: Final = 512
_OPEN_DIRECTORIES: Final = 256
_MODE: Final = 0o755
_REFUSED_IN_ROOT: Final = ',:\\"\n'


class Directories:
    """The directories below one root, for as long as this process holds the root."""

    def __init__(self, root: Path) -> None:
        """Create the root when it isn't there, and take hold of it.

        Raises SnapshotError when it can't be used, or another process has it.
        """
        for sign in _REFUSED_IN_ROOT:
            if sign in str(root):
                raise SnapshotError(
                    f"the root {str(root)!r} holds the sign {sign!r}, which means something in mount "
                    "options: choose another directory"
                )
        self.root: Final = root
        self._snapshots: Final = root / "snapshots"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(root)
            self._snapshots.mkdir(mode=0o700, exist_ok=True)
            self._descriptor = os.open(self._snapshots, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as failure:
            raise SnapshotError(f"the root {root} can't be used: {failure.strerror}") from None

    def close(self) -> None:
        """Give the root up."""
        os.close(self._descriptor)
        os.close(self._lock)

    def layer(self, number: int) -> Path:
        """Return the path of a snapshot's own layer."""
        return self._snapshots / str(number) / "fs"

    def work(self, number: int) -> Path:
        """Return the path of an active snapshot's work directory."""
        return self._snapshots / str(number) / "work"

    def make(self, number: int, parent: int | None, *, writable: bool) -> None:
        """Make the directories of a new snapshot, and see to it that they stay.

        Args:
            number: the snapshot's.
            parent: the nearest parent's.  The layer's root gets owner and mode of its root, as the
                merged view's root is the upper's.
            writable: whether there is a work directory.

        Raises:
            SnapshotError: they can't be made, or the parent's are missing.
        """
        path = self._snapshots / str(number)
        try:
            status = None if parent is None else os.stat(self.layer(parent))
            if path.exists():
                # Of a snapshot that never came to be, but had this number.
                remove_tree(path)
            path.mkdir(mode=0o700)
            self._make_layer(self.layer(number), status)
            if writable:
                self.work(number).mkdir(mode=0o711)
            os.fsync(self._descriptor)
        except OSError as failure:
            raise SnapshotError(f"{failure.filename or path}: {failure.strerror}") from failure

    @staticmethod
    def _make_layer(layer: Path, parent: os.stat_result | None) -> None:
        layer.mkdir(mode=0o700)
        if parent is not None:
            os.chown(layer, parent.st_uid, parent.st_gid)
        layer.chmod(_MODE if parent is None else stat.S_IMODE(parent.st_mode))

    def orphans(self, owned: frozenset[int]) -> list[str]:
        """Return the names of what belongs to no snapshot of these numbers."""
        known = {str(number) for number in owned}
        return [name for name in os.listdir(self._descriptor) if name not in known]

    def remove(self, orphans: list[str]) -> None:
        """Remove what `orphans` told; what can't be removed stays for the next time, and is logged."""
        for name in orphans:
            try:
                remove_tree(self._snapshots / name)
            except OSError as failure:
                log.warning("%s can't be removed yet: %s", self._snapshots / name, failure.strerror)

    def usage(self, number: int) -> Usage:
        """Measure a snapshot's own layer: the blocks of each inode once (continuity: fs/du_unix.go).

        Raises SnapshotError when it is missing.
        """
        layer = self.layer(number)
        seen: set[tuple[int, int]] = set()
        try:
            size = sum(_count(status, seen) for status in _every_status(layer))
        except OSError as failure:
            raise SnapshotError(f"the layer {layer} can't be measured: {failure.strerror}") from failure
        return Usage(size, len(seen))


def _every_status(tree: Path) -> Iterator[os.stat_result]:
    """Stat a directory and all in it, however deep it is; what vanishes meanwhile takes nothing."""
    cache = DescriptorCache(_OPEN_DIRECTORIES)
    descriptor = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    layer = Layer(str(tree), descriptor, cache, writable=True)
    try:
        yield layer.root.status()
        pending = [layer.root]
        while pending:
            directory = pending.pop()
            with contextlib.suppress(FileNotFoundError):
                for name, _kind in directory.list_entries():
                    found = directory.child(name)
                    with contextlib.suppress(FileNotFoundError):
                        status = found.status()
                        if stat.S_ISDIR(status.st_mode):
                            pending.append(found)
                        yield status
    finally:
        cache.close()
        layer.close()


def _count(status: os.stat_result, seen: set[tuple[int, int]]) -> int:
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return 0
    seen.add(identity)
    return status.st_blocks * _BLOCK


def _lock(root: Path) -> int:
    """Hold the root: flock(2), gone with the process.  Raises SnapshotError when another one has it."""
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SnapshotError(f"another snapshotter uses the root {root}: end that one first") from None
    return descriptor
