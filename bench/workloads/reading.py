"""How fast are the bytes of files read?

Readers start from one of three states, which the titles name: from the disk (nothing is cached anywhere),
from the layers' page cache (another container has read the file, this mount hasn't), or warm (read before
through the same mount).  Of a plain directory the last two are the same.

A big file is read from each of three places, as a system may serve them differently: from a lower of a
writable mount, where it may be copied up while it is open; from a lower of a mount without an upper; and
from the upper.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.layers import MEBIBYTE, LayerRecipe
from bench.systems import NO_PASSTHROUGH, PASSTHROUGH_ALL, SLOW_PATH
from bench.trial import Trial
from bench.workloads.big_file import (
    pread_blocks,
    read_whole,
    some_blocks,
    touch_pages,
    verify_sample,
    warm_below,
)
from bench.workloads.checks import expect
from bench.workloads.data_layers import (
    BLOCK,
    ONE_FILE,
    content_of_small_file,
    one_file,
    small_files,
    three_layers_of_few_files,
    write_numbered_blocks,
)
from bench.workloads.workload import Caches, FillUpper, Scale, Unit, workload

_GROUP: Final = "data"
_THROUGHPUT: Final = {"throughput": Unit.MEGABYTES_PER_SECOND}
_RATE: Final = {"rate": Unit.OPERATIONS_PER_SECOND}
_TIME: Final = {"time": Unit.MILLISECONDS}
_SAMPLE: Final = 64

_MEBIBYTES_OF_LOWER: Final = 512
_MEBIBYTES_OF_UPPER: Final = 256
"""It is written anew for each trial."""


# Where the file is


@dataclass(frozen=True)
class _Place:
    """Where a big file is that is read.

    Attributes:
        suffix: What is added to the workloads' names.
        said: What the titles call the file.
        mebibytes: Its size.
        layers: What is mounted.
        variants: Systems to which the place makes a difference.
        read_only: Whether the mount has no upper.
        fill_upper: Writes the file, if it is in the upper.
    """

    suffix: str
    said: str
    mebibytes: int
    layers: Callable[[Scale], LayerRecipe]
    variants: tuple[str, ...]
    read_only: bool = False
    fill_upper: FillUpper | None = None


def _with_one_file(scale: Scale) -> LayerRecipe:
    return one_file(scale.of(_MEBIBYTES_OF_LOWER))


def write_one_file(upper: Path, *, scale: Scale) -> None:
    """Give an upper the big file."""
    (upper / ONE_FILE).parent.mkdir()
    write_numbered_blocks(upper / ONE_FILE, scale.of(_MEBIBYTES_OF_UPPER))


_LOWER: Final = _Place("", "a lower file", _MEBIBYTES_OF_LOWER, _with_one_file, (PASSTHROUGH_ALL,))
_READ_ONLY: Final = _Place(
    "-read-only",
    "a lower file of a read-only mount",
    _MEBIBYTES_OF_LOWER,
    _with_one_file,
    (NO_PASSTHROUGH,),
    read_only=True,
)
_UPPER: Final = _Place(
    "-upper",
    "an upper file",
    _MEBIBYTES_OF_UPPER,
    three_layers_of_few_files,
    (NO_PASSTHROUGH,),
    fill_upper=write_one_file,
)
_PLACES: Final = (_LOWER, _READ_ONLY, _UPPER)


def _one_file(trial: Trial, place: _Place) -> tuple[str, int]:
    path = os.fspath(trial.root / ONE_FILE)
    size = os.stat(path).st_size
    expect("size of the big file", size, trial.scale.of(place.mebibytes) * MEBIBYTE)
    return path, size


# How it is read


def _read_sequentially(trial: Trial, path: str, size: int) -> None:
    with trial.measured(size=size):
        count = read_whole(path)
    expect("bytes read", count, size)
    verify_sample(path, size)


def _sequential_cold(trial: Trial, place: _Place) -> None:
    path, size = _one_file(trial, place)
    trial.drop_caches()
    _read_sequentially(trial, path, size)


def _sequential_warm(trial: Trial, place: _Place) -> None:
    path, size = _one_file(trial, place)
    read_whole(path)
    _read_sequentially(trial, path, size)


def _random_cold(trial: Trial, place: _Place) -> None:
    path, size = _one_file(trial, place)
    trial.drop_caches()
    pread_blocks(trial, path, some_blocks(size, trial.scale.of(4_000)))


def _random_first(trial: Trial, place: _Place) -> None:
    path, size = _one_file(trial, place)
    trial.drop_caches()
    warm_below(trial, ONE_FILE)
    pread_blocks(trial, path, some_blocks(size, trial.scale.of(20_000)))


def _random_warm(trial: Trial, place: _Place) -> None:
    path, size = _one_file(trial, place)
    read_whole(path)
    pread_blocks(trial, path, some_blocks(size, trial.scale.of(20_000)))


def _mapped(trial: Trial, place: _Place) -> None:
    path, size = _one_file(trial, place)
    blocks = some_blocks(size, trial.scale.of(20_000))
    trial.drop_caches()
    warm_below(trial, ONE_FILE)
    touch_pages(trial, path, blocks)


@dataclass(frozen=True)
class _Way:
    """How a big file is read.

    Attributes:
        name: The workload's.
        title: With PLACE for the file, and SIZE for its MiB.
        figures: What it yields.
        caches: What they hold.
        stands_for: Which work of real life it stands for.
        run: The work.
        quick: Whether a quick run has it, of a lower file.
        places: Where the file is.
        variants: Systems that measure it besides those of the place.
    """

    name: str
    title: str
    figures: dict[str, Unit]
    caches: Caches
    stands_for: str
    run: Callable[[Trial, _Place], None]
    quick: bool = False
    places: tuple[_Place, ...] = _PLACES
    variants: tuple[str, ...] = field(default=())


_WAYS: Final = (
    _Way(
        "sequential-read-cold",
        "Read of PLACE of SIZE MiB from the disk, in pieces of 128 KiB",
        _THROUGHPUT,
        Caches.COLD,
        "the first start of a program from a new image: model weights, a database's files",
        _sequential_cold,
        quick=True,
        variants=(SLOW_PATH,),
    ),
    _Way(
        "sequential-read-warm",
        "Read of PLACE of SIZE MiB that was read before through the same mount, in pieces of 128 KiB",
        _THROUGHPUT,
        Caches.WARM,
        "a big file that a container reads again",
        _sequential_warm,
        quick=True,
    ),
    _Way(
        "random-read-cold",
        "4,000 preads of 4 KiB of PLACE of SIZE MiB from the disk, POSIX_FADV_RANDOM",
        _RATE,
        Caches.COLD,
        "a database's first queries after a start",
        _random_cold,
        places=(_LOWER,),
    ),
    _Way(
        "random-read-first",
        "20,000 preads of 4 KiB of PLACE of SIZE MiB, new to this mount, from the layer's page cache, "
        "POSIX_FADV_RANDOM",
        _RATE,
        Caches.WARM,
        "a database in an image that another container uses already",
        _random_first,
        quick=True,
    ),
    _Way(
        "random-read-warm",
        "20,000 preads of 4 KiB of PLACE of SIZE MiB, read before through the same mount, POSIX_FADV_RANDOM",
        _RATE,
        Caches.WARM,
        "a database that has run for a while",
        _random_warm,
        places=(_LOWER,),
    ),
    _Way(
        "mmap-random-read",
        "20,000 random pages of PLACE of SIZE MiB touched in a private mmap, from the layer's page cache",
        _TIME,
        Caches.WARM,
        "the start of a program with big libraries, in an image that another container uses already",
        _mapped,
        quick=True,
    ),
)


def _declare(way: _Way, place: _Place) -> None:
    def read(trial: Trial) -> None:
        way.run(trial, place)

    read.__doc__ = way.title.replace("PLACE", place.said).replace("SIZE", str(place.mebibytes))
    # Of variants that differ everywhere, one place tells enough.
    others = way.variants if place is _LOWER else ()
    workload(
        name=way.name + place.suffix,
        group=_GROUP,
        figures=way.figures,
        layers=place.layers,
        caches=way.caches,
        quick=way.quick and place is _LOWER,
        variants=(*place.variants, *others),
        read_only=place.read_only,
        fill_upper=place.fill_upper,
        stands_for=way.stands_for,
    )(read)


for _place in _PLACES:
    for _way in _WAYS:
        if _place in _way.places:
            _declare(_way, _place)


# Many small files


@workload(
    group=_GROUP,
    figures={"latency": Unit.MICROSECONDS},
    layers=small_files,
    caches=Caches.COLD,
    heavy=True,
    variants=(SLOW_PATH, PASSTHROUGH_ALL),
    stands_for="the first start of a program of many modules from a new image",
)
def small_files_cold(trial: Trial) -> None:
    """open, read and close of 10,000 files of 4 KiB over 3 layers from the disk."""
    trial.drop_caches()
    _read_small_files(trial)


@workload(
    group=_GROUP,
    figures={"latency": Unit.MICROSECONDS},
    layers=small_files,
    caches=Caches.WARM,
    heavy=True,
    quick=True,
    variants=(PASSTHROUGH_ALL,),
    stands_for="a compiler that reads its headers again, a web server of small files",
)
def small_files_warm(trial: Trial) -> None:
    """open, read and close of 10,000 files of 4 KiB over 3 layers, read before through the same mount."""
    for path in trial.layers.files:
        _read_small_file(os.fspath(trial.root / path))
    _read_small_files(trial)


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
