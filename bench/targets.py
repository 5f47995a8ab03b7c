"""What is to be reached, and was it, by a run's figures?

The bars are declared here as data; each is judged by the median of the rounds' ratios.  Pure: it computes on
`bench.results` and reads or writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from bench.ratios import Spread, figures_by_round, times_worse
from bench.results import KERNEL, Results
from bench.systems import NO_PASSTHROUGH, PASSTHROUGH_ALL

OURS: Final = "pyoverlay"
_F: Final = "fuse-overlayfs"
_U: Final = "unionfs-fuse"

_ONE_COPY: Final = 1.25
"""Of page cache: what the kernel needs, and what a daemon reads for itself; two copies are 2."""


@dataclass(frozen=True)
class Target:
    """One bar for one figure.

    Attributes:
        line: What is to be reached, in words; the same for all bars of a line.
        workload: The workload's name.
        at_most: Times worse than ``against``; without it, in the figure's unit.
        against: The system to which the figure is compared; None for an absolute bar.
        figure: The figure's name; None for the workload's first.
        system: Whose figure it is.
        grown_from: A workload of the same figure: what is compared is how many times it is exceeded.
    """

    line: str
    workload: str
    at_most: float
    against: str | None = None
    figure: str | None = None
    system: str = OURS
    grown_from: str | None = None


class Verdict(Enum):
    """Whether a bar was reached; the value is what a table prints."""

    MET = "met"
    MISSED = "not met"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Judgement:
    """What a run says of a target.

    Attributes:
        target: The target.
        measured: Times worse than the reference; the figures themselves of an absolute bar; None without any.
        unit: The figure's, as printed; "" of ratios.
    """

    target: Target
    measured: Spread | None
    unit: str

    @property
    def verdict(self) -> Verdict:
        """Judge by the median."""
        if self.measured is None:
            return Verdict.UNKNOWN
        return Verdict.MET if self.measured.median <= self.target.at_most else Verdict.MISSED


def _bars(
    line: str, workloads: str, *bars: tuple[str, float], system: str = OURS, figure: str | None = None
) -> list[Target]:
    """Return bars, each against a system, for each of some workloads."""
    return [
        Target(line, workload, at_most, against, figure, system)
        for workload in workloads.split()
        for against, at_most in bars
    ]


_READS: Final = "sequential-read-cold sequential-read-warm random-read-first mmap-random-read".split()
_OF_LOWERS: Final = " ".join([*_READS, "random-read-cold", "random-read-warm"])
_READ_ONLY: Final = " ".join(f"{read}-read-only" for read in _READS)
_OF_UPPERS: Final = " ".join(f"{read}-upper" for read in _READS)

_NINE_TENTHS: Final = 1 / 0.9
"""Times worse, of 0.9 of the throughput."""

TARGETS: Final = (
    *_bars("reads of upper files", _OF_UPPERS, (KERNEL, _NINE_TENTHS)),
    *_bars("reads of lowers in a read-only mount", _READ_ONLY, (KERNEL, _NINE_TENTHS)),
    *_bars(
        "reads of lowers with passthrough=all", _OF_LOWERS, (KERNEL, _NINE_TENTHS), system=PASSTHROUGH_ALL
    ),
    *_bars("4 KiB overwrite", "random-overwrite", (KERNEL, _NINE_TENTHS)),
    *_bars("reads of lowers in a writable mount", _OF_LOWERS, (_F, 1.0), (KERNEL, 1 / 0.7)),
    *_bars("sequential write of 1 GiB", "sequential-write", (KERNEL, 1 / 0.85)),
    *_bars("page cache of one program in four mounts", "program-in-four-mounts", (KERNEL, _ONE_COPY)),
    *_bars(
        "page cache of one file in four mounts, passthrough=all",
        "shared-by-four-mounts",
        (KERNEL, _ONE_COPY),
        system=PASSTHROUGH_ALL,
    ),
    *_bars("cold stat, podman's walk", "stat-cold diff-walk-cold diff-walk-warm", (_F, 0.5)),
    *_bars("small files: open, read, close", "small-files-cold small-files-warm", (_F, 0.5)),
    *_bars("cold walk of a Debian", "find-cold", (_F, 0.7)),
    *_bars("warm stat, warm walk", "stat-warm find-warm", (_F, 1.0)),
    *_bars("changes in the upper", "create mkdir rename unlink", (_F, 0.7), (_U, 1.0)),
    *_bars("removing what lowers hold", "unlink-lower rm-rf-lower", (_F, 0.1), (_U, 0.5)),
    *_bars(
        "real work",
        "untar-sources cp-usr git-checkout dpkg-install c-build",
        (_F, 0.5),
        (_U, 1.0),
        (KERNEL, 2.5),
    ),
    *_bars("copy-up of 1 GiB", "copy-up-1g", (KERNEL, 1.2)),
    *_bars("copy-up of 1 GiB", "copy-up-1g", (KERNEL, 1.2), figure="synced"),
    Target("a stat during a copy-up", "stat-during-copy-up", 2_000, figure="p99"),
    Target(
        "cold walk of a Debian dealt over 128 layers",
        "find-debian-128-layers",
        1.5,
        KERNEL,
        grown_from="find-debian-1-layers",
    ),
    Target("mount until usable", "mount-of-1-layer", 120, figure="mount"),
    Target("memory of an idle daemon: 40 MB", "memory", 40e6 / 2**20, figure="daemon idle"),
    Target("memory of a cached inode", "memory", 600, figure="daemon by inode"),
    *_bars(
        "data without passthrough",
        f"{_OF_UPPERS} {_READ_ONLY} random-overwrite sequential-write",
        (_F, 1.0),
        system=NO_PASSTHROUGH,
    ),
)
"""All bars, in the order of the table."""


def judge(results: Results) -> list[Judgement]:
    """Return what a run says of each target."""
    return [_judged(results, target) for target in TARGETS]


def _judged(results: Results, target: Target) -> Judgement:
    facts = results.workloads.get(target.workload)
    if facts is None:
        return Judgement(target, None, "")
    figure = target.figure or next(iter(facts.figures))
    unit = facts.figures.get(figure, "")
    values = figures_by_round(results, target.workload, figure, target.system)
    if target.against is None:
        return Judgement(target, Spread.of(values.values()), unit)
    references = figures_by_round(results, target.workload, figure, target.against)
    if target.grown_from is not None:
        values = _growth(values, figures_by_round(results, target.grown_from, figure, target.system))
        references = _growth(references, figures_by_round(results, target.grown_from, figure, target.against))
    ratios = [
        times_worse(values[number], references[number], unit) for number in values if number in references
    ]
    return Judgement(target, Spread.of(ratio for ratio in ratios if ratio is not None), "")


def _growth(values: dict[int, float], before: dict[int, float]) -> dict[int, float]:
    return {number: values[number] / before[number] for number in values if before.get(number)}
