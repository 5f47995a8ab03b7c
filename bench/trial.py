"""What is a workload's function given, and how is its work measured?

A trial is one workload on one system in one round.  It runs in a process of its own; see `bench.runner` for
what happens when that fails or hangs.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bench import kernel
from bench.errors import BenchError
from bench.mounting import MountedSystem, prepare
from bench.requests import RequestCounter
from bench.workloads.workload import Scale, Unit, Workload
from pyoverlay.api import OverlayError, inspect

if TYPE_CHECKING:
    from bench.layers import LayerSet
    from bench.systems import System

_MEGABYTE = 1_000_000


class DisturbedError(BenchError):
    """Something outside the trial spoiled it: it is worth another try."""


class Trial:
    """One workload on one system.

    Attributes:
        scale: How big the workload is.
        layers: What lies below.
        figures: What was measured, each in its figure's unit.
        daemon_processor_seconds: CPU time of the daemons within measured blocks, None without a daemon.
        requests: FUSE requests by opcode within measured blocks, None when nothing counts.
        paths: For pyoverlay, how many requests were answered on which path; None for others.
    """

    def __init__(
        self,
        workload: Workload,
        system: System,
        layers: LayerSet,
        place: Path,
        scale: Scale,
        counter: RequestCounter,
    ) -> None:
        """Prepare in ``place``, an empty directory."""
        self.scale = scale
        self.layers = layers
        self.figures: dict[str, float] = {}
        self.daemon_processor_seconds: float | None = None
        self.requests: Counter[str] | None = None
        self.paths: Counter[str] | None = None
        self._workload = workload
        self._system = system
        self._place = place
        self._counter = counter
        self._mounts: list[MountedSystem] = []

    @property
    def system_name(self) -> str:
        """The system's name in the table."""
        return self._system.name

    @property
    def mounted(self) -> MountedSystem:
        """The first mount."""
        return self._mounts[0]

    @property
    def root(self) -> Path:
        """The merged view of the first mount."""
        return self.mounted.root

    @property
    def upper(self) -> Path | None:
        """The upper directory of the first mount, None for a plain directory and in a read-only mount."""
        return self.mounted.upper

    @property
    def below(self) -> list[Path]:
        """Where the files of the first mount are, topmost first: beside it, without its daemon's knowing."""
        if not self._system.has_layers:
            return [self.root]
        lowers = [self.layers.directory / name for name in self.layers.lowers]
        return lowers if self.upper is None else [self.upper, *lowers]

    @property
    def scratch(self) -> Path:
        """A directory on the same disk, outside any mount."""
        directory = self._place / "scratch"
        directory.mkdir(exist_ok=True)
        return directory

    def mount(self) -> MountedSystem:
        """Mount the same layers once more, with an upper of its own."""
        place = self._place / f"mount-{len(self._mounts)}"
        place.mkdir()
        fill = self._workload.fill_upper
        mounted = prepare(
            self._system,
            self.layers,
            place,
            writes=self._workload.writes,
            read_only=self._workload.read_only,
            fill_upper=None if fill is None else partial(fill, scale=self.scale),
        )
        mounted.mount()
        self._mounts.append(mounted)
        return mounted

    def remount(self) -> None:
        """Unmount the first mount, and mount it again over the same upper."""
        self.mounted.unmount()
        self.mounted.mount()

    def unmount(self) -> None:
        """Unmount everything, the latest mount first."""
        for mounted in reversed(self._mounts):
            mounted.unmount()

    def resident_bytes(self) -> int:
        """Return what the daemons have in memory, 0 for a system without one."""
        return sum(mounted.resident_bytes() for mounted in self._mounts)

    def wait_until_idle(self) -> None:
        """Wait until no daemon works any more at what nobody waits for."""
        for mounted in self._mounts:
            if mounted.is_mounted:
                mounted.wait_until_idle()

    def drop_caches(self) -> None:
        """Make all caches cold, the kernel's of the merged view among them."""
        kernel.drop_caches()
        self.wait_until_idle()

    def record(self, figure: str, value: float) -> None:
        """Give a figure, in its unit."""
        assert figure in self._workload.figures
        self.figures[figure] = value

    @contextlib.contextmanager
    def measured(self, *, operations: int = 1, size: int = 0, figure: str | None = None) -> Iterator[None]:
        """Take the time of the block, and what the daemons do meanwhile.

        Args:
            operations: How many the block does, for figures by operation.
            size: How many bytes it moves, for MB/s.
            figure: Which figure it gives; the workload's only one unless said.
        """
        name = figure or next(iter(self._workload.figures))
        unit = self._workload.figures[name]
        self.wait_until_idle()
        drops = kernel.cache_drops()
        with self._requests_counted(), self._processor_time_added_up():
            started = time.perf_counter()
            yield
            seconds = time.perf_counter() - started
        if kernel.cache_drops() != drops:
            raise DisturbedError("somebody else dropped the machine's caches during the measurement")
        self.record(name, _in_unit(unit, seconds, operations, size))

    @contextlib.contextmanager
    def _requests_counted(self) -> Iterator[None]:
        mounts = [mounted for mounted in self._mounts if mounted.is_mounted]
        connections = [mounted.connection for mounted in mounts if mounted.connection is not None]
        before = self._requests_by_path(mounts)
        self._counter.begin(connections)
        try:
            yield
        finally:
            requests = self._counter.end(connections)
        if requests is not None:
            self.requests = (self.requests or Counter()) + requests
        if before is not None:
            during = (self._requests_by_path(mounts) or Counter()) - before
            self.paths = (self.paths or Counter()) + during

    @contextlib.contextmanager
    def _processor_time_added_up(self) -> Iterator[None]:
        mounts = [mounted for mounted in self._mounts if mounted.daemon_pids]
        used = sum(mounted.processor_seconds() for mounted in mounts)
        yield
        used = sum(mounted.processor_seconds() for mounted in mounts) - used
        if mounts:
            self.daemon_processor_seconds = (self.daemon_processor_seconds or 0) + used

    def _requests_by_path(self, mounts: list[MountedSystem]) -> Counter[str] | None:
        """Ask pyoverlay's daemons; None for other systems."""
        if not self._system.counts_paths:
            return None
        counts: Counter[str] = Counter()
        for mounted in mounts:
            try:
                counts.update(cast("dict[str, int]", inspect(mounted.root)["RequestsByPath"]))
            except OverlayError as failure:
                raise BenchError(f"can't be asked for its requests: {failure}") from failure
        return counts

    def close(self) -> None:
        """Unmount everything.

        Raises BenchError when a figure is missing, or a mount doesn't go away.
        """
        self.unmount()
        missing = [name for name in self._workload.figures if name not in self.figures]
        if missing:
            raise BenchError(f"the workload gave no {', '.join(missing)}")


def _in_unit(unit: Unit, seconds: float, operations: int, size: int) -> float:
    match unit:
        case Unit.SECONDS:
            return seconds
        case Unit.MILLISECONDS:
            return seconds * 1e3
        case Unit.MICROSECONDS:
            return seconds * 1e6 / operations
        case Unit.OPERATIONS_PER_SECOND:
            return operations / seconds
        case Unit.MEGABYTES_PER_SECOND:
            return size / _MEGABYTE / seconds
        case Unit.MEBIBYTES | Unit.BYTES:
            raise ValueError("memory isn't measured in time: use record()")
