"""What does pyfuse3 get from the operations: entries, errnos, and one copy for all who wait?"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from pyoverlay.fuse.copying import CopyUpQueue
from pyoverlay.fuse.operations import OverlayOperations
from pyoverlay.overlay.copy_up import CopyUp
from pyoverlay.overlay.node import ROOT_NODEID
from tests.harness import Stack as LayerDirectories
from tests.unit.vfs import Vfs

NO_SUCH_PID = 2**22 + 1
"""Beyond the kernel's highest pid: a caller that is gone."""


class Transport:
    """Keeps what the operations tell the kernel unasked."""

    def __init__(self) -> None:
        self.invalidated: list[int] = []
        self.passed_on = 0

    def make_room_for_reply(self) -> None:
        self.passed_on += 1

    def invalidate_attributes(self, nodeid: int) -> None:
        self.invalidated.append(nodeid)

    def invalidate_listings(self, nodeids: Sequence[int]) -> None:
        raise AssertionError(nodeids)


class Daemon:
    """The operations over an overlay, with what is beside them."""

    def __init__(self, overlay: Vfs, nursery: trio.Nursery) -> None:
        self.filesystem = overlay.fs
        self.transport = Transport()
        self.queue = CopyUpQueue(overlay.fs, nursery)
        self.operations = OverlayOperations(overlay.fs, self.transport, self.queue)

    async def nodeid(self, *names: bytes) -> int:
        current = ROOT_NODEID
        for name in names:
            entry = await self.operations.lookup(pyfuse3.InodeT(current), pyfuse3.FileNameT(name), context())
            current = entry.st_ino
        return current

    async def open(self, nodeid: int, flags: int, pid: int = 0) -> int:
        opened = await self.operations.open(pyfuse3.InodeT(nodeid), pyfuse3.FlagT(flags), context(pid))
        return opened.fh


def context(pid: int = 0) -> Any:  # noqa: ANN401 - stands for a RequestContext, which can't be made
    return SimpleNamespace(uid=0, gid=0, umask=0o022, pid=pid)


@pytest.fixture
def daemon(overlay: Vfs, nursery: trio.Nursery) -> Daemon:
    return Daemon(overlay, nursery)


class Gate:
    """Stops copy-ups in their worker threads, and counts them."""

    def __init__(self) -> None:
        self.started = 0
        self.reached = trio.Event()
        self.opened = threading.Event()

    async def wait_for_start(self) -> None:
        with trio.fail_after(30):
            await self.reached.wait()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    copy = CopyUp.copy

    def copy_behind_the_gate(job: CopyUp) -> None:
        gate.started += 1
        trio.from_thread.run_sync(gate.reached.set)
        assert gate.opened.wait(30)
        copy(job)

    monkeypatch.setattr(CopyUp, "copy", copy_behind_the_gate)
    return gate


async def test_a_lookup_gives_nodeid_and_attributes(stack: LayerDirectories, daemon: Daemon) -> None:
    (stack.lower / "file").write_bytes(b"12345")
    (stack.lower / "file").chmod(0o640)
    entry = await daemon.operations.lookup(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(b"file"), context())
    assert entry.st_ino != (stack.lower / "file").stat().st_ino
    assert (entry.st_size, stat.S_IMODE(entry.st_mode), entry.st_nlink) == (5, 0o640, 1)
    shown = await daemon.operations.getattr(entry.st_ino, context())
    assert shown.st_ino == (stack.lower / "file").stat().st_ino


async def test_an_absent_name_is_an_answer_that_lasts(daemon: Daemon) -> None:
    entry = await daemon.operations.lookup(pyfuse3.ROOT_INODE, pyfuse3.FileNameT(b"absent"), context())
    assert entry.st_ino == 0
    assert entry.entry_timeout > 3600


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda do: do.rmdir(pyfuse3.ROOT_INODE, b"absent", context()), errno.ENOENT),
        (lambda do: do.mkdir(pyfuse3.ROOT_INODE, b".wh.x", stat.S_IFDIR | 0o755, context()), errno.EINVAL),
        (lambda do: do.mknod(pyfuse3.ROOT_INODE, b"x", stat.S_IFCHR, 0, context()), errno.EPERM),
        (lambda do: do.getattr(12345, context()), errno.ESTALE),
        (lambda do: do.getxattr(pyfuse3.ROOT_INODE, b"user.absent", context()), errno.ENODATA),
        (lambda do: do.read(12345, 0, 1), errno.EBADF),
        (lambda do: do.flush(1), errno.ENOSYS),
        (lambda do: do.lookup(pyfuse3.ROOT_INODE, b"x" * 256, context()), errno.ENAMETOOLONG),
    ],
)
async def test_a_failure_is_an_errno(daemon: Daemon, ask: Callable[[Any], Any], expected: int) -> None:
    with pytest.raises(pyfuse3.FUSEError) as failure:
        await ask(daemon.operations)
    assert failure.value.errno == expected
    assert daemon.transport.passed_on == 1


