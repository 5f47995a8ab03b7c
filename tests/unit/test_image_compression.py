"""Are compressed layers read and written, however they come in pieces?"""

from __future__ import annotations

import gzip
import io
import random

import pytest

from pyoverlay.images.compression import Compression, Decompressed, compressed, sniff
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits, parse_size
from pyoverlay.images.zstandard import zstd

NOISE = random.Random(1).randbytes(300_000)
CONTENT = NOISE + bytes(3_000_000) + NOISE


class Slow(io.BytesIO):
    """Gives a few bytes at a time, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 1, 777))


def read_all(stream: Decompressed) -> bytes:
    return b"".join(iter(lambda: stream.read(1 << 20), b""))


WRITTEN = {
    "none": CONTENT,
    "gzip": gzip.compress(CONTENT),
    "gzip in two members, padded": gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:]) + bytes(512),
    "zstd": zstd.compress(CONTENT),
    "zstd behind a frame to skip": b"\x5f\x2a\x4d\x18\x04\0\0\0skip" + zstd.compress(CONTENT),
    "zstd in two frames": zstd.compress(CONTENT[:1000]) + zstd.compress(CONTENT[1000:]),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("source", [io.BytesIO, Slow])
def test_reading(form: str, source: type[io.BytesIO]) -> None:
    stream = Decompressed(source(WRITTEN[form]))
    assert stream.compression == form.split(maxsplit=1)[0]
    assert read_all(stream) == CONTENT
    assert stream.consumed == len(WRITTEN[form])


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_stream_that_ends_too_early(form: str) -> None:
    for length in (7, 1000, len(WRITTEN[form]) - 1):
        with pytest.raises(ImageError, match="cut short"):
            read_all(Decompressed(io.BytesIO(WRITTEN[form][:length])))


def test_nothing_is_an_empty_plain_stream() -> None:
    assert read_all(Decompressed(io.BytesIO())) == b""


@pytest.mark.parametrize("start", [b"BZh9", b"\xfd7zXZ\0", b"\x04\x22\x4d\x18"])
def test_a_compression_that_layers_do_not_use(start: bytes) -> None:
    with pytest.raises(ImageError, match="gzip, zstd or plain"):
        sniff(start)


@pytest.mark.parametrize("form", ["none", "gzip", "zstd"])
def test_writing_gives_the_same_bytes_each_time(form: Compression) -> None:
    written = []
    for _ in range(2):
        target = io.BytesIO()
        with compressed(target, form) as stream:
            stream.write(CONTENT)
        written.append(target.getvalue())
    assert written[0] == written[1]
    assert read_all(Decompressed(io.BytesIO(written[0]))) == CONTENT


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512", 512), ("1K", 1024), ("20G", 20 << 30), ("3T", 3 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "1g", "1 G", "1KB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ImageError, match="no size"):
        parse_size(text)


def test_a_ratio_counts_once_enough_has_come_out() -> None:
    limits = Limits(size=1000, ratio=10, free=100)
    limits.check(100, 1)
    limits.check(1000, 100)
    for unpacked, consumed in ((101, 1), (1001, 1001)):
        with pytest.raises(ImageError):
            limits.check(unpacked, consumed)
