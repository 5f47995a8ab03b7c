"""How is a layer's tar compressed, and how is it read and written as if it weren't?

gzip, zstd and plain tar are told apart by their first bytes: names and media types in archives lie.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final, Literal, Protocol, cast

from pyoverlay.images.errors import ImageError
from pyoverlay.images.zstandard import zstd

Compression = Literal["none", "gzip", "zstd"]

_MAGIC: Final[dict[Compression, bytes]] = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""After one byte from 0x50 on: a zstd frame without content, as pzstd puts one in front (RFC 8878, 3.1.2)."""
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}
_MAGIC_SIZE: Final = 6
_WINDOW_LOG_MAX: Final = 27
"""128 MiB of memory at most for one zstd stream: the limit of the zstd command, too."""
_PIECE: Final = 1 << 17


class Readable(Protocol):
    """What bytes come out of: `read` returns up to `size` bytes, none at the end."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        ...


def sniff(start: bytes) -> Compression:
    """Tell the compression from a stream's first bytes.

    Raises:
        ImageError: it is a compression that image layers don't use.
    """
    for kind, magic in _MAGIC.items():
        if start.startswith(magic):
            return kind
    if start[1:4] == _SKIPPABLE and start[0] >> 4 == 5:
        return "zstd"
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise ImageError(f"it is compressed with {name}; layers are gzip, zstd or plain tar")
    return "none"


class Decompressed:
    """A stream, decompressed as it is read.

    Attributes:
        compression: what was found.
        consumed: bytes of the compressed stream so far.
    """

    def __init__(self, source: Readable) -> None:
        """Look at the first bytes of `source`; it is read from here only."""
        self._source = source
        self.consumed = 0
        self._start = b""
        while len(self._start) < _MAGIC_SIZE:
            piece = source.read(_MAGIC_SIZE - len(self._start))
            if not piece:
                break
            self._start += piece
        self.compression: Final = sniff(self._start)
        self._pieces = self._decompressed()

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, `size` or fewer or more: as they come; none at the end.

        Raises:
            ImageError: the compressed stream is damaged or cut short.
        """
        del size
        return next(self._pieces, b"")

    def drain(self) -> None:
        """Read what follows the end of the compressed data, so that a digest covers it."""
        while self._next():
            pass

    def _next(self) -> bytes:
        piece = self._start or self._source.read(_PIECE)
        self._start = b""
        self.consumed += len(piece)
        return piece

    def _decompressed(self) -> Iterator[bytes]:
        if self.compression == "gzip":
            return self._gunzipped()
        if self.compression == "zstd":
            return self._unzstd()
        return iter(self._next, b"")

    def _gunzipped(self) -> Iterator[bytes]:
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
        piece = self._next()
        while piece:
            if decompressor.eof:
                # A further member; zeros in between are padding, as the gzip command takes them.
                piece = piece.lstrip(b"\0")
                if not piece:
                    piece = self._next()
                    continue
                decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                out = decompressor.decompress(piece, _PIECE * 4)
            except zlib.error as error:
                raise ImageError(f"its gzip stream is damaged: {error}") from error
            if out:
                yield out
            piece = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
            piece = piece or self._next()
        if not decompressor.eof:
            raise ImageError("its gzip stream is cut short")

    def _unzstd(self) -> Iterator[bytes]:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        decompressor = zstd.ZstdDecompressor(options=options)
        piece = self._next()
        while piece or not decompressor.needs_input:
            if decompressor.eof:
                decompressor = zstd.ZstdDecompressor(options=options)
            try:
                out = decompressor.decompress(piece, _PIECE * 4)
            except zstd.ZstdError as error:
                raise ImageError(f"its zstd stream is damaged: {error}") from error
            if out:
                yield out
            piece = decompressor.unused_data if decompressor.eof else b""
            if not piece and (decompressor.eof or decompressor.needs_input):
                piece = self._next()
                if not piece:
                    break
        if not decompressor.eof:
            raise ImageError("its zstd stream is cut short")


@contextmanager
def compressed(target: IO[bytes], compression: Compression) -> Iterator[IO[bytes]]:
    """Compress what is written, always to the same bytes for the same content; `target` stays open."""
    if compression == "none":
        yield target
        return
    stream: IO[bytes]
    if compression == "gzip":
        # No name and no time in the header. Level 6 is the gzip command's.
        gzipped = gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0, compresslevel=6)
        stream = cast("IO[bytes]", gzipped)
    else:
        stream = cast("IO[bytes]", zstd.ZstdFile(target, "wb"))
    buffered = io.BufferedWriter(cast("io.RawIOBase", stream), 1 << 20)
    try:
        yield buffered
    finally:
        buffered.close()
