"""Which layers lie below a workload, and how are they made?

A `LayerRecipe` writes lowers, always the same ones: contents come from seeded generators, modification
times are fixed.  `LayerStore` follows each recipe once in a run; all systems are given the same lowers, which
nobody writes, and a plain directory's content is what the kernel's overlay shows of them.  Knows nothing of
workloads or systems.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from bench import kernel
from bench.errors import BenchError

LONG_AGO: Final = 1_577_836_800
"""Modification time of everything in generated lowers, in seconds since the epoch: 2020-01-01."""

MEBIBYTE: Final = 1 << 20

_SMALLEST_FILE: Final = 100
_LARGEST_FILE: Final = 4000
_SHADOWING: Final = 10
"""One file in so many is in the layer below as well, with other content."""

_EXTENTS: Final = 16
_EXTENT_SIZE: Final = 64 << 10
_FILE_LIST: Final = "files.txt"


@dataclass(frozen=True)
class LayerRecipe:
    """How to make a set of layers.

    Attributes:
        name: Names the result, parameters included; a file name.
        build: Makes the lowers in an empty directory, named "0" (the topmost), "1", "2" ..., so that 500 of
            them fit into the page that mount(2) takes. It may list the regular files of the merged tree in
            "files.txt", one path a line; else they are looked for.
    """

    name: str
    build: Callable[[Path], None]


@dataclass(frozen=True)
class LayerSet:
    """Layers that are ready to be mounted.

    Attributes:
        directory: Where they are.
        lowers: Names of the lowers in it, the topmost first.
        merged: A plain directory with the merged tree; of a single lower, that lower itself.
        files: The regular files of the merged tree, relative to its root.
    """

    directory: Path
    lowers: list[str]
    merged: Path
    files: list[str]


class LayerStore:
    """Layer sets, each made when it is first asked for, in a directory that lasts for a run."""

    def __init__(self, directory: Path) -> None:
        """Keep them in ``directory``, which is made if need be."""
        self._directory = directory
        self._ready: dict[str, LayerSet] = {}

    def get(self, recipe: LayerRecipe) -> LayerSet:
        """Return the layers of a recipe.

        Raises BenchError when they can't be made; what was made so far is removed.
        """
        if recipe.name not in self._ready:
            directory = self._directory / recipe.name
            if not directory.exists():
                self._make(recipe, directory)
            self._ready[recipe.name] = _read(directory)
        return self._ready[recipe.name]

    def _make(self, recipe: LayerRecipe, directory: Path) -> None:
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(unfinished)
        try:
            unfinished.mkdir(parents=True)
            recipe.build(unfinished)
            _complete(unfinished)
            unfinished.rename(directory)
        except (OSError, subprocess.SubprocessError) as failure:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise BenchError(
                f"{recipe.name}: these layers can't be made in {self._directory}: {failure}"
            ) from failure
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        # What is written back later would disturb what is measured then.
        os.sync()


def _read(directory: Path) -> LayerSet:
    lowers = _lowers(directory)
    merged = directory / "merged" if len(lowers) > 1 else directory / lowers[0]
    listed = (directory / _FILE_LIST).read_bytes()
    return LayerSet(directory, lowers, merged, [os.fsdecode(line) for line in listed.splitlines()])


def _lowers(directory: Path) -> list[str]:
    return sorted((name for name in os.listdir(directory) if name.isdecimal()), key=int)


def _complete(directory: Path) -> None:
    """Add to the lowers what a `LayerSet` has besides."""
    lowers = _lowers(directory)
    if lowers != [str(number) for number in range(len(lowers))] or not lowers:
        raise BenchError(
            f"{directory}: lowers must be named 0, 1, 2 ..., not {', '.join(lowers) or 'nothing'}"
        )
    for lower in lowers:
        _make_accessed_now(directory / lower)
    merged = directory / lowers[0]
    if len(lowers) > 1:
        merged = directory / "merged"
        with kernel_overlay(directory, lowers) as view:
            subprocess.run(["cp", "-a", f"{view}/.", str(merged)], check=True)
    file_list = directory / _FILE_LIST
    if not file_list.exists():
        file_list.write_bytes(b"".join(os.fsencode(path) + b"\n" for path in _regular_files(merged)))


def _make_accessed_now(tree: Path) -> None:
    """Set access times to now, so that reading (relatime) doesn't write the layers of some systems only."""
    now = time.time_ns()
    for path in (os.fspath(tree), *_everything(tree)):
        status = os.lstat(path)
        os.utime(path, ns=(now, status.st_mtime_ns), follow_symlinks=False)


