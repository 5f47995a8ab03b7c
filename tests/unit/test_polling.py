"""Does pyfuse3 get its requests in turn, without waiting where nothing has to be waited for?"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from pyoverlay.fuse.polling import Polling
from pyoverlay.fuse.wire import Opcode
from tests.unit.test_forwarder import (
    SECONDS,
    Ends,
    make_ends,
    nothing_arrives,
    overlay,
    receive,
    reply,
    request,
)

__all__ = ["make_ends", "overlay"]


async def _nothing() -> None:
    """A request is there at once."""


@pytest.fixture
def passed_on() -> list[None]:
    """One entry for each time that replies were passed on."""
    return []


@pytest.fixture
def polling(passed_on: list[None]) -> Iterator[Polling]:
    """In trio's place in pyfuse3."""
    polling = Polling(_nothing, lambda: passed_on.append(None))
    polling.install()
    yield polling
    polling.remove()


# The place in pyfuse3


def test_pyfuse3_has_the_place(polling: Polling) -> None:
    assert vars(pyfuse3)["trio"] is polling
    polling.remove()
    assert vars(pyfuse3)["trio"] is trio


def test_a_pyfuse3_without_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pyfuse3, "trio")
    Polling(_nothing, lambda: None).install()
    assert not hasattr(pyfuse3, "trio")
    Polling.remove()


# Turns


async def test_a_free_turn_is_taken_at_once(polling: Polling, passed_on: list[None]) -> None:
    turn = polling.Lock()
    with trio.testing.assert_no_checkpoints():
        for _ in range(3):
            async with turn:
                await polling.lowlevel.wait_readable(0)
    assert len(passed_on) == 3


async def test_who_is_at_work_comes_first(polling: Polling, nursery: trio.Nursery) -> None:
    """Another takes its turn only when the one at work really waits."""
    turn = polling.Lock()
    turns: list[str] = []

    async def other() -> None:
        async with turn:
            turns.append("other")

    async with turn:
        nursery.start_soon(other)
        await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):
        async with turn:
            turns.append("first")
    assert turns == ["first"] * 3
    await trio.testing.wait_all_tasks_blocked()
    assert turns == ["first"] * 3 + ["other"]


async def test_one_turn_at_a_time(polling: Polling) -> None:
    turn = polling.Lock()
    taken: list[int] = []

    async def take(number: int) -> None:
        for _ in range(5):
            async with turn:
                taken.append(number)
                assert len(taken) == 1
                await trio.lowlevel.checkpoint()
                taken.clear()
            await trio.lowlevel.checkpoint()

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(take, number)


async def test_who_is_cancelled_waits_no_more(polling: Polling, nursery: trio.Nursery) -> None:
    turn = polling.Lock()
    scope = trio.CancelScope()

    async def give_up() -> None:
        with scope:
            async with turn:
                raise AssertionError

    async def other(task_status: trio.TaskStatus[trio.Event]) -> None:
        done = trio.Event()
        task_status.started(done)
        async with turn:
            done.set()

    async with turn:
        nursery.start_soon(give_up)
        done = await nursery.start(other)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(SECONDS):
        await done.wait()


# What the forwarder hands over


async def test_one_request_is_handed_over_when_asked_for(
    make_ends: Callable[[], Ends], nursery: trio.Nursery
) -> None:
    ends = make_ends()
    nursery.start_soon(ends.forwarder.forward_requests)
    await trio.testing.wait_all_tasks_blocked()
    first, second = request(Opcode.GETATTR, bytes(16), unique=2), request(Opcode.GETATTR, bytes(16), unique=4)
    # Without anybody asking, the first goes by itself.
    assert await ends.to_pyfuse3(first) == first
    await ends.forwarder.hand_over_request()
    ends.kernel.send(second)
    assert await nothing_arrives(ends.pyfuse3)
    await ends.forwarder.hand_over_request()
    assert ends.pyfuse3.recv(1 << 20) == second


