"""How long does a mount take to come and to go, and what does it cost in memory while it is there?"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from bench.errors import BenchError
from bench.layers import MEBIBYTE, LayerRecipe
from bench.systems import SLOW_PATH
from bench.trial import Trial
from bench.workloads.checks import expect
from bench.workloads.data_layers import few_files, known_files
from bench.workloads.workload import Caches, Scale, Unit, workload

_MOUNTS = 5
"""In one trial, which gives their medians: a single mount of the kernel's takes no longer than a hiccup."""

_MOST_DROPS = 20
_SECONDS_TO_FREE = 0.1


def _one_layer(_scale: Scale) -> LayerRecipe:
    return few_files(1)


def _many_layers(_scale: Scale) -> LayerRecipe:
    return few_files(128)


@workload(
    group="life",
    figures={"mount": Unit.MILLISECONDS, "unmount": Unit.MILLISECONDS},
    layers=_one_layer,
    caches=Caches.WARM,
    quick=True,
    mounts=False,
    not_for={"native": "a plain directory needs no mount"},
    variants=(SLOW_PATH,),
    stands_for="the start and the end of a container",
)
def mount_of_1_layer(trial: Trial) -> None:
    """Mount until the root answers, unmount until the daemon has ended; 1 layer."""
    _mount_and_unmount(trial)


@workload(
    group="life",
    figures={"mount": Unit.MILLISECONDS, "unmount": Unit.MILLISECONDS},
    layers=_many_layers,
    caches=Caches.WARM,
    mounts=False,
    not_for={"native": "a plain directory needs no mount"},
    heavy=True,
    stands_for="the start and the end of a container of a deep image",
)
def mount_of_128_layers(trial: Trial) -> None:
    """Mount until the root answers, unmount until the daemon has ended; 128 layers."""
    _mount_and_unmount(trial)


@workload(
    group="life",
    figures={
        "all": Unit.MEBIBYTES,
        "daemon idle": Unit.MEBIBYTES,
        "daemon": Unit.MEBIBYTES,
        "daemon forgotten": Unit.MEBIBYTES,
        "daemon by inode": Unit.BYTES,
        "walk": Unit.SECONDS,
    },
    layers=known_files,
    caches=Caches.COLD,
    quick=True,
    heavy=True,
    stands_for="a long-lived container in which a backup or updatedb has seen everything",
)
def memory(trial: Trial) -> None:
    """Walk with lstat of 100,000 files over 10 layers: memory of daemon and kernel (slab) after it.

    The daemon's alone is resident memory: idle before the walk, after it (and what each inode added),
    and when all was forgotten.
    """
    slab = _slab_bytes_at_rest(trial)
    trial.record("daemon idle", trial.resident_bytes() / MEBIBYTE)
    with trial.measured(figure="walk"):
        # By now a daemon that was asked for its counters has imported what answers that.
        before = trial.resident_bytes()
        files, directories = _walk(os.fspath(trial.root))
    daemon = trial.resident_bytes()
    trial.record("daemon", daemon / MEBIBYTE)
    trial.record("daemon by inode", (daemon - before) / (files + directories))
    trial.record("all", (daemon + _slab_bytes() - slab) / MEBIBYTE)
    expect("files seen", files, len(trial.layers.files))
    _slab_bytes_at_rest(trial)
    trial.record("daemon forgotten", trial.resident_bytes() / MEBIBYTE)


def _mount_and_unmount(trial: Trial) -> None:
    mounts, unmounts = [], []
    for _ in range(1 + _MOUNTS):
        mounted = trial.mount()
        expect("files", len(os.listdir(mounted.root / "etc")), len(trial.layers.files))
        mounted.unmount()
        mounts.append(mounted.mount_seconds)
        unmounts.append(mounted.unmount_seconds)
    # The first one has brought programs and layers into the caches.
    trial.record("mount", statistics.median(mounts[1:]) * 1e3)
    trial.record("unmount", statistics.median(unmounts[1:]) * 1e3)


def _walk(directory: str) -> tuple[int, int]:
    """Return how many files and directories there are, each file with its size looked at."""
    files = directories = 0
    for path, _, names in os.walk(directory):
        for name in names:
            os.lstat(f"{path}/{name}")
        files += len(names)
        directories += 1
    return files, directories


def _slab_bytes_at_rest(trial: Trial) -> int:
    """Drop caches until nothing more goes away, and return what is left.

    The kernel spares at first what was used twice, and frees inodes later than it says (RCU).
    """
    left = _slab_bytes()
    for _ in range(_MOST_DROPS):
        trial.drop_caches()
        time.sleep(_SECONDS_TO_FREE)
        before, left = left, _slab_bytes()
        if before - left < MEBIBYTE:
            break
    return left


def _slab_bytes() -> int:
    """Return what the kernel holds in inodes, names and the like: slabinfo(5)."""
    path = Path("/proc/slabinfo")
    try:
        lines = path.read_text().splitlines()
    except OSError as failure:
        raise BenchError(f"{path}: the kernel's memory can't be measured: {failure.strerror}") from failure
    # Objects in use times their size, as pages of freed objects stay in slabs for a while.
    return sum(int(fields[1]) * int(fields[3]) for fields in map(str.split, lines[2:]))
