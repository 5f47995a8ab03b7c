"""Is every message answered, whatever is wrong with it, and does the daemon go on?

The messages are a real kernel's, cut off at every byte, and with bytes changed at random (always the same).
"""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from pyoverlay.fuse import wire
from pyoverlay.fuse.copying import CopyUpQueue
from pyoverlay.fuse.device import MAX_TRANSFER
from pyoverlay.fuse.exchange import Exchange
from pyoverlay.fuse.forwarder import Forwarder
from pyoverlay.fuse.own_opcodes import OwnOpcodes
from pyoverlay.fuse.wire import Opcode
from pyoverlay.overlay.node import ROOT_NODEID
from tests.harness import Stack, make_stack
from tests.harness.libc import mount, umount
from tests.unit.captured import CAPTURED
from tests.unit.vfs import Vfs

SECONDS = 30
MUTANTS = 60
OPCODE = slice(4, 8)
UNIQUE = slice(8, 16)
SILENT = (*wire.WITHOUT_ANSWER, Opcode.INTERRUPT)
# Of these the kernel sent none, and never does: their shape is that of another, or fuse.h's.
UNSEEN = {
    "COPY_FILE_RANGE": CAPTURED["COPY_FILE_RANGE_64"],
    "INTERRUPT": bytes(40) + struct.pack("=Q", 6),
    "ACCESS": bytes(40) + struct.pack("=II", 4, 0),
    "READDIR": CAPTURED["READDIRPLUS"],
    "SETLK": bytes(40 + 48),
    "DESTROY": bytes(40),
}


def numbered(name: str, message: bytes, unique: int = 2) -> bytes:
    changed = bytearray(message)
    changed[OPCODE] = struct.pack("=I", Opcode[name])
    changed[UNIQUE] = struct.pack("=Q", unique)
    return bytes(changed)


MESSAGES = {name: numbered(name, message) for name, message in (CAPTURED | UNSEEN).items()}


@pytest.fixture
def small_stack(base: Path) -> Iterator[Stack]:
    """Layers where a message that asks for too much space gets none."""
    mount("tmpfs", base, "tmpfs", data="size=16m,mode=755")
    try:
        yield make_stack(base)
    finally:
        umount(base)


class Daemon:
    """All that is between the kernel and pyfuse3, which a task stands for that knows no request."""

    def __init__(self, vfs: Vfs, nursery: trio.Nursery) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, device):
            end.setblocking(False)
        self.exchange = Exchange(device.detach(), vfs.fs, lambda: None)
        self.forwarder = Forwarder(self.exchange, on_interrupt=lambda _pid: None)
        self.pyfuse3 = socket.socket(fileno=self.forwarder.give_session_descriptor())
        self.pyfuse3.setblocking(False)
        queue = CopyUpQueue(vfs.fs, nursery)
        self.forwarder.answer_with(OwnOpcodes(vfs.fs, self.forwarder, queue, nursery))
        self.unique = 2
        nursery.start_soon(self.forwarder.forward_requests)
        nursery.start_soon(self.forwarder.forward_replies)
        nursery.start_soon(self._answer_for_pyfuse3)

    async def _answer_for_pyfuse3(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.pyfuse3)
            opcode, unique, _, _ = wire.request_fields(self.pyfuse3.recv(1 << 21))
            if opcode not in SILENT:
                self.pyfuse3.send(wire.error_reply(unique, errno.ENOSYS))

    async def send(self, message: bytes) -> int | None:
        """Send a message and wait for its answer: an errno, 0, or None where it wants no answer."""
        self.unique += 2
        numbered = bytearray(message)
        if len(message) >= UNIQUE.stop:
            numbered[UNIQUE] = struct.pack("=Q", self.unique)
        self.kernel.send(numbered)
        if len(message) < wire.IN_HEADER_SIZE or struct.unpack("=I", message[OPCODE])[0] in SILENT:
            return None
        return await self._answer_to(self.unique)

    async def _answer_to(self, unique: int) -> int:
        with trio.fail_after(SECONDS):
            while True:
                await trio.lowlevel.wait_readable(self.kernel)
                header = wire.reply_header(self.kernel.recv(1 << 21))
                if header.unique:
                    assert header.unique == unique, "every request is answered once"
                    return -header.error

    async def is_well(self) -> bool:
        body = struct.pack("=IIQQIIIHHQQ", 56, Opcode.GETATTR, 0, ROOT_NODEID, 0, 0, 0, 0, 0, 0, 0)
        return await self.send(body) in (0, errno.ENOSYS)

    def close(self) -> None:
        self.forwarder.close()
        self.kernel.close()
        self.pyfuse3.close()


