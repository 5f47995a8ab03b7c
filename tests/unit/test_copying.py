"""Who waits for a copy-up, who gives up, and when is the copy itself given up?"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
import trio
import trio.testing

from pyoverlay.fuse import copying
from pyoverlay.fuse.copying import CopyUpQueue
from pyoverlay.overlay.copy_up import CopyUp, CopyUpNeeded
from pyoverlay.overlay.node import Node
from tests.harness import Stack as LayerDirectories
from tests.harness import fails_with
from tests.harness.content import make_file
from tests.unit.vfs import Vfs, open_descriptors

SECONDS = 30
GONE = 2**22 + 1
"""Beyond the kernel's highest pid: a caller that is dead."""
ALSO_GONE = GONE + 1


class Gate:
    """Holds copies back in their threads, and counts them."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.let_go = threading.Event()
        self.reached = trio.Event()

    async def wait_for_a_copy(self) -> None:
        with trio.fail_after(SECONDS):
            await self.reached.wait()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    copy = CopyUp.copy

    def copy_behind_the_gate(job: CopyUp) -> None:
        gate.started += 1
        trio.from_thread.run_sync(gate.reached.set)
        assert gate.let_go.wait(SECONDS)
        try:
            copy(job)
        finally:
            gate.ended += 1

    monkeypatch.setattr(CopyUp, "copy", copy_behind_the_gate)
    yield gate
    gate.let_go.set()


@pytest.fixture
def queue(overlay: Vfs, nursery: trio.Nursery) -> CopyUpQueue:
    return CopyUpQueue(overlay.fs, nursery)


@pytest.fixture
def node(stack: LayerDirectories, overlay: Vfs) -> Node:
    make_file(stack.lower / "file", "content")
    return overlay.node(b"file")


class Ask(Protocol):
    """Waits for a copy-up as the caller with this pid; the outcome is noted under its name."""

    async def __call__(self, name: str, pid: int = 0) -> None: ...


@pytest.fixture
def outcomes() -> dict[str, str]:
    return {}


@pytest.fixture
def ask(queue: CopyUpQueue, node: Node, outcomes: dict[str, str]) -> Ask:
    async def wait(name: str, pid: int = 0) -> None:
        try:
            await queue.perform(CopyUpNeeded(node), pid)
        except OSError as failure:
            outcomes[name] = errno.errorcode[failure.errno or 0]
        else:
            outcomes[name] = "done"

    return wait


def assert_nothing_left(stack: LayerDirectories) -> None:
    assert os.listdir(stack.upper) == os.listdir(stack.work / "work") == []


async def test_all_wait_for_one_copy(
    stack: LayerDirectories, gate: Gate, ask: Ask, outcomes: dict[str, str]
) -> None:
    async with trio.open_nursery() as callers:
        for name in ("one", "two", "three"):
            callers.start_soon(ask, name)
        await gate.wait_for_a_copy()
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == {}
        gate.let_go.set()
    assert outcomes == {"one": "done", "two": "done", "three": "done"}
    assert gate.started == 1
    assert (stack.upper / "file").read_text() == "content"


async def test_different_files_do_not_wait_for_each_other(
    stack: LayerDirectories, overlay: Vfs, queue: CopyUpQueue, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(stack.lower / "slow")
    slow = overlay.node(b"slow")
    let_go = threading.Event()
    copy = CopyUp.copy

    def hold_back_one(job: CopyUp) -> None:
        if job.node is slow:
            assert let_go.wait(SECONDS)
        copy(job)

    monkeypatch.setattr(CopyUp, "copy", hold_back_one)
    async with trio.open_nursery() as callers:
        callers.start_soon(queue.perform, CopyUpNeeded(slow), 0)
        with trio.fail_after(SECONDS):
            await queue.perform(CopyUpNeeded(node), 0)
        assert os.listdir(stack.upper) == ["file"]
        let_go.set()
    assert sorted(os.listdir(stack.upper)) == ["file", "slow"]


async def test_a_killed_caller_leaves_the_copy_to_those_who_wait(
    stack: LayerDirectories, queue: CopyUpQueue, gate: Gate, ask: Ask, outcomes: dict[str, str]
) -> None:
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, "killed", GONE)
        callers.start_soon(ask, "alive", os.getpid())
        await gate.wait_for_a_copy()
        queue.interrupt(GONE)
        queue.interrupt(os.getpid())
        await wait_until(lambda: outcomes == {"killed": "EINTR"})
        gate.let_go.set()
    assert outcomes == {"killed": "EINTR", "alive": "done"}
    assert (stack.upper / "file").read_text() == "content"


async def test_the_last_killed_caller_ends_the_copy(
    stack: LayerDirectories, overlay: Vfs, queue: CopyUpQueue, gate: Gate, ask: Ask, outcomes: dict[str, str]
) -> None:
    before = open_descriptors()
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, "one", GONE)
        callers.start_soon(ask, "two", ALSO_GONE)
        await gate.wait_for_a_copy()
        queue.interrupt(GONE)
        await wait_until(lambda: "one" in outcomes)
        assert "two" not in outcomes
        queue.interrupt(ALSO_GONE)
    assert outcomes == {"one": "EINTR", "two": "EINTR"}
    gate.let_go.set()
    await wait_until(lambda: gate.ended == 1 and not queue._running)
    assert_nothing_left(stack)
    overlay.stack.cache.close()
    assert open_descriptors() <= before


async def test_who_comes_while_a_copy_is_given_up_gets_a_new_one(
    stack: LayerDirectories, overlay: Vfs, queue: CopyUpQueue, node: Node, gate: Gate, ask: Ask
) -> None:
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, "killed", GONE)
        await gate.wait_for_a_copy()
        queue.interrupt(GONE)
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, "late")
        await trio.testing.wait_all_tasks_blocked()
        gate.let_go.set()
    assert node.upper is None
    with trio.fail_after(SECONDS):
        await queue.perform(CopyUpNeeded(node), 0)
    assert gate.started == 2
    assert overlay.read(b"file") == b"content" == (stack.upper / "file").read_bytes()


async def test_a_signal_that_does_not_kill_is_looked_at_again(
    queue: CopyUpQueue,
    gate: Gate,
    ask: Ask,
    outcomes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel interrupts a request once; the signal that kills may come later."""
    looks: list[dict[str, str]] = []

    def is_being_killed(pid: int) -> bool:
        assert pid == os.getpid()
        looks.append(dict(outcomes))
        return len(looks) == 3

    monkeypatch.setattr(copying, "_is_being_killed", is_being_killed)
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, "caller", os.getpid())
        await gate.wait_for_a_copy()
        queue.interrupt(os.getpid())
    assert looks == [{}, {}, {}]
    assert outcomes == {"caller": "EINTR"}
    gate.let_go.set()


