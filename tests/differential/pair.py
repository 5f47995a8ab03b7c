"""Two mounts over the same lowers, the kernel's and pyoverlay's: do they answer and write alike?

A `Pair` performs each operation on both and stops at the first answer that differs, with the history that led
there. It is used by the fixed scenarios and by the scripts of changes; a hypothesis machine can drive it the
same way.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from tests.differential.operations import Operation, Outcome, perform
from tests.differential.upper import (
    NEEDLESS_COPIES,
    NEEDLESS_MARKS,
    leftovers,
    on_disk,
    with_coarse_time,
    without_mark,
)
from tests.harness import Entry, Kind, Mount, Stack, make_stack, snapshot


class Pair:
    """A kernel overlay and a pyoverlay mount over the same lowers, each with an upper of its own.

    Args:
        base: an empty directory for both stacks' own directories.
        lowers: the shared lower layers, topmost first; never written.
        options: further mount options for both.
        prefix: the prefix of overlay's own attributes under these options.
    """

    def __init__(
        self, base: Path, lowers: list[Path], *options: str, prefix: str = "trusted.overlay."
    ) -> None:
        self.prefix = prefix
        self.history: list[tuple[Operation, Outcome]] = []
        self._untouched: dict[bytes, Entry] = {}
        self.kernel = Mount(Kind.KERNEL, _stack(base / "kernel", lowers), *options)
        self.pyoverlay = Mount(Kind.PYOVERLAY, _stack(base / "pyoverlay", lowers), *options)

    def __enter__(self) -> Self:
        self.kernel.mount()
        try:
            self.pyoverlay.mount()
        except BaseException:
            self.kernel.remove()
            raise
        self._untouched = snapshot(self.kernel.path)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.pyoverlay.remove()
        finally:
            self.kernel.remove()

    def perform(self, operation: Operation) -> Outcome:
        """Performs the operation on both mounts.

        Raises:
            AssertionError: the outcomes differ.
        """
        expected = perform(os.fsencode(self.kernel.path), operation)
        actual = perform(os.fsencode(self.pyoverlay.path), operation)
        assert actual == expected, (
            f"{operation}\n  kernel:    {expected}\n  pyoverlay: {actual}\nafter:\n{self._told()}"
        )
        self.history.append((operation, expected))
        return expected

    def perform_all(self, operations: Iterable[Operation]) -> list[Outcome]:
        """Performs the operations one after the other; raises as `perform` does."""
        return [self.perform(operation) for operation in operations]

    def compare_merged(self) -> None:
        """Asserts that both mounts show the same tree, with the same numbers for what is in a lower."""
        expected, actual = (snapshot(mount.path, exact=True) for mount in (self.kernel, self.pyoverlay))
        self._assert_same(_visible(expected), _visible(actual), "merged view")
        self._compare_identities(inode_numbers(expected), inode_numbers(actual))

    def compare_uppers(self) -> None:
        """Asserts that the same lies on disk in both uppers, mounted or not."""
        expected, actual = (
            on_disk(mount.stack.upper, prefix=self.prefix) for mount in (self.kernel, self.pyoverlay)
        )
        for path in self._named_in(NEEDLESS_MARKS) & expected.keys() & actual.keys():
            if without_mark(expected[path], self.prefix) == actual[path]:
                expected[path] = actual[path]
        for path in self._named_in(NEEDLESS_COPIES) & (expected.keys() - actual.keys()):
            if _is_same_object(expected[path], self._untouched.get(path)):
                del expected[path]
        self._assert_same(expected, actual, "upper directory")

    def finish(self) -> None:
        """Compares everything, unmounts, and compares what is left on disk."""
        self.compare_merged()
        for mount in (self.kernel, self.pyoverlay):
            mount.unmount()
        self.compare_uppers()
        left = leftovers(self.pyoverlay.stack.work)
        assert not left, f"pyoverlay left in its work directory: {left}"

    def _named_in(self, table: Mapping[tuple[str, str], str]) -> set[bytes]:
        """The first names, with the directories above, of all operations that ended as the table says."""
        named = {
            operation.arguments[0]
            for operation, outcome in self.history
            if (operation.name, outcome.error) in table
        }
        return {name[:end] for name in named if isinstance(name, bytes) for end in _ends(name)}

    def _compare_identities(self, expected: dict[bytes, int], actual: dict[bytes, int]) -> None:
        lowers = (snapshot(layer, exact=True) for layer in self.kernel.stack.lowers)
        own = {number for layer in lowers for number in inode_numbers(layer).values()}
        wrong = [
            f"{path!r}: kernel {number}, pyoverlay {actual[path]}"
            for path, number in expected.items()
            if actual[path] != number and (number in own or actual[path] in own)
        ]
        assert not wrong, "inode numbers of lower objects differ:\n" + "\n".join(wrong) + "\n" + self._told()
        assert _linked_names(actual) == _linked_names(expected), f"other names are one file\n{self._told()}"

    def _assert_same(self, expected: dict[bytes, Entry], actual: dict[bytes, Entry], what: str) -> None:
        found = differences(expected, actual, ("kernel", "pyoverlay"))
        assert not found, f"the {what} differs:\n" + "\n".join(found) + "\nafter:\n" + self._told()

    def _told(self) -> str:
        return "\n".join(f"  {operation} -> {outcome}" for operation, outcome in self.history[-40:])


def differences(
    expected: dict[bytes, Entry], actual: dict[bytes, Entry], names: tuple[str, str]
) -> list[str]:
    """One line for each path and field in which two pictures of a tree differ."""
    lines = []
    for path in sorted(expected.keys() | actual.keys()):
        before, after = expected.get(path), actual.get(path)
        if before is None or after is None:
            lines.append(f"  {path!r}: only in {names[0] if after is None else names[1]}: {before or after}")
            continue
        for field in Entry.__dataclass_fields__:
            left, right = getattr(before, field), getattr(after, field)
            if left != right:
                lines.append(f"  {path!r}: {field}: {names[0]} {left!r}, {names[1]} {right!r}")
    return lines


def inode_numbers(picture: dict[bytes, Entry]) -> dict[bytes, int]:
    """st_ino of every object in an exact snapshot but its root, which a FUSE mount may number as it likes."""
    return {path: entry.identity[0] for path, entry in picture.items() if entry.identity and path != b"."}


def _ends(path: bytes) -> Iterator[int]:
    """Where the path and the directories above it end in it."""
    yield from (index for index, byte in enumerate(path) if byte == ord("/"))
    yield len(path)


def _is_same_object(copy: Entry, original: Entry | None) -> bool:
    """Whether an object of the upper is what the lower showed; a copy of a hard link has lost its links."""
    return original is not None and replace(copy, nlink=None) == replace(original, nlink=None)


def _stack(base: Path, lowers: list[Path]) -> Stack:
    stack = make_stack(base, lowers=0)
    stack.lowers = lowers
    return stack


def _visible(picture: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: with_coarse_time(replace(entry, identity=None)) for path, entry in picture.items()}


def _linked_names(numbers: dict[bytes, int]) -> list[list[bytes]]:
    """The groups of names that show one inode number."""
    groups: dict[int, list[bytes]] = defaultdict(list)
    for path, number in numbers.items():
        groups[number].append(path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
