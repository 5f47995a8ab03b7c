"""Where in a sparse file does its data belong?  The four formats that GNU tar wrote over the years.

The image specification advises against them, and Go's archive/tar reads them all. Pure, but for one callback
that reads a further block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.limits import MAX_HEADER
from pyoverlay.images.tar_entries import BLOCK, Entry, Extended, Fragments, parse_number

TakeBlock = Callable[[], bytes]

_OLD_MAP: Final = 386
_OLD_MAP_ENTRIES: Final = 4
_EXTENSION_ENTRIES: Final = 21
_NUMBER_SIZE: Final = 12


def is_old_sparse(kind: bytes) -> bool:
    """Whether a header's type is that of GNU tar's first sparse format."""
    return kind == b"S"


def find_fragments(entry: Entry, block: bytes, kind: bytes, extended: Extended, take: TakeBlock) -> None:
    """Give a sparse file its map, size and payload; leave all other entries as they are.

    Args:
        entry: what the headers said so far.
        block: the entry's header block.
        kind: its type.
        extended: the headers before it.
        take: reads the next block of the archive, where a format continues there.

    Raises:
        ImageError: the map makes no sense.
    """
    if entry.kind != "file":
        return
    records = extended.records
    if is_old_sparse(kind):
        numbers, size = _old_numbers(entry, block, take)
    elif records.get(b"GNU.sparse.major") == b"1":
        numbers, size = _numbers_in_front(entry, take), records.get(b"GNU.sparse.realsize", b"")
    elif b"GNU.sparse.map" in records:
        numbers = records[b"GNU.sparse.map"].split(b",") if records[b"GNU.sparse.map"] else []
        size = records.get(b"GNU.sparse.size", b"")
    elif extended.sparse_numbers:
        numbers, size = extended.sparse_numbers, records.get(b"GNU.sparse.size", b"")
    else:
        return
    entry.size = parse_number(size, entry.path)
    entry.fragments = _checked(entry, [parse_number(number, entry.path) for number in numbers])


def _checked(entry: Entry, numbers: list[int]) -> Fragments:
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for offset, length in pairs:
        if offset < end or offset + length > entry.size:
            raise _malformed(entry)
        end = offset + length
    if len(numbers) % 2 or sum(length for _, length in pairs) != entry.payload:
        raise _malformed(entry)
    return tuple(pair for pair in pairs if pair[1])


def _old_numbers(entry: Entry, block: bytes, take: TakeBlock) -> tuple[list[bytes], bytes]:
    numbers = _numbers_of(block, _OLD_MAP, _OLD_MAP_ENTRIES)
    continues, size = block[482], block[483:495]
    blocks = 0
    while continues:
        blocks += 1
        if blocks * BLOCK > MAX_HEADER:
            raise ImageError(f"{shown(entry.path)}: its sparse map has more than {MAX_HEADER} bytes")
        block = take()
        numbers += _numbers_of(block, 0, _EXTENSION_ENTRIES)
        continues = block[504]
    return numbers, _decimal(size)


def _numbers_of(block: bytes, start: int, pairs: int) -> list[bytes]:
    fields = [
        block[at : at + _NUMBER_SIZE] for at in range(start, start + pairs * 2 * _NUMBER_SIZE, _NUMBER_SIZE)
    ]
    numbers: list[bytes] = []
    for offset, length in zip(fields[::2], fields[1::2], strict=True):
        if not offset.strip(b"\0 ") or not length.strip(b"\0 "):
            break
        numbers += (_decimal(offset), _decimal(length))
    return numbers


def _decimal(field: bytes) -> bytes:
    """Return an octal or, with the highest bit set, binary number in decimal; nothing when it is none."""
    if field[0] & 0x80:
        return b"%d" % int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return b"%d" % int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return b""


def _numbers_in_front(entry: Entry, take: TakeBlock) -> list[bytes]:
    """Read the map of format 1.0: lines in front of the data, in whole blocks."""
    lines = _Lines(entry, take)
    count = parse_number(lines.next(), entry.path)
    if count * 4 > MAX_HEADER:
        raise ImageError(f"{shown(entry.path)}: its sparse map has more than {MAX_HEADER} bytes")
    numbers = [lines.next() for _ in range(count * 2)]
    if lines.taken > entry.payload:
        raise _malformed(entry)
    entry.payload -= lines.taken
    return numbers


class _Lines:
    def __init__(self, entry: Entry, take: TakeBlock) -> None:
        self._entry = entry
        self._take = take
        self._text = b""
        self.taken = 0

    def next(self) -> bytes:
        while b"\n" not in self._text:
            if self.taken > MAX_HEADER or self.taken >= self._entry.payload:
                raise _malformed(self._entry)
            self._text += self._take()
            self.taken += BLOCK
        line, _, self._text = self._text.partition(b"\n")
        return line


def _malformed(entry: Entry) -> ImageError:
    return ImageError(f"{shown(entry.path)}: its map of a sparse file makes no sense")


def pieces_of(fragments: Iterable[tuple[int, int]]) -> int:
    """Return how many bytes of data a map speaks of."""
    return sum(length for _, length in fragments)
