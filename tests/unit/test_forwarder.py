"""What does the forwarder change, count and answer itself between the kernel and pyfuse3?

One end of a SOCK_SEQPACKET pair stands for /dev/fuse: a message a read, and a message a write.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from pyoverlay.fuse import forwarder as forwarder_module
from pyoverlay.fuse import wire
from pyoverlay.fuse.device import MAX_PAIR_TRANSFER
from pyoverlay.fuse.exchange import Exchange
from pyoverlay.fuse.forwarder import Forwarder
from pyoverlay.fuse.wire import Opcode
from pyoverlay.overlay.node import ROOT_NODEID
from tests.harness import Stack as LayerDirectories
from tests.harness.content import make_file
from tests.unit.captured import CAPTURED
from tests.unit.vfs import Vfs, open_descriptors

SECONDS = 30
DEFAULT_SEND_BUFFER = 212_992


def request(
    opcode: int, body: bytes = b"", nodeid: int = ROOT_NODEID, unique: int = 42, pid: int = 99
) -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, nodeid, 0, 0, pid, 0, 0) + body


def reply(body: bytes = b"", error: int = 0, unique: int = 42) -> bytes:
    return struct.pack("=IiQ", 16 + len(body), error, unique) + body


def entry(nodeid: int, inode: int) -> bytes:
    return struct.pack("=QQQQIIQ", nodeid, 0, 1, 1, 0, 0, inode) + bytes(80)


def listed(nodeid: int, inode: int, name: bytes) -> bytes:
    whole = entry(nodeid, inode) + struct.pack("=QQII", inode, 1, len(name), 8) + name
    return whole + bytes(-len(whole) % 8)


def init_request(flags: int, max_readahead: int = 1 << 20, minor: int = 45) -> bytes:
    return request(Opcode.INIT, struct.pack("=IIII48x", 7, minor, max_readahead, flags), nodeid=0, unique=1)


class Ends:
    """A forwarder with the kernel at one end and pyfuse3 at the other."""

    def __init__(self, overlay: Vfs) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)
        device.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)
        self.kernel.setblocking(False)
        device.setblocking(False)
        self.ready = 0
        self.interrupted: list[int] = []
        self.exchange = Exchange(device.detach(), overlay.fs, self._count_ready)
        self.forwarder = Forwarder(self.exchange, on_interrupt=self.interrupted.append)
        self.pyfuse3 = socket.socket(fileno=self.forwarder.give_session_descriptor())
        self.pyfuse3.setblocking(False)

    def _count_ready(self) -> None:
        self.ready += 1

    async def to_pyfuse3(self, message: bytes) -> bytes:
        """Let the kernel send a message; return what pyfuse3 receives."""
        self.kernel.send(message)
        return await receive(self.pyfuse3)

    async def to_kernel(self, message: bytes) -> bytes:
        """Let pyfuse3 send a message; return what the kernel receives."""
        self.pyfuse3.send(message)
        return await receive(self.kernel)

    def close(self) -> None:
        self.forwarder.close()
        self.kernel.close()
        self.pyfuse3.close()


async def receive(end: socket.socket) -> bytes:
    with trio.fail_after(SECONDS):
        await trio.lowlevel.wait_readable(end)
    return end.recv(1 << 21)


async def nothing_arrives(end: socket.socket) -> bool:
    await trio.testing.wait_all_tasks_blocked()
    try:
        end.recv(1 << 21)
    except BlockingIOError:
        return True
    return False


@pytest.fixture
def overlay(open_overlay: Callable[..., Vfs]) -> Vfs:
    """An overlay whose requests are all pyfuse3's."""
    return open_overlay(fast_path=False)


@pytest.fixture
def make_ends(overlay: Vfs) -> Iterator[Callable[[], Ends]]:
    made: list[Ends] = []

    def make() -> Ends:
        made.append(Ends(overlay))
        return made[-1]

    yield make
    for ends in made:
        ends.close()


@pytest.fixture
async def ends(make_ends: Callable[[], Ends], nursery: trio.Nursery) -> Ends:
    """A forwarder that runs."""
    made = make_ends()
    nursery.start_soon(made.forwarder.forward_requests)
    nursery.start_soon(made.forwarder.forward_replies)
    return made


