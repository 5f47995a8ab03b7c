"""Is a mount served before what serves it is imported, and meanwhile?

A module that waits to be told stands for trio and pyfuse3.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyoverlay.fuse.beginning import serve_until_imported
from pyoverlay.fuse.exchange import Exchange, Request
from pyoverlay.fuse.wire import Opcode
from tests.unit.test_forwarder import init_request, request
from tests.unit.vfs import Vfs, open_descriptors

SECONDS = 30
MODULE = "slowly_imported"


class Beginning:
    """The beginning of a mount, in a thread of its own; the kernel's end of the device is ours."""

    def __init__(self, overlay: Vfs) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(SECONDS)
        device.setblocking(False)
        self.ready = threading.Event()
        self.kept: list[Request] | None = []
        self._needed, self._needing = os.pipe()
        self.failure: BaseException | None = None
        self._exchange = Exchange(device.detach(), overlay.fs, self.ready.set)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.kept = serve_until_imported(self._exchange, MODULE, [self._needed])
        except BaseException as failure:  # noqa: BLE001 - the test asks for it
            self.failure = failure

    def need(self) -> None:
        """What a signal does, or somebody who inspects the mount."""
        os.write(self._needing, b"x")

    def asked(self, message: bytes) -> tuple[int, int]:
        """Send a request; return the error and the number of the answer."""
        self.kernel.send(message)
        _length, error, unique = struct.unpack_from("=IiQ", self.kernel.recv(4096))
        return error, unique

    def end(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        self._exchange.close()
        self.kernel.close()
        os.close(self._needed)
        os.close(self._needing)


class SlowModule:
    """A module whose import waits until it is let go on."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{MODULE}.py"
        self._reading, self._writing = os.pipe()
        self._began, self._beginning = os.pipe()
        self.path.write_text(f"import os\nos.write({self._beginning}, b'x')\nos.read({self._reading}, 1)\n")

    @property
    def is_being_imported(self) -> bool:
        return MODULE in sys.modules

    def began(self) -> bool:
        """Wait until the import has begun."""
        return os.read(self._began, 1) == b"x"

    def let_go_on(self) -> None:
        os.write(self._writing, b"x")

    def close(self) -> None:
        for descriptor in (self._reading, self._writing, self._began, self._beginning):
            os.close(descriptor)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowModule]:
    """A module that isn't imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    slow = SlowModule(tmp_path)
    yield slow
    slow.close()
    sys.modules.pop(MODULE, None)


def test_nothing_is_imported_before_it_is_needed(
    open_overlay: Callable[..., Vfs], module: SlowModule
) -> None:
    began = Beginning(open_overlay())
    assert began.asked(init_request(0)) == (0, 1)
    assert began.ready.wait(SECONDS)
    assert began.asked(request(Opcode.GETATTR, bytes(16), unique=4)) == (0, 4)
    assert not module.is_being_imported
    began.need()
    assert module.began()
    assert began.asked(request(Opcode.GETATTR, bytes(16), unique=6)) == (0, 6), "it goes on meanwhile"
    module.let_go_on()
    began.end()
    assert began.kept is not None
    assert [kept.opcode for kept in began.kept] == [Opcode.INIT], "libfuse wants it, too"


def test_a_request_that_waits_needs_it(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    began = Beginning(open_overlay())
    began.asked(init_request(0))
    began.kernel.send(request(Opcode.FSYNCDIR, bytes(16), unique=4))
    assert module.began()
    module.let_go_on()
    began.end()
    assert began.kept is not None
    assert [kept.opcode for kept in began.kept] == [Opcode.INIT, Opcode.FSYNCDIR]


def test_what_waits_is_kept_whole_and_in_order(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    began = Beginning(open_overlay(fast_path=False))
    messages = [request(Opcode.GETATTR, bytes([unique]) * 16, unique=unique) for unique in (4, 6, 8)]
    for message in messages:
        began.kernel.send(message)
    module.let_go_on()
    began.end()
    assert began.kept is not None
    assert [bytes(kept.message) for kept in began.kept] == messages


def test_what_comes_at_the_very_end_is_not_lost(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    """Kept, answered or left in the device: one of these."""
    module.let_go_on()
    began = Beginning(open_overlay(fast_path=False))
    began.need()
    began.kernel.send(request(Opcode.GETATTR, bytes(16), unique=4))
    began._thread.join(SECONDS)
    left = began._exchange.read()
    assert began.kept is not None
    assert len(began.kept) + (left is not None) == 1
    began.end()


def test_a_failing_import_is_told(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    module.path.write_text("raise ImportError('libfuse is missing')")
    began = Beginning(open_overlay())
    began.need()
    began.end()
    assert isinstance(began.failure, ImportError)


class Device:
    """Reads of a device that may go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gone = threading.Event()
        self.was_gone = threading.Event()
        self._read = os.readv
        monkeypatch.setattr(os, "readv", self._readv)

    def _readv(self, descriptor: int, buffers: list[memoryview]) -> int:
        if self._gone.is_set():
            self.was_gone.set()
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return self._read(descriptor, buffers)

    def go(self, began: Beginning) -> None:
        self._gone.set()
        began.kernel.send(request(Opcode.GETATTR, bytes(16)))
        assert self.was_gone.wait(SECONDS)


def test_a_mount_that_goes_before_has_needed_nothing(
    open_overlay: Callable[..., Vfs], module: SlowModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(monkeypatch)
    began = Beginning(open_overlay())
    began.asked(init_request(0))
    device.go(began)
    began.end()
    assert (began.failure, began.kept) == (None, None)
    assert not module.is_being_imported


def test_a_mount_that_goes_while_something_waits(
    open_overlay: Callable[..., Vfs], module: SlowModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(monkeypatch)
    began = Beginning(open_overlay())
    began.kernel.send(request(Opcode.FSYNCDIR, bytes(16), unique=4))
    assert module.began()
    device.go(began)
    module.let_go_on()
    began.end()
    assert began.failure is None
    assert began.kept is not None
    assert [kept.unique for kept in began.kept] == [4]


def test_nothing_stays_open(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    overlay = open_overlay()
    turn, before = sys.getswitchinterval(), open_descriptors()
    module.let_go_on()
    began = Beginning(overlay)
    began.need()
    began.end()
    assert (sys.getswitchinterval(), open_descriptors()) == (turn, before)


def test_what_was_put_off_is_done_before_anything_is_imported(
    open_overlay: Callable[..., Vfs], module: SlowModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may ever ask for more than quick things."""
    overlay = open_overlay()
    left = [3]
    done = threading.Event()

    def tidy_up() -> bool:
        left[0] -= left[0] > 0
        if not left[0]:
            done.set()
        return left[0] > 0

    monkeypatch.setattr(overlay.fs, "tidy_up", tidy_up)
    began = Beginning(overlay)
    assert began.asked(init_request(0)) == (0, 1)
    was_done = done.wait(SECONDS)
    assert not module.is_being_imported
    began.need()
    module.let_go_on()
    began.end()
    assert was_done
