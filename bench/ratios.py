"""How many times worse than the kernel's overlay is a system, and did that move between two runs?

Pure: it computes on `bench.results` and reads or writes nothing. A ratio above 1 is always worse than kernel
overlay, whether the figure is a time, a size or a rate. It is taken round by round, between trials that ran
soon after each other: what slows the machine for longer than a round slows both sides of it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from bench.results import FAILED, HUNG, KERNEL, NOT_APPLICABLE, OK, Results
from bench.workloads.workload import Unit

MOVED_AT_LEAST = 1.05
"""Medians closer than this factor did not move, however narrow their spreads are."""

ENOUGH_ROUNDS = 3
"""With fewer, smallest and largest say little of the noise."""

ASSUMED_NOISE = 1.25
"""With too few rounds, a median is taken to be anywhere between itself divided and multiplied by this."""

_RATES = {unit.value for unit in Unit if unit.more_is_better}


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some rounds."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of the values, None without any."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))

    @property
    def noise(self) -> tuple[float, float]:
        """Between which values the median may lie if it is taken again."""
        if self.rounds >= ENOUGH_ROUNDS:
            return self.least, self.most
        return min(self.least, self.median / ASSUMED_NOISE), max(self.most, self.median * ASSUMED_NOISE)


@dataclass(frozen=True)
class Cell:
    """A figure of a workload on a system.

    Attributes:
        values: In the figure's unit; None if no round has one.
        ratio: Times worse than kernel overlay; None without a reference.
        left_out: How many rounds have no ratio because either side failed.
        outcomes: How many rounds ended how.
        messages: Why rounds are not ok, each once.
    """

    values: Spread | None
    ratio: Spread | None
    left_out: int
    outcomes: Counter[str]
    messages: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The worst outcome of the rounds, to show where there is no value; "" if there was none."""
        return next((word for word in (HUNG, FAILED, NOT_APPLICABLE, OK) if self.outcomes[word]), "")

    @property
    def troubled(self) -> bool:
        """Whether any round failed or hung."""
        return bool(self.outcomes[FAILED] or self.outcomes[HUNG])


def is_rate(unit: str) -> bool:
    """Tell whether more is better of a figure in ``unit``, as printed."""
    return unit in _RATES


def times_worse(value: float, kernel: float, unit: str) -> float | None:
    """Return how many times worse ``value`` is than the kernel's, None if that has no meaning."""
    if value <= 0 or kernel <= 0:
        return None
    return kernel / value if is_rate(unit) else value / kernel


def cell(results: Results, workload: str, figure: str, system: str) -> Cell:
    """Return what the rounds of a workload on a system say of one of its figures."""
    trials = results.of(workload, system)
    unit = results.workloads[workload].figures[figure]
    values = figures_by_round(results, workload, figure, system)
    kernel = figures_by_round(results, workload, figure, KERNEL)
    ratios = [times_worse(values[number], kernel[number], unit) for number in values if number in kernel]
    found = [ratio for ratio in ratios if ratio is not None]
    return Cell(
        values=Spread.of(values.values()),
        ratio=Spread.of(found),
        left_out=sum(trial.outcome != NOT_APPLICABLE for trial in trials) - len(found),
        outcomes=Counter(trial.outcome for trial in trials),
        messages=tuple(dict.fromkeys(trial.message for trial in trials if trial.outcome != OK)),
    )


def figures_by_round(results: Results, workload: str, figure: str, system: str) -> dict[int, float]:
    """Return the figure of each round that has one."""
    return {
        trial.round: trial.figures[figure]
        for trial in results.of(workload, system)
        if trial.outcome == OK and figure in trial.figures
    }


