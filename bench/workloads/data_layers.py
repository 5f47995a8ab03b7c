"""Which layers do the workloads of data and of the life of a mount work on?

No file is empty: some systems look twice at an empty file, as it may stand for a deleted one.
"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from bench.layers import MEBIBYTE, LayerRecipe, LayerWriter
from bench.workloads.workload import Scale

BLOCK: Final = 4096
"""What a random read reads, in bytes."""

ONE_FILE: Final = "data/big"
"""The file of `one_file`, in the lowest of three layers; or one in the upper."""

SMALL_FILE_BESIDE: Final = "data/top"
"""A small one in the same directory, in the topmost of the layers of `one_file`."""

_NUMBER: Final = struct.Struct("<Q")
_FILES_IN_A_DIRECTORY: Final = 200


def one_file(mebibytes: int) -> LayerRecipe:
    """Return 3 layers with a big file in the lowest, in a directory that merges from all of them."""
    return LayerRecipe(f"one-file-of-{mebibytes}-under-2-layers", partial(_one_file, mebibytes))


def _one_file(mebibytes: int, directory: Path) -> None:
    writer = LayerWriter(directory, 3)
    writer.write(0, SMALL_FILE_BESIDE, b"top")
    writer.write(1, "data/middle", b"middle")
    write_numbered_blocks(writer.place(2, ONE_FILE), mebibytes)
    writer.finish()


def write_numbered_blocks(path: Path, mebibytes: int) -> None:
    """Write a file of which `block_of_one_file` tells each block."""
    piece = bytearray(_filler() * (MEBIBYTE // BLOCK))
    with path.open("wb", buffering=0) as file:
        for first in range(0, mebibytes * (MEBIBYTE // BLOCK), MEBIBYTE // BLOCK):
            for block in range(MEBIBYTE // BLOCK):
                _NUMBER.pack_into(piece, block * BLOCK, first + block)
            file.write(piece)


def block_of_one_file(number: int) -> bytes:
    """Return the 4 KiB at ``number`` times 4 KiB; no two blocks are equal."""
    return _NUMBER.pack(number) + _filler()[_NUMBER.size :]


@functools.cache
def _filler() -> bytes:
    return random.Random("one file").randbytes(BLOCK)


def small_files(scale: Scale) -> LayerRecipe:
    """Return 3 layers with 10,000 files of 4 KiB in directories of 200; each directory is in all layers."""
    count = scale.of(10_000)
    return LayerRecipe(f"small-files-{count}-over-3", partial(_small_files, count))


def _small_files(count: int, directory: Path) -> None:
    writer = LayerWriter(directory, 3)
    for number, path in enumerate(_paths(count)):
        writer.write(number % 3, path, content_of_small_file(path))
    writer.finish()


def content_of_small_file(path: str) -> bytes:
    """Return the 4 KiB of a small file, which differ from file to file."""
    line = path.encode() + b"\n"
    return (line * (BLOCK // len(line) + 1))[:BLOCK]


def known_files(scale: Scale) -> LayerRecipe:
    """Return 10 layers with 100,000 files in 500 directories, each of which is in two of the layers."""
    count = scale.of(100_000)
    return LayerRecipe(f"known-files-{count}-over-10", partial(_known_files, count))


def _known_files(count: int, directory: Path) -> None:
    writer = LayerWriter(directory, 10)
    for number, path in enumerate(_paths(count)):
        layer = (number // _FILES_IN_A_DIRECTORY + number % 2) % 10
        with writer.place(layer, path).open("wb", buffering=0) as file:
            # A hole: nobody reads it, and it needs no block on the disk.
            file.truncate(BLOCK)
    writer.finish()


def _paths(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"d{number // _FILES_IN_A_DIRECTORY:04}/f{number % _FILES_IN_A_DIRECTORY:03}"


def three_layers_of_few_files(_scale: Scale) -> LayerRecipe:
    """Describe what lies beneath work that is all in the upper."""
    return few_files(3)


def few_files(layers: int) -> LayerRecipe:
    """Return layers with one file each, in a directory that is in all of them."""
    return LayerRecipe(f"few-files-over-{layers}", partial(_few_files, layers))


def _few_files(layers: int, directory: Path) -> None:
    writer = LayerWriter(directory, layers)
    for layer in range(layers):
        writer.write(layer, f"etc/from-{layer}", f"{layer}".encode())
    writer.finish()
