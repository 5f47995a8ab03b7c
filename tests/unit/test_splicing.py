"""Is what lies in the page cache handed over as it is, and everything else left to others?"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.fuse.splicing import Splicing
from pyoverlay.layers import syscalls
from tests.harness.disk import file_system

SIZE = 128 * 1024
UNIQUE = 14
CONTENT = os.urandom(3 * SIZE + 100)


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A file system with a page cache that can be emptied."""
    with file_system("ext4") as path:
        yield path


@pytest.fixture
def file(disk: Path) -> Iterator[int]:
    """A file that is in the page cache, open."""
    path = disk / "file"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


class Device:
    """Stands for /dev/fuse: what is written to it can be read."""

    def __init__(self) -> None:
        self._kernel, self._daemon = socket.socketpair()
        for end in (self._kernel, self._daemon):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SIZE)
        self.splicing = Splicing(self._daemon.fileno())

    def received(self) -> bytes:
        """What the kernel got."""
        pieces = []
        try:
            while piece := self._kernel.recv(4 * SIZE):
                pieces.append(piece)
        except BlockingIOError:
            pass
        return b"".join(pieces)

    def close(self) -> None:
        """Give everything back."""
        self.splicing.close()
        self._kernel.close()
        self._daemon.close()


@pytest.fixture
def device() -> Iterator[Device]:
    """A device nobody has written to."""
    made = Device()
    yield made
    made.close()


def answer_with(data: bytes) -> bytes:
    """The kernel's form of a reply to a READ."""
    return struct.pack("=IiQ", 16 + len(data), 0, UNIQUE) + data


@pytest.mark.parametrize("offset", [0, SIZE, 1, 2 * SIZE + 100])
def test_data_of_the_page_cache_is_handed_over(device: Device, file: int, offset: int) -> None:
    for _ in range(2):
        assert device.splicing.answer(UNIQUE, file, SIZE, offset)
        assert device.received() == answer_with(CONTENT[offset : offset + SIZE])


@pytest.mark.parametrize(
    ("size", "offset"),
    [(4096, 0), (2 * 1024 * 1024, 0), (SIZE, len(CONTENT) - SIZE + 1), (SIZE, len(CONTENT) + SIZE)],
    ids=["little", "much", "over the end", "after the end"],
)
def test_what_is_not_worth_it_or_not_whole_is_left_to_others(
    device: Device, file: int, size: int, offset: int
) -> None:
    assert not device.splicing.answer(UNIQUE, file, size, offset)
    assert device.received() == b""


@pytest.mark.parametrize("missing", [0, SIZE // 2, SIZE - 4096])
def test_data_on_the_disk_is_left_to_others(device: Device, file: int, missing: int) -> None:
    """Nothing of it may be asked of the disk: the thread that serves would wait."""
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    for position in range(0, SIZE, 4096):
        if position != missing:
            os.pread(file, 4096, position)
    there = syscalls.cached_pages(file, 0, len(CONTENT))
    assert there == SIZE / 4096 - 1
    assert not device.splicing.answer(UNIQUE, file, SIZE, 0)
    assert syscalls.cached_pages(file, 0, len(CONTENT)) == there
    assert device.received() == b""
    assert os.pread(file, SIZE, 0) == CONTENT[:SIZE]
    assert device.splicing.answer(UNIQUE, file, SIZE, 0)
    assert device.received() == answer_with(CONTENT[:SIZE])


def test_a_file_that_shrinks_meanwhile_is_left_to_others(
    device: Device, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    splice = os.splice

    def truncate_first(source: int, target: int, count: int, **where: int) -> int:
        os.ftruncate(file, SIZE // 2)
        return splice(source, target, count, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "splice", truncate_first)
        assert not device.splicing.answer(UNIQUE, file, SIZE, 0)
    assert device.received() == b""
    assert device.splicing.answer(UNIQUE, file, SIZE // 2, 0)
    assert device.received() == answer_with(CONTENT[: SIZE // 2])


@pytest.mark.parametrize(
    ("number", "answered"), [(errno.ENOENT, True), (errno.ENODEV, True), (errno.EIO, False)]
)
def test_an_answer_that_is_refused_leaves_nothing_behind(
    device: Device, file: int, monkeypatch: pytest.MonkeyPatch, number: int, answered: bool
) -> None:
    """The caller was killed, the mount has gone, or something failed: the next answer is whole."""
    splice = os.splice

    def refuse(source: int, target: int, count: int, **where: int) -> int:
        if source != file:
            raise OSError(number, os.strerror(number))
        return splice(source, target, count, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "splice", refuse)
        assert device.splicing.answer(UNIQUE, file, SIZE, 0) == answered
    assert device.splicing.answer(UNIQUE, file, SIZE, SIZE)
    assert device.received() == answer_with(CONTENT[SIZE : 2 * SIZE])


@pytest.mark.parametrize(
    ("function", "number", "again"),
    [
        ("pyoverlay.layers.syscalls.cached_pages", errno.ENOSYS, False),
        ("pyoverlay.layers.syscalls.cached_pages", errno.EPERM, True),
        ("fcntl.fcntl", errno.EPERM, False),
        ("os.splice", errno.EINVAL, False),
        ("os.splice", errno.EIO, True),
    ],
)
def test_what_this_kernel_lacks_is_not_tried_again(
    device: Device, file: int, monkeypatch: pytest.MonkeyPatch, function: str, number: int, again: bool
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        assert not device.splicing.answer(UNIQUE, file, SIZE, 0)
    assert device.splicing.answer(UNIQUE, file, SIZE, 0) == again