# Passing on


async def test_what_the_fast_path_answers_never_passes(
    open_overlay: Callable[..., Vfs], nursery: trio.Nursery
) -> None:
    ends = Ends(open_overlay())
    nursery.start_soon(ends.forwarder.forward_requests)

    ends.kernel.send(request(Opcode.GETATTR, bytes(16)))
    answer = await receive(ends.kernel)
    passed = await ends.to_pyfuse3(request(Opcode.GETLK, bytes(48), unique=44))

    assert answer[4:16] == reply()[4:]
    assert passed[4:8] == struct.pack("=I", Opcode.GETLK)
    assert ends.exchange.answered_at_once == 1
    nursery.cancel_scope.cancel()
    ends.close()


async def test_a_directory_is_opened_without_pyfuse3(ends: Ends) -> None:
    """A kernel that can do without hears so once; an old one may keep the listing, too (FOPEN_CACHE_DIR)."""
    for flags, expected in (
        (wire.NO_OPENDIR_SUPPORT, reply(error=-errno.ENOSYS)),
        (0, reply(struct.pack("=QIi", 0, 1 << 1 | 1 << 3, 0))),
    ):
        await ends.to_pyfuse3(init_request(flags))
        await receive(ends.kernel)
        ends.kernel.send(request(Opcode.OPENDIR, bytes(8)))
        assert await receive(ends.kernel) == expected
    ends.kernel.send(request(Opcode.RELEASEDIR, bytes(24)))
    assert await receive(ends.kernel) == reply()


async def test_an_open_directorys_handle_is_its_nodeid(ends: Ends) -> None:
    passed = await ends.to_pyfuse3(request(Opcode.FSYNCDIR, bytes(16), nodeid=5))
    assert passed[40:48] == struct.pack("=Q", 5)
    passed = await ends.to_pyfuse3(request(Opcode.READDIRPLUS, bytes(40), nodeid=6, unique=43))
    assert passed[40:48] == struct.pack("=Q", 6)


async def test_messages_pass_as_they_are(ends: Ends) -> None:
    message = request(Opcode.GETXATTR, struct.pack("=II", 100, 0) + b"user.x\0")
    assert await ends.to_pyfuse3(message) == message
    answer = reply(b"value")
    assert await ends.to_kernel(answer) == answer


async def test_many_requests_keep_their_order(ends: Ends) -> None:
    for unique in range(100):
        ends.kernel.send(request(Opcode.GETATTR, bytes(16), unique=unique + 2))
    got = [wire.request_header(await receive(ends.pyfuse3)).unique for _request in range(100)]
    assert got == list(range(2, 102))
    assert ends.exchange.requests == Counter({Opcode.GETATTR: 100})


async def test_a_failure_passes_as_it_is(ends: Ends) -> None:
    await ends.to_pyfuse3(request(Opcode.LOOKUP, b"absent\0"))
    answer = reply(error=-errno.ENOENT)
    assert await ends.to_kernel(answer) == answer


async def test_forget_is_not_waited_for(ends: Ends) -> None:
    await ends.to_pyfuse3(request(Opcode.FORGET, struct.pack("=Q", 1)))
    await ends.to_pyfuse3(request(Opcode.BATCH_FORGET, struct.pack("=II", 0, 0)))
    with trio.fail_after(SECONDS):
        await ends.forwarder.finish()


async def test_replies_are_passed_on_when_a_handler_says_so(make_ends: Callable[[], Ends]) -> None:
    """Else the second reply would find the pair's buffer full."""
    ends = make_ends()
    ends.pyfuse3.send(reply(b"1"))
    ends.pyfuse3.send(reply(b"2"))
    ends.forwarder.forward_waiting_replies()
    assert [await receive(ends.kernel), await receive(ends.kernel)] == [reply(b"1"), reply(b"2")]


# Inode numbers


