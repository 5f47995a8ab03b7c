"""Is a listing exact that the kernel may keep: names, inode numbers, positions, whoever reads and changes?"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack
from tests.harness.content import make_directory, make_file
from tests.harness.libc import RENAME_EXCHANGE, DirectoryEntry, getdents, getdents_into, renameat2

LARGEST_BUFFER = 32 * 1024


@pytest.fixture
def directory(stack: Stack, mount_overlay: MountFactory) -> Path:
    """A merged directory of 300 names."""
    for number in range(300):
        make_file((stack.upper, stack.lower)[number % 2] / "d" / f"name{number:04}")
    path: Path = mount_overlay().path / "d"
    return path


def entries_of(descriptor: int, size: int = LARGEST_BUFFER) -> Iterator[DirectoryEntry]:
    """The entries from a descriptor's position on."""
    while part := getdents(descriptor, size):
        yield from part


def numbers(path: Path) -> dict[str, int]:
    """The inode numbers in a listing of a directory, with those of the dots."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {os.fsdecode(entry.name): entry.inode for entry in entries_of(descriptor)}
    finally:
        os.close(descriptor)


# What POSIX promises: readdir(3)


@dataclass
class Reader:
    """A descriptor that is read in pieces, and what a pass from beginning to end may and must show."""

    directory: Path
    descriptor: int = -1
    seen: Counter[str] = field(default_factory=Counter)
    stayed: set[str] = field(default_factory=set)
    """Names that were there all the time."""
    possible: set[str] = field(default_factory=set)
    """Names that were there at some time."""
    came_again: set[str] = field(default_factory=set)
    """Names that were made or removed meanwhile."""

    def open(self, names: set[str]) -> None:
        """Begin with a new descriptor."""
        self.close()
        self.descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        self._begin(names)

    def rewind(self, names: set[str]) -> None:
        """Begin anew with the same descriptor."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self._begin(names)

    def _begin(self, names: set[str]) -> None:
        self.seen.clear()
        self.stayed = names | {".", ".."}
        self.possible = set(self.stayed)
        self.came_again = set()

    def changed(self, gone: set[str], come: set[str]) -> None:
        """Take note of a change."""
        self.stayed -= gone
        self.possible |= come
        self.came_again |= gone | come

    def read(self, size: int, names: set[str]) -> None:
        """Read a piece; after the last one check the pass, and begin another."""
        part = getdents(self.descriptor, size)
        self.seen.update(os.fsdecode(entry.name) for entry in part)
        if part:
            return
        assert self.stayed <= set(self.seen), f"missed: {self.stayed - set(self.seen)}"
        assert set(self.seen) <= self.possible, f"long gone: {set(self.seen) - self.possible}"
        twice = {name for name, count in self.seen.items() if count > 1}
        assert twice <= self.came_again, f"twice: {twice}"
        self.rewind(names)

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@pytest.mark.parametrize("seed", range(6))
def test_each_pass_shows_what_was_there_all_the_time_once_and_nothing_that_never_was(
    stack: Stack, mount_overlay: MountFactory, seed: int
) -> None:
    """Readers in different places of one directory, changes between."""
    dice = random.Random(seed)
    count = dice.choice([3, 40, 400])
    for number in range(count):
        make_file((stack.upper, stack.lower)[number % 2] / "d" / f"{number}{'x' * dice.randrange(40)}")
    make_file(stack.lower / "outside" / "file")
    directory = mount_overlay().path / "d"
    names = set(os.listdir(directory))
    readers = [Reader(directory) for _ in range(4)]
    try:
        for reader in readers:
            reader.open(names)
        for step in range(800):
            reader = dice.choice(readers)
            what = dice.random()
            if what < 0.70:
                reader.read(dice.choice([300, 1000, 5000, LARGEST_BUFFER]), names)
            elif what < 0.73:
                reader.rewind(names)
            elif what < 0.76:
                reader.open(names)
            else:
                _change(dice, directory, names, readers, step)
        for reader in readers:
            reader.rewind(names)
        assert set(os.listdir(directory)) == names
    finally:
        for reader in readers:
            reader.close()


