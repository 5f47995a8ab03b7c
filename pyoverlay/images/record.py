"""How are the very bytes of a layer's tar kept without keeping its files twice?

A record beside the layer's directory holds everything of the tar that isn't the content of a file: headers,
padding, the end. A content is a reference: the file's path in the directory, where in it, and a checksum.
Both together make the tar again byte by byte, so that a layer is saved under the digest that it was loaded
by, and checked against it. (Docker's tar-split does the same.)

A record is a zstd stream of msgpack objects, each after its length in 4 bytes.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Final, cast

import msgspec

from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.tar_entries import Entry
from pyoverlay.images.zstandard import zstd
from pyoverlay.layers import syscalls

_LENGTH: Final = struct.Struct(">I")
_PIECE: Final = 1 << 20
_ENOUGH: Final = 1 << 16


class Literal(msgspec.Struct, array_like=True, tag=0):
    """Bytes of the tar as they are."""

    data: bytes


class Content(msgspec.Struct, array_like=True, tag=1):
    """The payload of a file: the `fragments` (offset, length) of what lies at `path`, with their CRC-32."""

    path: bytes
    fragments: list[tuple[int, int]]
    checksum: int


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Literal | Content)


class RecordWriter:
    """Writes a record while a tar is unpacked."""

    def __init__(self, target: IO[bytes]) -> None:
        """Write to `target`, which stays open."""
        self._stream = cast("IO[bytes]", zstd.ZstdFile(target, "wb"))
        self._literal: list[bytes] = []
        self._gathered = 0

    def literal(self, data: bytes) -> None:
        """Add bytes that are no file's content."""
        self._literal.append(data)
        self._gathered += len(data)
        if self._gathered > _PIECE:
            self._flush()

    def content(self, entry: Entry, checksum: int) -> None:
        """Add the payload of `entry`, as it lies in the layer's directory."""
        self._flush()
        fragments = entry.fragments or ((0, entry.payload),)
        self._write(Content(entry.path, list(fragments), checksum))

    def close(self) -> None:
        """Write the rest."""
        self._flush()
        self._stream.close()

    def _flush(self) -> None:
        if self._literal:
            self._write(Literal(b"".join(self._literal)))
            self._literal.clear()
            self._gathered = 0

    def _write(self, part: Literal | Content) -> None:
        data = _encoder.encode(part)
        self._stream.write(_LENGTH.pack(len(data)) + data)


def read_parts(source: IO[bytes]) -> Iterator[Literal | Content]:
    """Yield a record's parts.

    Raises:
        ImageError: the record is damaged.
    """
    try:
        with zstd.ZstdFile(source, "rb") as stream:
            while True:
                length = stream.read(_LENGTH.size)
                if not length:
                    return
                yield _decoder.decode(stream.read(*_LENGTH.unpack(length)))
    except (zstd.ZstdError, EOFError, struct.error, msgspec.MsgspecError, OverflowError) as error:
        raise ImageError(f"the record of the layer's tar is damaged: {error}") from error


class RecordedTar:
    """The tar that a record and a layer's directory make again, to be read as a stream."""

    def __init__(
        self, record: IO[bytes], directory: int, damaged: Callable[[str], None] | None = None
    ) -> None:
        """Make the tar from an open record and a descriptor of the layer's directory.

        Args:
            record: read from its beginning.
            directory: the layer's.
            damaged: told of each file that isn't as it was recorded, which is made up for by zeros then; when
                None, such a file is an ImageError.
        """
        self._directory = directory
        self._damaged = damaged
        self._pieces = self._all(record)

    def read(self, _size: int = -1, /) -> bytes:
        """Return the next piece, of any size; none at the end.

        Raises:
            ImageError: the record is damaged; a file isn't what it was, if nobody wants to be told.
        """
        return next(self._pieces, b"")

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def _all(self, record: IO[bytes]) -> Iterator[bytes]:
        gathered: list[bytes] = []
        size = 0
        for part in read_parts(record):
            pieces = (part.data,) if isinstance(part, Literal) else self._content(part)
            for piece in pieces:
                gathered.append(piece)
                size += len(piece)
                if size >= _ENOUGH:
                    yield b"".join(gathered)
                    gathered.clear()
                    size = 0
        if gathered:
            yield b"".join(gathered)

    def _content(self, part: Content) -> Iterator[bytes]:
        checksum = 0
        missing = sum(length for _, length in part.fragments)
        try:
            descriptor = syscalls.open_beneath(self._directory, part.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                for piece in _read(descriptor, part.fragments):
                    checksum = zlib.crc32(piece, checksum)
                    missing -= len(piece)
                    yield piece
            finally:
                os.close(descriptor)
        except OSError as error:
            what = "is missing" if error.errno == errno.ENOENT else str(error.strerror)
            self._tell(part, what)
        else:
            if missing:
                self._tell(part, "is shorter than it was")
            elif checksum != part.checksum:
                self._tell(part, "has another content than it had")
        while missing > 0:
            yield bytes(min(missing, _PIECE))
            missing -= _PIECE

    def _tell(self, part: Content, what: str) -> None:
        text = f"/{shown(part.path)} {what}"
        if self._damaged is None:
            raise ImageError(f"{text}: the layer was changed in the store")
        self._damaged(text)


def _read(descriptor: int, fragments: list[tuple[int, int]]) -> Iterator[bytes]:
    for offset, length in fragments:
        end = offset + length
        while offset < end:
            piece = os.pread(descriptor, min(_PIECE, end - offset), offset)
            if not piece:
                return
            offset += len(piece)
            yield piece
