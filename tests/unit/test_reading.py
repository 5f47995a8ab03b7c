"""Is each read that waits answered once, whatever comes of it?"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

from pyoverlay.fuse.reading import WaitingTransfers

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