@pytest.fixture(params=[True, False], ids=["fast-path", "slow-path"])
def vfs(request: pytest.FixtureRequest, small_stack: Stack) -> Iterator[Vfs]:
    (small_stack.lower / "low").write_text("content")
    opened = Vfs(small_stack, fast_path=request.param)
    yield opened
    opened.close()


@pytest.fixture
async def daemon(vfs: Vfs, nursery: trio.Nursery) -> Daemon:
    return Daemon(vfs, nursery)


@pytest.mark.parametrize("name", MESSAGES)
async def test_messages_that_are_cut_off(daemon: Daemon, name: str) -> None:
    message = MESSAGES[name]
    for length in range(1, len(message)):
        shortened = message[:length]
        answer = await daemon.send(shortened)
        if answer is not None and not wire.is_well_formed(Opcode[name], shortened, MAX_TRANSFER):
            assert answer == errno.EINVAL
    assert await daemon.is_well()
    daemon.close()


@pytest.mark.parametrize("name", MESSAGES)
async def test_messages_with_changed_bytes(daemon: Daemon, name: str) -> None:
    dice = random.Random(name)
    for _ in range(MUTANTS):
        message = bytearray(MESSAGES[name])
        for _ in range(dice.randint(1, 4)):
            # Of the opcode the lowest byte only: there are few of them.
            place = dice.choice([4, *range(16, len(message))])
            message[place] = dice.choice([0, 1, 2, 0x2F, 0x7F, 0x80, 0xFF, dice.randrange(256)])
        await daemon.send(bytes(message))
    assert await daemon.is_well()
    daemon.close()


@pytest.mark.parametrize("opcode", [0, 7, 19, 54, 4096, 0xFFFFFFFF])
async def test_opcodes_that_nobody_knows(daemon: Daemon, opcode: int) -> None:
    for body in (b"", bytes(16), b"\xff" * 100):
        message = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 0, ROOT_NODEID, 0, 0, 0, 0, 0) + body
        assert await daemon.send(message) == errno.ENOSYS
    assert await daemon.is_well()
    daemon.close()


def test_what_the_kernel_sends_is_well_formed() -> None:
    for name, message in MESSAGES.items():
        assert wire.is_well_formed(Opcode[name], message, MAX_TRANSFER), name
        header = wire.request_header(message)
        assert header.length in (len(message), 0)


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LOOKUP, b"no end"),
        (Opcode.LOOKUP, b"\0"),
        (Opcode.LOOKUP, b"..\0"),
        (Opcode.LOOKUP, b"a/b\0"),
        (Opcode.LOOKUP, b"two\0names\0"),
        (Opcode.RENAME, bytes(8) + b"one name\0"),
        (Opcode.RENAME2, bytes(16) + b"a\0../b\0"),
        (Opcode.SYMLINK, b"a/b\0target\0"),
        (Opcode.GETXATTR, bytes(8) + b"\0"),
        (Opcode.SETXATTR, bytes(8) + b"user.name"),
        (Opcode.READ, struct.pack("=QQI", 1, 0, MAX_TRANSFER + 1) + bytes(20)),
        (Opcode.WRITE, struct.pack("=QQI", 1, 0, 5) + bytes(20) + b"four"),
        (Opcode.BATCH_FORGET, struct.pack("=II", 2, 0) + bytes(16)),
    ],
)
def test_what_it_never_sends_is_not(opcode: int, body: bytes) -> None:
    assert not wire.is_well_formed(opcode, bytes(40) + body, MAX_TRANSFER)


def test_names_that_may_be_odd() -> None:
    for opcode, body in (
        (Opcode.SYMLINK, b"name\0../tar/get\0"),
        (Opcode.LOOKUP, b"...\0"),
        (Opcode.GETXATTR, bytes(8) + b"user.a/b\0"),
        (Opcode.SETXATTR, bytes(8) + b"user.a\0va\0lue"),
        (Opcode.TMPFILE, bytes(16) + b"/\0"),
    ):
        assert wire.is_well_formed(opcode, bytes(40) + body, MAX_TRANSFER)
