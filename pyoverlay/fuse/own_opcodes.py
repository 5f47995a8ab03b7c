"""How are the requests answered that pyfuse3 has no call for?

Here, whether the fast path is on or off: there is no other way for them.  What needs no waiting is answered
at once; copy-ups are waited for in a task, and ranges are allocated and copied in worker threads.
Translation only, as in `operations` and `fast_path`; all ask the same `OverlayFilesystem`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import trio

from pyoverlay.fuse import messages, wire
from pyoverlay.fuse.answers import Answers, caller_of, change_of, sets_times_to_now
from pyoverlay.fuse.copying import CopyUpQueue
from pyoverlay.fuse.exchange import Request
from pyoverlay.fuse.wire import Buffer, Opcode
from pyoverlay.layers.syscalls import FLAG_COMMANDS, GET_EXTENDED_FLAGS, GET_FLAGS, SET_FLAGS, error
from pyoverlay.overlay.filesystem import CopyUpNeeded, OverlayFilesystem, RangeWork

log = logging.getLogger(__name__)

_LARGEST_COPY: Final = 0xFFFF_F000
"""What COPY_FILE_RANGE can tell to have been copied is a number of 32 bits."""


class Transport(Protocol):
    """What these answers need of the way to the kernel."""

    def invalidate_attributes(self, nodeid: int) -> None:
        """Make the kernel ask again for a node's attributes."""

    def answer_after_invalidation(self, nodeids: Sequence[int], unique: int, pieces: list[Buffer]) -> None:
        """Make the kernel ask again for directories' names, then write a reply, if there are ``pieces``."""

    def opened(self, handle: int) -> tuple[int, int]:
        """Decide how an opened file is read and written: FOPEN flags, and a backing file's number."""

    def reply(self, unique: int, *pieces: Buffer) -> None:
        """Answer a request that `OwnOpcodes.begin` was called with."""


class _Later:
    """An answer that waits for work in another thread."""

    def __init__(self, work: RangeWork, body: Callable[[], Buffer]) -> None:
        self.work = work
        self.body = body


Handler = Callable[[int, memoryview], Buffer | _Later]


