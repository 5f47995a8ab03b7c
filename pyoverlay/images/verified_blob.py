"""Are a layer's stored bytes those that its digest and size promise?  Known when the last one was read.

This file knows neither archives nor tars.
"""

from __future__ import annotations

import hashlib
from typing import IO

from pyoverlay.images.digests import Digest, hexadecimal
from pyoverlay.images.errors import ImageError


class VerifiedBlob:
    """Stored bytes, which must have the right number and digest at their end."""

    def __init__(self, file: IO[bytes], size: int, digest: Digest | None) -> None:
        """Read `size` bytes of `file` from where it is; `digest` None: anything goes."""
        self._file = file
        self._left = size
        self._digest = digest
        self._hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end.

        Raises:
            ImageError: it is cut short, or not what its digest says.
        """
        if not self._left:
            return b""
        piece = self._file.read(min(size, self._left))
        if not piece:
            raise ImageError("the archive is cut short")
        self._left -= len(piece)
        if self._digest is not None:
            self._hash.update(piece)
            if not self._left and self._hash.hexdigest() != hexadecimal(self._digest):
                raise ImageError(f"blob {self._digest} isn't what its digest says: it is damaged")
        return piece

    def close(self) -> None:
        """Close the file."""
        self._file.close()
