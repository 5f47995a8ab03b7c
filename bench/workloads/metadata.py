"""What does it cost to look: stat, walks, listings, names that aren't there?

Cold: sync and drop_caches, so that names and inodes come from the disk and, with FUSE, from the daemon.
Warm: the same work was done just before, so that whatever a system lets the kernel keep is kept.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.layers import LayerRecipe, big_directory, deep_directories, many_files
from bench.rootfs import rootfs
from bench.systems import SLOW_PATH
from bench.trial import Trial
from bench.workloads.checks import expect
from bench.workloads.workload import Caches, Scale, Unit, workload

_GROUP: Final = "metadata"
_TIME: Final = {"time": Unit.MILLISECONDS}
_TIME_OF_ONE: Final = {"time": Unit.MICROSECONDS}


def _tree(scale: Scale) -> LayerRecipe:
    return many_files(scale.of(20_000), directories=scale.of(200), layers=5)


def _big_directory(scale: Scale) -> LayerRecipe:
    return big_directory(scale.of(10_000), layers=3)


def _deep(scale: Scale) -> LayerRecipe:
    return deep_directories(scale.of(100), depth=30, layers=5)


def _paths(root: Path, names: Sequence[str]) -> list[bytes]:
    return [os.fsencode(root / name) for name in names]


def _stat_all(paths: Sequence[bytes]) -> int:
    """Return the sum of the files' sizes: a file of the wrong layer shows."""
    size = 0
    for path in paths:
        size += os.stat(path).st_size
    return size


def measure_stat_cold(trial: Trial) -> None:
    """Stat all files of the layers, which nobody has looked at."""
    paths = _paths(trial.root, trial.layers.files)
    trial.drop_caches()
    with trial.measured(operations=len(paths)):
        size = _stat_all(paths)
    expect("the sum of all sizes", size, _stat_all(_paths(trial.layers.merged, trial.layers.files)))


@workload(
    group=_GROUP,
    figures=_TIME_OF_ONE,
    layers=_tree,
    caches=Caches.COLD,
    quick=True,
    variants=(SLOW_PATH,),
    stands_for="the first look at a tree: a build tool that asks for time stamps, a server that starts",
)
def stat_cold(trial: Trial) -> None:
    """Stat 20,000 files in 200 directories over 5 layers, the first time."""
    measure_stat_cold(trial)


@workload(
    group=_GROUP,
    figures=_TIME_OF_ONE,
    layers=_tree,
    caches=Caches.WARM,
    quick=True,
    variants=(SLOW_PATH,),
    stands_for="looking again: git status, make, the second start of a program",
)
def stat_warm(trial: Trial) -> None:
    """Stat 20,000 files in 200 directories over 5 layers, the second time."""
    paths = _paths(trial.root, trial.layers.files)
    first = _stat_all(paths)
    with trial.measured(operations=len(paths)):
        size = _stat_all(paths)
    expect(
        "the sum of all sizes",
        (first, size),
        (_stat_all(_paths(trial.layers.merged, trial.layers.files)),) * 2,
    )


# Walks


@dataclass
class Walked:
    """What a walk came across.

    Attributes:
        entries: How many names, the root left out.
        size: Bytes in all that is no directory.
        attributes: Names of extended attributes, without those that tell an overlay something.
        capabilities: How many files have capabilities.
    """

    entries: int = 0
    size: int = 0
    attributes: int = 0
    capabilities: int = 0


def _find(root: Path, output: Path) -> None:
    """Let find print type, size and name of everything below a directory, into a file."""
    with output.open("wb") as out:
        subprocess.run(
            ["find", str(root), "-mindepth", "1", "-printf", r"%y %s %P\0"], stdout=out, check=True
        )


def _found(output: Path) -> Walked:
    walked = Walked()
    for line in output.read_bytes().split(b"\0")[:-1]:
        kind, size, _ = line.split(b" ", 2)
        walked.entries += 1
        walked.size += int(size) if kind != b"d" else 0
    return walked


def _measure_find(trial: Trial) -> None:
    output = trial.scratch / "found"
    with trial.measured():
        _find(trial.root, output)
    found = _found(output)
    _find(trial.layers.merged, output)
    expect("what find found", found, _found(output))


def measure_find_cold(trial: Trial) -> None:
    """Walk through everything with find, when nobody has looked at it."""
    trial.drop_caches()
    # The program itself and its libraries shall not come from the disk.
    subprocess.run(["find", "--version"], stdout=subprocess.DEVNULL, check=True)
    _measure_find(trial)


def _walk_like_a_diff(root: Path) -> Walked:
    """Look at all below a directory as containers-storage does to compare it with another one."""
    walked = Walked()
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in names + files:
            path = directory + b"/" + name
            status = os.lstat(path)
            walked.entries += 1
            walked.size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            walked.attributes += _count_attributes(path)
            walked.capabilities += _has_capabilities(path)
    return walked


def _count_attributes(path: bytes) -> int:
    try:
        return sum(not name.startswith("trusted.") for name in os.listxattr(path, follow_symlinks=False))
    except OSError as failure:
        if failure.errno == errno.EOPNOTSUPP:
            raise BenchError("it has no extended attributes, which this walk looks at") from failure
        raise


def _has_capabilities(path: bytes) -> bool:
    try:
        os.getxattr(path, b"security.capability", follow_symlinks=False)
    except OSError as failure:
        if failure.errno != errno.ENODATA:
            raise
        return False
    return True


def _measure_diff(trial: Trial) -> None:
    with trial.measured():
        walked = _walk_like_a_diff(trial.root)
    expect("what the walk came across", walked, _walk_like_a_diff(trial.layers.merged))


