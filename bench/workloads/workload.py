"""What is a workload, and how is one declared?

One function a workload: its docstring's first line is the title in the table, its name with dashes is the
workload's.  Knows nothing of systems or rounds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bench.layers import LayerRecipe
    from bench.trial import Trial

GROUPS = ("metadata", "data", "changes", "real", "life")


class Unit(enum.Enum):
    """What a figure is counted in; the value is what a table prints."""

    MILLISECONDS = "ms"
    SECONDS = "s"
    MICROSECONDS = "µs/op"
    OPERATIONS_PER_SECOND = "op/s"
    MEGABYTES_PER_SECOND = "MB/s"
    MEBIBYTES = "MiB"
    BYTES = "B"

    @property
    def more_is_better(self) -> bool:
        """Tell rates from times and sizes."""
        return self in (Unit.OPERATIONS_PER_SECOND, Unit.MEGABYTES_PER_SECOND)


class Caches(enum.Enum):
    """What the caches hold when measuring starts; the value is what a table prints."""

    COLD = "cold"
    WARM = "warm"
    FRESH = "as written"


class Scale(enum.Enum):
    """How big the workloads are."""

    FULL = "full"
    QUICK = "quick"

    def of(self, count: int) -> int:
        """Return ``count``, or a tenth of it in a quick run."""
        return count if self is Scale.FULL else max(1, count // 10)


class FillUpper(Protocol):
    """Writes what an upper holds before it is mounted."""

    def __call__(self, upper: Path, *, scale: Scale) -> None:
        """Write into ``upper``, which is empty or, of a system without layers, the whole tree."""


@dataclass(frozen=True)
class Workload:
    """One kind of work, measured on each system in several rounds.

    Attributes:
        name: What ``--workloads`` calls it.
        group: One of `GROUPS`.
        title: What is done, in a line.
        stands_for: Which work of real life it stands for.
        figures: What one trial yields, with units; the first is the one in the charts.
        layers: Names the layers that it needs at a scale.
        caches: What the caches hold when measuring starts.
        heavy: Whether 3 rounds are enough.
        quick: Whether it is part of a quick run.
        writes: Whether it changes the merged tree (a plain directory is then copied for each trial).
        mounts: Whether it finds the system mounted; if not, it mounts by itself.
        limit_seconds: After which a trial counts as hung.
        not_for: Systems without a meaning for it, each with the reason.
        variants: Systems that measure it though they leave most workloads out.
        read_only: Whether it is mounted without an upper.
        fill_upper: Writes what the upper holds before it is mounted; empty without.
        run: The work.
    """

    name: str
    group: str
    title: str
    stands_for: str
    figures: dict[str, Unit]
    layers: Callable[[Scale], LayerRecipe]
    caches: Caches
    heavy: bool
    quick: bool
    writes: bool
    mounts: bool
    limit_seconds: float
    not_for: dict[str, str]
    variants: frozenset[str]
    read_only: bool
    fill_upper: FillUpper | None
    run: Callable[[Trial], None]


ALL: dict[str, Workload] = {}
"""Every declared workload by name, in the order of the table."""


def workload(
    *,
    group: str,
    figures: dict[str, Unit],
    layers: Callable[[Scale], LayerRecipe],
    caches: Caches,
    stands_for: str,
    heavy: bool = False,
    quick: bool = False,
    writes: bool = False,
    mounts: bool = True,
    limit_seconds: float = 120,
    not_for: dict[str, str] | None = None,
    variants: Collection[str] = (),
    read_only: bool = False,
    fill_upper: FillUpper | None = None,
    name: str | None = None,
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Declare the function below as a workload; see `Workload` for the arguments."""
    assert group in GROUPS and figures

    def declare(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
        declared = Workload(
            name=name or function.__name__.replace("_", "-"),
            group=group,
            title=(function.__doc__ or "").strip().splitlines()[0].rstrip("."),
            stands_for=stands_for,
            figures=figures,
            layers=layers,
            caches=caches,
            heavy=heavy,
            quick=quick,
            writes=writes,
            mounts=mounts,
            limit_seconds=limit_seconds,
            not_for=not_for or {},
            variants=frozenset(variants),
            read_only=read_only,
            fill_upper=fill_upper,
            run=function,
        )
        assert declared.name not in ALL, f"{declared.name} is declared twice"
        ALL[declared.name] = declared
        return function

    return declare
