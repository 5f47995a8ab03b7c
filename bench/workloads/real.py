"""What does it cost to do real work: archives, git, packages, imports, a build, databases?

Programs that belong to an image (dpkg, python3, the compiler, redis-server) come from the merged view, which
is their root directory; tar, cp and git are the host's and work on the merged view from outside, and SQLite
is the benchmark's own Python's.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import sqlite3
from pathlib import Path
from typing import Final

from bench.programs import Chroot, run
from bench.rootfs import PACKAGES, PACKAGES_TO_INSTALL, rootfs
from bench.systems import NO_PASSTHROUGH, SLOW_PATH
from bench.trial import Trial
from bench.workloads.checks import expect
from bench.workloads.real_layers import (
    BRANCHES,
    DATABASE,
    GIT_ENVIRONMENT,
    REPOSITORY,
    ROWS,
    SOURCE_ARCHIVE,
    CProgram,
    c_program,
    project,
    sources,
)
from bench.workloads.redis_server import DATA_DIRECTORY, ask, redis_server
from bench.workloads.workload import Caches, Unit, workload

_TIME: Final = {"time": Unit.MILLISECONDS}


def _chroot(trial: Trial) -> Chroot:
    return Chroot(trial.root, trial.scratch)


def _files_and_bytes(tree: Path) -> tuple[int, int]:
    """Return how many regular files a tree has, and how many bytes they hold."""
    count = size = 0
    for directory, _, names in os.walk(tree):
        for name in names:
            path = f"{directory}/{name}"
            if not os.path.islink(path) and os.path.isfile(path):
                count, size = count + 1, size + os.lstat(path).st_size
    return count, size


# Archives and copies


@workload(
    group="real",
    figures=_TIME,
    layers=rootfs,
    caches=Caches.COLD,
    heavy=True,
    stands_for="docker export, a backup of a container",
)
def tar_rootfs(trial: Trial) -> None:
    """Tar of a Debian with Python and gcc (5 layers, 9,000 files, 380 MB), into a pipe."""
    # Into /dev/null, tar would leave the files unread.
    command = ["sh", "-c", 'tar -C "$0" -cf - . | wc -c']
    trial.drop_caches()
    with trial.measured():
        size = int(run(*command, trial.root))
    expect("bytes in the archive", size, int(run(*command, trial.layers.merged)))


@workload(
    group="real",
    figures=_TIME,
    layers=project,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    stands_for="unpacking a release, ADD and COPY in a container build, npm install",
)
def untar_sources(trial: Trial) -> None:
    """Tar extracts 5,000 source files (20 MB, cached) into the merged view."""
    archive, target = trial.layers.directory / SOURCE_ARCHIVE, trial.root / "home/sources"
    target.mkdir()
    archive.read_bytes()
    with trial.measured():
        run("tar", "-xf", archive, "-C", target)
    lengths = [len(source.content) for source in sources(trial.scale.of(5_000), "archive")]
    expect("files and bytes extracted", _files_and_bytes(target), (len(lengths), sum(lengths)))


@workload(
    group="real",
    figures=_TIME,
    layers=rootfs,
    caches=Caches.COLD,
    heavy=True,
    writes=True,
    stands_for="moving a tree across layers: a container build's RUN cp or mv",
)
def cp_usr(trial: Trial) -> None:
    """Cp -a copies /usr (5 layers, 8,000 files, 370 MB) within the merged view."""
    trial.drop_caches()
    with trial.measured():
        run("cp", "-a", trial.root / "usr", trial.root / "copy")
    expected = _files_and_bytes(trial.layers.merged / "usr")
    expect("files and bytes copied", _files_and_bytes(trial.root / "copy"), expected)


# git


def _git(*arguments: str | Path) -> str:
    return run("git", *arguments, environment=GIT_ENVIRONMENT)


def _clone(trial: Trial) -> Path:
    clone = trial.root / "home/clone"
    # Without links: not every system gives two names the same inode number, which git insists on.
    _git("clone", "--quiet", "--no-hardlinks", trial.root / REPOSITORY, clone)
    return clone


@workload(
    group="real",
    figures=_TIME,
    layers=project,
    caches=Caches.WARM,
    quick=True,
    writes=True,
    variants=(SLOW_PATH,),
    heavy=True,
    stands_for="starting to work in a development container",
)
def git_clone(trial: Trial) -> None:
    """Git clones a repository of 2,000 files in a lower."""
    _git("-C", trial.root / REPOSITORY, "cat-file", "--batch-check", "--batch-all-objects")
    with trial.measured():
        clone = _clone(trial)
    expect("files cloned", len(_git("-C", clone, "ls-files").splitlines()), trial.scale.of(2_000))
    expect("git status", _git("-C", clone, "status", "--porcelain"), "")


@workload(
    group="real",
    figures=_TIME,
    layers=project,
    caches=Caches.COLD,
    writes=True,
    heavy=True,
    stands_for="an editor or a prompt that asks what was changed",
)
def git_status(trial: Trial) -> None:
    """Git status of a clone of 2,000 files in the upper, unchanged."""
    clone = _clone(trial)
    trial.drop_caches()
    with trial.measured():
        status = _git("-C", clone, "status", "--porcelain")
    expect("git status", status, "")


@workload(
    group="real",
    figures=_TIME,
    layers=project,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    stands_for="going from branch to branch, bisecting",
)
def git_checkout(trial: Trial) -> None:
    """Git checks out 4 branches in turn, which differ in some 500 of 2,000 files."""
    clone = _clone(trial)
    branches = [*BRANCHES[1:], BRANCHES[0]]
    with trial.measured():
        for branch in branches:
            _git("-C", clone, "checkout", "--quiet", branch)
    expect("git status", _git("-C", clone, "status", "--porcelain"), "")
    expect("branch", _git("-C", clone, "branch", "--show-current").strip(), branches[-1])


# Programs of the image


@workload(
    group="real",
    figures=_TIME,
    layers=rootfs,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    stands_for="RUN apt-get install in a container build",
)
def dpkg_install(trial: Trial) -> None:
    """Dpkg -i of 20 small packages in the merged view of a Debian (force-unsafe-io, as in images)."""
    chroot = _chroot(trial)
    packages = sorted(
        f"/{PACKAGES}/{name}" for name in os.listdir(trial.root / PACKAGES) if name.endswith(".deb")
    )
    expect("packages", len(packages), len(PACKAGES_TO_INSTALL))
    chroot.run("dpkg", "--no-act", "--install", *packages)
    with trial.measured():
        chroot.run("dpkg", "--install", *packages)
    states = chroot.run("dpkg-query", "--show", "--showformat=${Status}\n", *PACKAGES_TO_INSTALL)
    expect("states", states.splitlines(), ["install ok installed"] * len(PACKAGES_TO_INSTALL))
    expect("dpkg --verify", chroot.run("dpkg", "--verify", *PACKAGES_TO_INSTALL), "")


_STANDARD_LIBRARY: Final = "usr/lib/python3.11"
_PACKAGES_OF_LIBRARY: Final = (
    ". asyncio concurrent/futures email html http importlib json logging xml/dom".split()
)
_MODULES_LEFT_OUT: Final = {
    "antigravity",
    "this",
    "turtle",
    "asyncio.windows_events",
    "asyncio.windows_utils",
}
_MODULES: Final = 200


def _import_program(merged: Path) -> str:
    """Return a Python program that imports 200 modules of its standard library and prints how many."""
    library = merged / _STANDARD_LIBRARY
    paths = (
        path for package in _PACKAGES_OF_LIBRARY for path in sorted((library / package).glob("[a-z]*.py"))
    )
    names = (".".join(path.relative_to(library).with_suffix("").parts) for path in paths)
    chosen = [name for name in names if name not in _MODULES_LEFT_OUT][:_MODULES]
    return f"import importlib\nprint(sum(bool(importlib.import_module(name)) for name in {chosen}))"


def _import_modules(trial: Trial) -> None:
    command = ["python3", "-c", _import_program(trial.layers.merged)]
    with trial.measured():
        imported = _chroot(trial).run(*command)
    expect("modules", imported, f"{_MODULES}\n")


_STARTING: Final = "starting a program of an interpreted language in a container"


@workload(
    group="real",
    figures=_TIME,
    layers=rootfs,
    caches=Caches.COLD,
    heavy=True,
    stands_for=f"{_STARTING} just pulled",
)
def python_imports_cold(trial: Trial) -> None:
    """Python3 of the merged view starts and imports 200 modules of its standard library, the first time."""
    trial.drop_caches()
    _import_modules(trial)


@workload(
    group="real",
    figures=_TIME,
    layers=rootfs,
    caches=Caches.WARM,
    variants=(NO_PASSTHROUGH,),
    heavy=True,
    stands_for=f"{_STARTING}, once more",
)
def python_imports_warm(trial: Trial) -> None:
    """Python3 of the merged view starts and imports 200 modules of its standard library, again."""
    _chroot(trial).run("python3", "-c", _import_program(trial.layers.merged))
    _import_modules(trial)


_UNITS: Final = 60
_SOURCES_OF_PROGRAM: Final = "usr/src/program"


@workload(
    group="real",
    figures=_TIME,
    layers=rootfs,
    caches=Caches.WARM,
    heavy=True,
    writes=True,
    variants=(SLOW_PATH, NO_PASSTHROUGH),
    stands_for="RUN make in a container build",
)
def c_build(trial: Trial) -> None:
    """Make -j2 builds a program of 61 C files and 40 headers with gcc of the merged view."""
    chroot = _chroot(trial)
    program = c_program(_UNITS)
    directory = _write_program(trial.root, program)
    chroot.run("make", f"--directory=/{_SOURCES_OF_PROGRAM}", "unit000.o", "unit001.o")
    with trial.measured():
        chroot.run("make", "-j2", f"--directory=/{_SOURCES_OF_PROGRAM}")
    expect("object files", len(list(directory.glob("*.o"))), _UNITS + 1)
    expect("what the program prints", chroot.run(f"/{_SOURCES_OF_PROGRAM}/program"), program.prints)


def _write_program(root: Path, program: CProgram) -> Path:
    directory = root / _SOURCES_OF_PROGRAM
    directory.mkdir()
    for name, text in program.files.items():
        (directory / name).write_text(text)
    return directory


# Databases


_SETS: Final = 100_000
_SETS_AT_ONCE: Final = 100
_VALUE_BYTES: Final = 512


@workload(
    group="real",
    figures={"sets": Unit.OPERATIONS_PER_SECOND, "save": Unit.MILLISECONDS},
    layers=rootfs,
    caches=Caches.FRESH,
    writes=True,
    variants=(NO_PASSTHROUGH,),
    heavy=True,
    stands_for="a key-value store in a container without a volume",
)
def redis(trial: Trial) -> None:
    """Redis-server of the merged view logs 100,000 SETs of 512 bytes (AOF, 100 in a pipeline), then SAVE."""
    value = random.Random("value").randbytes(_VALUE_BYTES // 2).hex()
    commands = [f"*3\r\n$3\r\nSET\r\n$10\r\nkey{n:07}\r\n${len(value)}\r\n{value}\r\n" for n in range(_SETS)]
    batches = [
        "".join(commands[first : first + _SETS_AT_ONCE]).encode() for first in range(0, _SETS, _SETS_AT_ONCE)
    ]
    with redis_server(_chroot(trial)) as connection:
        with trial.measured(operations=_SETS, figure="sets"):
            for batch in batches:
                ask(connection, batch, b"+OK\r\n" * _SETS_AT_ONCE)
        with trial.measured(figure="save"):
            ask(connection, b"SAVE\r\n", b"+OK\r\n")
    check = _chroot(trial).run("redis-check-rdb", f"{DATA_DIRECTORY}/dump.rdb")
    expect("keys in the dump", re.findall(r"(\d+) keys read", check), [str(_SETS)])


@workload(
    group="real",
    figures={"transactions": Unit.OPERATIONS_PER_SECOND},
    layers=project,
    caches=Caches.FRESH,
    quick=True,
    writes=True,
    variants=(NO_PASSTHROUGH,),
    heavy=True,
    stands_for="an application that keeps its state in SQLite",
)
def sqlite(trial: Trial) -> None:
    """SQLite (WAL, synchronous=normal) changes a database of a lower in 5,000 transactions."""
    transactions = trial.scale.of(5_000)
    chance = random.Random("transactions")
    changed = [chance.randrange(ROWS) for _ in range(transactions)]
    content = chance.randbytes(150)
    with contextlib.closing(sqlite3.connect(trial.root / DATABASE, isolation_level=None)) as database:
        database.execute("pragma synchronous = normal")
        with trial.measured(operations=transactions):
            for number, row in enumerate(changed):
                database.execute("begin immediate")
                database.execute(
                    "insert into entries values (?, ?, ?)", (ROWS + number, f"new-{number}", content)
                )
                database.execute("update entries set name = ? where id = ?", (f"changed-{number}", row))
                database.execute("commit")
        expect("journal", database.execute("pragma journal_mode").fetchone(), ("wal",))
        database.execute("pragma wal_checkpoint(truncate)")
    _check_database(trial, changed)


def _check_database(trial: Trial, changed: list[int]) -> None:
    # What is on the disk, not what the connection remembers.
    with contextlib.closing(sqlite3.connect(trial.root / DATABASE)) as database:
        expect("integrity", database.execute("pragma integrity_check").fetchone(), ("ok",))
        rows = database.execute("select count(*) from entries").fetchone()[0]
        named = database.execute("select count(*) from entries where name like 'changed-%'").fetchone()[0]
    expect("rows, and changed rows", (rows, named), (ROWS + len(changed), len(set(changed))))