def _change(dice: random.Random, directory: Path, names: set[str], readers: list[Reader], step: int) -> None:
    gone: set[str] = set()
    come: set[str] = set()
    victim = dice.choice(sorted(names)) if names else None
    match dice.randrange(7):
        case 0 if victim:
            (directory / victim).unlink()
            gone = {victim}
        case 1 if victim:
            (directory / victim).rename(directory / f"renamed{step}")
            gone, come = {victim}, {f"renamed{step}"}
        case 2 if victim:  # its name stays
            (directory / f"../outside/{step}").touch()
            os.rename(directory / f"../outside/{step}", directory / victim)
        case 3 if victim:
            (directory / victim).chmod(0o600)
        case 4 if victim:
            (directory / victim).unlink()
            (directory / victim).touch()
            gone = come = {victim}
        case 5 if victim:
            os.link(directory / victim, directory / f"link{step}")
            come = {f"link{step}"}
        case _:
            (directory / f"new{step}").touch()
            come = {f"new{step}"}
    names -= gone
    names |= come
    for reader in readers:
        reader.changed(gone, come)


def test_who_has_just_changed_a_name_lists_it_so(stack: Stack, mount_overlay: MountFactory) -> None:
    """While others list the same directory all the time, at other places."""
    for number in range(250):
        make_file(stack.lower / "d" / f"name{number:0100}")
    directory = mount_overlay().path / "d"
    names = set(os.listdir(directory))
    others = [_read_for_ever(directory, size) for size in (300, 8000, LARGEST_BUFFER)]
    try:
        dice = random.Random(1)
        end = time.monotonic() + 4
        step = 0
        while time.monotonic() < end:
            step += 1
            if dice.random() < 0.5:
                (directory / f"new{step}").touch()
                names.add(f"new{step}")
            else:
                gone = dice.choice(sorted(names))
                (directory / gone).unlink()
                names.remove(gone)
            for _ in range(dice.randrange(3)):
                listed = os.listdir(directory)
                assert len(listed) == len(set(listed))
                assert set(listed) == names
    finally:
        for other in others:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
    assert set(os.listdir(directory)) == names


