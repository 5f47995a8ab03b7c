"""What passes between the kernel and pyfuse3?

What isn't answered at once (`exchange`), or without it (`own_opcodes`), goes to pyfuse3, which has one end
of a SOCK_SEQPACKET pair and takes it for the device.  Requests are handed over one by one, when pyfuse3 asks
for one (`polling`); until it has asked, the forwarder passes them on by itself.
Its answer to INIT goes nowhere: the kernel has one already.  Into the other replies the forwarder puts inode
numbers: pyfuse3 has one number for nodeid and st_ino.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from pyoverlay.fuse import wire
from pyoverlay.fuse.device import MAX_PAIR_TRANSFER
from pyoverlay.fuse.exchange import Exchange, Request
from pyoverlay.fuse.own_opcodes import OwnOpcodes
from pyoverlay.fuse.wire import Opcode
from pyoverlay.overlay.node import WRITTEN_UNSEEN

log = logging.getLogger(__name__)

_REQUESTS_BEFORE_YIELDING: Final = 32
_SECONDS_BEFORE_YIELDING: Final = 0.002
_PATIENCE_MS: Final = 1
"""How long the thread waits for the next request before it waits in trio, when nothing is under way."""
_PAIR_BUFFER: Final = 4 * 1024 * 1024
_SO_SNDBUFFORCE: Final = 32

# As plain numbers: they are compared once a request.
_CREATE: Final = int(Opcode.CREATE)
_INIT: Final = int(Opcode.INIT)
_OPEN: Final = int(Opcode.OPEN)
_READDIRPLUS: Final = int(Opcode.READDIRPLUS)


class Forwarder:
    """Passes requests to pyfuse3 and replies to the kernel."""

    def __init__(
        self,
        exchange: Exchange,
        kept: Sequence[Request] = (),
        *,
        on_interrupt: Callable[[int], None],
    ) -> None:
        """Forward what ``exchange`` leaves, after the requests ``kept`` that it has left already.

        ``on_interrupt`` is called with the thread id of a caller that got a signal.
        """
        self.answered = 0
        """How many requests were answered without pyfuse3, but not by the fast path."""
        self._exchange = exchange
        self._kept = kept
        self._filesystem = exchange.filesystem
        self._on_interrupt = on_interrupt
        exchange.on_interrupt = self._interrupt
        self.invalidate_attributes: Final = exchange.invalidate_attributes
        self.invalidate_listings: Final = exchange.invalidate_listings
        self.answer_after_invalidation: Final = exchange.answer_after_invalidation
        self.opened: Final = exchange.opened
        self._in_flight: dict[int, Request] = {}
        self._idle = trio.Event()
        self._reading = trio.CancelScope()
        self._pushing = trio.CancelScope()
        self._pulled = False
        self._gone = trio.Event()
        self._handed_over = 0
        """How many requests were passed on unasked, and not yet asked for."""
        self._closed = False
        self._reply_may_wait = False
        self._last_yield = 0.0
        self._poll = select.poll()
        self._poll.register(exchange.device, select.POLLIN)
        self._reply_buffer = bytearray(MAX_PAIR_TRANSFER + 8 * wire.PAGE)
        self._reply_view = memoryview(self._reply_buffer)
        self._ours, self._theirs = _message_pair()
        self._own_opcodes: OwnOpcodes | None = None

    def answer_with(self, own_opcodes: OwnOpcodes) -> None:
        """Let ``own_opcodes`` answer what pyfuse3 can't."""
        self._own_opcodes = own_opcodes

    def give_session_descriptor(self) -> int:
        """Return the end that pyfuse3 takes for the device; once, it is pyfuse3's to close."""
        return self._theirs.detach()

    # From the kernel

    async def forward_requests(self) -> None:
        """Forward requests until the mount has gone or `stop_reading` is called.

        As soon as somebody calls `hand_over_request`, only those are forwarded that it asks for.
        """
        with self._reading:
            with self._pushing:
                await self._push()
            await self._gone.wait()

    async def _push(self) -> None:
        for request in self._kept:
            await self._push_request(request)
        while not self._pulled:
            if not await self._forward_what_is_there():
                self._gone.set()
                return
            if not self._pulled:
                await trio.lowlevel.wait_readable(self._exchange.device)

    async def _forward_what_is_there(self) -> bool:
        """Read until the device is empty; False when the mount has gone."""
        count = 0
        while True:
            size = self._exchange.read()
            if size is None:
                return True
            if size == 0:
                return False
            request = self._exchange.receive(size)
            if request is not None:
                await self._push_request(request)
            if self._reading.cancel_called or self._pulled:
                return True
            count += 1
            if count % _REQUESTS_BEFORE_YIELDING == 0:
                await trio.lowlevel.checkpoint()

    async def _push_request(self, request: Request) -> None:
        # What was read is passed on, whoever wants to stop reading.
        with trio.CancelScope(shield=True):
            if await self._forward(request):
                self._handed_over += 1

    async def hand_over_request(self) -> None:
        """Return when one more request is in the pair.  One task at a time may ask."""
        if not self._pulled:
            self._pulled = True
            self._pushing.cancel()
        if self._handed_over:
            self._handed_over -= 1
            return
        while not self._reading.cancel_called:
            # While requests are under way, tasks and worker threads must be seen to at once.
            size = self._exchange.read() if self._in_flight else self._exchange.read_soon()
            if size is None:
                await self._wait_for_device()
            elif size == 0:
                self._gone.set()
                break
            else:
                request = self._exchange.receive(size)
                handed_over = request is not None and await self._forward(request)
                if time.monotonic() - self._last_yield > _SECONDS_BEFORE_YIELDING:
                    await self._yield()
                if handed_over:
                    return
        # Whoever asks for more is cancelled when what is under way has been answered.
        await trio.sleep_forever()

    async def _yield(self) -> None:
        """Let other tasks run: copies that are done, signals, the control socket."""
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        self._last_yield = time.monotonic()

    async def _wait_for_device(self) -> None:
        """Wait for a request, at first in this thread alone: then it costs no round of trio's event loop.

        While requests are under way, tasks and worker threads must be seen to at once.
        """
        if not self._in_flight and (self._poll.poll(_PATIENCE_MS) or await self._tidy_up()):
            return
        await trio.lowlevel.wait_readable(self._exchange.device)
        self._last_yield = time.monotonic()

    async def _tidy_up(self) -> bool:
        """Do what was put off until nobody asks for anything; tell whether somebody does again."""
        while self._filesystem.tidy_up() and not self._reading.cancel_called:
            if self._poll.poll(0):
                return True
            await self._yield()
        return False

    async def _forward(self, request: Request) -> bool:
        """Pass a request on to pyfuse3; False when it isn't, but was or will be answered instead."""
        if self._own_opcodes is not None and self._own_opcodes.answers(request):
            self.answered += 1
            self._in_flight[request.unique] = request
            self._own_opcodes.begin(request)
            return False
        if request.opcode not in wire.WITHOUT_ANSWER:
            self._in_flight[request.unique] = request
        return await self._send(request.unique, request.message)

    async def _send(self, unique: int, message: wire.Buffer) -> bool:
        while True:
            try:
                self._ours.send(message)
                return True
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._ours)
            except OSError as failure:
                log.error("request %d can't be passed on: %s", unique, failure)
                self._take_request(unique)
                self._exchange.write(unique, wire.error_reply(unique, errno.EIO))
                return False

    def _interrupt(self, unique: int) -> None:
        request = self._in_flight.get(unique)
        if request is not None and request.pid:
            self._on_interrupt(request.pid)
        if self._own_opcodes is not None:
            self._own_opcodes.interrupt(unique)

    # From pyfuse3

    async def forward_replies(self) -> None:
        """Forward replies and notifications until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            self.forward_waiting_replies()

    def forward_waiting_replies(self) -> None:
        """Forward the replies that are there."""
        self._reply_may_wait = False
        while self._forward_reply():
            pass

    def forward_expected_replies(self) -> None:
        """Forward the replies that are there; for the last that is due nothing more is asked of the pair."""
        self._reply_may_wait = False
        while self._in_flight and self._forward_reply():
            pass

    def _forward_reply(self) -> bool:
        if self._closed:
            return False  # a handler that was given up
        try:
            size = self._ours.recv_into(self._reply_buffer)
        except BlockingIOError:
            return False
        if size:
            self._reply(self._reply_view[:size])
        return size > 0

    def make_room_for_reply(self) -> None:
        """Forward what a handler's reply, which comes next, would find in the pair.

        So the pair's buffer, which nobody may make bigger without privilege, holds one reply at most, and
        none is lost.
        """
        if self._reply_may_wait:
            self.forward_waiting_replies()
        self._reply_may_wait = True

    def _reply(self, message: memoryview) -> None:
        header = wire.reply_header(message)
        request = self._take_request(header.unique)
        if request is not None and request.opcode == _INIT:
            return
        if request is not None and header.error == 0:
            opcode = request.opcode
            if opcode in wire.ANSWERS_WITH_ENTRY:
                self._show_entry_inode(message)
                if opcode == _CREATE:
                    self._show_opened(opcode, message)
            elif opcode == _OPEN:
                self._show_opened(opcode, message)
            elif opcode == _READDIRPLUS:
                self._show_listed_inodes(message)
        if self._exchange.debugging:
            result = os.strerror(-header.error) if header.error < 0 else f"{header.length} bytes"
            log.debug("%d -> %s", header.unique, result)
        self._exchange.write(header.unique, message)

    def reply(self, unique: int, *pieces: wire.Buffer) -> None:
        """Answer a request that wasn't passed on."""
        self._take_request(unique)
        self._exchange.write(unique, *pieces)

    def _take_request(self, unique: int) -> Request | None:
        request = self._in_flight.pop(unique, None)
        if not self._in_flight:
            self._idle.set()
        return request

    def _show_entry_inode(self, message: memoryview) -> None:
        node = self._filesystem.nodes.get(wire.entry_nodeid(message))
        if node is not None:
            wire.set_entry_inode(message, node.inode)

    def _show_opened(self, opcode: int, message: memoryview) -> None:
        handle = wire.opened_handle(opcode, message)
        flags, backing = self.opened(handle)
        wire.set_opened(opcode, message, flags, backing)
        if opcode == _CREATE and backing and self._filesystem.file(handle).node.unseen & WRITTEN_UNSEEN:
            wire.leave_attributes_invalid(message)

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

    # The end

    def stop_reading(self) -> None:
        """Let `forward_requests` end: what isn't read yet gets ENOTCONN when the device is closed."""
        self._reading.cancel()

    async def finish(self, seconds: float = math.inf) -> None:
        """Wait until the requests that were read are answered; log those that aren't within ``seconds``."""
        with trio.move_on_after(seconds):
            while self._in_flight:
                self._idle = trio.Event()
                await self._idle.wait()
        for request in self._in_flight.values():
            name = wire.opcode_name(request.opcode)
            log.warning("%s of process %d gets no answer: not done in %g s", name, request.pid, seconds)

    def close(self) -> None:
        """Close the device and our end of the pair: whoever still waits for an answer gets ENOTCONN."""
        self._closed = True
        self._exchange.close()
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
