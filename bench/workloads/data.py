"""How fast are the bytes of files read and written?

Readers start from one of three states, which the titles name: from the disk (nothing is cached anywhere),
from the layers' page cache (another container has read the file, this mount hasn't), or warm (read before
through the same mount).  Of a plain directory the last two are the same.  Writers are measured to close(2):
some systems keep until then what they were given.
"""

from __future__ import annotations

import mmap
import os
import random
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.layers import MEBIBYTE, LayerRecipe
from bench.trial import Trial
from bench.workloads.checks import expect
from bench.workloads.data_layers import (
    BLOCK,
    ONE_FILE,
    block_of_one_file,
    content_of_small_file,
    few_files,
    one_file,
    small_files,
)
from bench.workloads.workload import Caches, Scale, Unit, workload

_PIECE: Final = 128 * 1024
"""How much cat(1) and cp(1) read and write at once, in bytes."""

_SAMPLE: Final = 64
_SEED: Final = 20_000


def _big(scale: Scale) -> LayerRecipe:
    return one_file(scale.of(512))


def _shared(scale: Scale) -> LayerRecipe:
    # Small enough to be cached five times on any machine.
    return one_file(scale.of(128))


def _few(_scale: Scale) -> LayerRecipe:
    return few_files(3)


# Reading one big file from its start to its end


@workload(
    group="data",
    figures={"throughput": Unit.MEGABYTES_PER_SECOND},
    layers=_big,
    caches=Caches.COLD,
    quick=True,
    stands_for="the first start of a program from a new image: model weights, a database's files",
)
def sequential_read_cold(trial: Trial) -> None:
    """Read of a lower file of 512 MiB from the disk, in pieces of 128 KiB."""
    path, size = _one_file(trial)
    trial.drop_caches()
    with trial.measured(size=size):
        count = _read_whole(path)
    expect("bytes read", count, size)
    _verify_sample(path, size)


@workload(
    group="data",
    figures={"throughput": Unit.MEGABYTES_PER_SECOND},
    layers=_big,
    caches=Caches.WARM,
    quick=True,
    stands_for="a big file that a container reads again",
)
def sequential_read_warm(trial: Trial) -> None:
    """Read of a lower file of 512 MiB that was read before through the same mount, in pieces of 128 KiB."""
    path, size = _one_file(trial)
    _read_whole(path)
    with trial.measured(size=size):
        count = _read_whole(path)
    expect("bytes read", count, size)
    _verify_sample(path, size)


# Reading one big file here and there


@workload(
    group="data",
    figures={"rate": Unit.OPERATIONS_PER_SECOND},
    layers=_big,
    caches=Caches.COLD,
    stands_for="a database's first queries after a start",
)
def random_read_cold(trial: Trial) -> None:
    """4,000 preads of 4 KiB of a lower file of 512 MiB from the disk, POSIX_FADV_RANDOM."""
    path, size = _one_file(trial)
    trial.drop_caches()
    _pread_blocks(trial, path, _some_blocks(size, trial.scale.of(4_000)))


@workload(
    group="data",
    figures={"rate": Unit.OPERATIONS_PER_SECOND},
    layers=_big,
    caches=Caches.WARM,
    quick=True,
    stands_for="a database in an image that another container uses already",
)
def random_read_first(trial: Trial) -> None:
    """20,000 preads of 4 KiB, new to this mount, from the layers' page cache, POSIX_FADV_RANDOM."""
    path, size = _one_file(trial)
    trial.drop_caches()
    _warm_below(trial, ONE_FILE)
    _pread_blocks(trial, path, _some_blocks(size, trial.scale.of(20_000)))


@workload(
    group="data",
    figures={"rate": Unit.OPERATIONS_PER_SECOND},
    layers=_big,
    caches=Caches.WARM,
    stands_for="a database that has run for a while",
)
def random_read_warm(trial: Trial) -> None:
    """20,000 preads of 4 KiB of a file that was read before through the same mount, POSIX_FADV_RANDOM."""
    path, size = _one_file(trial)
    _read_whole(path)
    _pread_blocks(trial, path, _some_blocks(size, trial.scale.of(20_000)))


