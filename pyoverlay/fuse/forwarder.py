"""What passes between /dev/fuse and pyfuse3?

The forwarder owns the device.  pyfuse3 has one end of a SOCK_SEQPACKET pair and takes it for the device.
On the way the forwarder answers INIT itself (libfuse knows fewer features than we serve), puts inode
numbers into replies (pyfuse3 has one number for nodeid and st_ino), looks for the flags that pyfuse3 drops,
and counts.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from pyoverlay.fuse import wire
from pyoverlay.fuse.device import MAX_TRANSFER
from pyoverlay.fuse.wire import Opcode
from pyoverlay.overlay.filesystem import OverlayFilesystem

log = logging.getLogger(__name__)

_BUFFER_SIZE: Final = MAX_TRANSFER + 8 * wire.PAGE
_REQUESTS_BEFORE_YIELDING: Final = 32
_MAX_BACKGROUND: Final = 64
_PAIR_BUFFER: Final = 4 * 1024 * 1024
_SO_SNDBUFFORCE: Final = 32

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
    | wire.EXPLICIT_INVAL_DATA
    | wire.HANDLE_KILLPRIV_V2
)


class Request:
    """A request that pyfuse3 is working on."""

    __slots__ = ("opcode", "pid")

    def __init__(self, header: wire.RequestHeader) -> None:
        """Keep what the reply, or an interruption, asks for."""
        self.opcode = header.opcode
        self.pid = header.pid


class Forwarder:
    """Passes requests to pyfuse3 and replies to the kernel."""

    def __init__(
        self,
        device: int,
        filesystem: OverlayFilesystem,
        *,
        on_ready: Callable[[], None],
        on_interrupt: Callable[[int], None],
    ) -> None:
        """Forward for ``device``, a non-blocking descriptor of a mounted /dev/fuse.

        ``on_ready`` is called when the kernel has its INIT reply, ``on_interrupt`` with the thread id of a
        caller that got a signal.
        """
        self.requests: Counter[int] = Counter()
        self._device = device
        self._filesystem = filesystem
        self._on_ready = on_ready
        self._on_interrupt = on_interrupt
        self._in_flight: dict[int, Request] = {}
        self._idle = trio.Event()
        self._reading = trio.CancelScope()
        self._request_buffer = bytearray(_BUFFER_SIZE)
        self._reply_buffer = bytearray(_BUFFER_SIZE)
        self._reply_view = memoryview(self._reply_buffer)
        self._ours, self._theirs = _message_pair()
        self._kernel_offers = wire.InitRequest(0, 0, 0, 0)

    def give_session_descriptor(self) -> int:
        """Return the end that pyfuse3 takes for the device; once, it is pyfuse3's to close."""
        return self._theirs.detach()

    # From the kernel

    async def forward_requests(self) -> None:
        """Forward requests until the mount has gone or `stop_reading` is called."""
        with self._reading:
            while await self._forward_what_is_there():
                await trio.lowlevel.wait_readable(self._device)

    async def _forward_what_is_there(self) -> bool:
        """Read until the device is empty; False when the mount has gone."""
        view = memoryview(self._request_buffer)
        count = 0
        while True:
            try:
                size = os.readv(self._device, [self._request_buffer])
            except BlockingIOError:
                return True
            except OSError as failure:
                if failure.errno in (errno.EINTR, errno.ENOENT):
                    continue
                if failure.errno == errno.ENODEV:
                    return False
                raise
            # What was read is passed on, whoever wants to stop reading.
            with trio.CancelScope(shield=True):
                await self._forward(view[:size])
            if self._reading.cancel_called:
                return True
            count += 1
            if count % _REQUESTS_BEFORE_YIELDING == 0:
                await trio.lowlevel.checkpoint()

    async def _forward(self, message: memoryview) -> None:
        header = wire.request_header(message)
        self.requests[header.opcode] += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%d %s node %d", header.unique, wire.opcode_name(header.opcode), header.nodeid)
        if header.opcode == Opcode.INTERRUPT:
            self._interrupt(wire.interrupted_unique(message))
            return
        if header.opcode == Opcode.INIT:
            self._offer_less(message)
        elif wire.kills_privileges(header.opcode, message):
            self._kill_privileges(header.nodeid)
        if header.opcode not in wire.WITHOUT_ANSWER:
            self._in_flight[header.unique] = Request(header)
        await self._send(header.unique, message)

    async def _send(self, unique: int, message: memoryview) -> None:
        while True:
            try:
                self._ours.send(message)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._ours)
            except OSError as failure:
                log.error("request %d can't be passed on: %s", unique, failure)
                self._take_request(unique)
                self._write(unique, wire.error_reply(unique, errno.EIO))
                return

    def _offer_less(self, message: memoryview) -> None:
        """Hide from libfuse what doesn't work over a pair of sockets."""
        self._kernel_offers = wire.init_request(message)
        flags = self._kernel_offers.flags & ~wire.SPLICE_FLAGS
        wire.set_init_flags(message, flags, min(self._kernel_offers.max_readahead, MAX_TRANSFER))

    def _kill_privileges(self, nodeid: int) -> None:
        try:
            self._filesystem.kill_privileges(nodeid)
        except OSError as failure:
            log.warning("can't clear suid, sgid and capabilities of node %d: %s", nodeid, failure)

    def _interrupt(self, unique: int) -> None:
        request = self._in_flight.get(unique)
        if request is not None and request.pid:
            self._on_interrupt(request.pid)

    # From pyfuse3

    async def forward_replies(self) -> None:
        """Forward replies and notifications until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            self.forward_waiting_replies()

    def forward_waiting_replies(self) -> None:
        """Forward the replies that are there.

        Every handler calls it before it returns: so the pair's buffer, which nobody may make bigger without
        privilege, holds one reply at most, and none is lost.
        """
        while True:
            try:
                size = self._ours.recv_into(self._reply_buffer)
            except BlockingIOError:
                return
            if size == 0:
                return
            self._reply(self._reply_view[:size])

    def _reply(self, message: memoryview) -> None:
        header = wire.reply_header(message)
        request = self._take_request(header.unique)
        if request is not None and header.error == 0:
            if request.opcode == Opcode.INIT:
                self._answer_init(header.unique, message)
                return
            if request.opcode in wire.ANSWERS_WITH_ENTRY:
                self._show_entry_inode(message)
            elif request.opcode == Opcode.READDIRPLUS:
                self._show_listed_inodes(message)
        if log.isEnabledFor(logging.DEBUG):
            result = os.strerror(-header.error) if header.error < 0 else f"{header.length} bytes"
            log.debug("%d -> %s", header.unique, result)
        self._write(header.unique, message)

    def _take_request(self, unique: int) -> Request | None:
        request = self._in_flight.pop(unique, None)
        if not self._in_flight:
            self._idle.set()
        return request

    def _write(self, unique: int, message: wire.Buffer) -> None:
        try:
            os.write(self._device, message)
        except OSError as failure:
            if failure.errno in (errno.ENOENT, errno.ENODEV):
                # The caller was killed, or the mount has gone.
                return
            log.error("the reply to request %d was refused: %s", unique, failure)
            if len(message) > wire.OUT_HEADER_SIZE and unique:
                self._write(unique, wire.error_reply(unique, errno.EIO))

    def _answer_init(self, unique: int, message: memoryview) -> None:
        flags = _FEATURES
        if self._filesystem.stack.options.acl:
            flags |= wire.POSIX_ACL
        reply = wire.init_reply(
            unique,
            min(wire.init_reply_minor(message), self._kernel_offers.minor),
            flags=flags & self._kernel_offers.flags,
            max_readahead=min(self._kernel_offers.max_readahead, MAX_TRANSFER),
            max_write=MAX_TRANSFER,
            max_background=_MAX_BACKGROUND,
        )
        self._write(unique, reply)
        self._on_ready()

    def _show_entry_inode(self, message: memoryview) -> None:
        node = self._filesystem.nodes.get(wire.entry_nodeid(message))
        if node is not None:
            wire.set_entry_inode(message, node.inode)

    def _show_listed_inodes(self, message: memoryview) -> None:
        nodes = self._filesystem.nodes
        for offset in wire.directory_entries(message):
            nodeid = wire.entry_nodeid(message, offset)
            node = nodes.get(nodeid)
            if nodeid & wire.NAME_ONLY:
                wire.leave_name_only(message, offset)
                wire.set_directory_entry_inode(message, nodeid & ~wire.NAME_ONLY, offset)
            elif node is not None:
                wire.set_directory_entry_inode(message, node.inode, offset)

    # To the kernel, unasked

    def invalidate_attributes(self, nodeid: int) -> None:
        """Make the kernel ask again for a node's attributes."""
        self._write(0, wire.invalidate_attributes(nodeid))

    # The end

    def stop_reading(self) -> None:
        """Let `forward_requests` end: what isn't read yet gets ENOTCONN when the device is closed."""
        self._reading.cancel()

    async def finish(self) -> None:
        """Wait until the requests that were read are answered."""
        while self._in_flight:
            self._idle = trio.Event()
            await self._idle.wait()

    def close(self) -> None:
        """Close the device and our end of the pair: whoever still waits for an answer gets ENOTCONN."""
        os.close(self._device)
        self._ours.close()


def _message_pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setblocking(False)
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _PAIR_BUFFER)
        except PermissionError:
            # One message at a time fits the default.
            log.debug("the socket pair keeps its default buffer")
    return pair
