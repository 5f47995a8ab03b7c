"""Is a mount served while what serves it is still being imported?

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

from pyoverlay.fuse.beginning import serve_while_importing
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
        self.kept: list[Request] = []
        self.failure: BaseException | None = None
        self._exchange = Exchange(device.detach(), overlay.fs, self.ready.set)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.kept = serve_while_importing(self._exchange, MODULE)
        except BaseException as failure:  # noqa: BLE001 - the test asks for it
            self.failure = failure

    def end(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        self._exchange.close()
        self.kernel.close()


class SlowModule:
    """A module whose import waits until it is let go on."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{MODULE}.py"
        self._reading, self._writing = os.pipe()
        self.path.write_text(f"import os\nos.read({self._reading}, 1)\n")

    def let_go_on(self) -> None:
        os.write(self._writing, b"x")

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowModule]:
    """A module that isn't imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    slow = SlowModule(tmp_path)
    yield slow
    slow.close()
    sys.modules.pop(MODULE, None)


def test_what_needs_no_waiting_is_answered_before(
    open_overlay: Callable[..., Vfs], module: SlowModule
) -> None:
    began = Beginning(open_overlay())
    began.kernel.send(init_request(0))
    assert struct.unpack_from("=IiQ", began.kernel.recv(4096))[1:] == (0, 1)
    assert began.ready.is_set()
    began.kernel.send(request(Opcode.GETATTR, bytes(16), unique=4))
    assert struct.unpack_from("=IiQ", began.kernel.recv(4096))[1:] == (0, 4)
    assert MODULE not in sys.modules or began._thread.is_alive(), "the import goes on"
    module.let_go_on()
    began.end()
    assert [kept.opcode for kept in began.kept] == [Opcode.INIT], "libfuse wants it, too"


def test_what_waits_is_kept_whole_and_in_order(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    began = Beginning(open_overlay(fast_path=False))
    messages = [request(Opcode.GETATTR, bytes([unique]) * 16, unique=unique) for unique in (4, 6, 8)]
    for message in messages:
        began.kernel.send(message)
    module.let_go_on()
    began.end()
    assert [bytes(kept.message) for kept in began.kept] == messages


def test_what_comes_at_the_very_end_is_not_lost(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    """Kept, answered or left in the device: one of these."""
    module.let_go_on()
    began = Beginning(open_overlay(fast_path=False))
    began.kernel.send(request(Opcode.GETATTR, bytes(16), unique=4))
    began._thread.join(SECONDS)
    left = began._exchange.read()
    assert len(began.kept) + (left is not None) == 1
    began.end()


def test_a_failing_import_is_told(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    module.path.write_text("raise ImportError('libfuse is missing')")
    began = Beginning(open_overlay())
    began.end()
    assert isinstance(began.failure, ImportError)


def test_the_mount_goes_before_the_import_has_ended(
    open_overlay: Callable[..., Vfs], module: SlowModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()

    def no_device(_descriptor: int, _buffers: list[memoryview]) -> int:
        gone.set()
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "readv", no_device)
    began = Beginning(open_overlay())
    began.kernel.send(request(Opcode.GETATTR, bytes(16)))
    assert gone.wait(SECONDS)
    module.let_go_on()
    began.end()
    assert began.failure is None
    assert began.kept == []


def test_nothing_stays_open(open_overlay: Callable[..., Vfs], module: SlowModule) -> None:
    overlay = open_overlay()
    turn, before = sys.getswitchinterval(), open_descriptors()
    module.let_go_on()
    Beginning(overlay).end()
    assert (sys.getswitchinterval(), open_descriptors()) == (turn, before)
