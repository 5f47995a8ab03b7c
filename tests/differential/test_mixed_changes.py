"""Scripts of 200 mixed changes: answered as the kernel's overlay answers, and readable by it afterwards.

The upper that one file system wrote is mounted with the other one and shows the same tree, both ways; the
kernel's own remount and pyoverlay's stand beside it, so that a difference can be blamed on the right side.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.differential.actors import perform
from tests.differential.conftest import PairFactory
from tests.differential.generator import mixed_changes
from tests.differential.pair import differences, inode_numbers
from tests.harness import Entry, Kind, Mount, Stack, make_stack, snapshot

Picture = dict[bytes, Entry]

CHANGES = 200
SEEDS = (4, 9, 11)

ERRORS_OF_A_MIXED_SCRIPT = frozenset(
    ("ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "EXDEV", "EPERM", "EINVAL", "ENODATA")
)


def _stack(base: Path, lowers: list[Path]) -> Stack:
    stack = make_stack(base, lowers=0)
    stack.lowers = lowers
    return stack


def _seeds(long: bool) -> range | tuple[int, ...]:
    return range(1, 41) if long else SEEDS


def test_same_answers_and_same_upper(pair: PairFactory, long: bool) -> None:
    """Each of the 200 changes gets the kernel's answer; the trees and the upper directories are the same."""
    for seed in _seeds(long):
        mounts = pair()
        mounts.perform_all(mixed_changes(seed, CHANGES))
        mounts.finish()


@pytest.mark.parametrize("reader", list(Kind), ids=lambda kind: f"read by {kind.value}")
@pytest.mark.parametrize("writer", list(Kind), ids=lambda kind: f"written by {kind.value}")
def test_upper_is_read_by_the_other(
    base: Path, lowers: list[Path], writer: Kind, reader: Kind, long: bool
) -> None:
    """Over one upper, the reader shows the tree that the writer showed, inode numbers included."""
    for seed in _seeds(long):
        stack = _stack(base / str(seed), lowers)
        with Mount(writer, stack) as mount:
            for operation in mixed_changes(seed, CHANGES):
                perform(os.fsencode(mount.path), operation)
            written = snapshot(mount.path, exact=True)
        with Mount(reader, stack) as mount:
            read = snapshot(mount.path, exact=True)
        _assert_same_tree(written, read, f"{writer.value}, the writer", f"{reader.value}, the reader")


def _assert_same_tree(written: Picture, read: Picture, writer: str, reader: str) -> None:
    found = differences(_without_identity(written), _without_identity(read), (writer, reader))
    assert not found, "\n".join(found)
    numbers, again = inode_numbers(written), inode_numbers(read)
    # A lower with several names loses its number with its link when it is copied up, on the kernel's overlay
    # too.
    moved = {path for path, number in numbers.items() if again[path] != number}
    assert moved <= _copied_up_links(written), f"inode numbers changed: {sorted(moved)}"


def _without_identity(picture: Picture) -> Picture:
    return {path: replace(entry, identity=None) for path, entry in picture.items()}


def _copied_up_links(picture: Picture) -> set[bytes]:
    return {path for path in picture if path.rsplit(b"/", 1)[-1].startswith(b"hard-")}


def test_they_take_turns(base: Path, lowers: list[Path]) -> None:
    """An upper on which kernel and pyoverlay work in turns ends as one on which the kernel worked alone."""
    alone, shared = (_stack(base / name, lowers) for name in ("alone", "shared"))
    changes = mixed_changes(12, CHANGES)
    for turn, start in enumerate(range(0, CHANGES, CHANGES // 4)):
        part = changes[start : start + CHANGES // 4]
        with Mount(Kind.KERNEL, alone) as mount:
            expected = [perform(os.fsencode(mount.path), operation) for operation in part]
        kind = (Kind.KERNEL, Kind.PYOVERLAY)[turn % 2]
        with Mount(kind, shared) as mount:
            outcomes = [perform(os.fsencode(mount.path), operation) for operation in part]
        different = [
            f"{operation}: alone {before}, in turns {after}"
            for operation, before, after in zip(part, expected, outcomes, strict=True)
            if before != after
        ]
        assert not different, f"in turn {turn} ({kind.value}):\n" + "\n".join(different)
    with Mount(Kind.KERNEL, alone) as mount:
        tree = snapshot(mount.path, times=False)
    with Mount(Kind.PYOVERLAY, shared) as mount:
        found = differences(tree, snapshot(mount.path, times=False), ("alone", "in turns"))
    assert not found, "\n".join(found)


def test_the_scripts_are_mixed(base: Path, lowers: list[Path]) -> None:
    """About half of each script succeeds on the kernel's overlay; all kinds of changes, many errors."""
    errors: set[str] = set()
    done: Counter[str] = Counter()
    wanted: set[str] = set()
    for seed in SEEDS:
        changes = mixed_changes(seed, CHANGES)
        with Mount(Kind.KERNEL, _stack(base / str(seed), lowers)) as mount:
            outcomes = [perform(os.fsencode(mount.path), operation) for operation in changes]
        share = sum(outcome.succeeded for outcome in outcomes) / CHANGES
        assert 0.4 < share < 0.6, f"seed {seed}: {share:.0%} of the changes succeed"
        wanted |= {operation.name for operation in changes}
        done.update(
            operation.name for operation, outcome in zip(changes, outcomes, strict=True) if outcome.succeeded
        )
        errors |= {outcome.error for outcome in outcomes if outcome.error}
    assert wanted == done.keys(), f"never succeeds: {wanted - done.keys()}"
    assert errors >= ERRORS_OF_A_MIXED_SCRIPT, ERRORS_OF_A_MIXED_SCRIPT - errors
    assert mixed_changes(1, CHANGES) == mixed_changes(1, CHANGES)
