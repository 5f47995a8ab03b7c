"""How much may an archive ask for before it is refused?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pyoverlay.images.errors import ImageError

MAX_PATH: Final = 4095
"""Bytes in a path: PATH_MAX without its NUL."""
MAX_NAME: Final = 255
"""Bytes in one component: NAME_MAX."""
MAX_HEADER: Final = 1 << 20
"""Bytes in one extended header: names, extended attributes and sparse maps; what Go's archive/tar takes."""
MAX_DOCUMENT: Final = 8 << 20
"""Bytes in a manifest, an index or an image's configuration; registries refuse 4 MiB."""

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one layer may be.

    Attributes:
        size: bytes of the uncompressed tar and, counted apart, of all files with their holes.
        ratio: how many bytes of tar one compressed byte may become, once `free` bytes have come out.
        free: bytes for which no ratio is asked: zeros compress well.
        entries: how many: each takes an inode, however small the archive is.
    """

    size: int = 64 << 30
    ratio: int = 200
    free: int = 256 << 20
    entries: int = 10_000_000

    def check(self, unpacked: int, compressed: int) -> None:
        """Raise ImageError when a stream that has given `unpacked` bytes from `compressed` is too big."""
        if unpacked > self.size:
            raise ImageError(
                f"it unpacks to more than {self.size} bytes; if it is meant to be so big, raise --max-size"
            )
        if unpacked > self.free and unpacked > compressed * self.ratio:
            raise ImageError(
                f"{compressed} compressed bytes have become {unpacked}, more than {self.ratio} times "
                "as many, as a decompression bomb; if you trust it, decompress it yourself first"
            )


def parse_size(text: str) -> int:
    """Read a size as ``500M`` or ``20G``: bytes, with a unit that is a power of 1024.

    Raises:
        ImageError: it isn't one.
    """
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text)
    if match is None:
        raise ImageError(f"{text!r} is no size: write bytes, or a number with K, M, G or T")
    return int(match[1]) * _UNITS[match[2]]
