"""Which page tells a person what a run found? Markdown with tables and charts, beside the results' file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench import chart, notation, tables
from bench.errors import BenchError
from bench.ratios import Spread
from bench.results import KERNEL, Results, WorkloadFacts
from bench.workloads.workload import GROUPS

_HOW_TO_READ = """\
Each row is a piece of work, each column a system that did it on the same layers. The first number
of a cell is the median of the rounds, in the row's unit. Below it stands how many **times worse
than kernel overlay** that is: TIMES1 is as good as the kernel, TIMES2 takes twice the time or
memory, or does half the work in a second; less than TIMES1 is better than the kernel. The ratio is
taken round by round, against the kernel's figure of the same round; the cell shows the median of
these ratios, with the smallest and the largest in brackets. The kernel's own column, and figures
for which the kernel has no reference, show the smallest and largest value instead.

The word after the unit says what the caches held when measuring began: *cold*, dropped just before
(page cache, directory entries and inodes of the whole machine); *warm*, filled by the same work
done once before; *as written*, left as the preparation of the work left them. *native* is a plain
directory that holds the merged tree: the floor, not a competitor. The systems took turns in each
round, on freshly mounted layers with an empty upper. A trial that failed or hung keeps its place,
with the message below the table; so does, as \N{EM DASH}, one that was left out.""".replace(
    "TIMES", notation.TIMES
)

_TARGETS = """\
Each bar says how many times worse than another system a figure of ours may be at most, or how much it
may be itself. What was measured is the median of the rounds' ratios, with smallest and largest; the
median decides. At most TIMES0.50 is half of the time; at most TIMES1.11 is 0.9 of the throughput.""".replace(
    "TIMES", notation.TIMES
)

_DAEMON_CPU = """\
User and system time of the daemon's processes while the work was measured, median of the rounds."""
_REQUESTS = """\
What the kernel sent to the daemon while the work was measured, counted by the kernel; median of the
rounds, with smallest and largest where they differ."""
_PATHS = """\
The share of the requests that took each path, by pyoverlay's own counters."""


BEGIN = "<!-- newest full run: begin -->"
END = "<!-- newest full run: end -->"


def write_report(results_path: Path) -> list[Path]:
    """Write NAME.md and the charts beside NAME.json, and return what was written, the page first.

    Raises:
        BenchError: The results cannot be read, or the report cannot be written.
    """
    results = Results.load(results_path)
    name = results_path.stem
    try:
        charts = _write_charts(results, results_path.with_suffix(""))
        page = results_path.with_suffix(".md")
        shown = {path.name for path in charts}
        page.write_text(_page(results, name, shown), encoding="utf-8")
    except OSError as error:
        raise BenchError(
            f"{error.filename or results_path.parent}: the report cannot be written: {error.strerror}"
        ) from error
    return [page, *charts]


def insert_report(results_path: Path, page: Path) -> None:
    """Put the report of a run into another page, between the lines `BEGIN` and `END` there.

    Its headings go two levels down, and its images are found from where ``page`` is.

    Raises:
        BenchError: The results or the page cannot be read, the page has no such lines or cannot be written.
    """
    results = Results.load(results_path)
    beside = os.path.relpath(results_path.parent, page.parent)
    charts = {file.name for file in results_path.parent.glob(f"{results_path.stem}*.svg")}
    report = _page(results, results_path.stem, charts)
    report = re.sub(r"^(#+ )", r"##\1", report, flags=re.MULTILINE)
    report = re.sub(r"^(!\[.*\]\()", rf"\1{beside}/", report, flags=re.MULTILINE)
    try:
        text = page.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise BenchError(f"{page}: no place for the report: it needs the lines {BEGIN} and {END}")
        page.write_text(f"{before}{begin}\n\n{report}\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{page}: the report cannot be put there: {error.strerror}") from error


def _write_charts(results: Results, beside: Path) -> list[Path]:
    systems = list(results.systems)
    title = "times worse than kernel overlay (further right is worse)"
    written = chart.write(chart.overview_rows(results), systems, f"All work: {title}", beside)
    for group, workloads in _groups(results).items():
        rows = chart.group_rows(results, workloads)
        file = beside.with_name(f"{beside.name}-{group}")
        written += chart.write(rows, systems, f"{group.capitalize()}: {title}", file)
    return written