@workload(
    group="data",
    figures={"time": Unit.MILLISECONDS},
    layers=_big,
    caches=Caches.WARM,
    quick=True,
    stands_for="the start of a program with big libraries, in an image that another container uses already",
)
def mmap_random_read(trial: Trial) -> None:
    """20,000 random pages of 512 MiB touched in a private mmap, from the layers' page cache."""
    path, size = _one_file(trial)
    blocks = _some_blocks(size, trial.scale.of(20_000))
    trial.drop_caches()
    _warm_below(trial, ONE_FILE)
    offsets = [block * BLOCK for block in blocks]
    with (
        _opened(path, os.O_RDONLY) as descriptor,
        trial.measured(),
        mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as memory,
    ):
        seen = [memory[offset : offset + 8] for offset in offsets]
    if seen != [block_of_one_file(block)[:8] for block in blocks]:
        raise BenchError(f"{path}: mmap showed other bytes than the file's")


# Writing


@workload(
    group="data",
    figures={"throughput": Unit.MEGABYTES_PER_SECOND},
    layers=_few,
    caches=Caches.FRESH,
    quick=True,
    writes=True,
    stands_for="a download, a build's result",
)
def sequential_write(trial: Trial) -> None:
    """Write of a new file of 256 MiB in pieces of 128 KiB, up to close(2), without fsync(2)."""
    _write_new_file(trial, syncs=False)


@workload(
    group="data",
    figures={"throughput": Unit.MEGABYTES_PER_SECOND},
    layers=_few,
    caches=Caches.FRESH,
    writes=True,
    stands_for="a package manager or a database that wants its data on the disk",
)
def sequential_write_synced(trial: Trial) -> None:
    """Write of a new file of 256 MiB in pieces of 128 KiB, then fsync(2) and close(2)."""
    _write_new_file(trial, syncs=True)


@workload(
    group="data",
    figures={"latency": Unit.MICROSECONDS},
    layers=_few,
    caches=Caches.FRESH,
    quick=True,
    writes=True,
    stands_for="a program that writes its log",
)
def append(trial: Trial) -> None:
    """10,000 appends of 4 KiB to a new file (O_APPEND, one descriptor), up to close(2), without fsync(2)."""
    path = os.fspath(trial.root / "log")
    lines = _pieces(BLOCK, trial.scale.of(10_000))
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        os.sync()
    with trial.measured(operations=len(lines)), _opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        for line in lines:
            os.write(descriptor, line)
    _verify_written(trial, path, lines)


# Many small files, and many mounts


@workload(
    group="data",
    figures={"latency": Unit.MICROSECONDS},
    layers=small_files,
    caches=Caches.COLD,
    stands_for="the first start of a program of many modules from a new image",
)
def small_files_cold(trial: Trial) -> None:
    """open, read and close of 10,000 files of 4 KiB over 3 layers from the disk."""
    trial.drop_caches()
    _read_small_files(trial)


@workload(
    group="data",
    figures={"latency": Unit.MICROSECONDS},
    layers=small_files,
    caches=Caches.WARM,
    quick=True,
    stands_for="a compiler that reads its headers again, a web server of small files",
)
def small_files_warm(trial: Trial) -> None:
    """open, read and close of 10,000 files of 4 KiB over 3 layers, read before through the same mount."""
    for path in trial.layers.files:
        _read_small_file(os.fspath(trial.root / path))
    _read_small_files(trial)


@workload(
    group="data",
    figures={"page cache": Unit.MEBIBYTES, "time": Unit.MILLISECONDS},
    layers=_shared,
    caches=Caches.COLD,
    quick=True,
    stands_for="four containers of one image on one machine: are its pages in memory once?",
)
def shared_by_four_mounts(trial: Trial) -> None:
    """Read of a lower file of 128 MiB through 4 mounts at once, from the disk: page cache used, time."""
    mounts = [trial.mounted, *(trial.mount() for _ in range(3))]
    paths = [os.fspath(mounted.root / ONE_FILE) for mounted in mounts]
    size = os.stat(paths[0]).st_size
    with ThreadPoolExecutor(len(paths)) as readers:
        trial.drop_caches()
        before = _page_cache_bytes()
        with trial.measured(figure="time"):
            counts = list(readers.map(_read_whole, paths))
        trial.record("page cache", (_page_cache_bytes() - before) / MEBIBYTE)
    for path, count in zip(paths, counts, strict=True):
        expect("bytes read", count, size)
        _verify_sample(path, size)


