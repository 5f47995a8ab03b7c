"""Is a large directory read once for all who wait for it, and without keeping others waiting?"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from pyoverlay.fuse.loading import DirectoryLoads
from pyoverlay.overlay.filesystem import LoadNeeded
from pyoverlay.overlay.merging import DirectoryLoad
from tests.harness import Stack as LayerDirectories
from tests.harness.content import make_directory, make_file
from tests.unit.vfs import Vfs, open_descriptors

ENTRIES = 300


class Gate:
    """Holds readings back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.opened = threading.Event(), threading.Event()
        self.readings: list[int] = []
        self.failure: OSError | None = None
        run = DirectoryLoad.run

        def held(load: DirectoryLoad) -> None:
            self.readings.append(threading.get_ident())
            self.began.set()
            assert self.opened.wait(30)
            if self.failure is not None:
                raise self.failure
            run(load)

        monkeypatch.setattr(DirectoryLoad, "run", held)

    async def wait_for_reading(self) -> None:
        assert await trio.to_thread.run_sync(self.began.wait, 30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Readings that begin, and go on when told."""
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


@pytest.fixture
def overlay(stack: LayerDirectories, open_overlay: Callable[..., Vfs]) -> Vfs:
    """An overlay with a directory `d` of a lower that is too large to be read in passing."""
    directory = make_directory(stack.lower / "d")
    for number in range(ENTRIES):
        make_file(directory / f"{number:0200d}")
    return open_overlay()


async def names_once_loaded(overlay: Vfs, nodeid: int, loads: DirectoryLoads) -> int:
    """The number of names in a directory, waiting as the operations do."""
    while True:
        try:
            return len(list(overlay.fs.read_directory(nodeid, 0)))
        except LoadNeeded as need:
            await loads.perform(need)


async def test_all_wait_for_one_reading(overlay: Vfs, gate: Gate) -> None:
    loads, counts = DirectoryLoads(), []
    nodeid = overlay.node(b"d").nodeid

    async def count() -> None:
        counts.append(await names_once_loaded(overlay, nodeid, loads))

    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(count)
        await gate.wait_for_reading()
        await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()
    assert counts == [ENTRIES + 2] * 5
    assert len(gate.readings) == 1
    overlay.stack.cache.close()
    assert open_descriptors() <= before


async def test_whoever_waits_for_a_failed_reading_tries_again(overlay: Vfs, gate: Gate) -> None:
    loads, failures, counts = DirectoryLoads(), [], []
    nodeid = overlay.node(b"d").nodeid
    gate.failure = OSError(errno.EIO, "unreadable")

    async def first() -> None:
        try:
            await names_once_loaded(overlay, nodeid, loads)
        except OSError as failure:
            failures.append(failure.errno)
            gate.failure = None

    async def second() -> None:
        counts.append(await names_once_loaded(overlay, nodeid, loads))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await gate.wait_for_reading()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()
    assert (failures, counts) == ([errno.EIO], [ENTRIES + 2])


async def test_a_directory_that_changes_meanwhile_is_read_again_in_a_thread(overlay: Vfs, gate: Gate) -> None:
    loads, counts = DirectoryLoads(), []
    nodeid = overlay.node(b"d").nodeid

    async def count() -> None:
        counts.append(await names_once_loaded(overlay, nodeid, loads))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await gate.wait_for_reading()
        overlay.mkdir(b"d/new")
        gate.opened.set()
    assert counts == [ENTRIES + 3]
    assert len(gate.readings) == 2
    assert threading.get_ident() not in gate.readings
