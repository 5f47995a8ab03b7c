"""Can anything that is done through a mount change a lower, and does everybody see what the kernel shows?

Readers hold descriptors and maps of lower files while others write, truncate, replace and unlink the same
names: one after the other in all orders, beside the kernel's overlay, and all at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import Kind, MountFactory, Stack, fails_with, libc, make_stack, pyoverlay_only
from tests.mount.daemons import wait_until

SIZE = 20 * 1024
SEEN = 32
"""How many bytes of each file are looked at."""
DATA = bytes(range(SEEN)) + bytes(SIZE - SEEN)
TEXT = b"\x7fELF" + bytes(12) + b"\x03\0" + DATA[18:]
NEW = b"new" * SIZE

options = pytest.mark.parametrize("option", ["auto", "all", "off"])


# --- one after the other -----------------------------------------------------------------------------------


@dataclass
class Held:
    """What somebody has open; ``of_lower``: the kernel reads the lower's data of it by itself, for ever."""

    descriptor: int
    area: mmap.mmap | None
    of_lower: bool
    before_copy_up: bool


@dataclass
class File:
    """One name of a mount on which operations are done, and what is open of it."""

    path: Path
    passes: bool
    """Whether the kernel reads the lower's file by itself."""
    held: list[Held] = field(default_factory=list)
    copied_up: bool = False
    changed: bool = False

    def perform(self, operation: str) -> int:
        """Do it; return an errno, 0 for success."""
        try:
            getattr(self, operation)()
        except OSError as failure:
            return failure.errno or 0
        return 0

    def _hold(self, flags: int, *, mapped: bool = False) -> int:
        descriptor = os.open(self.path, flags)
        area = mmap.mmap(descriptor, SEEN, mmap.MAP_SHARED, mmap.PROT_READ) if mapped else None
        shares = any(held.of_lower for held in self.held) and not self.changed
        of_lower = flags == os.O_RDONLY and self.passes and (shares or not self.copied_up)
        self.held.append(Held(descriptor, area, of_lower, not self.copied_up))
        return descriptor

    def read(self) -> None:
        self._hold(os.O_RDONLY)

    def map(self) -> None:
        self._hold(os.O_RDONLY, mapped=True)

    def write(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR)
        self.copied_up = self.changed = True
        os.pwrite(descriptor, b"WRITTEN", 20)
        self.held.append(Held(descriptor, None, of_lower=False, before_copy_up=False))

    def rewrite(self) -> None:
        self.path.stat()
        self.path.write_bytes(NEW)
        self.copied_up = self.changed = True

    def truncate(self) -> None:
        os.truncate(self.path, SIZE // 2)
        self.copied_up = self.changed = True

    def change_mode(self) -> None:
        self.path.chmod(0o600)
        self.copied_up = True

    def replace(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(NEW)
        new.rename(self.path)
        self.copied_up = self.changed = True

    def unlink(self) -> None:
        self.path.unlink()
        self.copied_up = self.changed = True

    def look(self) -> list[object]:
        """What is seen of it by its name, and through all that is open."""
        seen: list[object] = []
        named = 0
        try:
            named = self.path.stat().st_ino
            seen.append((hashlib.sha256(self.path.read_bytes()).digest(), _status(os.stat(self.path), named)))
        except OSError as failure:
            seen.append(failure.errno)
        for held in self.held:
            shown = held.area[:] if held.area is not None else os.pread(held.descriptor, SEEN, 0)
            seen.append((shown, _status(os.fstat(held.descriptor), named)))
        return seen

    def close(self) -> None:
        for held in self.held:
            if held.area is not None:
                held.area.close()
            os.close(held.descriptor)


def _status(status: os.stat_result, named: int) -> tuple[int, int, bool]:
    """Size, mode, and whether it is the file that has the name."""
    return status.st_size, status.st_mode, status.st_ino == named


OPERATIONS = ("read", "map", "write", "rewrite", "truncate", "change_mode", "replace", "unlink")


def _differ(ours: File, expected: list[object], actual: list[object], lower: bytes) -> bool:
    """Whether what is seen isn't what the kernel's overlay shows, or the documented exceptions say."""
    if expected[0] != actual[0]:
        return True
    for held, wanted, found in zip(ours.held, expected[1:], actual[1:], strict=True):
        assert isinstance(wanted, tuple)
        assert isinstance(found, tuple)
        shown = {wanted[0]}
        if held.of_lower:
            shown = {lower[:SEEN]}
        elif held.area is not None and held.before_copy_up:
            # The kernel's map shows the lower for ever, ours what a descriptor shows.
            shown = {os.pread(held.descriptor, SEEN, 0)}
        if found[0] not in shown or found[1] != wanted[1]:
            return True
    return False


@pyoverlay_only
@options
@pytest.mark.parametrize("content", [DATA, TEXT], ids=["data", "text"])
def test_all_orders_beside_the_kernel(
    stack: Stack, base: Path, mount_overlay: MountFactory, option: str, content: bytes, long: bool
) -> None:
    """Three of the operations on one file (or four), in every order, each step looked at on both mounts."""
    length = 4 if long else 3
    orders = [
        order for order in itertools.permutations(OPERATIONS, length) if {"read", "map"} & set(order[:-1])
    ]
    for number in range(len(orders)):
        (stack.lower / str(number)).write_bytes(content)
    (base / "kernel").mkdir()
    other = make_stack(base / "kernel")
    kernel = mount_overlay(f"lowerdir={stack.lower}", stack=other, kind=Kind.KERNEL)
    mount = mount_overlay(f"passthrough={option}")
    passes = option == "all" or (option == "auto" and content is TEXT)
    for number, order in enumerate(orders):
        oracle, ours = File(kernel.path / str(number), passes), File(mount.path / str(number), passes)
        for count, operation in enumerate(order, 1):
            assert ours.perform(operation) == oracle.perform(operation), order[:count]
            expected, actual = oracle.look(), ours.look()
            assert not _differ(ours, expected, actual, content), (order[:count], expected, actual)
        oracle.close()
        ours.close()
        assert (stack.lower / str(number)).read_bytes() == content


# --- all at once -------------------------------------------------------------------------------------------

NAMES = 12
WORKERS = 8
ROUNDS = 60


class Storm:
    """Readers and writers of the same names; what each name must hold is known to whoever has its lock."""

    def __init__(self, directory: Path, contents: dict[str, bytes]) -> None:
        self.directory = directory
        self.lowers = contents
        self.expected: dict[str, bytes | None] = dict(contents)
        self.locks = {name: threading.Lock() for name in contents}
        self.writers = WORKERS

    def run(self) -> None:
        with ThreadPoolExecutor(2 * WORKERS) as pool:
            work = [pool.submit(self.write, seed) for seed in range(WORKERS)]
            work += [pool.submit(self.read, seed) for seed in range(WORKERS)]
            for done in work:
                done.result()
        for name, content in self.expected.items():
            path = self.directory / name
            assert (path.read_bytes() if path.exists() else None) == content, name

    def write(self, seed: int) -> None:
        dice = random.Random(seed)
        changes: list[Callable[[Path, bytes, bytes], bytes | None]] = [
            _write_in_place,
            _rewrite,
            _truncate,
            _append,
            _replace,
            _unlink,
            _change_mode,
        ]
        try:
            for number in range(ROUNDS):
                name = dice.choice(list(self.expected))
                with self.locks[name]:
                    before = self.expected[name]
                    path = self.directory / name
                    if before is None:
                        path.write_bytes(self.lowers[name])
                        before = self.lowers[name]
                    after = dice.choice(changes)(path, before, b"%d.%d;" % (seed, number))
                    self.expected[name] = after
                    if after is not None:
                        assert path.read_bytes() == after, name
        finally:
            self.writers -= 1

    def read(self, seed: int) -> None:
        dice = random.Random(seed)
        with contextlib.ExitStack() as everything:
            while self.writers > 0:
                path = self.directory / dice.choice(list(self.expected))
                # It may be removed, or become too short to be mapped.
                with contextlib.suppress(FileNotFoundError, ValueError):
                    _hold(path, everything if dice.random() < 0.05 else None)


def _hold(path: Path, longer: contextlib.ExitStack | None) -> None:
    """Read a file and a map of it, and go on to have them open, if so asked."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open(path, "rb", buffering=0))
        size = os.fstat(file.fileno()).st_size
        os.pread(file.fileno(), size, 0)
        if size:
            area = opened.enter_context(mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ))
            with memoryview(area) as view, contextlib.suppress(OSError), _null() as null:
                os.write(null, view)  # a system call: what was truncated meanwhile is no SIGBUS
        if longer is not None:
            longer.push(opened.pop_all())


@contextlib.contextmanager
def _null() -> Iterator[int]:
    """A file that takes data, and looks at it, which /dev/null doesn't."""
    descriptor = os.memfd_create("null")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_in_place(path: Path, before: bytes, tag: bytes) -> bytes:
    with open(path, "r+b", buffering=0) as file:
        file.write(tag)
        assert os.pread(file.fileno(), len(tag), 0) == tag
    return tag + before[len(tag) :]


def _rewrite(path: Path, _before: bytes, tag: bytes) -> bytes:
    path.write_bytes(tag * 5000)
    return tag * 5000


def _truncate(path: Path, before: bytes, _tag: bytes) -> bytes:
    os.truncate(path, len(before) // 2)
    return before[: len(before) // 2]


def _append(path: Path, before: bytes, tag: bytes) -> bytes:
    with open(path, "ab") as file:
        file.write(tag)
    return before + tag


def _replace(path: Path, _before: bytes, tag: bytes) -> bytes:
    new = path.with_name(f"{path.name}.{tag.decode()}")
    new.write_bytes(TEXT + tag)
    new.rename(path)
    return TEXT + tag


def _unlink(path: Path, _before: bytes, _tag: bytes) -> None:
    path.unlink()


def _change_mode(path: Path, before: bytes, _tag: bytes) -> bytes:
    path.chmod(0o640)
    return before


@options
def test_readers_and_writers_at_once(
    kind: Kind, stack: Stack, mount_overlay: MountFactory, option: str
) -> None:
    """Eight of each; the lowers stay as they were, and each name holds what was written last."""
    contents = {f"{number}": (TEXT if number % 2 else DATA) + b"%d" % number for number in range(NAMES)}
    for name, content in contents.items():
        (stack.lower / name).write_bytes(content)
    mount = mount_overlay(*([] if kind is Kind.KERNEL else [f"passthrough={option}"]))

    Storm(mount.path, contents).run()

    for name, content in contents.items():
        assert (stack.lower / name).read_bytes() == content


# --- a daemon that errs ------------------------------------------------------------------------------------

_ERRING = """
import sys
from pyoverlay.fuse import passthrough, session
from pyoverlay.options import parse_options
passthrough.Passthrough.admit = lambda *_: None
session.mount(parse_options([sys.argv[1]], unknown=print, privileged=True), sys.argv[2], foreground=True)
"""


def test_the_kernel_refuses_to_write_through_a_lowers_backing_file(stack: Stack) -> None:
    """Even a daemon that names the lower's file to whoever wants to write can't have it written."""
    (stack.lower / "file").write_bytes(DATA)
    layers = f"lowerdir={stack.lower},upperdir={stack.upper},workdir={stack.work},passthrough=all"
    with subprocess.Popen([sys.executable, "-c", _ERRING, layers, str(stack.merged)]) as daemon:
        try:
            wait_until(lambda: os.path.ismount(stack.merged), "the mount")
            reader = os.open(stack.merged / "file", os.O_RDONLY)
            for flags in (os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND):
                with fails_with(errno.EIO):
                    os.open(stack.merged / "file", flags)
            assert os.pread(reader, SIZE, 0) == DATA
            os.close(reader)
        finally:
            libc.umount(stack.merged, libc.MNT_DETACH)
            daemon.wait(30)
    assert (stack.lower / "file").read_bytes() == DATA
