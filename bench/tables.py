"""Which tables does the report show, and what is in their cells?

A cell says what was measured or why not: a system that failed keeps its place in the table, and the message
stands below it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable

from bench import notation
from bench.ratios import Cell, Spread, cell
from bench.requests import TOO_MANY
from bench.results import FAILED, HUNG, KERNEL, NOT_APPLICABLE, OK, Measurement, Results, WorkloadFacts
from bench.targets import Judgement, Verdict, judge

_OPCODES_SHOWN = 4
_WORST_SHOWN = 5


class Footnotes:
    """Messages below a table, each numbered once however many cells refer to it."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def refer(self, message: str) -> str:
        """Return the mark to be set in a cell."""
        number = self._numbers.setdefault(message, len(self._numbers) + 1)
        return f"<sup>{number}</sup>"

    def lines(self) -> list[str]:
        """Return the notes as a Markdown list."""
        return [f"{number}. {notation.escaped(message)}" for message, number in self._numbers.items()]


def figures_table(results: Results, workloads: list[WorkloadFacts]) -> list[str]:
    """Return one table of all systems with its footnotes: medians, ratios to the kernel and their spreads."""
    footnotes = Footnotes()
    rows = [
        [
            _row_name(facts, figure, unit),
            *(_figure_cell(results, facts.name, figure, system, footnotes) for system in results.systems),
        ]
        for facts in workloads
        for figure, unit in facts.figures.items()
    ]
    lines = notation.table(["workload", *results.systems], rows)
    return [*lines, "", *footnotes.lines()] if footnotes.lines() else lines


def _row_name(facts: WorkloadFacts, figure: str, unit: str) -> str:
    name = f"`{facts.name}`" + (f" {notation.escaped(figure)}" if len(facts.figures) > 1 else "")
    return f"{name}<br>{unit}, {facts.caches}"


def _figure_cell(results: Results, workload: str, figure: str, system: str, footnotes: Footnotes) -> str:
    found = cell(results, workload, figure, system)
    remarks = _remarks(found, results.rounds.get(workload, 0))
    mark = "".join(footnotes.refer(remark) for remark in remarks)
    if found.values is None:
        # A trial that is ok may still lack one of its figures.
        word = {OK: "not measured", "": "not measured", NOT_APPLICABLE: notation.NONE}.get(
            found.verdict, found.verdict
        )
        return word + mark
    if found.ratio is None:
        return (
            notation.number(found.values.median)
            + mark
            + _second_line(notation.value_range(found.values), found)
        )
    if system == KERNEL:
        return (
            notation.number(found.values.median)
            + mark
            + _second_line(notation.value_range(found.values), found)
        )
    return f"{notation.number(found.values.median)}{mark}<br>{notation.spread_of_ratios(found.ratio)}"


def _second_line(text: str, found: Cell) -> str:
    return f"<br>({text})" if found.values and found.values.rounds > 1 else ""


def _remarks(found: Cell, planned: int) -> list[str]:
    """Return what has to be said of a cell beside its figures."""
    messages = "; ".join(message for message in found.messages if message) or "no message"
    ran = found.outcomes.total()
    remarks = []
    if found.values is None:
        if found.verdict in (HUNG, FAILED, NOT_APPLICABLE):
            remarks.append(messages)
    elif found.troubled:
        counts = " and ".join(
            f"{found.outcomes[word]} {word}" for word in (HUNG, FAILED) if found.outcomes[word]
        )
        remarks.append(f"of {ran} rounds {counts}: {messages}")
    if found.values and found.ratio and found.ratio.rounds < found.values.rounds:
        remarks.append(f"the ratio leaves out {found.left_out} of {ran} rounds, in which either side failed")
    if 0 < ran < planned and NOT_APPLICABLE not in found.outcomes:
        remarks.append(f"{ran} of {planned} rounds were run")
    return remarks


def described(workloads: Iterable[WorkloadFacts]) -> list[str]:
    """Return a list of what each workload does and stands for."""
    return [
        f"- `{facts.name}`: {notation.escaped(facts.title)}. "
        f"Stands for: {notation.escaped(facts.stands_for)}."
        for facts in workloads
    ]


def worst_table(results: Results) -> list[str]:
    """Return where each system is farthest behind kernel overlay."""
    systems = [name for name in results.systems if name not in (KERNEL, "native")]
    columns = {name: _worst(results, name) for name in systems}
    if not any(columns.values()):
        return []
    rows = [
        [str(place + 1), *(column[place] if place < len(column) else "" for column in columns.values())]
        for place in range(max(map(len, columns.values())))
    ]
    return notation.table(["", *systems], rows, "l" * (1 + len(systems)))


def _worst(results: Results, system: str) -> list[str]:
    found: list[tuple[float, str]] = []
    for facts in results.workloads.values():
        for figure in facts.figures:
            ratio = cell(results, facts.name, figure, system).ratio
            if ratio and ratio.median > 1:
                name = f"`{facts.name}`" + (f" {notation.escaped(figure)}" if len(facts.figures) > 1 else "")
                found.append((ratio.median, f"{name} {notation.ratio(ratio.median)}"))
    found.sort(key=lambda pair: -pair[0])
    return [text for _, text in found[:_WORST_SHOWN]]


TARGETS_HEADING = ("what", "work", "system", "against", "at most", "measured", "")