async def test_an_interruption_of_somebody_else_does_nothing(
    queue: CopyUpQueue, gate: Gate, ask: Ask, outcomes: dict[str, str]
) -> None:
    queue.interrupt(GONE)
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, "caller", os.getpid())
        await gate.wait_for_a_copy()
        queue.interrupt(GONE)
        gate.let_go.set()
    assert outcomes == {"caller": "done"}


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), "ENOSPC"),
        (OSError(errno.EIO, "bad block"), "EIO"),
        (ZeroDivisionError(), "EIO"),
    ],
    ids=["full", "broken", "unforeseen"],
)
async def test_a_failure_is_everybodys_and_the_next_one_tries_again(
    stack: LayerDirectories,
    queue: CopyUpQueue,
    ask: Ask,
    outcomes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
    expected: str,
) -> None:
    def fail(_job: CopyUp) -> None:
        raise failure

    with monkeypatch.context() as broken:
        broken.setattr(CopyUp, "copy", fail)
        async with trio.open_nursery() as callers:
            callers.start_soon(ask, "one")
            callers.start_soon(ask, "two")
    assert outcomes == {"one": expected, "two": expected}
    assert_nothing_left(stack)
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == (0 if isinstance(failure, OSError) else 1)
    await ask("three")
    assert outcomes["three"] == "done"


async def test_what_can_not_begin_fails_at_once(
    overlay: Vfs, queue: CopyUpQueue, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_need: CopyUpNeeded) -> CopyUp:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as broken:
        broken.setattr(overlay.fs, "begin_copy_up", fail)
        with fails_with(errno.EMFILE):
            await queue.perform(CopyUpNeeded(node), 0)
    await queue.perform(CopyUpNeeded(node), 0)


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)