@workload(
    group=_GROUP,
    figures=_TIME,
    layers=rootfs,
    caches=Caches.COLD,
    variants=(SLOW_PATH,),
    stands_for="the first walk through an image: du, a backup, a virus scanner",
)
def find_cold(trial: Trial) -> None:
    """Walk a Debian and Python root file system with find -printf, the first time."""
    measure_find_cold(trial)


@workload(
    group=_GROUP,
    figures=_TIME,
    layers=rootfs,
    caches=Caches.WARM,
    stands_for="walking again through what is known",
)
def find_warm(trial: Trial) -> None:
    """Walk a Debian and Python root file system with find -printf, the second time."""
    _find(trial.root, trial.scratch / "found")
    _measure_find(trial)


@workload(
    group=_GROUP,
    figures=_TIME,
    layers=rootfs,
    caches=Caches.COLD,
    heavy=True,
    variants=(SLOW_PATH,),
    stands_for="podman diff and podman commit on a mount program: each file's status and extended attributes",
)
def diff_walk_cold(trial: Trial) -> None:
    """Walk a Debian and Python root file system with lstat, listxattr and getxattr, the first time."""
    trial.drop_caches()
    _measure_diff(trial)


@workload(
    group=_GROUP,
    figures=_TIME,
    layers=rootfs,
    caches=Caches.WARM,
    heavy=True,
    stands_for="the same diff once more: extended attributes are what FUSE has no cache for",
)
def diff_walk_warm(trial: Trial) -> None:
    """Walk a Debian and Python root file system with lstat, listxattr and getxattr, the second time."""
    _walk_like_a_diff(trial.root)
    _measure_diff(trial)


# One big directory


def _ls(directory: Path, output: Path) -> None:
    with output.open("wb") as out:
        subprocess.run(
            ["ls", "-l", str(directory)], stdout=out, check=True, env={**os.environ, "LC_ALL": "C"}
        )


def _listed(output: Path) -> tuple[int, int]:
    lines = output.read_bytes().splitlines()[1:]
    return len(lines), sum(int(line.split(None, 5)[4]) for line in lines)


def _measure_ls(trial: Trial) -> None:
    output = trial.scratch / "listed"
    with trial.measured():
        _ls(trial.root / "big", output)
    listed = _listed(output)
    _ls(trial.layers.merged / "big", output)
    expect("what ls listed, as entries and bytes,", listed, _listed(output))


@workload(
    group=_GROUP,
    figures=_TIME,
    layers=_big_directory,
    caches=Caches.COLD,
    quick=True,
    variants=(SLOW_PATH,),
    heavy=True,
    stands_for="the first listing of a mail directory, a cache, a spool",
)
def ls_cold(trial: Trial) -> None:
    """List a directory of 10,000 entries over 3 layers with ls -l, the first time."""
    trial.drop_caches()
    # The program itself and its libraries shall not come from the disk.
    subprocess.run(["ls", "-l", "/dev/null"], stdout=subprocess.DEVNULL, check=True)
    _measure_ls(trial)


@workload(
    group=_GROUP,
    figures=_TIME,
    layers=_big_directory,
    caches=Caches.WARM,
    heavy=True,
    stands_for="the same listing again",
)
def ls_warm(trial: Trial) -> None:
    """List a directory of 10,000 entries over 3 layers with ls -l, the second time."""
    _ls(trial.root / "big", trial.scratch / "listed")
    _measure_ls(trial)


# Names that aren't there


def _missing_paths(trial: Trial) -> list[bytes]:
    """Return as many names as there are files, spread over the same directories."""
    directories = [path.rpartition("/")[0] for path in trial.layers.files]
    return _paths(
        trial.root, [f"{directory}/missing-{number}" for number, directory in enumerate(directories)]
    )


def _count_missing(paths: Sequence[bytes]) -> int:
    missing = 0
    for path in paths:
        try:
            os.stat(path)
        except FileNotFoundError:
            missing += 1
    return missing


@workload(
    group=_GROUP,
    figures=_TIME_OF_ONE,
    layers=_tree,
    caches=Caches.COLD,
    quick=True,
    heavy=True,
    stands_for="search paths: a compiler's headers, Python's modules, the shell's programs",
)
def missing_names_cold(trial: Trial) -> None:
    """Stat 20,000 missing names in 200 directories over 5 layers, the first time."""
    paths = _missing_paths(trial)
    trial.drop_caches()
    with trial.measured(operations=len(paths)):
        missing = _count_missing(paths)
    expect("the number of missing names", missing, len(paths))


@workload(
    group=_GROUP,
    figures=_TIME_OF_ONE,
    layers=_tree,
    caches=Caches.WARM,
    heavy=True,
    stands_for="the same searches again, as each compiler process of a build does them",
)
def missing_names_warm(trial: Trial) -> None:
    """Stat 20,000 missing names in 200 directories over 5 layers, the second time."""
    paths = _missing_paths(trial)
    _count_missing(paths)
    with trial.measured(operations=len(paths)):
        missing = _count_missing(paths)
    expect("the number of missing names", missing, len(paths))


@workload(
    group=_GROUP,
    figures=_TIME_OF_ONE,
    layers=_deep,
    caches=Caches.COLD,
    heavy=True,
    stands_for="opening one file deep in a source tree or in node_modules",
)
def stat_deep(trial: Trial) -> None:
    """Stat a file 30 directories deep, each in 5 layers, the first time; mean of 100 such files."""
    measure_stat_cold(trial)
