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
from tests.harness import Kind, snapshot

PairFactory = Callable[..., Pair]

_RECORDS: list[Record] = []


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Callable[[int, Path, Kind], Record]:
    """Runs the machine: as many steps as asked for by --steps, else as told; where, with which pyoverlay.

    What came of them is printed in the end.
    """

    def run(steps: int, place: Path, ours: Kind) -> Record:
        wanted = request.config.getoption("--steps") or steps
        record = machine.run(wanted, request.config.getoption("--seed"), place, ours)
        _RECORDS.append(record)
        return record

    return run


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
