"""Which figures moved beyond noise between two runs, in words for a person?"""

from __future__ import annotations

from bench.errors import BenchError
from bench.notation import TIMES, number, spread_of_ratios, spread_of_values, table
from bench.ratios import (
    ASSUMED_NOISE,
    ENOUGH_ROUNDS,
    MOVED_AT_LEAST,
    Change,
    Comparison,
    Spread,
    Verdict,
)
from bench.ratios import compare as compare_figures
from bench.results import Results

_SHOWN = (Verdict.BROKEN, Verdict.SLOWER, Verdict.FASTER, Verdict.MENDED)


def compare(old: Results, new: Results) -> str:
    """Return Markdown that says what moved; ratios to the kernel's figures where both runs have them.

    Raises:
        BenchError: The runs are of different scales.
    """
    if old.scale != new.scale:
        raise BenchError(
            f"the old run is of scale {old.scale}, the new one {new.scale}: their work is not the same; "
            "compare runs of one scale"
        )
    found = compare_figures(old, new)
    moved = sorted(
        (change for change in found.changes if change.verdict is not Verdict.UNCHANGED), key=_severity
    )
    parts = [_differing_circumstances(old, new), _table(moved), _summary(found), _lonely(found)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _severity(change: Change) -> tuple[int, float]:
    """Order by verdict, the largest change first."""
    factor = change.factor
    return _SHOWN.index(change.verdict), factor if change.verdict is Verdict.FASTER else -factor


def _differing_circumstances(old: Results, new: Results) -> list[str]:
    lines = [
        f"- {word}: {old.machine.get(word, 'unknown')} -> {new.machine.get(word, 'unknown')}"
        for word in dict.fromkeys([*old.machine, *new.machine])
        if word != "date" and old.machine.get(word) != new.machine.get(word)
    ]
    for name, system in old.systems.items():
        other = new.systems.get(name)
        if other and (system.version, system.command) != (other.version, other.command):
            lines.append(
                f"- {name}: {_described(system.version, system.command)} -> "
                f"{_described(other.version, other.command)}"
            )
    return ["Not the same in both runs:", "", *lines] if lines else []


def _described(version: str, command: str) -> str:
    return f"{version} (`{command}`)"


def _table(moved: list[Change]) -> list[str]:
    rows = [
        [
            change.verdict.value,
            f"{change.workload} {change.figure}",
            change.system,
            _written(change.old, change),
            _written(change.new, change),
            _factor(change),
        ]
        for change in moved
    ]
    return table(["", "workload", "system", "old", "new", "change"], rows, "lllrrr") if rows else []


def _written(spread: Spread | None, change: Change) -> str:
    if spread is None:
        return "none"
    return (
        spread_of_ratios(spread) if change.of_ratios else f"{spread_of_values(spread)} {change.unit} [value]"
    )


def _factor(change: Change) -> str:
    if change.old is None or change.new is None or change.factor == 1:
        return ""
    more, word = (change.factor, "worse") if change.factor > 1 else (1 / change.factor, "better")
    return f"{TIMES}{number(more)} {word}"


def _summary(found: Comparison) -> list[str]:
    unchanged = sum(change.verdict is Verdict.UNCHANGED for change in found.changes)
    noise = f"the rounds' ranges overlap, or the medians differ by less than {MOVED_AT_LEAST - 1:.0%}"
    lines = [f"{unchanged} of {len(found.changes)} figures did not move beyond noise: {noise}."]
    spreads = [spread for change in found.changes for spread in (change.old, change.new) if spread]
    if any(spread.rounds < ENOUGH_ROUNDS for spread in spreads):
        lines.append(
            f"Where a run has less than {ENOUGH_ROUNDS} rounds, its median counts as uncertain "
            f"by a factor of {ASSUMED_NOISE}."
        )
    if any(not change.of_ratios for change in found.changes):
        lines.append(
            "Figures marked [value] have no reference on kernel overlay: they are compared as they are, "
            "and move with the machine."
        )
    return lines


def _lonely(found: Comparison) -> list[str]:
    """Name what only one of the runs has."""
    sides = (("old", found.only_old), ("new", found.only_new))
    return [f"Only in the {side} run: {', '.join(names)}." for side, names in sides if names]
