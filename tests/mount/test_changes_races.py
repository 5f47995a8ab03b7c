"""Of several callers who want the same name, exactly one gets it, and the others hear why."""

import contextlib
import errno
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, snapshot
from tests.harness.content import is_whiteout, left_in_work, make_directory, make_file, names
from tests.harness.libc import RENAME_NOREPLACE, renameat2

CALLERS = 8


def _race(attempt: Callable[[int], object]) -> Counter[int]:
    """Let all callers make their attempt at once; return how many ended with which errno, 0 for success."""
    ready = threading.Barrier(CALLERS)
    ended: Counter[int] = Counter()
    lock = threading.Lock()

    def call(number: int) -> None:
        ready.wait()
        try:
            attempt(number)
            result = 0
        except OSError as error:
            result = error.errno or -1
        with lock:
            ended[result] += 1

    callers = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return ended


MAKERS: dict[str, Callable[[Path, Path], object]] = {
    "file": lambda new, _: os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "directory": lambda new, _: new.mkdir(),
    "symlink": lambda new, _: new.symlink_to("x"),
    "link": lambda new, own: os.link(own, new),
    "rename": lambda new, own: renameat2(own, new, RENAME_NOREPLACE),
}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("place", ["free", "whiteout"])
@pytest.mark.parametrize("maker", MAKERS)
def test_one_creates_and_the_others_hear_that_it_exists(
    stack: Stack, mount_overlay: MountFactory, maker: str, place: str
) -> None:
    make_directory(stack.lower / "d")
    for number in range(CALLERS):
        make_file(stack.lower / "own" / f"file{number}", str(number))
    if place == "whiteout":
        make_file(stack.lower / "d" / "new", "old")
    mount = mount_overlay()
    for _ in range(5):
        _remove(mount.path / "d" / "new")
        for number in range(CALLERS):
            (mount.path / "own" / f"file{number}").touch()
        ended = _race(
            lambda number: MAKERS[maker](mount.path / "d" / "new", mount.path / "own" / f"file{number}")
        )
        assert ended == {0: 1, errno.EEXIST: CALLERS - 1}
        assert names(mount.path / "d") == ["new"]
    seen = snapshot(mount.path)
    mount.remount()
    assert snapshot(mount.path) == seen


def _unlink(path: Path, _: int) -> None:
    path.unlink()


def _rmdir(path: Path, _: int) -> None:
    path.rmdir()


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_one_removes_and_the_others_hear_that_it_is_gone(
    stack: Stack, mount_overlay: MountFactory, layer: str
) -> None:
    root = stack.lower if layer == "lower" else stack.upper
    for number in range(5):
        make_file(root / "d" / f"file{number}")
        make_directory(root / "d" / f"directory{number}")
    mount = mount_overlay()
    for number in range(5):
        file, directory = mount.path / "d" / f"file{number}", mount.path / "d" / f"directory{number}"
        ended = _race(functools.partial(_unlink, file))
        assert ended == {0: 1, errno.ENOENT: CALLERS - 1}
        ended = _race(functools.partial(_rmdir, directory))
        assert ended == {0: 1, errno.ENOENT: CALLERS - 1}
        assert is_whiteout(stack.upper / "d" / f"file{number}") == (layer == "lower")
    mount.remount()
    assert names(mount.path / "d") == []


def test_one_renames_and_the_others_hear_that_it_is_gone(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", b"x" * 3_000_000)
    mount = mount_overlay()
    ended = _race(lambda number: os.rename(mount.path / "d" / "file", mount.path / f"taken{number}"))
    assert ended == {0: 1, errno.ENOENT: CALLERS - 1}
    (taken,) = [name for name in names(mount.path) if name.startswith("taken")]
    mount.remount()
    assert (mount.path / taken).stat().st_size == 3_000_000
    assert names(mount.path) == ["d", taken]
    assert names(mount.path / "d") == []


def test_creating_and_removing_the_same_name_ends_in_one_of_both(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "d" / "name", "lower")
    mount = mount_overlay()
    name = mount.path / "d" / "name"

    def attempt(number: int) -> None:
        for _ in range(20):
            if number % 2:
                # The kernel itself lets an open with O_CREAT alone see EEXIST when the name comes and goes.
                with contextlib.suppress(FileExistsError):
                    name.write_text(f"written by {number}")
            else:
                name.unlink(missing_ok=True)

    ended = _race(attempt)
    assert ended == {0: CALLERS}
    seen = snapshot(mount.path)
    mount.remount()
    assert snapshot(mount.path) == seen
    mount.unmount()
    assert left_in_work(stack.work) == []


def test_directory_is_filled_or_removed_but_not_both(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(10):
        make_directory(stack.lower / f"d{number}")
    mount = mount_overlay()
    for turn in range(10):
        directory = mount.path / f"d{turn}"

        def attempt(number: int, directory: Path = directory) -> None:
            if number == 0:
                directory.rmdir()
            else:
                (directory / f"file{number}").touch()

        ended = _race(attempt)
        if directory.exists():
            assert ended[errno.ENOTEMPTY] == 1
            assert len(names(directory)) == CALLERS - 1
        else:
            assert ended[errno.ENOENT] == CALLERS - 1
    seen = snapshot(mount.path)
    mount.remount()
    assert snapshot(mount.path) == seen


def test_a_file_keeps_its_link_count_while_it_is_listed(mount_overlay: MountFactory) -> None:
    """A listing of one directory tells nothing of a name that is being removed in another.

    Else the kernel counts that name down twice, and finds none left when the file is to be linked again.
    """
    mount = mount_overlay()
    source, target = mount.path / "a" / "file", mount.path / "b" / "file"
    for name in (source, target):
        name.parent.mkdir()
    source.touch()
    done = threading.Event()

    def list_directory(directory: Path) -> None:
        while not done.is_set():
            os.listdir(directory)

    listers = [threading.Thread(target=list_directory, args=(name.parent,)) for name in (source, target)]
    for lister in listers:
        lister.start()
    try:
        for _ in range(1500):
            os.link(source, target)
            source.unlink()
            source, target = target, source
    finally:
        done.set()
        for lister in listers:
            lister.join()
    assert source.stat().st_nlink == 1
