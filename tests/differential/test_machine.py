"""Drawn operations over drawn layers: pyoverlay answers, shows and writes what the kernel's overlay does.

pytest tests/differential/test_machine.py --steps 100000 --seed 7
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.differential.machine import Record
from tests.differential.script import minimise
from tests.harness import Kind
from tests.harness.disk import file_system

STEPS = 3_000


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of its own, on which an fsync costs nothing."""
    with file_system("ext4") as place:
        yield place


@pytest.mark.timeout(0)
@pytest.mark.parametrize("ours", [Kind.PYOVERLAY, Kind.SLOW_PATH], ids=lambda kind: kind.value)
def test_drawn_operations(draw: Callable[[int, Path, Kind], Record], disk: Path, ours: Kind) -> None:
    """Whatever is done, nobody can tell the two apart; half of it succeeds."""
    record = draw(STEPS, disk, ours)
    if record.failure is not None and record.script is not None:
        repeats = record.script.failure(disk) is not None
        shortest = minimise(record.script, record.failure, disk) if repeats else record.script
        path = Path(tempfile.mkdtemp(prefix="overlay-failed-")) / "script.py"
        path.write_text(str(shortest))
        pytest.fail(
            f"{shortest.failure(disk) or f'now and then: {record.failure}'}\n\n# {path}\n{shortest}",
            pytrace=False,
        )
    few = record.steps < STEPS
    assert few or 0.4 < record.succeeded < 0.65, f"{record.succeeded:.0%} of the steps succeed"
