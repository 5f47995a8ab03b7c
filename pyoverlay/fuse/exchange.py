"""What comes from the kernel, what of it is answered at once, and how does an answer get back?

The exchange owns the device.  It reads requests, answers what the fast path can answer, and returns the rest
to its caller, who sees to it that pyfuse3 does.  It answers INIT itself, as libfuse knows fewer features than
we serve, looks for the flags that pyfuse3 drops, and counts.  It knows neither trio nor pyfuse3, which may
not even be imported yet.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from pyoverlay.fuse import messages, wire
from pyoverlay.fuse.answers import caller_of
from pyoverlay.fuse.device import MAX_PAIR_TRANSFER, max_transfer
from pyoverlay.fuse.fast_path import FastPath
from pyoverlay.fuse.passthrough import FOPEN_KEEP_CACHE, Passthrough
from pyoverlay.fuse.reading import WaitingTransfers
from pyoverlay.fuse.splicing import Splicing
from pyoverlay.fuse.wire import Opcode
from pyoverlay.overlay.filesystem import Caller, Node, OverlayFilesystem
from pyoverlay.privileges import is_administrator

log = logging.getLogger(__name__)

_ROOM_FOR_HEADERS: Final = 8 * wire.PAGE

_SECONDS_OF_PATIENCE: Final = 50e-6
"""How long the next request is awaited awake: about what it costs to fall asleep, and to be woken on another
processor.  So waiting is never much dearer than that, and mostly saves it."""
_MAX_BACKGROUND: Final = 64
_FOPEN_CACHE_DIR: Final = 1 << 3
_PROTOCOL_MINOR: Final = 38
"""What libfuse 3.14 speaks, with which pyfuse3 is built at the earliest; later ones differ in nothing that
the kernel makes depend on it."""

# As plain numbers: they are compared once a request.
_INIT: Final = int(Opcode.INIT)
_INTERRUPT: Final = int(Opcode.INTERRUPT)
_READDIRPLUS: Final = int(Opcode.READDIRPLUS)
_RELEASE: Final = int(Opcode.RELEASE)
_RELEASEDIR: Final = int(Opcode.RELEASEDIR)
_WRITE: Final = int(Opcode.WRITE)

# As the only writer we know when data changes: the kernel need not guess from times and sizes.
_FEATURES: Final = (
    wire.ASYNC_READ
    | wire.ATOMIC_O_TRUNC
    | wire.BIG_WRITES
    | wire.DONT_MASK
    | wire.DO_READDIRPLUS
    | wire.ASYNC_DIO
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES
    | wire.CACHE_SYMLINKS
    | wire.NO_OPENDIR_SUPPORT
    | wire.EXPLICIT_INVAL_DATA
    | wire.HANDLE_KILLPRIV_V2
)
_MISSED: Final = {
    "parallel lookups in a directory": wire.PARALLEL_DIROPS,
    "large requests": wire.MAX_PAGES,
    "cached symbolic links": wire.CACHE_SYMLINKS,
    "listings without opening a directory": wire.NO_OPENDIR_SUPPORT,
    "data that stays cached": wire.EXPLICIT_INVAL_DATA,
    "writes that say whose they are": wire.HANDLE_KILLPRIV_V2,
    "passthrough": wire.PASSTHROUGH,
}
"""Without which a mount answers the same, only slower."""


class Request(NamedTuple):
    """A request that is pyfuse3's.  ``message`` is there until the next one is read."""

    opcode: int
    pid: int
    unique: int
    message: wire.Buffer


