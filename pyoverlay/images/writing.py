"""How does a file that is written appear whole, or not at all?"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from pyoverlay.images import packing
from pyoverlay.images.compression import Compression, compressed
from pyoverlay.images.errors import ImageError
from pyoverlay.layers.changes import find_changes


@contextlib.contextmanager
def replacing(target: str) -> Iterator[IO[bytes]]:
    """Write a file that replaces `target` at the block's end; ``-`` is standard output.

    A symlink stays, and the file that it leads to is replaced; a device or FIFO stays as well, and is written
    to.

    Raises:
        ImageError: there is no such directory, or it can't be written.
    """
    if target == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if _is_no_regular_file(target):
        with _opened(target) as file:
            yield file
        return
    final = os.path.realpath(target)
    directory = os.path.dirname(final)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".pyoverlay-", dir=directory)
    except OSError as error:
        raise ImageError(f"{target}: it can't be written: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            yield file
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)
        os.replace(temporary, final)
    except BaseException:
        os.unlink(temporary)
        raise


def _is_no_regular_file(target: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(target).st_mode)
    except OSError:
        return False


def _opened(target: str) -> IO[bytes]:
    try:
        return open(target, "wb")
    except OSError as error:
        raise ImageError(f"{target}: it can't be written: {error.strerror}") from error


def write_diff(
    upper: str, target: str, compression: Compression, *, lowers: Sequence[str] | None, epoch: int | None
) -> None:
    """Write an upper directory as a layer's tar into a file.

    Args:
        upper: its path.
        target: the file; ``-`` for standard output.
        compression: how the tar is compressed.
        lowers: what is beneath the upper, topmost first, so that what doesn't differ is left out; None:
            unknown.
        epoch: see `packing.pack`.

    Raises:
        OverlayError: the upper can't be packed.
    """
    wanted = None if lowers is None else _differing(upper, lowers)
    with replacing(target) as file, compressed(file, compression) as stream:
        packing.pack(upper, stream, epoch=epoch, wanted=wanted)


def _differing(upper: str, lowers: Sequence[str]) -> packing.Wanted:
    changed = {os.fsencode(change.path.lstrip("/")) for change in find_changes(upper, lowers)}
    return changed.__contains__