# What several of them do


def _one_file(trial: Trial) -> tuple[str, int]:
    path = os.fspath(trial.root / ONE_FILE)
    size = os.stat(path).st_size
    expect("size of the big file", size, trial.scale.of(512) * MEBIBYTE)
    return path, size


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_whole(path: str) -> int:
    """Read a file into one buffer, and return how many bytes there were."""
    buffers = [bytearray(_PIECE)]
    total = 0
    with _opened(path, os.O_RDONLY) as descriptor:
        while count := os.readv(descriptor, buffers):
            total += count
    return total


def _warm_below(trial: Trial, path: str) -> None:
    """Bring a file into the page cache of the layer that it is in, without the mount's knowing."""
    lowers = [trial.layers.directory / name for name in trial.layers.lowers]
    below = lowers if trial.upper is not None else [trial.root]
    for directory in below:
        if (directory / path).exists():
            _read_whole(os.fspath(directory / path))
            return
    raise BenchError(f"{path} is in none of the layers")


def _some_blocks(size: int, count: int) -> list[int]:
    """Return the numbers of ``count`` different blocks in random order, the same in every run."""
    return random.Random(_SEED).sample(range(size // BLOCK), count)


def _pread_blocks(trial: Trial, path: str, blocks: list[int]) -> None:
    offsets = [block * BLOCK for block in blocks]
    total = 0
    with _opened(path, os.O_RDONLY) as descriptor:
        # So that each pread asks for 4 KiB, and nothing is read ahead.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        with trial.measured(operations=len(offsets)):
            for offset in offsets:
                total += len(os.pread(descriptor, BLOCK, offset))
    expect("bytes read", total, len(blocks) * BLOCK)
    _verify_sample(path, os.stat(path).st_size)


def _write_new_file(trial: Trial, *, syncs: bool) -> None:
    path = os.fspath(trial.root / "new")
    size = trial.scale.of(256) * MEBIBYTE
    pieces = _pieces(_PIECE, size // _PIECE)
    os.sync()
    with trial.measured(size=size), _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        for piece in pieces:
            os.write(descriptor, piece)
        if syncs:
            os.fsync(descriptor)
    _verify_written(trial, path, pieces)


def _pieces(size: int, count: int) -> list[memoryview]:
    """Return ``count`` pieces, of which neighbours differ."""
    supply = memoryview(random.Random(_SEED).randbytes(size + 61 * 64))
    return [supply[start : start + size] for start in (number % 61 * 64 for number in range(count))]


def _read_small_files(trial: Trial) -> None:
    paths = [os.fspath(trial.root / path) for path in trial.layers.files]
    total = 0
    with trial.measured(operations=len(paths)):
        for path in paths:
            total += len(_read_small_file(path))
    expect("bytes read", total, trial.scale.of(10_000) * BLOCK)
    for path in trial.layers.files[:: len(paths) // _SAMPLE]:
        if _read_small_file(os.fspath(trial.root / path)) != content_of_small_file(path):
            raise BenchError(f"{path} has other bytes than in its layer")


def _read_small_file(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    content = os.read(descriptor, 2 * BLOCK)
    os.close(descriptor)
    return content


def _page_cache_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    raise BenchError("/proc/meminfo names no Cached, so that page cache can't be measured")


# What is true of a system that did its work


def _verify_sample(path: str, size: int) -> None:
    with _opened(path, os.O_RDONLY) as descriptor:
        for block in (0, size // BLOCK - 1, *_some_blocks(size, _SAMPLE)):
            if os.pread(descriptor, BLOCK, block * BLOCK) != block_of_one_file(block):
                raise BenchError(f"{path}: other bytes than in its layer at offset {block * BLOCK:,}")


def _verify_written(trial: Trial, path: str, pieces: list[memoryview]) -> None:
    """Read what was written, when no cache of the merged view holds it any more."""
    trial.drop_caches()
    written, found = 0, 0
    for piece in pieces:
        written = zlib.crc32(piece, written)
    with open(path, "rb", buffering=_PIECE) as file:
        while content := file.read(_PIECE):
            found = zlib.crc32(content, found)
    expect("bytes written", os.stat(path).st_size, sum(map(len, pieces)))
    if found != written:
        raise BenchError(f"{path}: other bytes than were written")
