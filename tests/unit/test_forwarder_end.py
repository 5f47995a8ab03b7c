"""When the forwarder stops reading, is anything lost that it has read?"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import trio
import trio.testing

from pyoverlay.fuse import wire
from pyoverlay.fuse.forwarder import Forwarder
from pyoverlay.fuse.wire import Opcode
from tests.unit.vfs import Vfs

BODY = bytes(10 * 1024)
UNIQUES = list(range(2, 22, 2))
BIGGEST = 1 << 20


async def _receive(end: socket.socket) -> bytes:
    with trio.fail_after(30):
        await trio.lowlevel.wait_readable(end)
    return end.recv(BIGGEST)


async def test_a_request_that_waits_for_room_is_passed_on(open_overlay: Callable[..., Vfs]) -> None:
    overlay = open_overlay(fast_path=False)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, device):
        end.setblocking(False)
    forwarder = Forwarder(device.detach(), overlay.fs, on_ready=lambda: None, on_interrupt=lambda _pid: None)
    session = socket.socket(fileno=forwarder.give_session_descriptor())
    forwarder._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20 * 1024)
    for unique in UNIQUES:
        length = wire.IN_HEADER_SIZE + len(BODY)
        kernel.send(struct.pack("=IIQQIIIHH", length, Opcode.WRITE, unique, 1, 0, 0, 0, 0, 0) + BODY)
    passed_on = []
    with kernel, session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forwarder.forward_requests)
            nursery.start_soon(forwarder.forward_replies)
            await trio.testing.wait_all_tasks_blocked()
            forwarder.stop_reading()
            read = list(forwarder._in_flight)
            assert 1 < len(read) < len(UNIQUES)
            for _ in read:
                unique = wire.request_header(await _receive(session)).unique
                answer = struct.pack("=IiQ", wire.OUT_HEADER_SIZE, 0, unique)
                session.send(answer)
                assert await _receive(kernel) == answer
                passed_on.append(unique)
            with trio.fail_after(30):
                await forwarder.finish()
            nursery.cancel_scope.cancel()
    forwarder.close()
    assert passed_on == read
