"""Fixtures of the differential tests: the shared lower layers, and pairs of mounts over them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.differential import layers, machine
from tests.differential.machine import Record
from tests.differential.pair import Pair
from tests.differential.variants import Room
from tests.harness import snapshot

PairFactory = Callable[..., Pair]
Draw = Callable[[int, Room], tuple[Record, int]]

_RECORDS: list[Record] = []


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Draw:
    """Runs the machine in a room: as many steps as asked for by --steps, else as told, shared by all rooms.

    What came of them is printed in the end. Returns it, and the number of steps that was this room's share.
    """

    def run(steps: int, room: Room) -> tuple[Record, int]:
        wanted = _share(request, request.config.getoption("--steps") or steps)
        seed = request.config.getoption("--seed")
        record = room.run(lambda: machine.run(wanted, seed, room))
        _RECORDS.append(record)
        return record, wanted

    return run


@pytest.fixture
def drawn() -> Record:
    """All that has been drawn in this session."""
    total = Record("all")
    for record in _RECORDS:
        total.counts.update(record.counts)
    return total


def _share(request: pytest.FixtureRequest, steps: int) -> int:
    """What this one of the collected tests that draw has to do of all the steps."""
    drawing = [item for item in request.session.items if "draw" in getattr(item, "fixturenames", ())]
    number = drawing.index(request.node)
    return steps * (number + 1) // len(drawing) - steps * number // len(drawing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often each drawn operation succeeded, and with which errors it failed."""
    for record in _RECORDS:
        terminalreporter.section("drawn operations")
        terminalreporter.write_line(str(record))


@pytest.fixture(scope="session")
def lowers() -> Iterator[list[Path]]:
    """The lower layers, built once for all tests, which must leave every byte and time of them alone."""
    base = Path(tempfile.mkdtemp(prefix="overlay-lowers-"))
    base.chmod(0o755)
    directories = [base / f"l{number}" for number in range(1, layers.LAYERS + 1)]
    for directory in directories:
        directory.mkdir()
    layers.build(directories)
    for directory in directories:
        # relatime: the first readlink of a symlink moves its atime, the following ones don't
        snapshot(directory)
    before = [snapshot(directory, exact=True) for directory in directories]
    yield directories
    after = [snapshot(directory, exact=True) for directory in directories]
    shutil.rmtree(base)
    assert after == before, "a test changed a lower layer"


@pytest.fixture
def pair(base: Path, lowers: list[Path]) -> Iterator[PairFactory]:
    """A factory of live pairs: pair(*options, prefix=, lowers=) -> Pair; their mounts are removed."""
    with ExitStack() as mounts:

        def make(*options: str, prefix: str = "trusted.overlay.", lowers: list[Path] = lowers) -> Pair:
            directory = Path(tempfile.mkdtemp(dir=base, prefix="pair-"))
            directory.chmod(0o755)
            return mounts.enter_context(Pair(directory, lowers, *options, prefix=prefix))

        yield make