async def test_what_nobody_foresaw_is_eio_and_logged(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(nodeid: int) -> None:
        raise ZeroDivisionError(nodeid)

    monkeypatch.setattr(daemon.filesystem, "node", fail)
    with pytest.raises(pyfuse3.FUSEError) as failure:
        await daemon.operations.getattr(pyfuse3.ROOT_INODE, context())
    assert failure.value.errno == errno.EIO
    assert "ZeroDivisionError" in caplog.text


async def test_two_opens_copy_once_and_others_go_on(
    stack: LayerDirectories, daemon: Daemon, gate: Gate, nursery: trio.Nursery
) -> None:
    (stack.lower / "file").write_bytes(b"lower")
    (stack.lower / "other").write_bytes(b"")
    nodeid = await daemon.nodeid(b"file")
    handles: list[int] = []

    async def open_for_writing() -> None:
        handles.append(await daemon.open(nodeid, os.O_RDWR))

    async with trio.open_nursery() as openers:
        openers.start_soon(open_for_writing)
        openers.start_soon(open_for_writing)
        await gate.wait_for_start()
        assert await daemon.nodeid(b"other")
        assert handles == []
        assert os.listdir(stack.upper) == []
        gate.opened.set()
    assert gate.started == 1
    assert [await daemon.operations.read(pyfuse3.FileHandleT(handle), 0, 9) for handle in handles] == [
        b"lower",
        b"lower",
    ]
    assert (stack.upper / "file").read_bytes() == b"lower"
    assert nodeid in daemon.transport.invalidated


async def test_a_killed_caller_ends_the_copy_up(stack: LayerDirectories, daemon: Daemon, gate: Gate) -> None:
    (stack.lower / "file").write_bytes(b"lower")
    nodeid = await daemon.nodeid(b"file")
    failures: list[int] = []

    async def open_for_writing() -> None:
        with pytest.raises(pyfuse3.FUSEError) as failure:
            await daemon.open(nodeid, os.O_RDWR, NO_SUCH_PID)
        failures.append(failure.value.errno)

    with trio.fail_after(30):
        async with trio.open_nursery() as openers:
            openers.start_soon(open_for_writing)
            await gate.wait_for_start()
            daemon.queue.interrupt(NO_SUCH_PID)
        assert failures == [errno.EINTR]
        gate.opened.set()
        # The next one begins anew, after the one that was given up.
        await daemon.open(nodeid, os.O_RDWR)
    assert gate.started == 2
    assert os.listdir(stack.work / "work") == []


async def test_a_harmless_signal_interrupts_nothing(
    stack: LayerDirectories, daemon: Daemon, gate: Gate
) -> None:
    (stack.lower / "file").write_bytes(b"lower")
    nodeid = await daemon.nodeid(b"file")
    caller = threading.get_native_id()
    handles: list[int] = []

    async def open_for_writing() -> None:
        handles.append(await daemon.open(nodeid, os.O_RDWR, caller))

    with trio.fail_after(30):
        async with trio.open_nursery() as openers:
            openers.start_soon(open_for_writing)
            await gate.wait_for_start()
            daemon.queue.interrupt(caller)
            await trio.testing.wait_all_tasks_blocked()
            gate.opened.set()
    assert len(handles) == 1


async def test_a_failed_copy_up_fails_who_waits(
    stack: LayerDirectories, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stack.lower / "file").write_bytes(b"lower")

    def fail(job: CopyUp) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(CopyUp, "copy", fail)
    with pytest.raises(pyfuse3.FUSEError) as failure:
        await daemon.open(await daemon.nodeid(b"file"), os.O_WRONLY)
    assert failure.value.errno == errno.ENOSPC
    assert os.listdir(stack.upper) == []


async def test_a_descriptor_follows_a_copy_up(stack: LayerDirectories, daemon: Daemon) -> None:
    (stack.lower / "file").write_bytes(b"lower")
    nodeid = await daemon.nodeid(b"file")
    reading = pyfuse3.FileHandleT(await daemon.open(nodeid, os.O_RDONLY))
    assert await daemon.operations.read(reading, 0, 9) == b"lower"
    writing = pyfuse3.FileHandleT(await daemon.open(nodeid, os.O_WRONLY))
    assert await daemon.operations.write(writing, 0, b"UPPER") == 5
    assert await daemon.operations.read(reading, 0, 9) == b"UPPER"
    assert (stack.lower / "file").read_bytes() == b"lower"


async def test_volatile_asks_for_no_more_syncs(
    stack: LayerDirectories, open_overlay: Callable[..., Vfs], nursery: trio.Nursery
) -> None:
    (stack.lower / "file").write_bytes(b"")
    daemon = Daemon(open_overlay(fsync="volatile"), nursery)
    handle = pyfuse3.FileHandleT(await daemon.open(await daemon.nodeid(b"file"), os.O_WRONLY))
    with pytest.raises(pyfuse3.FUSEError) as failure:
        await daemon.operations.fsync(handle, False)
    assert failure.value.errno == errno.ENOSYS
