"""How is a changeset tar read, entry by entry, from a stream that can't be trusted?

Nothing is held but one buffer and one header, both bounded; what isn't the content of a file is handed on as
it passes, so that the same bytes can be made again. This file knows tar and streams, not what an entry means
for a layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from pyoverlay.images.compression import Readable
from pyoverlay.images.digests import Digest
from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.limits import MAX_HEADER, Limits
from pyoverlay.images.sparse import find_fragments
from pyoverlay.images.tar_entries import (
    BLOCK,
    Entry,
    Extended,
    make_entry,
    parse_block,
    parse_pax,
)

_ZEROS: Final = bytes(BLOCK)
_NOT_SAID: Final = "the archive is cut short"

Literal = Callable[[bytes], None]
"""Takes what lies between the contents of files."""


def _ignore(_piece: bytes) -> None:
    pass


class TarReader:
    """The entries of a tar, in order.

    Attributes:
        size: bytes of tar so far.
        ended: whether the mark that ends a tar, a block of zeros, was seen.
        files: bytes of all files so far, holes included.
        entries: how many there were so far.
    """

    def __init__(
        self,
        source: Readable,
        *,
        limits: Limits | None = None,
        consumed: Callable[[], int] | None = None,
        literal: Literal = _ignore,
        advanced: Callable[[int], None] | None = None,
    ) -> None:
        """Read from `source`.

        Args:
            source: uncompressed bytes; pieces may be longer than asked for.
            limits: what is refused; none when nothing is.
            consumed: how many compressed bytes the source has read, to know a bomb by.
            literal: takes everything that isn't a file's content, in order.
            advanced: called now and then with `size`; may raise to stop.
        """
        self._source = source
        self._limits = limits
        self._consumed = consumed
        self._literal = literal
        self._advanced = advanced
        self._hash = hashlib.sha256()
        self._buffer = memoryview(b"")
        self._remaining = 0
        self._padding = 0
        self._name = b""
        self.size = 0
        self.ended = False
        self.files = 0
        self.entries = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries; a content that its consumer leaves counts as a literal.

        Raises:
            ImageError: the archive is damaged, cut short, or beyond a limit.
        """
        while True:
            entry = self._next()
            if entry is None:
                break
            yield entry
            for piece in self.content():
                self._literal(bytes(piece))
            if self._padding:
                self._literal(self._take(self._padding))
                self._padding = 0
        while self._buffer or self._refill():
            rest, self._buffer = self._buffer, memoryview(b"")
            self._literal(bytes(rest))

    def content(self) -> Iterator[memoryview]:
        """Yield the payload of the entry that came last, in pieces."""
        while self._remaining:
            if not self._buffer and not self._refill():
                raise ImageError(f"{shown(self._name)}: {_NOT_SAID} within this file")
            piece = self._buffer[: self._remaining]
            self._buffer = self._buffer[len(piece) :]
            self._remaining -= len(piece)
            yield piece

    def digest(self) -> Digest:
        """Return the digest of all that was read: once the entries are at their end, the diffID."""
        return Digest(f"sha256:{self._hash.hexdigest()}")

    def _next(self) -> Entry | None:
        extended = Extended()
        extensions = 0
        while True:
            block = self._block()
            if block is None:
                return None
            info = parse_block(block)
            if info.type in b"LKxXg":
                extensions += max(info.size, BLOCK)
                if extensions > MAX_HEADER:
                    raise ImageError(f"extended headers of {extensions} bytes; {MAX_HEADER} is the most")
                self._extend(extended, info.type, info.size)
                continue
            entry = make_entry(info, extended)
            find_fragments(entry, block, info.type, extended, self._literal_block)
            self._name = entry.path
            self._account(entry)
            return entry

    def _account(self, entry: Entry) -> None:
        self._remaining = entry.payload
        self._padding = -entry.payload % BLOCK
        self.files += entry.size
        self.entries += 1
        if self._limits is None:
            return
        if self.entries > self._limits.entries:
            raise ImageError(f"it has more than {self._limits.entries} entries")
        if self.files > self._limits.size:
            raise ImageError(
                f"{shown(entry.path)}: its files have more than {self._limits.size} bytes so far; "
                "if it is meant to be so big, raise --max-size"
            )

    def _extend(self, extended: Extended, kind: bytes, size: int) -> None:
        padded = self._take(size + -size % BLOCK)
        self._literal(padded)
        data = padded[:size]
        if kind == b"L":
            extended.name = data.partition(b"\0")[0]
        elif kind == b"K":
            extended.target = data.partition(b"\0")[0]
        elif kind != b"g":
            # What holds for all entries ("g") is for people, as a commit's name; docker doesn't heed it
            # either.
            parse_pax(data, extended)

    def _block(self) -> bytes | None:
        """Return the next header block; None at the end."""
        if not self._buffer and not self._refill():
            return None
        block = self._take(BLOCK)
        self._literal(block)
        if block == _ZEROS:
            self.ended = True
            return None
        return block

    def _literal_block(self) -> bytes:
        block = self._take(BLOCK)
        self._literal(block)
        return block

    def _take(self, size: int) -> bytes:
        if len(self._buffer) >= size:
            taken = bytes(self._buffer[:size])
            self._buffer = self._buffer[size:]
            return taken
        parts = []
        while size:
            if not self._buffer and not self._refill():
                after = f" after {shown(self._name)}" if self._name else ""
                raise ImageError(f"{_NOT_SAID}{after}")
            piece = self._buffer[:size]
            parts.append(bytes(piece))
            self._buffer = self._buffer[len(piece) :]
            size -= len(piece)
        return b"".join(parts)

    def _refill(self) -> bool:
        piece = self._source.read(1 << 20)
        if not piece:
            return False
        self._hash.update(piece)
        self.size += len(piece)
        if self._limits is not None:
            self._limits.check(self.size, self.size if self._consumed is None else self._consumed())
        if self._advanced is not None:
            self._advanced(self.size)
        self._buffer = memoryview(piece)
        return True
