"""How fast are the bytes of files written?

Writers are measured to close(2): some systems keep until then what they were given.
"""

from __future__ import annotations

import os
import random
import zlib
from typing import Final

from bench.errors import BenchError
from bench.layers import MEBIBYTE
from bench.systems import NO_PASSTHROUGH, SLOW_PATH
from bench.trial import Trial
from bench.workloads.big_file import PIECE, opened, some_blocks
from bench.workloads.checks import expect
from bench.workloads.data_layers import BLOCK, ONE_FILE, block_of_one_file, three_layers_of_few_files
from bench.workloads.reading import write_one_file
from bench.workloads.workload import Caches, Unit, workload

_GROUP: Final = "data"
_SEED: Final = 20_000


@workload(
    group=_GROUP,
    figures={"throughput": Unit.MEGABYTES_PER_SECOND},
    layers=three_layers_of_few_files,
    caches=Caches.FRESH,
    heavy=True,
    quick=True,
    writes=True,
    variants=(SLOW_PATH, NO_PASSTHROUGH),
    stands_for="a download, a build's result",
)
def sequential_write(trial: Trial) -> None:
    """Write of a new file of 1 GiB in pieces of 128 KiB, up to close(2), without fsync(2)."""
    _write_new_file(trial, 1024, syncs=False)


@workload(
    group=_GROUP,
    figures={"throughput": Unit.MEGABYTES_PER_SECOND},
    layers=three_layers_of_few_files,
    caches=Caches.FRESH,
    writes=True,
    variants=(NO_PASSTHROUGH,),
    heavy=True,
    stands_for="a package manager or a database that wants its data on the disk",
)
def sequential_write_synced(trial: Trial) -> None:
    """Write of a new file of 256 MiB in pieces of 128 KiB, then fsync(2) and close(2)."""
    _write_new_file(trial, 256, syncs=True)


@workload(
    group=_GROUP,
    figures={"rate": Unit.OPERATIONS_PER_SECOND},
    layers=three_layers_of_few_files,
    caches=Caches.FRESH,
    quick=True,
    writes=True,
    fill_upper=write_one_file,
    variants=(NO_PASSTHROUGH,),
    stands_for="a database, a disk image: pages are changed where they are",
)
def random_overwrite(trial: Trial) -> None:
    """20,000 pwrites of 4 KiB at random places of an upper file of 256 MiB, up to close(2), no fsync(2)."""
    path = os.fspath(trial.root / ONE_FILE)
    size = os.stat(path).st_size
    blocks = some_blocks(size, trial.scale.of(20_000))
    pieces = _pieces(BLOCK, len(blocks))
    places = [(piece, block * BLOCK) for piece, block in zip(pieces, blocks, strict=True)]
    with trial.measured(operations=len(places)), opened(path, os.O_RDWR) as descriptor:
        for piece, offset in places:
            os.pwrite(descriptor, piece, offset)
    expect("the size of the file", os.stat(path).st_size, size)
    _verify_blocks(trial, path, dict(zip(blocks, pieces, strict=True)))


@workload(
    group=_GROUP,
    figures={"latency": Unit.MICROSECONDS},
    layers=three_layers_of_few_files,
    caches=Caches.FRESH,
    quick=True,
    writes=True,
    variants=(SLOW_PATH, NO_PASSTHROUGH),
    stands_for="a program that writes its log",
)
def append(trial: Trial) -> None:
    """10,000 appends of 4 KiB to a new file (O_APPEND, one descriptor), up to close(2), without fsync(2)."""
    path = os.fspath(trial.root / "log")
    lines = _pieces(BLOCK, trial.scale.of(10_000))
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        os.sync()
    with trial.measured(operations=len(lines)), opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        for line in lines:
            os.write(descriptor, line)
    _verify_written(trial, path, lines)


def _write_new_file(trial: Trial, mebibytes: int, *, syncs: bool) -> None:
    path = os.fspath(trial.root / "new")
    size = trial.scale.of(mebibytes) * MEBIBYTE
    pieces = _pieces(PIECE, size // PIECE)
    os.sync()
    with trial.measured(size=size), opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        for piece in pieces:
            os.write(descriptor, piece)
        if syncs:
            os.fsync(descriptor)
    _verify_written(trial, path, pieces)


def _pieces(size: int, count: int) -> list[memoryview]:
    """Return ``count`` pieces, of which neighbours differ."""
    supply = memoryview(random.Random(_SEED).randbytes(size + 61 * 64))
    return [supply[start : start + size] for start in (number % 61 * 64 for number in range(count))]


# What is true of a system that did its work


def _verify_written(trial: Trial, path: str, pieces: list[memoryview]) -> None:
    """Read what was written, when no cache of the merged view holds it any more."""
    trial.drop_caches()
    written, found = 0, 0
    for piece in pieces:
        written = zlib.crc32(piece, written)
    with open(path, "rb", buffering=PIECE) as file:
        while content := file.read(PIECE):
            found = zlib.crc32(content, found)
    expect("bytes written", os.stat(path).st_size, sum(map(len, pieces)))
    if found != written:
        raise BenchError(f"{path}: other bytes than were written")


def _verify_blocks(trial: Trial, path: str, changed: dict[int, memoryview]) -> None:
    """Compare each block with what was written over it, or was there before."""
    trial.drop_caches()
    block = 0
    with open(path, "rb", buffering=PIECE) as file:
        while content := file.read(PIECE):
            for start in range(0, len(content), BLOCK):
                wanted = changed.get(block) or block_of_one_file(block)
                if content[start : start + BLOCK] != wanted:
                    raise BenchError(f"{path}: other bytes than were written at offset {block * BLOCK:,}")
                block += 1
