"""When the forwarder stops reading, is anything lost that it has read, or given up without a word?"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable

import pytest
import trio
import trio.testing

from pyoverlay.fuse import wire
from pyoverlay.fuse.exchange import Exchange
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
    exchange = Exchange(device.detach(), overlay.fs, on_ready=lambda: None)
    forwarder = Forwarder(exchange, on_interrupt=lambda _pid: None)
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
            await forwarder.finish(30)
            assert not forwarder._in_flight
            nursery.cancel_scope.cancel()
    forwarder.close()
    assert passed_on == read


async def test_what_is_given_up_is_logged(
    open_overlay: Callable[..., Vfs], caplog: pytest.LogCaptureFixture
) -> None:
    overlay = open_overlay(fast_path=False)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device.setblocking(False)
    exchange = Exchange(device.detach(), overlay.fs, on_ready=lambda: None)
    forwarder = Forwarder(exchange, on_interrupt=lambda _pid: None)
    session = socket.socket(fileno=forwarder.give_session_descriptor())
    with kernel, session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forwarder.forward_requests)
            for unique, pid in ((2, 123), (4, 45)):
                length = wire.IN_HEADER_SIZE + 16
                header = struct.pack("=IIQQIIIHH", length, Opcode.FSYNC, unique, 1, 0, 0, pid, 0, 0)
                kernel.send(header + bytes(16))
            await trio.testing.wait_all_tasks_blocked()
            forwarder.stop_reading()
            with caplog.at_level(logging.WARNING):
                await forwarder.finish(0.01)
            nursery.cancel_scope.cancel()
    forwarder.close()
    assert [record.getMessage() for record in caplog.records] == [
        "FSYNC of process 123 gets no answer: not done in 0.01 s",
        "FSYNC of process 45 gets no answer: not done in 0.01 s",
    ]
