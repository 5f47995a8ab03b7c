"""Is each read that waits answered once, whatever comes of it?"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyoverlay.fuse import reading
from pyoverlay.fuse.reading import READS_UNWAITED, QuickReads, WaitingTransfers, read_from_cache

HEADER = struct.Struct("=IiQ")


class Answers:
    """Keeps what other threads answer."""

    def __init__(self) -> None:
        self.by_request: dict[int, list[bytes]] = {}
        self.threads: set[str] = set()

    def take(self, unique: int, *pieces: bytes) -> None:
        self.by_request.setdefault(unique, []).append(b"".join(pieces))
        self.threads.add(threading.current_thread().name)


def test_every_read_is_answered_once_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)))
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    answers = Answers()
    reads = WaitingTransfers(answers.take)

    for unique in range(1, 201):
        reads.read(unique, descriptor, 4, unique)
    reads.close()

    os.close(descriptor)
    assert sorted(answers.by_request) == list(range(1, 201))
    for unique, (answer,) in answers.by_request.items():
        data = bytes(range(256))[unique : unique + 4]
        assert answer == HEADER.pack(16 + len(data), 0, unique) + data
    assert answers.threads == {"waiting transfer"}


def test_a_read_that_fails_is_answered_with_its_errno(tmp_path: Path) -> None:
    answers = Answers()
    reads = WaitingTransfers(answers.take)
    directory = os.open(tmp_path, os.O_RDONLY)

    reads.read(7, directory, 4, 0)
    reads.close()

    os.close(directory)
    assert answers.by_request == {7: [HEADER.pack(16, -21, 7)]}


def test_without_a_read_there_is_no_thread() -> None:
    before = threading.active_count()
    reads = WaitingTransfers(Answers().take)
    assert threading.active_count() == before
    reads.close()


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(bytes(range(256)))
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


class Disk:
    """Stands for preadv2(2) of a file whose data comes piece by piece from the disk."""

    def __init__(self, *pieces: int) -> None:
        """Have as many bytes there at each call as ``pieces`` says, nothing for 0, and nothing later."""
        self.pieces = list(pieces)
        self.calls = 0
        self._read = os.preadv

    def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int, _flags: int) -> int:
        self.calls += 1
        there = self.pieces.pop(0) if self.pieces else 0
        if not there:
            raise OSError(errno.EAGAIN, "not there")
        return self._read(descriptor, [buffers[0][:there]], offset)


@pytest.mark.parametrize(
    ("offset", "size", "expected"), [(0, 256, range(256)), (250, 64, range(250, 256)), (300, 8, ())]
)
def test_what_is_cached_is_read_to_the_end(
    descriptor: int, offset: int, size: int, expected: Sequence[int]
) -> None:
    os.pread(descriptor, 256, 0)
    data = read_from_cache(descriptor, memoryview(bytearray(size)), offset)
    assert data is not None
    assert bytes(data) == bytes(expected)


def test_what_the_disk_brings_in_pieces_is_put_together(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", Disk(100, 0, 0, 50, 0, 1000, 1000).preadv)
    data = read_from_cache(descriptor, memoryview(bytearray(512)), 6, 60)
    assert data is not None
    assert bytes(data) == bytes(range(6, 256))


def test_a_read_that_is_refused_is_an_error(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_from_cache(descriptor, memoryview(bytearray(8)), 0, 60)
    os.close(descriptor)


def test_a_slow_disk_is_not_awaited_again_and_again(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SECONDS_OF_PATIENCE", 0.01)
    disk = Disk()
    monkeypatch.setattr(os, "preadv", disk.preadv)
    reads = QuickReads()
    buffer = memoryview(bytearray(8))

    assert reads.read(descriptor, buffer, 0) is None
    assert disk.calls > 1
    disk.calls = 0
    for _ in range(READS_UNWAITED):
        assert reads.read(descriptor, buffer, 0) is None
    assert disk.calls == READS_UNWAITED
    disk.pieces = [0, 0, 8]
    assert reads.read(descriptor, buffer, 0) is not None
    assert bytes(buffer) == bytes(range(8))
