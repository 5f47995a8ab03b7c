"""How are layers and images named by what they contain?

Digests, diffIDs and chainIDs of the OCI image specification (descriptor.md, config.md). Pure, but for
hashing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, NewType

from pyoverlay.images.errors import ImageError, shown

Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hexadecimal digits: safe as a part of a file name once the colon is gone."""

_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})")
_SHORT: Final = 12


def parse_digest(text: str) -> Digest:
    """Check that a text is a digest of the one algorithm in use.

    Raises:
        ImageError: it is malformed, or of another algorithm.
    """
    if not _DIGEST.fullmatch(text):
        raise ImageError(f"{shown(text.encode('utf-8', 'surrogatepass'))!r} is no sha256 digest")
    return Digest(text)


def digest_of(content: bytes) -> Digest:
    """Return the digest of bytes."""
    return Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")


def hexadecimal(digest: Digest) -> str:
    """Return a digest's 64 digits."""
    return digest.partition(":")[2]


def short(digest: Digest) -> str:
    """Return the first twelve digits, as docker shows them."""
    return hexadecimal(digest)[:_SHORT]


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Return the chainID of each layer: what it is together with all those beneath it (config.md).

    Args:
        diff_ids: the layers', the lowest first.
    """
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