class Exchange:
    """Messages with the kernel about one mount."""

    def __init__(self, device: int, filesystem: OverlayFilesystem, on_ready: Callable[[], None]) -> None:
        """Take over ``device``, a non-blocking descriptor of a mounted /dev/fuse.

        ``on_ready`` is called when the kernel has its INIT reply.
        """
        self.device: Final = device
        self.filesystem: Final = filesystem
        self.requests: Counter[int] = Counter()
        """How many requests of each opcode came."""
        self.answered_at_once = 0
        """How many of them the fast path answered."""
        self.refused = 0
        """How many of them were malformed."""
        self.on_interrupt: Callable[[int], None] = _interrupt_nothing
        """Called with the number of a request whose caller got a signal."""
        self.debugging: Final = log.isEnabledFor(logging.DEBUG)
        self._killing: dict[int, tuple[Node, Caller]] = {}
        """Requests under way that will clear a file's set-id bits unless they are refused, of whom."""
        self._closed = False
        self._opens_directories = False
        self._on_ready = on_ready
        self._max_transfer = max_transfer(filesystem.stack.options)
        self._view = memoryview(bytearray(self._max_transfer + _ROOM_FOR_HEADERS))
        self._buffers = [self._view]
        self._splicing = Splicing(device)
        self.splice: Final = self._splicing.answer
        self._waiting = WaitingTransfers(self.write)
        self.read_later: Final = self._waiting.read
        self.write_later: Final = self._waiting.write
        self._passthrough = Passthrough(device, filesystem, self.invalidate_attributes)
        self._fast_path = FastPath(filesystem, self) if filesystem.stack.options.fast_path else None

    # From the kernel

    def read(self) -> int | None:
        """Read one request; its size, None when there is none, 0 when the mount has gone."""
        while True:
            try:
                return os.readv(self.device, self._buffers)
            except BlockingIOError:
                return None
            except OSError as failure:
                if failure.errno in (errno.EINTR, errno.ENOENT):
                    continue
                if failure.errno == errno.ENODEV:
                    return 0
                raise

    def read_soon(self) -> int | None:
        """Read one request as `read` does, but wait a moment: whoever just got an answer asks again.

        Others who want to run go first.
        """
        size = self.read()
        if size is None:
            end = time.monotonic() + _SECONDS_OF_PATIENCE
            while size is None and time.monotonic() < end:
                os.sched_yield()
                size = self.read()
        return size

    def receive(self, size: int) -> Request | None:
        """See to the request of ``size`` bytes that was read; return it when it is pyfuse3's."""
        message = self._view[:size]
        if size < wire.IN_HEADER_SIZE:
            log.error("a message of %d bytes from the kernel is no request", size)
            return None
        opcode, unique, nodeid, pid = wire.request_fields(message)
        self.requests[opcode] += 1
        if self.debugging:
            log.debug("%d %s node %d", unique, wire.opcode_name(opcode), nodeid)
        if not wire.is_well_formed(opcode, message, self._max_transfer):
            self._refuse(opcode, unique)
            return None
        if opcode == _INIT:
            self._answer_init(unique, message)
            return Request(opcode, pid, unique, message)
        if opcode in wire.ANSWERED_WITHOUT_FILE_SYSTEM:
            self._answer_by_itself(opcode, unique, message)
            return None
        self._look_at_flags(opcode, unique, nodeid, message)
        if self._fast_path is not None:
            answer = self._fast_path.answer(opcode, unique, nodeid, message)
            if answer is not None:
                self.answered_at_once += 1
                if answer:
                    self.write(unique, *answer)
                return None
        if opcode in wire.NAMES_OPEN_DIRECTORY:
            _prepare_for_pyfuse3(opcode, nodeid, message)
        return Request(opcode, pid, unique, message)

    def _refuse(self, opcode: int, unique: int) -> None:
        """Answer a malformed request, if it is one that wants an answer."""
        self.refused += 1
        log.error("%s of the kernel is malformed", wire.opcode_name(opcode))
        if opcode not in wire.WITHOUT_ANSWER and opcode != _INTERRUPT:
            self.write(unique, wire.error_reply(unique, errno.EINVAL))

    def _answer_by_itself(self, opcode: int, unique: int, message: memoryview) -> None:
        if opcode == _INTERRUPT:
            self.on_interrupt(wire.interrupted_unique(message))
        elif opcode == _RELEASEDIR:
            self.write(unique, wire.answer_header(unique, 0))
        else:
            self._answer_open_directory(unique)

    def _answer_open_directory(self, unique: int) -> None:
        """Let the kernel keep the listings of directories until names change, and open them by itself.

        It does so once OPENDIR is refused as unknown (fs/fuse/file.c: fuse_file_open).  The kernel checks
        who may read; to list a directory takes no more than its nodeid.
        """
        if self._opens_directories:
            answer = messages.opened_answer(0, FOPEN_KEEP_CACHE | _FOPEN_CACHE_DIR, 0)
            self.write(unique, wire.answer_header(unique, len(answer)) + answer)
        else:
            self.write(unique, wire.error_reply(unique, errno.ENOSYS))

    def _answer_init(self, unique: int, message: memoryview) -> None:
        offers = wire.init_request(message)
        options = self.filesystem.stack.options
        flags = _FEATURES
        if self.filesystem.stack.has_acls:
            flags |= wire.POSIX_ACL
        flags &= offers.flags
        if options.passthrough != "off" and is_administrator():
            flags |= (wire.PASSTHROUGH | wire.INIT_EXT) & offers.flags
        if flags & wire.PASSTHROUGH:
            self._passthrough.enable()
        self._opens_directories = not flags & wire.NO_OPENDIR_SUPPORT
        self._tell_what_is_missing(flags)
        readahead = min(offers.max_readahead, self._max_transfer)
        # What doesn't work over a pair of sockets is hidden from libfuse, which gets the message, too.
        wire.set_init_flags(message, offers.flags & ~wire.SPLICE_FLAGS, readahead)
        reply = wire.init_reply(
            unique,
            min(_PROTOCOL_MINOR, offers.minor),
            flags=flags,
            max_readahead=readahead,
            max_write=self._max_transfer,
            max_background=_MAX_BACKGROUND,
        )
        self.write(unique, reply)
        self._on_ready()

    def _tell_what_is_missing(self, flags: int) -> None:
        missed = [name for name, feature in _MISSED.items() if not flags & feature]
        if self.filesystem.stack.options.passthrough == "off":
            missed.remove("passthrough")
        if missed:
            log.info("done without: %s (the kernel is too old, or needs more rights)", ", ".join(missed))

    def _look_at_flags(self, opcode: int, unique: int, nodeid: int, message: memoryview) -> None:
        if opcode in wire.MAY_KILL_PRIVILEGES and wire.kills_privileges(opcode, message):
            self._kill_privileges(opcode, unique, nodeid, caller_of(message, 0))
        elif opcode == _RELEASE:
            self._passthrough.released(wire.released_handle(message))

    def _kill_privileges(self, opcode: int, unique: int, nodeid: int, caller: Caller) -> None:
        if opcode != _WRITE:
            node = self.filesystem.kill_privileges_later(nodeid, caller)
            if node is not None:
                self._killing[unique] = node, caller
            return
        try:
            self.filesystem.kill_privileges(nodeid, caller)
        except OSError as failure:
            log.warning("can't clear suid, sgid and capabilities of node %d: %s", nodeid, failure)

    def opened(self, handle: int) -> tuple[int, int]:
        """Decide how an opened file is read and written; see `Passthrough.opened`."""
        return self._passthrough.opened(handle)

    # To the kernel

    def write(self, unique: int, *pieces: wire.Buffer) -> None:
        """Write a reply, from any thread; whoever waits for one that is refused gets an error."""
        if self._closed:
            return
        self._spare_privileges(unique)
        try:
            if len(pieces) == 1:
                os.write(self.device, pieces[0])
            else:
                os.writev(self.device, pieces)
        except OSError as failure:
            if failure.errno in (errno.ENOENT, errno.ENODEV):
                # The caller was killed, or the mount has gone.
                return
            log.error("the reply to request %d was refused: %s", unique, failure)
            excuse = wire.error_reply(unique, errno.EIO)
            if unique and pieces != (excuse,):
                self.write(unique, excuse)

    def _spare_privileges(self, unique: int) -> None:
        if self._killing and unique in self._killing:
            # Before its caller can go on: what comes next is another's change.
            self.filesystem.spare_privileges(*self._killing.pop(unique))

    def invalidate_attributes(self, nodeid: int) -> None:
        """Make the kernel ask again for a node's attributes."""
        self.write(0, wire.invalidate_attributes(nodeid))

    def invalidate_listings(self, nodeids: Sequence[int]) -> None:
        """Make the kernel ask again for directories' names; not to be called in the thread that serves.

        The kernel waits for whoever takes names from what it keeps, and he may wait for an answer: his buffer
        may be a map of a file of this mount (fs/fuse/readdir.c: fuse_readdir_cached).
        """
        for nodeid in nodeids:
            self.write(0, wire.invalidate_listing(nodeid))

    def answer_after_invalidation(
        self, nodeids: Sequence[int], unique: int, pieces: list[wire.Buffer]
    ) -> None:
        """Invalidate listings, then write a reply, while everything else goes on."""
        self._spare_privileges(unique)
        kept = [bytes(piece) for piece in pieces]

        def invalidate_and_answer() -> None:
            self.invalidate_listings(nodeids)
            if kept:
                self.write(unique, *kept)

        threading.Thread(target=invalidate_and_answer, name="invalidation", daemon=True).start()

    def store_data(self, nodeid: int, data: wire.Buffer) -> None:
        """Put the data of a file, which nobody has open, in the kernel's page cache."""
        self.write(0, wire.store_data(nodeid, len(data)), data)

    def close(self) -> None:
        """Close the device: whoever still waits for an answer gets ENOTCONN."""
        self._waiting.close()
        self._splicing.close()
        self._closed = True
        os.close(self.device)


def _interrupt_nothing(_unique: int) -> None:
    """Let what can't be interrupted go on."""


def _prepare_for_pyfuse3(opcode: int, nodeid: int, message: memoryview) -> None:
    """Let a request about an open directory have its nodeid as handle: pyfuse3 tells no more than that."""
    wire.set_directory_handle(message, nodeid)
    if opcode == _READDIRPLUS:
        # A shorter answer is as good, and fits the pair.
        wire.limit_size(message, MAX_PAIR_TRANSFER)
