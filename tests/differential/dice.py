"""How does a drawn string of bytes become choices? Each choice takes a byte or two of it.

hypothesis draws the bytes, once a step: choices by its own strategies would cost more than the calls that are
tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Thing = TypeVar("Thing")


class Dice:
    """Choices that are fixed by `data`; when all of it was used it begins anew."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def _byte(self) -> int:
        value = self._data[self._position % len(self._data)]
        self._position += 1
        return value

    def below(self, count: int) -> int:
        """A number from 0 to count - 1; count is at most 65536."""
        value = self._byte()
        if count > 32:  # with a byte alone the first ones would come up much more often
            value = value << 8 | self._byte()
        return value % count

    def pick(self, things: Sequence[Thing]) -> Thing:
        """One of the things."""
        return things[self.below(len(things))]

    def weighted(self, things: Mapping[Thing, int]) -> Thing:
        """One of the things, each as often as its weight says."""
        left = self.below(sum(things.values()))
        for thing, weight in things.items():
            left -= weight
            if left < 0:
                return thing
        raise AssertionError("the weights add up to more than their sum")

    def happens(self, percent: int) -> bool:
        """True in so many of a hundred cases."""
        return self.below(100) < percent
