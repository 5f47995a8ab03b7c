"""What does it cost to change: create, rename, remove, and copy up what a lower holds?

Names and lowers are warm: what is measured is the change, not the disk that the lower comes from.  Copy-ups
are given twice, until the caller goes on and until the copy is on the disk, because some systems sync each
copy before it appears, as the kernel does, and some leave that to chance.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from typing import Final

from bench.layers import MEBIBYTE, LayerRecipe, big_file, equal_files, many_files, sparse_file
from bench.systems import SLOW_PATH
from bench.trial import Trial
from bench.workloads.checks import expect
from bench.workloads.copying import (
    Copying,
    expect_copy,
    invert_first_byte,
    look_at,
    measure_and_sync,
    read_lowers,
    stat_on_schedule,
)
from bench.workloads.workload import Caches, Scale, Unit, workload

_GROUP: Final = "changes"
_RATE: Final = {"rate": Unit.OPERATIONS_PER_SECOND}
_RATE_SYNCED: Final = {**_RATE, "synced": Unit.OPERATIONS_PER_SECOND}
_SPEED_SYNCED: Final = {"speed": Unit.MEGABYTES_PER_SECOND, "synced": Unit.MEGABYTES_PER_SECOND}
_TIME: Final = {"time": Unit.MILLISECONDS}
_NO_LOWERS: Final = {"native": "a plain directory has nothing to copy up"}

_DIRECTORIES: Final = 10
_BLOCKS_PER_MEBIBYTE: Final = MEBIBYTE // 512


def _few_files(scale: Scale) -> LayerRecipe:
    return many_files(scale.of(2_000), directories=scale.of(20), layers=5)


def _tree(scale: Scale) -> LayerRecipe:
    return many_files(scale.of(5_000), directories=scale.of(50), layers=5)


# In the upper


def _names_in_new_directories(trial: Trial, count: int) -> list[str]:
    """Make directories in the upper; return paths in them that aren't there yet."""
    directories = [trial.root / f"new-{number}" for number in range(_DIRECTORIES)]
    for directory in directories:
        directory.mkdir()
    return [
        f"{directory}/n{number:06}" for directory in directories for number in range(count // _DIRECTORIES)
    ]


def _create(paths: Sequence[str]) -> None:
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _expect_names(trial: Trial, paths: Sequence[str]) -> None:
    """Compare what the new directories show with what they should hold."""
    shown = sorted(
        entry.path for number in range(_DIRECTORIES) for entry in os.scandir(trial.root / f"new-{number}")
    )
    expect("the number of names", len(shown), len(paths))
    expect("each name", shown == sorted(paths), True)


@workload(
    group=_GROUP,
    figures=_RATE,
    layers=_few_files,
    caches=Caches.WARM,
    quick=True,
    writes=True,
    variants=(SLOW_PATH,),
    stands_for="unpacking, compiling, temporary files: open(O_CREAT | O_EXCL) and close",
)
def create(trial: Trial) -> None:
    """Create 5,000 empty files in 10 new directories."""
    paths = _names_in_new_directories(trial, trial.scale.of(5_000))
    os.sync()
    with trial.measured(operations=len(paths)):
        _create(paths)
    _expect_names(trial, paths)


@workload(
    group=_GROUP,
    figures=_RATE,
    layers=_few_files,
    caches=Caches.WARM,
    writes=True,
    stands_for="unpacking archives, caches that hash names into directories",
)
def mkdir(trial: Trial) -> None:
    """Make 5,000 directories in 10 new directories."""
    paths = _names_in_new_directories(trial, trial.scale.of(5_000))
    os.sync()
    with trial.measured(operations=len(paths)):
        for path in paths:
            os.mkdir(path)
    _expect_names(trial, paths)


@workload(
    group=_GROUP,
    figures=_RATE,
    layers=_few_files,
    caches=Caches.WARM,
    writes=True,
    stands_for="files that appear whole: dpkg, git, editors write another name and rename it",
)
def rename(trial: Trial) -> None:
    """Rename 5,000 files of the upper within their directories."""
    paths = _names_in_new_directories(trial, trial.scale.of(5_000))
    _create(paths)
    pairs = [(path, f"{path}.renamed") for path in paths]
    os.sync()
    with trial.measured(operations=len(pairs)):
        for old, new in pairs:
            os.rename(old, new)
    _expect_names(trial, [new for _, new in pairs])


@workload(
    group=_GROUP,
    figures=_RATE,
    layers=_few_files,
    caches=Caches.WARM,
    writes=True,
    stands_for="throwing away what was made: temporary files, build results",
)
def unlink(trial: Trial) -> None:
    """Unlink 5,000 files of the upper."""
    paths = _names_in_new_directories(trial, trial.scale.of(5_000))
    _create(paths)
    os.sync()
    with trial.measured(operations=len(paths)):
        for path in paths:
            os.unlink(path)
    _expect_names(trial, [])


# Of a lower tree


@workload(
    group=_GROUP,
    figures=_RATE,
    layers=_tree,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    stands_for="removing what an image brought along: whiteouts, file by file",
)
def unlink_lower(trial: Trial) -> None:
    """Unlink 5,000 files of lowers, in 50 directories over 5 layers."""
    paths = [str(trial.root / name) for name in trial.layers.files]
    directories = sorted({os.path.dirname(path) for path in paths})
    look_at(trial)
    os.sync()
    with trial.measured(operations=len(paths)):
        for path in paths:
            os.unlink(path)
    expect("what is left", [name for directory in directories for name in os.listdir(directory)], [])


@workload(
    group=_GROUP,
    figures=_TIME,
    layers=_tree,
    caches=Caches.WARM,
    heavy=True,
    quick=True,
    writes=True,
    stands_for="RUN rm -rf in an image's recipe: a tree of lowers goes as a whole",
)
def rm_rf_lower(trial: Trial) -> None:
    """Remove a lower tree of 5,000 files in 50 directories over 5 layers with rm -rf."""
    look_at(trial)
    os.sync()
    with trial.measured():
        subprocess.run(["rm", "-rf", str(trial.root / "tree")], check=True)
    expect(
        "whether the tree is still there",
        (trial.root / "tree").exists() or "tree" in os.listdir(trial.root),
        False,
    )


# Copy-up


def _copy_up(trial: Trial, *, by_size: bool) -> None:
    """Write a byte into each file of the layer."""
    paths = [str(trial.root / name) for name in trial.layers.files]
    size = sum((trial.layers.merged / name).stat().st_size for name in trial.layers.files)
    read_lowers(trial)
    look_at(trial)

    def write_into_each() -> None:
        for path in paths:
            invert_first_byte(path)

    seconds = measure_and_sync(trial, write_into_each, operations=len(paths), size=size)
    trial.record("synced", (size / 1e6 if by_size else len(paths)) / seconds)
    for name in trial.layers.files:
        expect_copy(trial, name)


def _small_lower_files(scale: Scale) -> LayerRecipe:
    return equal_files(scale.of(2_000), 4096)


@workload(
    group=_GROUP,
    figures=_RATE_SYNCED,
    layers=_small_lower_files,
    caches=Caches.WARM,
    heavy=True,
    quick=True,
    writes=True,
    not_for=_NO_LOWERS,
    variants=(SLOW_PATH,),
    stands_for="editing what the image brought: settings, package lists, sources",
)
def copy_up_4k(trial: Trial) -> None:
    """Write a byte into each of 2,000 lower files of 4 KiB."""
    _copy_up(trial, by_size=False)


def _lower_files_of_1m(scale: Scale) -> LayerRecipe:
    return equal_files(scale.of(100), MEBIBYTE)


@workload(
    group=_GROUP,
    figures=_SPEED_SYNCED,
    layers=_lower_files_of_1m,
    caches=Caches.WARM,
    writes=True,
    not_for=_NO_LOWERS,
    heavy=True,
    stands_for="changing libraries and programs: strip, chown, small databases",
)
def copy_up_1m(trial: Trial) -> None:
    """Write a byte into each of 100 lower files of 1 MiB."""
    _copy_up(trial, by_size=True)


def _big_lower_file(scale: Scale) -> LayerRecipe:
    return big_file(scale.of(1024), files_beside=0)


@workload(
    group=_GROUP,
    figures=_SPEED_SYNCED,
    layers=_big_lower_file,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    not_for=_NO_LOWERS,
    stands_for="writing into a database or a disk image of a lower",
)
def copy_up_1g(trial: Trial) -> None:
    """Write a byte into a lower file of 1 GiB."""
    _copy_up(trial, by_size=True)


def _sparse_lower_file(scale: Scale) -> LayerRecipe:
    return sparse_file(scale.of(1024))


@workload(
    group=_GROUP,
    figures={**_TIME, "synced": Unit.MILLISECONDS, "on the disk": Unit.MEBIBYTES},
    layers=_sparse_lower_file,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    not_for=_NO_LOWERS,
    stands_for="a virtual machine's disk, lastlog: size without content",
)
def copy_up_1g_sparse(trial: Trial) -> None:
    """Write a byte into a lower file of 1 GiB that is a hole but for 1 MiB."""
    (name,) = trial.layers.files
    read_lowers(trial)
    look_at(trial)
    seconds = measure_and_sync(trial, lambda: invert_first_byte(str(trial.root / name)))
    trial.record("synced", seconds * 1e3)
    expect_copy(trial, name)
    assert trial.upper is not None
    trial.record("on the disk", (trial.upper / name).stat().st_blocks / _BLOCKS_PER_MEBIBYTE)


@workload(
    group=_GROUP,
    figures={**_TIME, "synced": Unit.MILLISECONDS},
    layers=_few_files,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    stands_for="RUN chmod -R and chown -R in an image's recipe: all is copied up to change a bit",
)
def chmod_r(trial: Trial) -> None:
    """Change the modes in a lower tree of 2,000 files in 20 directories over 5 layers with chmod -R."""
    read_lowers(trial)
    look_at(trial)
    command = ["chmod", "-R", "u=rwX,go=", str(trial.root / "tree")]
    seconds = measure_and_sync(trial, lambda: subprocess.run(command, check=True))
    trial.record("synced", seconds * 1e3)
    modes = {stat.S_IMODE(os.lstat(trial.root / name).st_mode) for name in trial.layers.files}
    expect("the files' modes", modes, {0o600})
    directories = {os.path.dirname(name) for name in trial.layers.files}
    modes = {stat.S_IMODE(os.lstat(trial.root / name).st_mode) for name in directories}
    expect("the directories' modes", modes, {0o700})


# Others, while a copy-up runs


def _big_lower_file_beside_others(scale: Scale) -> LayerRecipe:
    return big_file(scale.of(1024), files_beside=scale.of(10_000))


@workload(
    group=_GROUP,
    figures={"p99": Unit.MICROSECONDS, "p50": Unit.MICROSECONDS, "copy-up": Unit.MILLISECONDS},
    layers=_big_lower_file_beside_others,
    caches=Caches.WARM,
    heavy=True,
    quick=True,
    writes=True,
    not_for=_NO_LOWERS,
    variants=(SLOW_PATH,),
    stands_for="a service that goes on while another process changes a big file",
)
def stat_during_copy_up(trial: Trial) -> None:
    """Stat another lower file every millisecond while one of 1 GiB is copied up."""
    paths = [str(trial.root / name) for name in trial.layers.files if name != "big"]
    read_lowers(trial)
    os.sync()
    copy = Copying(str(trial.root / "big"))
    with trial.measured(figure="copy-up"):
        copy.start()
        waited = sorted(stat_on_schedule(paths, copy))
        copy.join()
    if copy.failure is not None:
        raise copy.failure
    expect_copy(trial, "big")
    for figure, share in (("p50", 0.5), ("p99", 0.99)):
        trial.record(figure, waited[int(len(waited) * share)] * 1e6)
