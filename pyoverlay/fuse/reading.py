"""Is data in the page cache, and who waits for the disk if not, or for data that is written through to it?

What a quick disk brings in no time is awaited by whoever asks for it.  For the rest a few threads wait, which
answer the kernel themselves: a way through pyfuse3 and trio's threads would cost as much again, and a long
message doesn't even fit the pair to pyfuse3.  They know nothing but a descriptor, or what writes, and the
request that it is for; the kernel releases no file while one of its reads or writes goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from pyoverlay.fuse import messages, wire
from pyoverlay.fuse.wire import Buffer

log = logging.getLogger(__name__)

_THREADS: Final = 4

SECONDS_OF_PATIENCE: Final = 200e-6
"""How long data from the disk is awaited awake.  A solid-state disk needs a third of it for a page; to hand a
read to a thread, and to be woken on another processor, costs as much as the disk does."""
READS_UNWAITED: Final = 16
"""How many reads of data that isn't there are left to others at once, after one was awaited in vain: so a
slow disk holds nobody up."""

_Transfer = tuple[int, Callable[[], Buffer]]
"""Request, and what makes the body of its answer."""


def read_from_cache(
    descriptor: int, buffer: memoryview, offset: int, seconds: float = 0
) -> memoryview | None:
    """Read from the page cache alone: preadv2(2), RWF_NOWAIT.

    What isn't there is asked of the disk all the same, and looked for again for ``seconds``.

    Returns:
        What ``buffer`` has of it, less than its size at the end of the file; None when part of it must be
        waited for.
    """
    size = len(buffer)
    count = 0
    end = 0.0
    while True:
        try:
            read = os.preadv(descriptor, [buffer[count:] if count else buffer], offset + count, os.RWF_NOWAIT)
        except OSError as failure:
            if failure.errno == errno.EOPNOTSUPP:
                return None
            if failure.errno != errno.EAGAIN:
                raise
            now = time.monotonic()
            end = end or now + seconds
            if now >= end:
                return None
            os.sched_yield()
        else:
            count += read
            if count == size or not read:
                return buffer[:count]


class QuickReads:
    """Reads of what is in the page cache, or comes there in no time."""

    def __init__(self) -> None:
        """Expect the disk to be quick."""
        self._unwaited = 0

    def read(self, descriptor: int, buffer: memoryview, offset: int) -> memoryview | None:
        """Read as `read_from_cache` does, with patience for a disk that was quick the last time."""
        data = read_from_cache(descriptor, buffer, offset, 0 if self._unwaited else SECONDS_OF_PATIENCE)
        if data is None:
            self._unwaited = self._unwaited - 1 if self._unwaited else READS_UNWAITED
        return data


class WaitingTransfers:
    """Reads and writes that wait for the disk."""

    def __init__(self, answer: Callable[..., None]) -> None:
        """Answer with ``answer(unique, *pieces)``, which is called in other threads."""
        self._answer = answer
        self._transfers: queue.SimpleQueue[_Transfer | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._asked = 0

    def read(self, unique: int, descriptor: int, size: int, offset: int) -> None:
        """Read ``size`` bytes at ``offset`` and answer the request ``unique``, some time."""
        self._ask(unique, lambda: os.pread(descriptor, size, offset))

    def write(self, unique: int, write: Callable[[], int]) -> None:
        """Let ``write`` write, and answer the request ``unique`` with the bytes written, some time."""
        self._ask(unique, lambda: messages.size_answer(write()))

    def _ask(self, unique: int, transfer: Callable[[], Buffer]) -> None:
        self._asked += 1
        if len(self._threads) < min(_THREADS, self._asked):
            thread = threading.Thread(target=self._work, name="waiting transfer", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._transfers.put((unique, transfer))

    def _work(self) -> None:
        while (asked := self._transfers.get()) is not None:
            unique, transfer = asked
            self._answer(unique, *_answer_of(unique, transfer))

    def close(self) -> None:
        """Return when everything that was asked for has been answered; nothing may be asked for later."""
        for _ in self._threads:
            self._transfers.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _answer_of(unique: int, transfer: Callable[[], Buffer]) -> list[Buffer]:
    try:
        body = transfer()
    except OSError as failure:
        return [wire.error_reply(unique, failure.errno or errno.EIO)]
    except Exception:
        log.exception("a read or write failed")
        return [wire.error_reply(unique, errno.EIO)]
    return [wire.answer_header(unique, len(body)), body]
