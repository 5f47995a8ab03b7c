"""How does a layer's tar become a directory of somebody's own, outside of any store?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pyoverlay.images.compression import Decompressed, Readable
from pyoverlay.images.digests import parse_digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.removing import remove_tree
from pyoverlay.images.unpacked_layer import unpack


def apply(
    source: Readable, name: str, directory: str, limits: Limits, digest: str | None = None
) -> list[str]:
    """Unpack a tar into a directory that is empty or not there.

    Args:
        source: the tar, plain or compressed.
        name: what to call it in messages.
        directory: where; it appears, or is filled, when all is well.
        limits: what is refused.
        digest: what the uncompressed tar's must be; None: anything.

    Returns:
        What was left out, for a person.

    Raises:
        ImageError: the tar is damaged or hostile, or the directory isn't empty; nothing is left behind.
    """
    expected = None if digest is None else parse_digest(digest)
    target = Path(directory).absolute()
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise ImageError(f"{directory}: a layer is unpacked into an empty directory, or a new one")
    if target.exists() and (os.path.ismount(target) or target.samefile(Path.cwd())):
        raise ImageError(f"{directory}: a mount point, or where you are, can't be replaced: name another")
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=".pyoverlay-", dir=target.parent))
    except OSError as error:
        raise ImageError(f"{directory}: it can't be made: {error.strerror}") from error
    try:
        known, warnings = unpack(unfinished, Decompressed(source), limits)
        if expected is not None and known.diff_id != expected:
            raise ImageError(f"its digest is {known.diff_id}, not {expected}")
        os.replace(unfinished, target)
    except ImageError as error:
        remove_tree(unfinished)
        raise ImageError(f"{name}: {error}") from error
    except BaseException:
        remove_tree(unfinished)
        raise
    return warnings