@pytest.mark.parametrize("opcode", sorted(wire.ANSWERS_WITH_ENTRY))
async def test_an_entry_shows_the_files_own_number(
    stack: LayerDirectories, overlay: Vfs, ends: Ends, opcode: int
) -> None:
    make_file(stack.lower / "file")
    node = overlay.node(b"file")
    assert node.inode != node.nodeid
    captured = CAPTURED[Opcode(opcode).name][40:]
    await ends.to_pyfuse3(request(opcode, captured))
    opened = struct.pack("=QIi", 1, 2, 0) if opcode == Opcode.CREATE else b""
    got = await ends.to_kernel(reply(entry(node.nodeid, node.nodeid) + opened))
    assert got == reply(entry(node.nodeid, (stack.lower / "file").stat().st_ino) + opened)


async def test_an_absent_name_is_no_node(ends: Ends) -> None:
    await ends.to_pyfuse3(request(Opcode.LOOKUP, b"absent\0"))
    assert await ends.to_kernel(reply(entry(0, 0))) == reply(entry(0, 0))


async def test_attributes_are_left_alone(stack: LayerDirectories, overlay: Vfs, ends: Ends) -> None:
    """The operations answer GETATTR with the number that programs see."""
    make_file(stack.lower / "file")
    node = overlay.node(b"file")
    await ends.to_pyfuse3(request(Opcode.GETATTR, bytes(16), nodeid=node.nodeid))
    answer = reply(entry(node.nodeid, node.nodeid))
    assert await ends.to_kernel(answer) == answer


async def test_a_listing_shows_the_files_own_numbers(
    stack: LayerDirectories, overlay: Vfs, ends: Ends
) -> None:
    names = [b"a", b"12345678", b"n" * 255]
    for name in names:
        make_file(stack.lower / os.fsdecode(name))
    nodes = [overlay.node(name) for name in names]
    dot = listed(ROOT_NODEID | wire.NAME_ONLY, ROOT_NODEID | wire.NAME_ONLY, b".")
    body = dot + b"".join(
        listed(node.nodeid, node.nodeid, name) for node, name in zip(nodes, names, strict=True)
    )
    await ends.to_pyfuse3(request(Opcode.READDIRPLUS, bytes(40)))
    got = await ends.to_kernel(reply(body))
    expected = listed(0, ROOT_NODEID, b".") + b"".join(
        listed(node.nodeid, node.inode, name) for node, name in zip(nodes, names, strict=True)
    )
    assert got == reply(expected)


async def test_a_plain_listing_is_left_alone(ends: Ends) -> None:
    await ends.to_pyfuse3(request(Opcode.READDIR, bytes(40)))
    answer = reply(bytes(range(200)))
    assert await ends.to_kernel(answer) == answer


# INIT


async def test_init_is_answered_with_what_we_serve(ends: Ends) -> None:
    everything = 0xFFFFFFFF
    offered = wire.init_request(await ends.to_pyfuse3(init_request(everything)))
    assert not offered.flags & wire.SPLICE_FLAGS
    assert offered.max_readahead == MAX_PAIR_TRANSFER
    assert ends.ready == 1, "the kernel needn't wait for pyfuse3"
    got = await receive(ends.kernel)
    ends.pyfuse3.send(reply(struct.pack("=IIII48x", 7, 38, 4096, 0), unique=1))
    assert await nothing_arrives(ends.kernel)
    major, minor, readahead, flags = struct.unpack_from("=IIII", got, 16)
    assert (major, minor, readahead) == (7, 38, MAX_PAIR_TRANSFER)
    for feature in (
        wire.PARALLEL_DIROPS,
        wire.CACHE_SYMLINKS,
        wire.DONT_MASK,
        wire.HANDLE_KILLPRIV_V2,
        wire.ATOMIC_O_TRUNC,
        wire.DO_READDIRPLUS,
        wire.POSIX_ACL,
    ):
        assert flags & feature
    assert struct.unpack_from("=I", got, 16 + 20)[0] == MAX_PAIR_TRANSFER
    with trio.fail_after(SECONDS):
        await ends.forwarder.finish()