class Verdict(Enum):
    """What became of a figure; the value is what a table prints."""

    BROKEN = "fails now"
    SLOWER = "worse"
    FASTER = "better"
    MENDED = "works now"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Change:
    """A figure of a workload on a system in two runs.

    Attributes:
        workload: The workload's name.
        figure: The figure's name.
        system: The system's name.
        unit: The figure's unit, as printed.
        of_ratios: Whether ``old`` and ``new`` are ratios to the kernel's; if not, plain values.
        old: None if there is none.
        new: None if there is none.
        verdict: What became of it.
    """

    workload: str
    figure: str
    system: str
    unit: str
    of_ratios: bool
    old: Spread | None
    new: Spread | None
    verdict: Verdict

    @property
    def factor(self) -> float:
        """How many times worse it became; below 1 for better, 1 where that cannot be said."""
        if self.old is None or self.new is None or self.old.median <= 0 or self.new.median <= 0:
            return 1.0
        factor = self.new.median / self.old.median
        return 1 / factor if not self.of_ratios and is_rate(self.unit) else factor


@dataclass(frozen=True)
class Comparison:
    """Two runs: what both have, and the names of what only one of them has."""

    changes: list[Change]
    only_old: list[str]
    only_new: list[str]


def compare(old: Results, new: Results) -> Comparison:
    """Return what became of each figure of each workload on each system but the kernel, the reference."""
    changes = []
    for workload, figure, system in _figures(old):
        if system != KERNEL and _has(new, workload, figure, system):
            before, after = cell(old, workload, figure, system), cell(new, workload, figure, system)
            unit = new.workloads[workload].figures[figure]
            of_ratios = before.ratio is not None and after.ratio is not None
            spreads = (before.ratio, after.ratio) if of_ratios else (before.values, after.values)
            verdict = _verdict(before, after, *spreads, more_is_better=is_rate(unit) and not of_ratios)
            changes.append(Change(workload, figure, system, unit, of_ratios, *spreads, verdict))
    return Comparison(changes, _only_in(old, new), _only_in(new, old))


def _verdict(
    before: Cell, after: Cell, old: Spread | None, new: Spread | None, *, more_is_better: bool
) -> Verdict:
    # A failure is no noise: one round that hangs where none did is news.
    if before.troubled != after.troubled:
        return Verdict.BROKEN if after.troubled else Verdict.MENDED
    if old and new:
        return moved(old, new, more_is_better=more_is_better)
    return Verdict.UNCHANGED


def moved(old: Spread, new: Spread, *, more_is_better: bool = False) -> Verdict:
    """Tell whether the median moved beyond noise.

    It did if the spreads do not overlap and the medians differ by `MOVED_AT_LEAST`.
    """
    old_least, old_most = old.noise
    new_least, new_most = new.noise
    if new_least > old_most and new.median >= old.median * MOVED_AT_LEAST:
        return Verdict.FASTER if more_is_better else Verdict.SLOWER
    if new_most < old_least and old.median >= new.median * MOVED_AT_LEAST:
        return Verdict.SLOWER if more_is_better else Verdict.FASTER
    return Verdict.UNCHANGED


def _figures(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield workload, figure and system of all that was run, in the order of the tables."""
    for workload, facts in results.workloads.items():
        for system in results.systems:
            if _was_run(results, workload, system):
                for figure in facts.figures:
                    yield workload, figure, system


def _was_run(results: Results, workload: str, system: str) -> bool:
    return any(trial.outcome != NOT_APPLICABLE for trial in results.of(workload, system))


def _has(results: Results, workload: str, figure: str, system: str) -> bool:
    facts = results.workloads.get(workload)
    return facts is not None and figure in facts.figures and _was_run(results, workload, system)


def _only_in(results: Results, other: Results) -> list[str]:
    """Name what the other run lacks, whole systems and workloads by one name."""
    systems = {system for _, _, system in _figures(other)}
    workloads = {workload for workload, _, _ in _figures(other)}
    names = []
    for workload, figure, system in _figures(results):
        if _has(other, workload, figure, system):
            continue
        if system not in systems:
            names.append(f"system {system}")
        elif workload not in workloads:
            names.append(f"workload {workload}")
        elif figure not in other.workloads[workload].figures:
            names.append(f"figure {figure} of {workload}")
        else:
            names.append(f"{workload} on {system}")
    return list(dict.fromkeys(names))
