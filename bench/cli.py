"""What does a person type, and what is shown while it runs? The commands run, report, targets and compare."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import kernel, machine
from bench.comparison import compare
from bench.errors import BenchError
from bench.estimate import estimate
from bench.report import insert_report, write_report
from bench.results import KERNEL, Results, SystemFacts, WorkloadFacts
from bench.runner import Planned, Runner, plan, reason_against, rounds_of
from bench.systems import System, choose
from bench.tables import TARGETS_HEADING, target_rows, targets_summary
from bench.targets import Verdict
from bench.workloads.catalogue import ALL
from bench.workloads.workload import GROUPS, Scale, Workload

_WIDTH_OF_FILES = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.command(parsed)
        return status
    except BenchError as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; --resume goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="The same work on kernel overlayfs, pyoverlay and its FUSE peers, side by side.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="measure", description="Measure; needs root."))
    report = commands.add_parser("report", help="write tables and charts of a run, beside its file")
    report.add_argument("results", type=Path, metavar="RESULTS.json")
    report.add_argument("--into", type=Path, metavar="PAGE.md", help="put the tables into this page, too")
    report.set_defaults(command=_report)
    targets = commands.add_parser("targets", help="say whether a run reached what is to be reached")
    targets.add_argument("results", type=Path, metavar="RESULTS.json")
    targets.set_defaults(command=_targets)
    compare = commands.add_parser("compare", help="say what moved beyond noise between two runs")
    compare.add_argument("old", type=Path, metavar="OLD.json")
    compare.add_argument("new", type=Path, metavar="NEW.json")
    compare.set_defaults(command=_compare)
    listing = commands.add_parser("list", help="list workloads and systems")
    listing.set_defaults(command=_list)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--systems", metavar="NAME,...", help="which systems (default: all; see the command list)"
    )
    run.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        dest="programs",
        help="one more system: a program with fuse-overlayfs's command line",
    )
    run.add_argument(
        "--workloads", metavar="NAME,...", help=f"which workloads or groups ({', '.join(GROUPS)})"
    )
    run.add_argument("--quick", action="store_true", help="a part of the workloads, at a tenth of their size")
    run.add_argument(
        "--repeat", type=_positive, metavar="N", help="rounds (default: 5; 3 for heavy work and --quick)"
    )
    run.add_argument("--resume", action="store_true", help="keep what --out holds, and do only what it lacks")
    run.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="where layers are made (default: %(default)s)",
    )
    run.add_argument(
        "--out", type=Path, required=True, metavar="RESULTS.json", help="where figures are written"
    )
    run.set_defaults(command=_run)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _run(parsed: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise BenchError("mounting and dropping caches needs root; run it as root")
    scale = Scale.QUICK if parsed.quick else Scale.FULL
    systems = choose(parsed.systems, parsed.programs)
    workloads = _choose_workloads(parsed.workloads, scale)
    results = _results(parsed, scale, systems, workloads)
    rounds = {workload.name: rounds_of(workload, parsed.repeat, scale) for workload in workloads}
    results.rounds.update(rounds)
    _say_how_long(results, workloads, systems, rounds, scale)
    signal.signal(signal.SIGTERM, _interrupt)
    kernel.enter_private_mount_namespace()
    kernel.adopt_orphans()
    try:
        directory = Path(tempfile.mkdtemp(prefix="pyoverlay-bench-", dir=parsed.directory))
    except OSError as failure:
        raise BenchError(f"--directory {parsed.directory}: {failure.strerror}") from failure
    runner = Runner(directory, scale, results)
    try:
        _do_all(runner, results, workloads, systems, rounds, parsed.out)
    finally:
        runner.close()
        results.save(parsed.out)
    return _summary(results, parsed.out)


def _say_how_long(
    results: Results, workloads: list[Workload], systems: list[System], rounds: dict[str, int], scale: Scale
) -> None:
    trials = [
        (workload.name, planned.system.name)
        for workload in workloads
        for planned in plan(workload, systems, rounds[workload.name])
        if reason_against(workload, planned.system) is None
        and not results.done(workload.name, planned.system.name, planned.round)
    ]
    print(_estimated(trials, scale), file=sys.stderr)


def _estimated(trials: list[tuple[str, str]], scale: Scale) -> str:
    """Return how long trials will take, by the run of this scale that was kept, if there is one."""
    kept = Path(__file__).parent / "results" / f"{scale.value}.json"
    try:
        earlier = Results.load(kept)
    except BenchError:
        earlier = Results()
    return estimate(trials, earlier).said(kept.name)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _choose_workloads(names: str | None, scale: Scale) -> list[Workload]:
    """Return the workloads named, or those of a quick run, in the order of the table."""
    if names is None:
        return [workload for workload in ALL.values() if workload.quick or scale is Scale.FULL]
    chosen = {name for name in names.split(",") if name}
    unknown = chosen - set(ALL) - set(GROUPS)
    if unknown or not chosen:
        raise BenchError(f"--workloads: no {', '.join(sorted(unknown)) or 'name'}; see python -m bench list")
    return [
        workload
        for workload in ALL.values()
        if workload.name in chosen or (workload.group in chosen and (workload.quick or scale is Scale.FULL))
    ]


def _results(
    parsed: argparse.Namespace, scale: Scale, systems: list[System], workloads: list[Workload]
) -> Results:
    facts = machine.describe(parsed.directory)
    results = Results(scale=scale.value, machine=facts)
    if parsed.resume and parsed.out.exists():
        results = Results.load(parsed.out)
        if results.scale != scale.value:
            raise BenchError(
                f"{parsed.out} holds a {results.scale} run; resume it as such, or name another file"
            )
    for system in systems:
        found = SystemFacts(system.name, system.version(), system.command_shown())
        known = results.systems.setdefault(system.name, found)
        if known != found:
            raise BenchError(
                f"{parsed.out} was made with {system.name} {known.version}, here is {found.version}; "
                "figures of two versions don't belong in one table: name another file"
            )
    for workload in workloads:
        results.workloads[workload.name] = _facts(workload)
    return results


def _facts(workload: Workload) -> WorkloadFacts:
    return WorkloadFacts(
        name=workload.name,
        group=workload.group,
        title=workload.title,
        stands_for=workload.stands_for,
        caches=workload.caches.value,
        figures={figure: unit.value for figure, unit in workload.figures.items()},
        heavy=workload.heavy,
    )


def _do_all(
    runner: Runner,
    results: Results,
    workloads: list[Workload],
    systems: list[System],
    rounds: dict[str, int],
    out: Path,
) -> None:
    # No refreshing thread: trials are forked from this process.
    progress = Progress(
        TextColumn("{task.description:<58}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        auto_refresh=False,
        console=Console(stderr=True),
    )
    with progress:
        task = progress.add_task("", total=sum(rounds.values()) * len(systems))

        def show(planned: Planned) -> None:
            progress.update(
                task,
                description=f"{planned.workload.name} · {planned.system.name} · round {planned.round + 1}",
            )
            progress.refresh()
            progress.advance(task)

        for number, workload in enumerate(workloads, 1):
            progress.update(task, description=f"{workload.name}: making its layers")
            progress.refresh()
            if not progress.console.is_terminal:
                progress.console.print(f"{number} of {len(workloads)}: {workload.name}")
            runner.run_workload(workload, systems, rounds[workload.name], show)
            results.save(out)
        progress.update(task, description="done")
        progress.refresh()


def _summary(results: Results, out: Path) -> int:
    """Say what went wrong; the status is that of the benchmark, not of the systems that it measured."""
    wrong = sorted(
        {
            (m.workload, m.system, m.outcome, m.message)
            for m in results.measurements
            if m.outcome in ("failed", "hung")
        }
    )
    for workload, system, outcome, message in wrong:
        print(f"{workload} on {system}: {outcome}: {message}", file=sys.stderr)
    print(f"{out}: {len(results.measurements)} trials, {len(wrong)} kinds of failure", file=sys.stderr)
    if KERNEL not in results.systems:
        print(f"no {KERNEL} among the systems: the report will show no ratios", file=sys.stderr)
    return 0


def _report(parsed: argparse.Namespace) -> int:
    for path in write_report(parsed.results):
        print(path)
    if parsed.into is not None:
        insert_report(parsed.results, parsed.into)
        print(parsed.into)
    return 0


def _compare(parsed: argparse.Namespace) -> int:
    print(compare(Results.load(parsed.old), Results.load(parsed.new)))
    return 0


def _targets(parsed: argparse.Namespace) -> int:
    results = Results.load(parsed.results)
    table = Table(*TARGETS_HEADING, box=box.SIMPLE_HEAD)
    for row in target_rows(results):
        table.add_row(*row, style="bold" if row[-1] == Verdict.MISSED.value else None)
    console = Console()
    if not console.is_terminal:
        # Else lines are broken for a terminal that isn't there.
        console = Console(width=_WIDTH_OF_FILES)
    console.print(table)
    print(targets_summary(results))
    return 0


def _list(_parsed: argparse.Namespace) -> int:
    for workload in ALL.values():
        marks = "".join(f", {mark}" for mark in ("heavy", "quick") if getattr(workload, mark))
        print(f"{workload.group:9} {workload.name:28} {workload.title} [{workload.caches.value}{marks}]")
    systems = choose(None, [])
    for system in systems:
        print(f"{'system':9} {system.name:28} {system.command_shown()}")
    trials = [
        (workload.name, planned.system.name)
        for workload in ALL.values()
        for planned in plan(workload, systems, rounds_of(workload, None, Scale.FULL))
        if reason_against(workload, planned.system) is None
    ]
    print(f"All of it: {_estimated(trials, Scale.FULL)}.")
    return 0
