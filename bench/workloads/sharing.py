"""Are the pages of one layer in memory once, however many mounts show them?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.layers import MEBIBYTE, LayerRecipe
from bench.mounting import MountedSystem
from bench.programs import SHARED, Chroot, failure_of
from bench.rootfs import rootfs
from bench.systems import NO_PASSTHROUGH, PASSTHROUGH_ALL
from bench.trial import Trial
from bench.workloads.big_file import read_whole, verify_sample
from bench.workloads.checks import expect
from bench.workloads.data_layers import ONE_FILE, SMALL_FILE_BESIDE, one_file
from bench.workloads.workload import Caches, Scale, Unit, workload

_FIGURES: Final = {"page cache": Unit.MEBIBYTES, "time": Unit.MILLISECONDS}
_MOUNTS: Final = 4

_SOURCE: Final = '#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n'


def _shared(scale: Scale) -> LayerRecipe:
    # Small enough to be cached five times on any machine.
    return one_file(scale.of(128))


@workload(
    group="data",
    figures=_FIGURES,
    layers=_shared,
    caches=Caches.COLD,
    quick=True,
    variants=(PASSTHROUGH_ALL,),
    stands_for="four containers of one image on one machine: are its data in memory once?",
)
def shared_by_four_mounts(trial: Trial) -> None:
    """Read of a lower file of 128 MiB through 4 mounts at once, from the disk: page cache used, time."""
    mounts = _mounts(trial)
    for mounted in mounts:
        # Another file, before: what a daemon imports when it is first needed belongs to no file that is read.
        read_whole(os.fspath(mounted.root / SMALL_FILE_BESIDE))
    paths = [os.fspath(mounted.root / ONE_FILE) for mounted in mounts]
    size = os.stat(paths[0]).st_size
    with ThreadPoolExecutor(len(paths)) as readers, _page_cache_measured(trial):
        counts = list(readers.map(read_whole, paths))
    for path, count in zip(paths, counts, strict=True):
        expect("bytes read", count, size)
        verify_sample(path, size)


@workload(
    group="data",
    figures=_FIGURES,
    layers=rootfs,
    caches=Caches.COLD,
    variants=(NO_PASSTHROUGH,),
    stands_for="four containers of one image on one machine: are its programs in memory once?",
)
def program_in_four_mounts(trial: Trial) -> None:
    """Gcc of the image runs in 4 mounts at once, from the disk: page cache used, time."""
    (trial.scratch / "source.c").write_text(_SOURCE)
    views = [Chroot(mounted.root, trial.scratch) for mounted in _mounts(trial)]
    # Once before: what a daemon imports when it is first needed belongs to no program.
    _compile_in_all(views)
    outputs = [trial.scratch / f"program-{number}" for number in range(_MOUNTS)]
    for output in outputs:
        output.unlink()
    with _page_cache_measured(trial):
        _compile_in_all(views)
    for output in outputs:
        expect("what the built program says", views[0].run(f"{SHARED}/{output.name}"), "built\n")


def _compile_in_all(views: list[Chroot]) -> None:
    """Let a compiler run in each view at the same time."""
    commands = [
        f"TMPDIR={SHARED} exec gcc -O2 -o {SHARED}/program-{number} {SHARED}/source.c"
        for number in range(len(views))
    ]
    started = [view.start("sh", "-c", command) for view, command in zip(views, commands, strict=True)]
    for process, command in zip(started, commands, strict=True):
        output, errors = process.communicate()
        if process.returncode != 0:
            raise BenchError(failure_of(process.returncode, [command], errors or output))


def _mounts(trial: Trial) -> list[MountedSystem]:
    return [trial.mounted, *(trial.mount() for _ in range(_MOUNTS - 1))]


@contextmanager
def _page_cache_measured(trial: Trial) -> Iterator[None]:
    """Measure the time of the block, and the page cache that it fills, from empty caches."""
    trial.drop_caches()
    before = _page_cache_bytes()
    with trial.measured(figure="time"):
        yield
    trial.record("page cache", (_page_cache_bytes() - before) / MEBIBYTE)


def _page_cache_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    raise BenchError("/proc/meminfo names no Cached, so that page cache can't be measured")