def target_rows(results: Results) -> list[list[str]]:
    """Return what was reached, a row for each bar; what a line is about stands in its first row only."""
    rows, before = [], ""
    for judgement in judge(results):
        target = judgement.target
        work = target.workload + (f" {target.figure}" if target.figure else "")
        work += f" / {target.grown_from}" if target.grown_from else ""
        rows.append(
            [
                target.line if target.line != before else "",
                work,
                target.system,
                target.against or "",
                notation.ratio(target.at_most)
                if target.against
                else f"{notation.number(target.at_most)} {judgement.unit}",
                _judged(judgement),
                judgement.verdict.value,
            ]
        )
        before = target.line
    return rows


def _judged(judgement: Judgement) -> str:
    if judgement.measured is None:
        return ""
    if judgement.target.against:
        return notation.spread_of_ratios(judgement.measured)
    return notation.spread_of_values(judgement.measured)


def targets_table(results: Results) -> list[str]:
    """Return the rows of what was reached as a table, [] if nothing of it was measured."""
    rows = target_rows(results)
    if all(row[-1] == Verdict.UNKNOWN.value for row in rows):
        return []
    for row in rows:
        row[1] = " / ".join(f"`{name}`" for name in row[1].split(" / "))
        row[-1] = f"**{row[-1]}**" if row[-1] == Verdict.MISSED.value else row[-1]
    return notation.table(TARGETS_HEADING, rows, "llllrrl")


def targets_summary(results: Results) -> str:
    """Return how many bars were reached, in a sentence."""
    verdicts = Counter(judgement.verdict for judgement in judge(results))
    counts = ", ".join(f"{verdicts[verdict]} {verdict.value}" for verdict in Verdict if verdicts[verdict])
    return f"{verdicts.total()} bars: {counts}."


def daemon_cpu_table(results: Results) -> list[str]:
    """Return the CPU seconds of each system's daemon for each workload, [] if none has a daemon."""
    return _table_of_trials(
        results,
        results.systems,
        lambda trial: trial.daemon_cpu_seconds,
        lambda spread: notation.number(spread.median),
    )


def requests_table(results: Results) -> list[str]:
    """Return how many FUSE requests each workload made of each system, [] if none were counted."""
    return _table_of_trials(
        results,
        results.systems,
        lambda trial: None if trial.requests is None else sum(trial.requests.values()),
        _counts,
    )


def _counts(spread: Spread) -> str:
    if spread.least == spread.most:
        return f"{spread.median:,.0f}"
    return f"{spread.median:,.0f}<br>({spread.least:,.0f}{notation.TO}{spread.most:,.0f})"


def _table_of_trials(
    results: Results,
    systems: Iterable[str],
    value: Callable[[Measurement], float | None],
    written: Callable[[Spread], str],
) -> list[str]:
    """Return a table of what the trials' ``value`` says, of the systems and workloads that have any."""
    spreads = {
        (workload, system): Spread.of(
            found
            for trial in results.of(workload, system)
            if trial.outcome == OK and (found := value(trial)) is not None
        )
        for workload in results.workloads
        for system in systems
    }
    columns = [system for system in systems if any(spreads[name, system] for name in results.workloads)]
    rows = []
    for workload in results.workloads:
        row = [spreads[workload, system] for system in columns]
        if any(row):
            rows.append([f"`{workload}`", *(written(spread) if spread else "" for spread in row)])
    return notation.table(["workload", *columns], rows) if rows else []


def opcodes_table(results: Results, system: str) -> list[str]:
    """Return which requests each workload made most of on a system, [] if none were counted."""
    rows = []
    for workload in results.workloads:
        counts = _medians([trial.requests for trial in _ok(results, workload, system)])
        if counts and TOO_MANY not in counts:
            rows.append([f"`{workload}`", f"{sum(counts.values()):,}", _top(counts)])
    return notation.table(["workload", "requests", "most of them"], rows, "lrl") if rows else []


def _top(counts: dict[str, int]) -> str:
    ordered = sorted((pair for pair in counts.items() if pair[1]), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{opcode} {count:,}" for opcode, count in ordered[:_OPCODES_SHOWN]]
    rest = sum(count for _, count in ordered[_OPCODES_SHOWN:])
    return ", ".join(shown) + (f", others {rest:,}" if rest else "")


def paths_table(results: Results) -> list[str]:
    """Return the share of the requests that went each way through pyoverlay, [] if nobody says."""
    systems = [
        name for name in results.systems if any(m.system == name and m.paths for m in results.measurements)
    ]
    rows = []
    for workload in results.workloads:
        shares = [
            _shares(_medians([trial.paths for trial in _ok(results, workload, system)])) for system in systems
        ]
        if any(shares):
            rows.append([f"`{workload}`", *shares])
    return notation.table(["workload", *systems], rows, "l" * (1 + len(systems))) if rows else []


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{path} {count / total:.1%}" for path, count in ordered if count)


def _medians(counted: Iterable[dict[str, int] | None]) -> dict[str, int]:
    """Return for each word the median of its counts over the rounds that were counted."""
    rounds = [counts for counts in counted if counts is not None]
    words = dict.fromkeys(word for counts in rounds for word in counts)
    return {word: round(statistics.median(counts.get(word, 0) for counts in rounds)) for word in words}


def _ok(results: Results, workload: str, system: str) -> list[Measurement]:
    return [trial for trial in results.of(workload, system) if trial.outcome == OK]
