"""Does a workload of data fail when its work wasn't done?"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import BenchError
from bench.workloads.catalogue import ALL
from bench.workloads.data_layers import BLOCK, ONE_FILE
from bench.workloads.workload import Scale

UPPER_READS = [name for name, work in ALL.items() if name.endswith("-upper")]
WRITES = ["random-overwrite", "sequential-write", "sequential-write-synced", "append"]

write_there, read_there = os.pwrite, os.pread
append_there = os.write


class PlainTrial:
    """A trial on a plain directory, as far as these workloads look at it."""

    scale = Scale.QUICK

    def __init__(self, root: Path) -> None:
        """Work in ``root``."""
        self.root = root
        self.below = [root]
        self.layers = SimpleNamespace(files=[])

    def drop_caches(self) -> None:
        """Leave the machine's caches alone."""

    @contextmanager
    def measured(self, **_asked: Any) -> Iterator[None]:  # noqa: ANN401 - whatever a workload asks for
        """Measure nothing."""
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ALL["random-overwrite"].fill_upper(tmp_path, scale=Scale.QUICK)  # type: ignore[misc] # it has one
    return tmp_path


def do(name: str, root: Path) -> None:
    ALL[name].run(PlainTrial(root))  # type: ignore[arg-type] # as far as they look at it


@pytest.mark.parametrize("name", [*UPPER_READS, *WRITES])
def test_work_that_is_done_passes(name: str, root: Path) -> None:
    do(name, root)


@pytest.mark.parametrize("name", UPPER_READS)
def test_other_bytes_are_noticed(name: str, root: Path) -> None:
    size = (root / ONE_FILE).stat().st_size
    (root / ONE_FILE).write_bytes(bytes(size))

    with pytest.raises(BenchError, match="other bytes"):
        do(name, root)


@pytest.mark.parametrize("name", UPPER_READS)
def test_a_file_that_is_too_short_is_noticed(name: str, root: Path) -> None:
    os.truncate(root / ONE_FILE, (root / ONE_FILE).stat().st_size - BLOCK)

    with pytest.raises(BenchError, match="size of the big file"):
        do(name, root)


def _once(other: Callable[..., Any], real: Callable[..., Any], when: int) -> Callable[..., Any]:
    """Return a call that does something else the ``when``-th time."""
    calls = itertools.count()

    def call(*arguments: object) -> object:
        return (other if next(calls) == when else real)(*arguments)

    return call


@pytest.mark.parametrize("name", [name for name in UPPER_READS if name.startswith("random")])
def test_a_read_that_comes_short_is_noticed(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", _once(lambda fd, _n, at: read_there(fd, 9, at), read_there, 7))

    with pytest.raises(BenchError, match="bytes read"):
        do(name, root)


@pytest.mark.parametrize(
    "skipped",
    [
        lambda _fd, piece, _at: len(piece),
        lambda fd, piece, at: write_there(fd, piece, (at + BLOCK) % (1 << 20)),
        lambda fd, piece, at: write_there(fd, piece[:-1], at),
    ],
    ids=["not written", "written elsewhere", "cut short"],
)
def test_an_overwrite_that_goes_astray_is_noticed(
    skipped: Callable[..., int], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", _once(skipped, write_there, 11))

    with pytest.raises(BenchError, match="other bytes than were written"):
        do("random-overwrite", root)


@pytest.mark.parametrize("name", ["sequential-write", "append"])
def test_a_write_that_is_lost_is_noticed(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", _once(lambda _fd, piece: len(piece), append_there, 11))

    with pytest.raises(BenchError, match="bytes written"):
        do(name, root)
