"""Which project do the real programs work on?

Two layers as of a development container: a bare git repository in the lower one, a database in the upper one;
beside them an archive with sources.  All of it is generated, the same bytes in every run.
"""

from __future__ import annotations

import contextlib
import io
import random
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.layers import LONG_AGO, LayerRecipe, LayerWriter
from bench.programs import run
from bench.workloads.workload import Scale

REPOSITORY: Final = "srv/repository.git"
"""The repository in the merged tree; its branches are `BRANCHES`."""

BRANCHES: Final = ("main", "feature-1", "feature-2", "feature-3")

GIT_ENVIRONMENT: Final = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
"""No one's own settings, as fsmonitor or untracked-cache."""

DATABASE: Final = "srv/application.db"
"""An SQLite database in the merged tree: `ROWS` rows in the table entries (id, name, content)."""

ROWS: Final = 20_000

SOURCE_ARCHIVE: Final = "sources.tar"
"""The archive, beside the lowers."""

_FILES_IN_A_DIRECTORY: Final = 20
_BRANCH_CHANGES: Final = 0.15
"""Share of the files that a branch changes; it adds and removes half as many."""


def project(scale: Scale) -> LayerRecipe:
    """Return the two layers: 2,000 files in the repository and 5,000 in the archive, or a tenth."""
    files, archived = scale.of(2_000), scale.of(5_000)
    return LayerRecipe(f"project-{files}-and-{archived}", partial(_build, files, archived))


def _build(files: int, archived: int, directory: Path) -> None:
    writer = LayerWriter(directory, 2)
    make_repository(writer.make_directory(1, REPOSITORY), files)
    _make_database(writer.place(0, DATABASE))
    writer.write(0, "home/README", b"work here\n")
    writer.finish()
    # Repositories' files aren't in the writer's list.
    (directory / "files.txt").unlink()
    _make_archive(directory / SOURCE_ARCHIVE, archived)


# Sources


@dataclass(frozen=True)
class Source:
    """A file of a source tree.

    Attributes:
        path: Relative to the tree.
        content: Text, 4 KB on average.
    """

    path: str
    content: bytes


def sources(count: int, seed: str) -> Iterator[Source]:
    """Yield the files of a tree, 20 in a directory, 3 directories deep; the same ones for the same seed."""
    chance = random.Random(seed)
    words = [f"word{number}_{chance.randrange(10**6)}" for number in range(2_000)]
    for number in range(count):
        directory = number // _FILES_IN_A_DIRECTORY
        path = f"part-{directory % 7}/module-{directory // 7 % 11}/unit-{directory:04}/file-{number:05}.txt"
        lines = min(600, int(chance.lognormvariate(4, 0.8)))
        content = "".join(f"{' '.join(chance.choices(words, k=4))}\n" for _ in range(lines))
        yield Source(path, content.encode())


def _make_archive(path: Path, count: int) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for source in sources(count, "archive"):
            entry = tarfile.TarInfo(source.path)
            entry.size, entry.mtime, entry.mode = len(source.content), LONG_AGO, 0o644
            archive.addfile(entry, io.BytesIO(source.content))


# The repository


def make_repository(path: Path, files: int) -> None:
    """Make a bare repository with `BRANCHES` of so many files, in one pack as after a git gc.

    Raises BenchError when git isn't there or fails.
    """
    stream = path.with_name("stream")
    with stream.open("wb") as out:
        out.writelines(_commits(files))
    git = ["git", "-C", str(path)]
    run(
        "git",
        "init",
        "--quiet",
        "--bare",
        f"--initial-branch={BRANCHES[0]}",
        path,
        environment=GIT_ENVIRONMENT,
    )
    # fast-import reads its standard input, which programs don't have here.
    run("sh", "-c", 'exec git -C "$0" fast-import --quiet < "$1"', path, stream, environment=GIT_ENVIRONMENT)
    run(*git, "gc", "--quiet", environment=GIT_ENVIRONMENT)
    stream.unlink()


