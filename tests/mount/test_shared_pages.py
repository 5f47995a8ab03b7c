"""Is there one copy in the page cache of what several mounts of a layer read? Counted page by page."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, Stack, make_stack, pyoverlay_only

MOUNTS = 4
SIZE = 4 << 20
PROGRAM = shutil.which("sleep") or ""
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def mounts(kind: Kind, stack: Stack, base: Path, *options: str) -> Iterator[list[Path]]:
    """Four mounts of one lower, each with an upper of its own."""
    with ExitStack() as live:
        paths = []
        for number in range(MOUNTS):
            own = base / str(number)
            own.mkdir()
            mount = Mount(kind, make_stack(own), f"lowerdir={stack.lower}", *options)
            paths.append(live.enter_context(mount).path)
        yield paths


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A map of a whole file during the block."""
    descriptor = os.open(path, os.O_RDONLY)
    # Private, as programs are; a writable one has an address for ctypes.
    area = mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(descriptor)
    try:
        yield area
    finally:
        area.close()


def pages_in_memory(area: mmap.mmap) -> int:
    """How many of a map's pages are in the page cache of the file that it maps: mincore(2)."""
    count = -(-len(area) // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * count)()
    start = ctypes.c_char.from_buffer(area)
    try:
        address = ctypes.c_void_p(ctypes.addressof(start))
        assert _libc.mincore(address, ctypes.c_size_t(len(area)), states) == 0
    finally:
        del start
    return sum(state & 1 for state in states)


def drop(path: Path) -> None:
    """Take a file out of the page cache: there is one copy less of it, if it was in there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _reads(path: Path) -> None:
    assert len(path.read_bytes()) == SIZE


def _runs(path: Path) -> None:
    subprocess.run([path, "0"], check=True)


@pyoverlay_only
@pytest.mark.parametrize(("option", "program"), [("auto", True), ("all", False)], ids=["program", "data"])
def test_four_mounts_share_one_copy(kind: Kind, stack: Stack, base: Path, option: str, program: bool) -> None:
    """What was read through one mount is in memory for all, and gone for all when the layer's pages are."""
    lower = stack.lower / "file"
    if program:
        shutil.copy(PROGRAM, lower)
        with open(lower, "ab") as file:
            file.write(bytes(SIZE - lower.stat().st_size))
    else:
        lower.write_bytes(os.urandom(SIZE))
    with mounts(kind, stack, base, f"passthrough={option}") as paths, ExitStack() as opened:
        for path in paths:
            (_runs if program else _reads)(path / "file")
            _reads(path / "file")
        # The layer's own pages, seen through each mount: what is in memory for one is for all.
        areas = [opened.enter_context(mapped(path / "file")) for path in paths]
        whole = SIZE // mmap.PAGESIZE
        assert [pages_in_memory(area) for area in areas] == [whole] * MOUNTS
        drop(lower)
        assert [pages_in_memory(area) for area in areas] == [0] * MOUNTS
        _reads(paths[0] / "file")
        assert [pages_in_memory(area) for area in areas] == [whole] * MOUNTS


@pyoverlay_only
def test_without_passthrough_each_mount_has_its_own(kind: Kind, stack: Stack, base: Path) -> None:
    """What is counted above is no property of any mount: it takes passthrough."""
    (stack.lower / "file").write_bytes(os.urandom(SIZE))
    with mounts(kind, stack, base, "passthrough=off") as paths, ExitStack() as opened:
        for path in paths:
            _reads(path / "file")
        areas = [opened.enter_context(mapped(path / "file")) for path in paths]
        drop(stack.lower / "file")
        assert [pages_in_memory(area) for area in areas] == [SIZE // mmap.PAGESIZE] * MOUNTS
