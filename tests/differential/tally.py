"""Which draws succeeded and failed too rarely so far? So that each does both, often enough to say something.

Counts by what draws an operation, not by operation. It knows nothing of what is drawn.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from tests.differential.dice import Dice

Maker = TypeVar("Maker", bound=Hashable)


class Aim(enum.Enum):
    """What a draw is to come to, as far as that can be known."""

    SUCCESS = "success"
    ANY = "any"
    FAILURE = "failure"


class Tally(Generic[Maker]):
    """How often what each maker drew succeeded and failed."""

    def __init__(self) -> None:
        self._succeeded: Counter[Maker] = Counter()
        self._failed: Counter[Maker] = Counter()

    def note(self, maker: Maker, *, succeeded: bool) -> None:
        """Takes note of how an operation that `maker` drew ended."""
        (self._succeeded if succeeded else self._failed)[maker] += 1

    def choose(self, dice: Dice, makers: Mapping[Maker, int]) -> Maker:
        """One of the makers: by weight, or more often the one that lacks successes or failures."""
        return dice.weighted(makers) if dice.happens(35) else min(makers, key=self._rarer)

    def rarest(self, families: Mapping[str, Iterable[Maker]]) -> str:
        """The family with the maker that lacks successes or failures most."""
        return min(families, key=lambda family: min(map(self._rarer, families[family])))

    def _rarer(self, maker: Maker) -> float:
        # Tries count a little, too, or what can't succeed for now would be all that is drawn.
        succeeded, failed = self._succeeded[maker], self._failed[maker]
        return min(succeeded, failed) + (succeeded + failed) / 15

    def aim(self, dice: Dice, maker: Maker) -> Aim:
        """What the next draw of `maker` is to come to: more often than not what it came to more rarely."""
        if dice.happens(30):
            return Aim.ANY
        return Aim.SUCCESS if self._succeeded[maker] <= self._failed[maker] else Aim.FAILURE
