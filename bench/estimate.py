"""How long will a run take, going by the trials of an earlier one?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from bench.results import NOT_APPLICABLE, Results


@dataclass(frozen=True)
class Estimate:
    """How long some trials will take.

    Attributes:
        trials: How many there are.
        unknown: How many of them the earlier run had no like of.
        seconds: What all take; an unknown one is taken for as long as its system's others, in the median.
    """

    trials: int
    unknown: int
    seconds: float

    def said(self, source: str) -> str:
        """Return a line for a person; ``source`` names the earlier run."""
        if self.unknown == self.trials:
            return f"{self.trials:,} trials"
        doubt = f", {self.unknown:,} of them guessed" if self.unknown else ""
        return f"{self.trials:,} trials, about {self.seconds / 60:.0f} min by those of {source}{doubt}"


def estimate(trials: Iterable[tuple[str, str]], earlier: Results) -> Estimate:
    """Return how long trials will take, each given as workload and system."""
    lasted: dict[tuple[str, str], list[float]] = {}
    for trial in earlier.measurements:
        if trial.outcome != NOT_APPLICABLE:
            lasted.setdefault((trial.workload, trial.system), []).append(trial.seconds)
    known = {key: statistics.median(seconds) for key, seconds in lasted.items()}
    seconds, count, unknown = 0.0, 0, 0
    for workload, system in trials:
        count += 1
        unknown += (workload, system) not in known
        seconds += known.get((workload, system), 0.0) or _guess(known, system)
    return Estimate(count, unknown, seconds)


def _guess(known: dict[tuple[str, str], float], system: str) -> float:
    """Return how long a system's trials are, or any system's if that is a new one."""
    of_system = [seconds for (_, name), seconds in known.items() if name == system]
    others = of_system or list(known.values())
    return statistics.median(others) if others else 0.0
