"""How is one big file read, and were these its bytes?

Shared by the workloads of data; declares none itself.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.errors import BenchError
from bench.trial import Trial
from bench.workloads.checks import expect
from bench.workloads.data_layers import BLOCK, block_of_one_file

PIECE: Final = 128 * 1024
"""How much cat(1) and cp(1) read and write at once, in bytes."""

_SAMPLE: Final = 64
_SEED: Final = 20_000


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Open a file, and close it again."""
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_whole(path: str) -> int:
    """Read a file into one buffer, and return how many bytes there were."""
    buffers = [bytearray(PIECE)]
    total = 0
    with opened(path, os.O_RDONLY) as descriptor:
        while count := os.readv(descriptor, buffers):
            total += count
    return total


def warm_below(trial: Trial, path: str) -> None:
    """Bring a file into the page cache of the layer that it is in, without the mount's knowing."""
    for directory in trial.below:
        if (directory / path).exists():
            read_whole(os.fspath(directory / path))
            return
    raise BenchError(f"{path} is in none of the layers")


def some_blocks(size: int, count: int) -> list[int]:
    """Return the numbers of ``count`` different blocks in random order, the same in every run."""
    return random.Random(_SEED).sample(range(size // BLOCK), count)


def pread_blocks(trial: Trial, path: str, blocks: list[int]) -> None:
    """Measure the reading of some blocks, each by itself."""
    offsets = [block * BLOCK for block in blocks]
    total = 0
    with opened(path, os.O_RDONLY) as descriptor:
        # So that each pread asks for 4 KiB, and nothing is read ahead.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        with trial.measured(operations=len(offsets)):
            for offset in offsets:
                total += len(os.pread(descriptor, BLOCK, offset))
    expect("bytes read", total, len(blocks) * BLOCK)
    verify_sample(path, os.stat(path).st_size)


def touch_pages(trial: Trial, path: str, blocks: list[int]) -> None:
    """Measure the mapping of a file, and the reading of a few bytes of some of its pages."""
    offsets = [block * BLOCK for block in blocks]
    with (
        opened(path, os.O_RDONLY) as descriptor,
        trial.measured(),
        mmap.mmap(descriptor, os.stat(path).st_size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as memory,
    ):
        seen = [memory[offset : offset + 8] for offset in offsets]
    if seen != [block_of_one_file(block)[:8] for block in blocks]:
        raise BenchError(f"{path}: mmap showed other bytes than the file's")


def verify_sample(path: str, size: int) -> None:
    """Compare some blocks of a file with what was written there when the layer, or the upper, was made."""
    with opened(path, os.O_RDONLY) as descriptor:
        for block in (0, size // BLOCK - 1, *some_blocks(size, _SAMPLE)):
            if os.pread(descriptor, BLOCK, block * BLOCK) != block_of_one_file(block):
                raise BenchError(f"{path}: other bytes than in its layer at offset {block * BLOCK:,}")