def _commits(files: int) -> Iterator[bytes]:
    """Yield git fast-import's stream: one commit on main, one on each other branch."""
    tree = list(sources(files, "repository"))
    yield _commit(BRANCHES[0], "Everything", 1, None)
    for source in tree:
        yield _modification(source)
    for branch in BRANCHES[1:]:
        chance = random.Random(branch)
        changed = chance.sample(tree, int(files * _BRANCH_CHANGES))
        half = len(changed) // 2
        yield _commit(branch, f"Work on {branch}", None, 1)
        for source in changed:
            yield _modification(Source(source.path, source.content + f"changed in {branch}\n".encode()))
        for source in changed[:half]:
            yield f"D {source.path}\n".encode()
        for source in changed[half:]:
            yield _modification(Source(f"{source.path}.{branch}", source.content))


def _commit(branch: str, message: str, mark: int | None, parent: int | None) -> bytes:
    lines = [
        f"commit refs/heads/{branch}",
        *([f"mark :{mark}"] if mark else []),
        f"committer Nobody <nobody@example.org> {LONG_AGO} +0000",
        f"data {len(message)}",
        message,
        *([f"from :{parent}"] if parent else []),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _modification(source: Source) -> bytes:
    header = f"M 100644 inline {source.path}\ndata {len(source.content)}\n"
    return header.encode() + source.content + b"\n"


# The database


def _make_database(path: Path) -> None:
    chance = random.Random("database")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table entries (id integer primary key, name text, content blob)")
        database.execute("create index names on entries (name)")
        database.execute("begin")
        rows = ((number, f"name-{chance.randrange(ROWS)}", chance.randbytes(150)) for number in range(ROWS))
        database.executemany("insert into entries values (?, ?, ?)", rows)
        database.execute("commit")


# A program to be built


@dataclass(frozen=True)
class CProgram:
    """A program in C.

    Attributes:
        files: Name to content, a makefile among them; built by ``make``, it is called "program".
        prints: What the program prints.
    """

    files: dict[str, str]
    prints: str


_MAKEFILE: Final = """\
CFLAGS = -O1 -g -Wall -MMD
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))

program: $(OBJECTS)
\t$(CC) -o $@ $^

-include $(OBJECTS:.o=.d)
"""

_SYSTEM_HEADERS: Final = (
    "stdio stdlib string errno fcntl limits signal time unistd sys/stat sys/types".split()
)


def c_program(units: int) -> CProgram:
    """Return a program of so many units beside main.c, each with 11 system headers and 8 of 40 own ones."""
    chance = random.Random("c program")
    headers = {f"part{number}.h": _header(number, units) for number in range(40)}
    system = "".join(f"#include <{name}.h>\n" for name in _SYSTEM_HEADERS)
    files = {"Makefile": _MAKEFILE, **headers}
    total = 0
    for number in range(units):
        own = "".join(f'#include "{name}"\n' for name in chance.sample(sorted(headers), 8))
        factor, addend = chance.randrange(1, 1000), chance.randrange(1000)
        files[f"unit{number:03}.c"] = system + own + _unit(number, factor, addend)
        total = (total + number * factor + addend) % 2**32
    declared = "".join(f"unsigned run{number}(unsigned value);\n" for number in range(units))
    called = "".join(f"    total += run{number}({number});\n" for number in range(units))
    printed = '    printf("%u\\n", total);\n    return 0;\n'
    files["main.c"] = (
        f"#include <stdio.h>\n{declared}int main(void) {{\n    unsigned total = 0;\n{called}{printed}}}\n"
    )
    return CProgram(files, f"{total}\n")


def _header(number: int, units: int) -> str:
    declared = "".join(
        f"struct part{number}_{field} {{ int first; char *second; }};\n" for field in range(20)
    )
    declared += f"extern int part{number}_of[{units}];\n"
    return f"#ifndef PART{number}\n#define PART{number}\n{declared}#endif\n"


def _unit(number: int, factor: int, addend: int) -> str:
    steps = "".join(
        f"static void step{step}(char *text, size_t size, unsigned value)\n{{\n"
        f'    snprintf(text, size, "%u of {step}", value);\n'
        f"    if (strlen(text) > {step * 7}) text[0] = (char) ('a' + value % 26);\n}}\n\n"
        for step in range(8)
    )
    calls = "".join(f"    step{step}(text, sizeof text, value);\n" for step in range(8))
    return (
        f"\n{steps}unsigned run{number}(unsigned value)\n{{\n    char text[100];\n{calls}"
        f"    return value * {factor}u + {addend}u;\n}}\n"
    )