class OwnOpcodes:
    """Answers what pyfuse3 can't."""

    def __init__(
        self, filesystem: OverlayFilesystem, transport: Transport, queue: CopyUpQueue, nursery: trio.Nursery
    ) -> None:
        """Answer from ``filesystem``; what waits runs in ``nursery``."""
        self._filesystem = filesystem
        self._transport = transport
        self._queue = queue
        self._nursery = nursery
        self._answers = Answers(filesystem, transport.opened)
        self._working: dict[int, RangeWork] = {}
        self._handlers: dict[int, Handler] = {
            int(Opcode.FALLOCATE): self._allocate,
            int(Opcode.LSEEK): self._seek,
            int(Opcode.COPY_FILE_RANGE): self._copy_range,
            int(Opcode.COPY_FILE_RANGE_64): self._copy_long_range,
            int(Opcode.TMPFILE): self._create_unnamed,
            int(Opcode.STATX): self._get_extended_attributes,
            int(Opcode.SETATTR): self._set_attributes,
            int(Opcode.IOCTL): self._control,
        }

    def answers(self, request: Request) -> bool:
        """Tell whether a request is answered here: pyfuse3 doesn't know it, or drops what it says."""
        if request.opcode == Opcode.SETATTR:
            return sets_times_to_now(memoryview(request.message))
        return request.opcode in self._handlers

    def begin(self, request: Request) -> None:
        """Answer a request, at once or later; its message is used during the call only."""
        handler = self._handlers[request.opcode]
        unique, nodeid = request.unique, wire.request_fields(request.message)[2]
        message = memoryview(request.message)
        with self._answering(unique):
            try:
                answer = handler(nodeid, message)
            except CopyUpNeeded:
                kept = memoryview(bytes(message))
                self._nursery.start_soon(
                    self._copy_up_first, unique, request.pid, lambda: handler(nodeid, kept)
                )
            else:
                self._give(unique, answer)

    def interrupt(self, unique: int) -> None:
        """Let a copy end early: its caller got a signal."""
        work = self._working.get(unique)
        if work is not None:
            work.stopped = True

    def give_up(self) -> None:
        """Let all copies end early: the daemon ends."""
        for work in self._working.values():
            work.stopped = True

    async def _copy_up_first(self, unique: int, pid: int, ask: Callable[[], Buffer | _Later]) -> None:
        with self._answering(unique):
            while True:
                try:
                    answer = ask()
                    break
                except CopyUpNeeded as need:
                    await self._queue.perform(need, pid)
            self._give(unique, answer)

    async def _work(self, unique: int, answer: _Later) -> None:
        with self._answering(unique):
            self._working[unique] = answer.work
            try:
                await trio.to_thread.run_sync(answer.work.run)
            finally:
                del self._working[unique]
                answer.work.settle()
            self._give(unique, answer.body())

    def _give(self, unique: int, answer: Buffer | _Later) -> None:
        if isinstance(answer, _Later):
            self._nursery.start_soon(self._work, unique, answer)
        else:
            self._pass_on()
            self._transport.reply(unique, wire.answer_header(unique, len(answer)), answer)

    @contextlib.contextmanager
    def _answering(self, unique: int) -> Iterator[None]:
        """Turn whatever an answer raises into an errno."""
        try:
            yield
        except OSError as failure:
            self._refuse(unique, failure.errno or errno.EIO)
        except Exception:
            log.exception("request %d failed", unique)
            self._refuse(unique, errno.EIO)

    def _refuse(self, unique: int, number: int) -> None:
        self._pass_on()
        self._transport.reply(unique, wire.error_reply(unique, number))

    def _pass_on(self) -> None:
        for nodeid in self._filesystem.take_copied_up():
            self._transport.invalidate_attributes(nodeid)
        listed = self._filesystem.take_changed_listings()
        if listed:
            self._transport.answer_after_invalidation(listed, 0, [])

    # Files without a name

    def _create_unnamed(self, nodeid: int, message: memoryview) -> Buffer:
        flags, mode, umask, _ = messages.CREATE.unpack_from(message, messages.BODY)
        caller = caller_of(message, umask)
        return self._answers.created(*self._filesystem.create_unnamed(nodeid, mode, flags, caller))

    # Ranges of open files

    def _allocate(self, _nodeid: int, message: memoryview) -> _Later:
        handle, offset, length, mode = messages.ALLOCATE.unpack_from(message, messages.BODY)
        work = self._filesystem.allocation(handle, mode, offset, length, caller_of(message, 0))
        return _Later(work, lambda: b"")

    def _seek(self, _nodeid: int, message: memoryview) -> Buffer:
        handle, offset, whence = messages.SEEK.unpack_from(message, messages.BODY)
        return messages.position_answer(self._filesystem.find_range(handle, offset, whence))

    def _copy_range(self, _nodeid: int, message: memoryview) -> _Later:
        return self._copy(message, _LARGEST_COPY, messages.size_answer)

    def _copy_long_range(self, _nodeid: int, message: memoryview) -> _Later:
        return self._copy(message, 1 << 62, messages.position_answer)

    def _copy(self, message: memoryview, most: int, tell: Callable[[int], Buffer]) -> _Later:
        source, target, positions, length = messages.ranges_to_copy(message)
        caller = caller_of(message, 0)
        work = self._filesystem.copy_of_range(source, target, positions, min(length, most), caller)
        return _Later(work, lambda: tell(work.copied))

    # Attributes

    def _get_extended_attributes(self, nodeid: int, _message: memoryview) -> Buffer:
        return self._answers.extended_attributes(self._filesystem.node(nodeid))

    def _set_attributes(self, nodeid: int, message: memoryview) -> Buffer:
        """Set times to the present: of append-only files that is all that may be set."""
        return self._answers.attributes(self._filesystem.change_attributes(nodeid, *change_of(message)))

    # Control

    def _control(self, nodeid: int, message: memoryview) -> Buffer:
        """Know the ioctl(2) of lsattr(1) and chattr(1), and no other."""
        command, size, _ = messages.CONTROL.unpack_from(message, messages.BODY)
        if command not in FLAG_COMMANDS:
            raise error(errno.ENOTTY)
        first = messages.BODY + messages.CONTROL.size
        given = bytes(message[first : first + size])
        node, flags = self._filesystem.node(nodeid), self._filesystem.flags
        if command == GET_FLAGS:
            return messages.control_answer(flags.get(node).to_bytes(4, sys.byteorder))
        if command == GET_EXTENDED_FLAGS:
            return messages.control_answer(flags.get_extended(node))
        if command == SET_FLAGS:
            flags.set(node, int.from_bytes(given, sys.byteorder))
        else:
            flags.set_extended(node, given)
        self._transport.invalidate_attributes(nodeid)
        return messages.control_answer(b"")
