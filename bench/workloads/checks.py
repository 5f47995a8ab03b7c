"""Was the work of a trial really done? A system that skips work must not look fast."""

from __future__ import annotations

from typing import TypeVar

from bench.errors import BenchError

Value = TypeVar("Value")


def expect(what: str, got: Value, wanted: Value) -> None:
    """Compare a result of the work, outside what is measured.

    Raises BenchError when they differ; the message ends up in the table.
    """
    if got != wanted:
        raise BenchError(f"wrong result: {what} is {got!r}, should be {wanted!r}")