def _read_for_ever(directory: Path, size: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        while True:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            for _ in range(3):
                while getdents(descriptor, size):
                    pass
                os.lseek(descriptor, 0, os.SEEK_SET)
            os.close(descriptor)
    finally:
        os._exit(1)


def test_position_told_before_a_change_is_good_for_another_descriptor(directory: Path) -> None:
    """Of what stayed, nothing is skipped and nothing repeated, also when others have listed meanwhile."""
    one = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    two = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        before = getdents(one, 4000)
        rest = {entry.name for entry in entries_of(one)}
        for entry in [*before[10:20], *before[-3:]]:
            (directory / os.fsdecode(entry.name)).unlink()
        (directory / "new").touch()
        assert "new" in os.listdir(directory)
        (directory / "newer").touch()
        os.lseek(two, before[-1].offset, os.SEEK_SET)
        again = Counter(entry.name for entry in entries_of(two))
        assert rest <= set(again) <= rest | {b"new", b"newer"}
        assert max(again.values()) == 1
    finally:
        os.close(one)
        os.close(two)


@pytest.mark.parametrize("options", [(), ("fast_path=off",)], ids=["fast-path", "pyfuse3"])
def test_names_are_taken_into_a_map_of_a_file_that_is_not_read_yet(
    stack: Stack, options: tuple[str, ...]
) -> None:
    """While another's end invalidates the listing: the kernel waits for one who waits for the daemon."""
    for number in range(300):
        make_file(stack.lower / "d" / f"name{number:04}")
    os.truncate(make_file(stack.lower / "mapped"), 8 << 20)
    with Mount(Kind.PYOVERLAY, stack, *options) as mount:
        directory = mount.path / "d"
        ending = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        getdents(ending, 4000)
        (directory / "new").touch()
        for _ in range(2):
            for _ in entries_of(ending):
                pass
            for _ in range(2):
                assert "new" in os.listdir(directory)
        kept = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        mapped = os.open(mount.path / "mapped", os.O_RDONLY)
        memory = mmap.mmap(mapped, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        unread = (ctypes.c_char * 4096).from_buffer(memory, 4 << 20)
        assert mount.pid is not None
        os.kill(mount.pid, signal.SIGSTOP)
        try:
            children = [
                _in_child(functools.partial(getdents, ending, 4000)),
                _in_child(functools.partial(getdents_into, kept, unread)),
            ]
        finally:
            os.kill(mount.pid, signal.SIGCONT)
        try:
            assert [_exit_status(child) for child in children] == [False, True]
        finally:
            for descriptor in (ending, kept, mapped):
                os.close(descriptor)


def _in_child(ask: Callable[[], object]) -> int:
    """Begin a child that asks, and tells whether it got something; return when it waits for its answer."""
    child = os.fork()
    if not child:
        try:
            os._exit(bool(ask()))
        finally:
            os._exit(2)
    limit = time.monotonic() + 20
    while not Path(f"/proc/{child}/syscall").read_text().startswith("217 "):  # getdents64
        assert time.monotonic() < limit
    return child


def _exit_status(child: int) -> int:
    limit = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        assert time.monotonic() < limit, "it still waits"
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


# Inode numbers


def _copy_up(directory: Path) -> None:
    (directory / "name0001").chmod(0o600)


def _copy_up_hard_link(directory: Path) -> None:
    (directory / "linked").chmod(0o600)


def _replace(directory: Path) -> None:
    (directory.parent / "other").touch()
    (directory.parent / "other").rename(directory / "name0001")


def _exchange(directory: Path) -> None:
    renameat2(directory / "name0000", directory / "name0001", RENAME_EXCHANGE)


@pytest.mark.parametrize("change", [_copy_up, _copy_up_hard_link, _replace, _exchange])
def test_listed_numbers_are_those_of_stat(
    stack: Stack, mount_overlay: MountFactory, change: Callable[[Path], None]
) -> None:
    make_file(stack.upper / "d" / "name0000")
    make_file(stack.lower / "d" / "name0001")
    os.link(make_file(stack.lower / "d" / "linked"), stack.lower / "d" / "linked too")
    directory = mount_overlay().path / "d"
    for _ in range(2):
        numbers(directory)
    change(directory)
    for _ in range(2):
        listed = numbers(directory)
        assert listed == {name: os.lstat(directory / name).st_ino for name in listed}


@pytest.mark.parametrize("exchanged", [False, True])
def test_parent_that_is_listed_is_the_new_one_after_a_move(
    stack: Stack, mount_overlay: MountFactory, exchanged: bool
) -> None:
    for parent in ("a", "b"):
        make_directory(stack.upper / parent / "moved" / "below")
    merged = mount_overlay().path
    if not exchanged:
        os.rename(merged / "b/moved", merged / "b/away")
    for _ in range(2):
        assert numbers(merged / "a/moved")[".."] == (merged / "a").stat().st_ino
    renameat2(merged / "a/moved", merged / "b/moved", RENAME_EXCHANGE if exchanged else 0)
    assert numbers(merged / "b/moved")[".."] == (merged / "b").stat().st_ino
    if exchanged:
        assert numbers(merged / "a/moved")[".."] == (merged / "a").stat().st_ino


# Costs


@pytest.mark.parametrize("options", [(), ("fast_path=off",)], ids=["fast-path", "pyfuse3"])
@pytest.mark.parametrize("count", [0, 3, 2000])
def test_listing_again_asks_nothing(stack: Stack, options: tuple[str, ...], count: int) -> None:
    """Neither for names nor to open the directory, until names change; then once."""
    make_directory(stack.lower / "d")
    for number in range(count):
        make_file(stack.lower / "d" / f"name{number}")
    with Mount(Kind.PYOVERLAY, stack, *options) as mount:
        directory = mount.path / "d"
        assert len(os.listdir(directory)) == count
        directory.stat()
        requests = _requests(mount)
        for _ in range(10):
            assert len(os.listdir(directory)) == count
        assert _requests(mount) == requests
        (directory / "new").touch()
        assert len(os.listdir(directory)) == count + 1
        directory.stat()
        assert len(os.listdir(directory)) == count + 1
        requests = _requests(mount)
        assert len(os.listdir(directory)) == count + 1
        assert _requests(mount) == requests


def _requests(mount: Mount) -> dict[str, int]:
    requests: dict[str, int] = mount.inspect()["requests"]
    return requests