def _everything(tree: Path) -> Iterator[str]:
    for directory, names, files in os.walk(tree):
        for name in (*names, *files):
            yield f"{directory}/{name}"


def _regular_files(tree: Path) -> list[str]:
    paths = (Path(path) for path in _everything(tree))
    return sorted(str(path.relative_to(tree)) for path in paths if path.is_file() and not path.is_symlink())


@contextlib.contextmanager
def kernel_overlay(directory: Path, lowers: list[str]) -> Iterator[Path]:
    """Show lowers as the kernel merges them, read-only, in a directory beside them.

    Args:
        directory: Where the lowers are.
        lowers: Their names, topmost first; at least two.
    """
    view = directory / "view"
    view.mkdir()
    command = ["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={':'.join(lowers)}", str(view)]
    environment = {**os.environ, **kernel.MOUNT_ENVIRONMENT}
    ran = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise BenchError(
            f"{directory}: the kernel can't mount these layers to copy what they show: {ran.stderr.strip()}; "
            "this needs root rights, and a directory on a file system that overlayfs can stack (ext4, xfs)"
        )
    try:
        yield view
    finally:
        subprocess.run(["umount", str(view)], check=True)
        view.rmdir()


@dataclass
class LayerWriter:
    """Writes the lowers of a recipe.

    Attributes:
        directory: Where they are made, as "0", "1" ... .
        layers: How many.
    """

    directory: Path
    layers: int
    _directories: set[Path] = field(default_factory=set)
    _files: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the lowers, which are empty."""
        for layer in range(self.layers):
            self.lower(layer).mkdir()

    def lower(self, layer: int) -> Path:
        """Return a lower; 0 is the topmost."""
        return self.directory / str(layer)

    def make_directory(self, layer: int, path: str) -> Path:
        """Make a directory and those above it, unless they are there."""
        made = self.lower(layer) / path
        if made not in self._directories:
            made.mkdir(parents=True, exist_ok=True)
            self._directories.add(made)
        return made

    def place(self, layer: int, path: str) -> Path:
        """Return where a file of the merged tree is to be written."""
        parent, _, name = path.rpartition("/")
        self._files[path] = None
        return self.make_directory(layer, parent) / name

    def write(self, layer: int, path: str, content: bytes) -> None:
        """Write a file."""
        self.place(layer, path).write_bytes(content)

    def finish(self) -> None:
        """Make everything old, and list the files, in the order in which they were written."""
        for layer in range(self.layers):
            lower = self.lower(layer)
            for path in (os.fspath(lower), *_everything(lower)):
                os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
        (self.directory / _FILE_LIST).write_text("".join(f"{path}\n" for path in self._files))


def many_files(files: int, directories: int, layers: int) -> LayerRecipe:
    """Return layers with small files in "tree", spread so that each directory merges from as many as it can.

    Neighbouring files are in different layers. One in ten hides a file of another size in the layer below.
    """
    return LayerRecipe(
        f"many-files-{files}-in-{directories}-over-{layers}", partial(_many_files, files, directories, layers)
    )


def _many_files(files: int, directories: int, layers: int, directory: Path) -> None:
    writer = LayerWriter(directory, layers)
    _write_tree(writer, files, directories)
    writer.finish()


def _write_tree(writer: LayerWriter, files: int, directories: int) -> None:
    chance = random.Random(f"{files} files over {writer.layers} layers")
    for number in range(files):
        path = f"tree/d{number * directories // files:04}/f{number:06}"
        layer = number % writer.layers
        writer.write(layer, path, chance.randbytes(chance.randint(_SMALLEST_FILE, _LARGEST_FILE)))
        if number % _SHADOWING == 0 and layer + 1 < writer.layers:
            writer.write(layer + 1, path, b"hidden")


def big_directory(entries: int, layers: int) -> LayerRecipe:
    """Return layers that merge into one directory, "big", of that many files."""
    return LayerRecipe(f"big-directory-{entries}-over-{layers}", partial(_big_directory, entries, layers))


def _big_directory(entries: int, layers: int, directory: Path) -> None:
    writer = LayerWriter(directory, layers)
    for number in range(entries):
        writer.write(number % layers, f"big/entry-{number:06}", f"{number}\n".encode())
    writer.finish()


def deep_directories(chains: int, depth: int, layers: int) -> LayerRecipe:
    """Return chains of directories, all of them in all layers, each with one file at ``depth`` names."""
    return LayerRecipe(
        f"deep-directories-{chains}-to-{depth}-over-{layers}",
        partial(_deep_directories, chains, depth, layers),
    )


def _deep_directories(chains: int, depth: int, layers: int, directory: Path) -> None:
    writer = LayerWriter(directory, layers)
    for chain in range(chains):
        names = [f"chain-{chain:03}", *(f"d{level:02}" for level in range(2, depth))]
        for layer in range(layers):
            writer.make_directory(layer, "/".join(names))
        writer.write(chain % layers, "/".join([*names, "file"]), b"deep")
    writer.finish()


def equal_files(count: int, size: int) -> LayerRecipe:
    """Return one layer with files of ``size`` bytes in "files"."""
    return LayerRecipe(f"equal-files-{count}-of-{size}", partial(_equal_files, count, size))


def _equal_files(count: int, size: int, directory: Path) -> None:
    writer = LayerWriter(directory, 1)
    chance = random.Random(f"files of {size}")
    for number in range(count):
        writer.write(0, f"files/f{number:06}", chance.randbytes(size))
    writer.finish()


def big_file(mebibytes: int, files_beside: int) -> LayerRecipe:
    """Return one layer with one big file, "big", and small ones in "tree", 100 in a directory."""
    return LayerRecipe(
        f"big-file-{mebibytes}-beside-{files_beside}", partial(_big_file, mebibytes, files_beside)
    )


def _big_file(mebibytes: int, files_beside: int, directory: Path) -> None:
    writer = LayerWriter(directory, 1)
    _write_tree(writer, files_beside, max(1, files_beside // 100))
    block = random.Random("big file").randbytes(MEBIBYTE)
    with writer.place(0, "big").open("wb") as file:
        for number in range(mebibytes):
            # No two blocks are equal: a copy that loses its place shows.
            file.write(number.to_bytes(8, "big") + block[8:])
    writer.finish()


def sparse_file(mebibytes: int) -> LayerRecipe:
    """Return one layer with one file, "big", that is a hole but for 16 extents of 64 KiB."""
    return LayerRecipe(f"sparse-file-{mebibytes}", partial(_sparse_file, mebibytes))


def _sparse_file(mebibytes: int, directory: Path) -> None:
    writer = LayerWriter(directory, 1)
    chance = random.Random("sparse file")
    with writer.place(0, "big").open("wb") as file:
        file.truncate(mebibytes * MEBIBYTE)
        for number in range(_EXTENTS):
            file.seek(number * (mebibytes * MEBIBYTE // _EXTENTS))
            file.write(chance.randbytes(_EXTENT_SIZE))
    writer.finish()