async def test_a_request_that_was_handed_over_unasked_counts(
    make_ends: Callable[[], Ends], nursery: trio.Nursery
) -> None:
    ends = make_ends()
    nursery.start_soon(ends.forwarder.forward_requests)
    for unique in (2, 4):
        ends.kernel.send(request(Opcode.GETATTR, bytes(16), unique=unique))
    await trio.testing.wait_all_tasks_blocked()
    with trio.testing.assert_no_checkpoints():
        await ends.forwarder.hand_over_request()
        await ends.forwarder.hand_over_request()
    with trio.move_on_after(0.01) as waiting:
        await ends.forwarder.hand_over_request()
    assert waiting.cancelled_caught


async def test_waiting_for_a_request_lets_others_run(
    make_ends: Callable[[], Ends], nursery: trio.Nursery
) -> None:
    ends = make_ends()
    nursery.start_soon(ends.forwarder.forward_requests)
    nursery.start_soon(ends.forwarder.hand_over_request)
    await trio.testing.wait_all_tasks_blocked()
    message = request(Opcode.GETATTR, bytes(16))
    assert await ends.to_pyfuse3(message) == message


async def test_many_requests_let_others_run(make_ends: Callable[[], Ends], nursery: trio.Nursery) -> None:
    """Requests that are always there don't keep a signal, or a copy that is done, waiting for ever."""
    ends = make_ends()
    nursery.start_soon(ends.forwarder.forward_requests)
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            await trio.lowlevel.checkpoint()
            others += 1

    nursery.start_soon(other)
    await trio.lowlevel.checkpoint()
    handed_over = 0
    with trio.fail_after(SECONDS):
        while others < 3:
            ends.kernel.send(request(Opcode.GETATTR, bytes(16), unique=2 + 2 * handed_over))
            await ends.forwarder.hand_over_request()
            ends.pyfuse3.recv(1 << 20)
            handed_over += 1
    nursery.cancel_scope.cancel()


async def test_no_more_requests_after_the_end(make_ends: Callable[[], Ends], nursery: trio.Nursery) -> None:
    ends = make_ends()
    nursery.start_soon(ends.forwarder.forward_requests)
    await trio.testing.wait_all_tasks_blocked()
    ends.forwarder.stop_reading()
    ends.kernel.send(request(Opcode.GETATTR, bytes(16)))
    with trio.move_on_after(0.01) as waiting:
        await ends.forwarder.hand_over_request()
    assert waiting.cancelled_caught
    assert await nothing_arrives(ends.pyfuse3)


async def test_the_mount_has_gone(
    make_ends: Callable[[], Ends], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_descriptor: int, _buffers: list[memoryview]) -> int:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    ends = make_ends()
    ended = trio.Event()

    async def forward() -> None:
        await ends.forwarder.forward_requests()
        ended.set()

    nursery.start_soon(forward)
    await trio.testing.wait_all_tasks_blocked()
    monkeypatch.setattr(os, "readv", gone)
    nursery.start_soon(ends.forwarder.hand_over_request)
    with trio.fail_after(SECONDS):
        await ended.wait()
    nursery.cancel_scope.cancel()


async def test_nothing_is_asked_of_the_pair_when_no_reply_is_due(
    make_ends: Callable[[], Ends], nursery: trio.Nursery
) -> None:
    ends = make_ends()
    nursery.start_soon(ends.forwarder.forward_requests)
    await ends.to_pyfuse3(request(Opcode.GETATTR, bytes(16), unique=2))
    for unique in (2, 4):
        ends.pyfuse3.send(reply(b"attributes", unique=unique))
    ends.forwarder.forward_expected_replies()
    assert await receive(ends.kernel) == reply(b"attributes", unique=2)
    assert await nothing_arrives(ends.kernel)


async def test_room_is_made_when_a_reply_was_left(make_ends: Callable[[], Ends]) -> None:
    """A handler's reply finds the pair empty, also when the worker before it has ended."""
    ends = make_ends()
    ends.forwarder.make_room_for_reply()
    ends.pyfuse3.send(reply(b"first"))
    ends.forwarder.make_room_for_reply()
    assert await receive(ends.kernel) == reply(b"first")
