"""Which directories make an image's tree, stacked, and what does a stack of them show?

Read-only: from layers in a store to the lower directories of an overlay, topmost first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pyoverlay.images.checking import is_sound
from pyoverlay.images.digests import Digest, chain_ids, hexadecimal
from pyoverlay.images.errors import ImageError
from pyoverlay.images.store import Store
from pyoverlay.layers import marks, syscalls

_NO_ATTRIBUTE: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM)


def lower_directories(store: Store, layers: Sequence[Digest]) -> list[Path]:
    """Return the lower directories of an image, topmost first.

    Above a layer stands, where it needs one, the directory with the attributes that it takes from those
    beneath it (see `implied`); nothing stands beneath a layer whose root is opaque, as overlays don't heed
    that mark.

    Args:
        store: has the layers.
        layers: their diffIDs, the lowest first.

    Raises:
        ImageError: a layer is missing.
    """
    lowers: list[Path] = []
    for diff_id, chain_id in zip(reversed(layers), reversed(chain_ids(layers)), strict=True):
        record = store.record_of(diff_id)
        if record is None or not is_sound(store, diff_id):
            raise ImageError(
                f"layer {diff_id} isn't in the store {store.root}, or not as it was: load the image again"
            )
        adjusted = store.adjusted / hexadecimal(chain_id)
        if adjusted.is_dir():
            lowers.append(adjusted)
        directory = store.layer_directory(diff_id)
        if directory not in lowers:
            # All that it says is said again where it stands higher; and overlays take no directory twice.
            lowers.append(directory)
        if record.opaque_root:
            break
    return lowers


@contextlib.contextmanager
def opened(directories: Sequence[Path]) -> Iterator[list[int]]:
    """Open directories for `find_directory`."""
    with contextlib.ExitStack() as resources:
        descriptors = []
        for path in directories:
            descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            resources.callback(os.close, descriptor)
            descriptors.append(descriptor)
        yield descriptors


def find_directory(roots: Sequence[int], path: bytes) -> int | None:
    """Open the topmost directory that a stack shows at a path; None when it shows none there.

    Args:
        roots: descriptors of the layers, topmost first.
        path: from the root, without a slash in front.

    Returns:
        A descriptor that the caller closes.
    """
    components = path.split(b"/") if path else []
    for root in roots:
        found, ends = _walk(root, components)
        if found is not None or ends:
            return found
    return None


def _walk(root: int, components: list[bytes]) -> tuple[int | None, bool]:
    """Walk in one layer; return the directory, and whether nothing of the layers beneath counts."""
    descriptor = syscalls.open_beneath(root, b".", os.O_RDONLY | os.O_DIRECTORY)
    ends = False
    for name in components:
        try:
            inner = syscalls.open_beneath(descriptor, name, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            os.close(descriptor)
            return None, ends
        os.close(descriptor)
        if not stat.S_ISDIR(os.fstat(inner).st_mode):
            os.close(inner)
            return None, True
        descriptor = os.open(b"/proc/self/fd/%d" % inner, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.close(inner)
        ends = ends or is_opaque(descriptor)
    return descriptor, ends


def is_opaque(directory: int | bytes) -> bool:
    """Whether a layer's directory hides what lies beneath it."""
    for name in marks.OPAQUE_ATTRIBUTES:
        try:
            if marks.is_opaque(name, os.getxattr(directory, name)):
                return True
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
    return False


def visible_xattrs(descriptor: int | bytes) -> dict[bytes, bytes]:
    """Return a layer object's extended attributes without overlay's marks, by their names on disk."""
    found = {}
    for text in os.listxattr(descriptor):
        name = os.fsencode(text)
        if not any(marks.is_own_attribute(dialect, name) for dialect in (marks.TRUSTED, marks.USER)):
            found[name] = os.getxattr(descriptor, name)
    return found
