"""Which attributes has a directory that a layer's tar names only as a parent?

Those of the directory beneath it, if there is one: a tar with just ``tmp/file`` changes nothing about
``tmp``. So does containerd (archive/tar.go: mkparent), which unpacks a layer anew for every chain of layers;
docker and containers-storage make it root's with mode 0755, whatever it was.

Here a layer is stored once, whatever lies beneath it. Where an implied directory should look otherwise than
it was made (0755, root's, as old as the epoch), a thin directory goes above the layer, for that chain of
layers
alone: it has these directories and nothing else, with the right attributes, and any overlay takes them from
there. The layer's root is such a directory, too, when its tar has no entry for it; its time alone is no
reason.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyoverlay.images.digests import Digest, chain_ids, hexadecimal
from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.removing import remove_tree
from pyoverlay.images.stacking import find_directory, lower_directories, opened, visible_xattrs
from pyoverlay.images.store import Store
from pyoverlay.images.unpacking import IMPLIED_MODE
from pyoverlay.layers import syscalls


@dataclass(frozen=True)
class Attributes:
    """What a directory has besides its name."""

    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: dict[bytes, bytes]

    @classmethod
    def of(cls, descriptor: int) -> Attributes:
        """Read an open directory's."""
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        return cls(mode, status.st_uid, status.st_gid, status.st_mtime_ns, visible_xattrs(descriptor))

    def apply(self, path: bytes) -> None:
        """Give them to a directory of our own."""
        if (self.uid, self.gid) != (os.geteuid(), os.getegid()):
            os.chown(path, self.uid, self.gid)
        os.chmod(path, self.mode)
        for name, value in self.xattrs.items():
            os.setxattr(path, name, value)
        os.utime(path, ns=(self.mtime, self.mtime))

    def same(self, other: Attributes, *, times: bool) -> bool:
        """Compare, with or without the time."""
        mine = (self.mode, self.uid, self.gid, self.xattrs, self.mtime if times else 0)
        return mine == (other.mode, other.uid, other.gid, other.xattrs, other.mtime if times else 0)


def adjust(store: Store, layers: Sequence[Digest]) -> None:
    """Make the thin directories that an image's layers need; all layers are in the store.

    Args:
        store: where they lie.
        layers: diffIDs, the lowest first.
    """
    for number, chain_id in enumerate(chain_ids(layers)):
        record = store.record_of(layers[number])
        if number == 0 or record is None or not record.implied or record.opaque_root:
            continue
        name = hexadecimal(chain_id)
        with store.lock_layer(chain_id):
            if not (store.adjusted / name).is_dir():
                wanted = wanted_attributes(store, layers[: number + 1], record.implied)
                if wanted:
                    _make(store, layers[number], wanted, name)


def is_adjusted(store: Store, layers: Sequence[Digest]) -> bool:
    """Whether all thin directories are there that an image needs, with the right attributes."""
    for number, chain_id in enumerate(chain_ids(layers)):
        record = store.record_of(layers[number])
        if number == 0 or record is None or not record.implied or record.opaque_root:
            continue
        wanted = wanted_attributes(store, layers[: number + 1], record.implied)
        directory = store.adjusted / hexadecimal(chain_id)
        if not wanted and not directory.is_dir():
            continue
        if not wanted or not directory.is_dir():
            return False
        if any(
            not _of_layer(directory, path).same(found, times=bool(path)) for path, found in wanted.items()
        ):
            return False
    return True


def wanted_attributes(
    store: Store, layers: Sequence[Digest], implied: Sequence[bytes]
) -> dict[bytes, Attributes]:
    """Return what the topmost layer's implied directories should have, where that isn't what they have."""
    wanted = {}
    default = Attributes(IMPLIED_MODE, os.geteuid(), os.getegid(), 0, {})
    with opened(lower_directories(store, layers[:-1])) as beneath:
        for path in implied:
            descriptor = find_directory(beneath, path)
            if descriptor is None:
                continue
            try:
                found = Attributes.of(descriptor)
            finally:
                os.close(descriptor)
            if not found.same(default, times=bool(path)):
                wanted[path] = found
    return wanted


def _make(store: Store, layer: Digest, wanted: dict[bytes, Attributes], name: str) -> None:
    unfinished = store.root / "unfinished" / name
    if unfinished.exists():
        remove_tree(unfinished)
    unfinished.mkdir(mode=0o700)
    attributes = dict(wanted)
    for path in wanted:
        while path:
            path = path.rpartition(b"/")[0]
            if path not in attributes:
                attributes[path] = _of_layer(store.layer_directory(layer), path)
    if b"" not in attributes:
        attributes[b""] = _of_layer(store.layer_directory(layer), b"")
    with opened([unfinished]) as (root,):
        # With what lies above the store, a path could be longer than the kernel takes.
        for path in sorted(attributes):
            if path:
                parent, _, last = path.rpartition(b"/")
                with _opened_directory(root, parent) as descriptor:
                    os.mkdir(last, 0o700, dir_fd=descriptor)
        for path in sorted(attributes, reverse=True):
            with _opened_directory(root, path) as descriptor:
                attributes[path].apply(b"/proc/self/fd/%d" % descriptor)
    unfinished.rename(store.adjusted / name)


@contextlib.contextmanager
def _opened_directory(root: int, path: bytes) -> Iterator[int]:
    descriptor = syscalls.open_beneath(root, path or b".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _of_layer(directory: Path, path: bytes) -> Attributes:
    with opened([directory]) as roots:
        descriptor = find_directory(roots, path)
    if descriptor is None:
        raise ImageError(f"/{shown(path)} is missing in {directory}")
    try:
        return Attributes.of(descriptor)
    finally:
        os.close(descriptor)