async def test_no_feature_that_the_kernel_lacks(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pyoverlay")
    await ends.to_pyfuse3(init_request(wire.ASYNC_READ, max_readahead=4096, minor=31))
    got = await receive(ends.kernel)
    assert struct.unpack_from("=IIII", got, 16) == (7, 31, 4096, wire.ASYNC_READ)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "without" in line
    assert "passthrough" in line


# Flags and interruptions


async def test_a_strangers_write_clears_suid(stack: LayerDirectories, overlay: Vfs, ends: Ends) -> None:
    make_file(stack.upper / "file", mode=0o4755)
    node = overlay.node(b"file")
    body = struct.pack("=QQIIQII", 1, 0, 4, wire.WRITE_KILL_SUIDGID, 0, 0, 0) + b"data"
    await ends.to_pyfuse3(request(Opcode.WRITE, body, nodeid=node.nodeid))
    assert (stack.upper / "file").stat().st_mode & 0o7777 == 0o755


async def test_an_interruption_tells_who_got_a_signal(ends: Ends) -> None:
    await ends.to_pyfuse3(request(Opcode.SETATTR, bytes(88), unique=42, pid=1234))
    ends.kernel.send(request(Opcode.INTERRUPT, struct.pack("=Q", 42), unique=43))
    ends.kernel.send(request(Opcode.INTERRUPT, struct.pack("=Q", 4711), unique=45))
    assert await nothing_arrives(ends.pyfuse3)
    assert ends.interrupted == [1234]
    await ends.to_kernel(reply(unique=42))
    ends.kernel.send(request(Opcode.INTERRUPT, struct.pack("=Q", 42), unique=47))
    assert await nothing_arrives(ends.kernel)
    assert ends.interrupted == [1234]


# What doesn't fit, or isn't wanted


async def test_a_request_that_does_not_fit_is_answered_with_eio(ends: Ends) -> None:
    ends.forwarder._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    ends.kernel.send(request(Opcode.WRITE, bytes(100_000), unique=42))
    assert await receive(ends.kernel) == reply(error=-errno.EIO, unique=42)
    assert await nothing_arrives(ends.pyfuse3)
    with trio.fail_after(SECONDS):
        await ends.forwarder.finish()
    after = request(Opcode.GETATTR, bytes(16), unique=44)
    assert await ends.to_pyfuse3(after) == after


@pytest.fixture
def default_send_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a daemon without privilege: SO_SNDBUFFORCE is refused."""

    class Unprivileged(socket.socket):
        def setsockopt(self, *arguments: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), arguments)

    def pair(family: int, kind: int) -> tuple[socket.socket, socket.socket]:
        first, second = socket.socketpair(family, kind)
        return Unprivileged(fileno=first.detach()), Unprivileged(fileno=second.detach())

    class PairOnly:
        AF_UNIX, SOCK_SEQPACKET = socket.AF_UNIX, socket.SOCK_SEQPACKET
        SOL_SOCKET = socket.SOL_SOCKET
        socketpair = staticmethod(pair)
        socket = socket.socket

    monkeypatch.setattr(forwarder_module, "socket", PairOnly)


async def test_the_default_send_buffer_passes_the_largest_messages(
    default_send_buffer: None, make_ends: Callable[[], Ends], nursery: trio.Nursery
) -> None:
    ends = make_ends()
    for end in (ends.forwarder._ours, ends.pyfuse3):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= DEFAULT_SEND_BUFFER
    nursery.start_soon(ends.forwarder.forward_requests)
    nursery.start_soon(ends.forwarder.forward_replies)
    for unique in range(2, 22, 2):
        write = request(Opcode.WRITE, bytes(40) + os.urandom(MAX_PAIR_TRANSFER), unique=unique)
        assert await ends.to_pyfuse3(write) == write
        read = reply(os.urandom(MAX_PAIR_TRANSFER), unique=unique)
        assert await ends.to_kernel(read) == read


async def test_requests_wait_for_room_and_none_is_lost(
    default_send_buffer: None, make_ends: Callable[[], Ends], nursery: trio.Nursery
) -> None:
    ends = make_ends()
    nursery.start_soon(ends.forwarder.forward_requests)
    for unique in range(2, 12, 2):
        ends.kernel.send(
            request(Opcode.WRITE, bytes(40) + bytes([unique]) * MAX_PAIR_TRANSFER, unique=unique)
        )
    await trio.testing.wait_all_tasks_blocked()
    for unique in range(2, 12, 2):
        assert wire.request_header(await receive(ends.pyfuse3)).unique == unique


class DeviceRefusing:
    """Writes to the device fail with an errno, all or those longer than a header."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, *, longer_than: int = -1) -> None:
        self.written: list[bytes] = []
        write = os.write

        def refuse(descriptor: int, message: bytes) -> int:
            self.written.append(bytes(message))
            if len(message) > longer_than:
                raise OSError(number, os.strerror(number))
            return write(descriptor, message)

        monkeypatch.setattr(os, "write", refuse)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
async def test_nobody_waits_for_the_reply_any_more(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """The caller was killed, or the mount has gone."""
    await ends.to_pyfuse3(request(Opcode.GETATTR, bytes(16)))
    device = DeviceRefusing(monkeypatch, number)
    ends.pyfuse3.send(reply(b"attributes"))
    with trio.fail_after(SECONDS):
        await ends.forwarder.finish()
    assert device.written == [reply(b"attributes")]
    assert not caplog.records


async def test_a_reply_that_the_kernel_refuses_becomes_eio(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ends.to_pyfuse3(request(Opcode.GETATTR, bytes(16)))
    device = DeviceRefusing(monkeypatch, errno.EINVAL, longer_than=wire.OUT_HEADER_SIZE)
    assert await ends.to_kernel(reply(b"malformed")) == reply(error=-errno.EIO)
    assert len(device.written) == 2


async def test_an_invalidation_that_the_kernel_does_not_want(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends.exchange.invalidate_attributes(5)
    assert await receive(ends.kernel) == wire.invalidate_attributes(5)
    device = DeviceRefusing(monkeypatch, errno.ENOENT)
    ends.exchange.invalidate_attributes(7)
    assert device.written == [wire.invalidate_attributes(7)]


# The end


@pytest.mark.parametrize("number", [errno.EINTR, errno.ENOENT])
async def test_an_interrupted_read_is_done_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    readv = os.readv
    failures = [number, number]

    def fail_first(descriptor: int, buffers: list[bytearray]) -> int:
        if failures:
            raise OSError(failures.pop(), "again")
        return readv(descriptor, buffers)

    monkeypatch.setattr(os, "readv", fail_first)
    message = request(Opcode.GETATTR, bytes(16))
    assert await ends.to_pyfuse3(message) == message
    assert failures == []


async def test_it_ends_when_the_mount_has_gone(
    make_ends: Callable[[], Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_descriptor: int, _buffers: list[bytearray]) -> int:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "readv", gone)
    with trio.fail_after(SECONDS):
        await make_ends().forwarder.forward_requests()


async def test_what_was_read_is_answered_before_the_end(
    make_ends: Callable[[], Ends], nursery: trio.Nursery
) -> None:
    ends = make_ends()
    ended: list[str] = []

    async def serve_to_the_end() -> None:
        await ends.forwarder.forward_requests()
        ended.append("reading")
        await ends.forwarder.finish()
        ended.append("answering")

    nursery.start_soon(serve_to_the_end)
    nursery.start_soon(ends.forwarder.forward_replies)
    await ends.to_pyfuse3(request(Opcode.GETATTR, bytes(16), unique=2))
    await ends.to_pyfuse3(request(Opcode.GETATTR, bytes(16), unique=4))
    ends.forwarder.stop_reading()
    await trio.testing.wait_all_tasks_blocked()
    assert ended == ["reading"]
    await ends.to_kernel(reply(unique=4))
    await trio.testing.wait_all_tasks_blocked()
    assert ended == ["reading"]
    await ends.to_kernel(reply(unique=2))
    await trio.testing.wait_all_tasks_blocked()
    assert ended == ["reading", "answering"]


async def test_closing_gives_every_descriptor_back(overlay: Vfs) -> None:
    before = open_descriptors()
    ends = Ends(overlay)
    ends.close()
    assert open_descriptors() == before
