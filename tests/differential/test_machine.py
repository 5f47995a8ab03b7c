"""Drawn operations over drawn layers: pyoverlay answers, shows and writes what the kernel's overlay does.

pytest tests/differential/test_machine.py --steps 100000 --seed 7, shared by the variants, or -k xfs for one
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.conftest import Draw
from tests.differential.machine import Record
from tests.differential.script import Script, minimise
from tests.differential.variants import VARIANTS, Room, open_room

STEPS = 15_000
"""How many steps all variants together run."""

_MANY = 50_000
"""From so many steps on each operation must have succeeded and failed often enough to say something."""


@pytest.fixture
def room(variant: str) -> Iterator[Room]:
    """File systems of its own, on which an fsync costs nothing."""
    with open_room(VARIANTS[variant]) as opened:
        yield opened


@pytest.mark.timeout(0)
@pytest.mark.parametrize("variant", VARIANTS)
def test_drawn_operations(draw: Draw, room: Room) -> None:
    """Whatever is done, nobody can tell the two apart; half of it succeeds."""
    record, wanted = draw(STEPS, room)
    if record.failure is not None:
        shortest, told = room.run(lambda: _shortest(record, room))
        path = Path(tempfile.mkdtemp(prefix="overlay-failed-")) / "script.py"
        path.write_text(str(shortest))
        pytest.fail(f"{told}\n\n# {path}\n{shortest}", pytrace=False)
    few = wanted < STEPS // len(VARIANTS)
    assert few or 0.4 < record.succeeded < 0.65, f"{record.succeeded:.0%} of the steps succeed"


def test_each_operation_was_drawn_often_enough(drawn: Record) -> None:
    """In success and in failure, over all variants."""
    assert drawn.steps < _MANY or not drawn.too_rare()


def _shortest(record: Record, room: Room) -> tuple[Script, str]:
    """The shortest script that fails like the recorded one, and how it fails."""
    script, failure = record.script, record.failure
    assert script is not None
    assert failure is not None
    if script.failure(room) is not None:
        script = minimise(script, failure, room)
    return script, str(script.failure(room) or f"now and then: {failure}")
