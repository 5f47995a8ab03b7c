"""What does the forwarder change, answer itself, and never lose between the kernel and pyfuse3?"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.testing

from pyoverlay.fuse import wire
from pyoverlay.fuse.forwarder import Forwarder
from pyoverlay.fuse.wire import Opcode
from tests.harness import Stack as LayerDirectories
from tests.unit.vfs import Vfs

PID = 4711
BIGGEST = 1 << 20


def request(unique: int, opcode: int, body: bytes = b"", nodeid: int = 1) -> bytes:
    length = wire.IN_HEADER_SIZE + len(body)
    return struct.pack("=IIQQIIIHH", length, opcode, unique, nodeid, 0, 0, PID, 0, 0) + body


def reply(unique: int, body: bytes = b"", error: int = 0) -> bytes:
    return struct.pack("=IiQ", wire.OUT_HEADER_SIZE + len(body), -error, unique) + body


def entry(nodeid: int) -> bytes:
    return struct.pack("=QQQQIIQ", nodeid, 0, 0, 0, 0, 0, nodeid) + bytes(80)


def listed(nodeid: int, name: bytes) -> bytes:
    padding = bytes(-(24 + len(name)) % 8)
    return entry(nodeid) + struct.pack("=QQII", nodeid, 1, len(name), 8) + name + padding


class Line:
    """A forwarder with the kernel at one end and pyfuse3 at the other."""

    def __init__(self, overlay: Vfs) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        device.setblocking(False)
        self.ready = trio.Event()
        self.interrupted: list[int] = []
        self.forwarder = Forwarder(
            device.detach(), overlay.fs, on_ready=self.ready.set, on_interrupt=self.interrupted.append
        )
        self.session = socket.socket(fileno=self.forwarder.give_session_descriptor())
        self.kernel.setblocking(False)

    async def receive(self, end: socket.socket) -> bytes:
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(end)
        return end.recv(BIGGEST)

    async def pass_to_session(self, message: bytes) -> bytes:
        self.kernel.send(message)
        return await self.receive(self.session)

    async def pass_to_kernel(self, message: bytes) -> bytes:
        self.session.send(message)
        return await self.receive(self.kernel)

    def close(self) -> None:
        self.forwarder.close()
        self.session.close()
        self.kernel.close()


@pytest.fixture
def line(overlay: Vfs) -> Iterator[Line]:
    line = Line(overlay)
    yield line
    line.close()


@contextlib.asynccontextmanager
async def forwarding(line: Line) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.forwarder.forward_requests)
        nursery.start_soon(line.forwarder.forward_replies)
        yield
        nursery.cancel_scope.cancel()


async def test_init_is_offered_less_and_answered_with_more(line: Line) -> None:
    offered = wire.SPLICE_FLAGS | wire.PARALLEL_DIROPS | wire.DONT_MASK | wire.POSIX_ACL
    async with forwarding(line):
        seen = await line.pass_to_session(
            request(2, Opcode.INIT, struct.pack("=IIII", 7, 45, 1 << 20, offered))
        )
        assert wire.init_request(seen).flags == offered & ~wire.SPLICE_FLAGS
        assert wire.init_request(seen).max_readahead == 128 * 1024
        answered = await line.pass_to_kernel(reply(2, struct.pack("=IIII", 7, 31, 1 << 20, 0) + bytes(48)))
        major, minor, _readahead, flags = struct.unpack_from("=IIII", answered, wire.OUT_HEADER_SIZE)
        assert (major, minor) == (7, 31)
        assert flags == wire.PARALLEL_DIROPS | wire.DONT_MASK | wire.POSIX_ACL
        await line.ready.wait()


async def test_an_entry_shows_the_layers_inode_number(
    stack: LayerDirectories, overlay: Vfs, line: Line
) -> None:
    (stack.lower / "file").write_bytes(b"")
    node = overlay.node(b"file")
    async with forwarding(line):
        await line.pass_to_session(request(4, Opcode.LOOKUP, b"file\0"))
        shown = await line.pass_to_kernel(reply(4, entry(node.nodeid)))
    assert wire.entry_nodeid(shown) == node.nodeid
    assert struct.unpack_from("=Q", shown, wire.OUT_HEADER_SIZE + 40) == (
        (stack.lower / "file").stat().st_ino,
    )


async def test_a_listing_shows_the_layers_inode_numbers(
    stack: LayerDirectories, overlay: Vfs, line: Line
) -> None:
    (stack.lower / "file").write_bytes(b"")
    node = overlay.node(b"file")
    number = (stack.lower / "file").stat().st_ino
    async with forwarding(line):
        await line.pass_to_session(request(4, Opcode.READDIRPLUS, bytes(40)))
        entries = listed(77 | wire.NAME_ONLY, b".") + listed(node.nodeid, b"file")
        shown = await line.pass_to_kernel(reply(4, entries))
    offsets = list(wire.directory_entries(shown))
    assert [wire.entry_nodeid(shown, offset) for offset in offsets] == [0, node.nodeid]
    assert [struct.unpack_from("=Q", shown, offset + 128)[0] for offset in offsets] == [77, number]


async def test_an_interruption_is_told_and_not_passed_on(line: Line) -> None:
    async with forwarding(line):
        await line.pass_to_session(request(4, Opcode.OPEN, bytes(8)))
        line.kernel.send(request(5, Opcode.INTERRUPT, struct.pack("=Q", 4)))
        assert wire.request_header(await line.pass_to_session(request(6, Opcode.GETATTR))).unique == 6
    assert line.interrupted == [PID]


async def test_what_is_too_big_to_pass_on_fails(line: Line) -> None:
    line.forwarder._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with forwarding(line):
        line.kernel.send(request(8, Opcode.WRITE, bytes(64 * 1024)))
        assert await line.receive(line.kernel) == wire.error_reply(8, errno.EIO)


async def test_what_was_read_is_passed_on_before_the_end(line: Line) -> None:
    """The pair is full when reading ends: the request that waits for room is not forgotten."""
    line.forwarder._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 40 * 1024)
    for unique in (2, 4, 6):
        line.kernel.send(request(unique, Opcode.WRITE, bytes(30 * 1024)))
    seen: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.forwarder.forward_requests)
        nursery.start_soon(line.forwarder.forward_replies)
        await trio.testing.wait_all_tasks_blocked()
        line.forwarder.stop_reading()
        in_flight = len(line.forwarder._in_flight)
        assert in_flight
        for _ in range(in_flight):
            unique = wire.request_header(await line.receive(line.session)).unique
            assert await line.pass_to_kernel(reply(unique)) == reply(unique)
            seen.append(unique)
        with trio.fail_after(30):
            await line.forwarder.finish()
        nursery.cancel_scope.cancel()
    assert seen == [2, 4, 6][:in_flight]