def _groups(results: Results) -> dict[str, list[WorkloadFacts]]:
    """Return the workloads that have a trial, by group, in the order of the tables."""
    run = {measurement.workload for measurement in results.measurements}
    names = dict.fromkeys([*GROUPS, *(facts.group for facts in results.workloads.values())])
    groups = {
        name: [f for f in results.workloads.values() if f.group == name and f.name in run] for name in names
    }
    return {name: workloads for name, workloads in groups.items() if workloads}


def _page(results: Results, name: str, shown: set[str]) -> str:
    """Return the page; ``shown`` are the names of the charts that there are."""
    parts = [
        [f"# Benchmark: {notation.escaped(name)}", "", *_head(results)],
        ["## Systems", "", *_systems(results)],
        ["## How to read it", "", _HOW_TO_READ],
        _image(name, "Overview", shown),
        _targets(results),
        _section("Farthest behind kernel overlay", "", tables.worst_table(results)),
        *(_group_section(results, name, group, found, shown) for group, found in _groups(results).items()),
        _section("CPU seconds of the daemons", _DAEMON_CPU, tables.daemon_cpu_table(results)),
        _section("FUSE requests", _REQUESTS, tables.requests_table(results)),
        *(
            _section(f"FUSE requests of {system} by opcode", "", tables.opcodes_table(results, system))
            for system in results.systems
            if system == "pyoverlay"
        ),
        _section(
            "Which way requests go through pyoverlay",
            _PATHS,
            tables.paths_table(results),
        ),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(results: Results) -> list[str]:
    facts = dict(results.machine)
    facts["scale"] = {"quick": "quick: a part of the work, at a tenth of its size"}.get(
        results.scale, results.scale
    )
    facts["rounds"] = _rounds(results)
    load = Spread.of(measurement.load for measurement in results.measurements)
    if load:
        facts["load"] = (
            f"{load.least:.1f} to {load.most:.1f}, median {load.median:.1f} "
            "(average of a minute, when each trial began)"
        )
    facts["trials"] = _trials(results)
    rows = [[word, notation.escaped(text)] for word, text in facts.items()]
    return notation.table(["taken on", ""], rows, "ll")


def _targets(results: Results) -> list[str]:
    text = f"{_TARGETS}\n\n{tables.targets_summary(results)}"
    return _section("What is to be reached", text, tables.targets_table(results))


def _rounds(results: Results) -> str:
    """Say how many rounds there were, naming the workloads that had another number than most."""
    numbers = sorted(set(results.rounds.values()), reverse=True)
    if len(numbers) <= 1:
        return str(numbers[0]) if numbers else "none"
    names = {
        number: [name for name, found in results.rounds.items() if found == number] for number in numbers
    }
    usual = max(numbers, key=lambda number: len(names[number]))
    others = [f"{number} of {', '.join(names[number])}" for number in numbers if number != usual]
    return f"{usual}; {'; '.join(others)}"


def _trials(results: Results) -> str:
    minutes = sum(measurement.seconds for measurement in results.measurements) / 60
    outcomes = [measurement.outcome for measurement in results.measurements]
    counts = ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes))
    return f"{len(outcomes)} ({counts}) in {minutes:.0f} min"


def _systems(results: Results) -> list[str]:
    rows = [
        [facts.name, notation.escaped(facts.version), f"`{facts.command}`" if facts.command else ""]
        for facts in results.systems.values()
    ]
    lines = notation.table(["system", "version", "mounted by"], rows, "lll")
    if KERNEL not in results.systems:
        lines += ["", f"The system *{KERNEL}* was not run: there are no ratios."]
    return lines


def _group_section(
    results: Results, name: str, group: str, workloads: list[WorkloadFacts], shown: set[str]
) -> list[str]:
    return [
        f"## {group}",
        "",
        *_image(f"{name}-{group}", group, shown),
        *([""] if f"{name}-{group}.svg" in shown else []),
        *tables.figures_table(results, workloads),
        "",
        *tables.described(workloads),
    ]


def _image(name: str, title: str, shown: set[str]) -> list[str]:
    return [f"![{title}: times worse than kernel overlay]({name}.svg)"] if f"{name}.svg" in shown else []


def _section(title: str, text: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *([text, ""] if text else []), *lines] if lines else []
