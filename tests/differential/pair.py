"""Two mounts over the same lowers, the kernel's and pyoverlay's: do they answer and write alike?

A `Pair` performs each operation on both and stops at the first answer that differs, with the history that led
there. It is used by the fixed scenarios, by the scripts of changes, by the machine that draws operations, and
by the scripts that the machine prints.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from tests.differential import actors, operations
from tests.differential.allowed import (
    NEEDLESS_COPIES,
    NEEDLESS_MARKS,
    SEVERAL_FILE_SYSTEMS,
    WITHOUT_HANDLES,
    allowed,
)
from tests.differential.descriptors import copy_up_of
from tests.differential.operation import Operation, Outcome
from tests.differential.upper import leftovers, on_disk, with_coarse_time, without_mark
from tests.harness import Entry, Kind, Mount, MountRefusedError, Stack, libc, make_stack, snapshot

REMOUNT = Operation("remount")
"""Both are unmounted and mounted again, after all that is held open was closed."""
FORGET = Operation("forget")
"""The kernel above both forgets every name that isn't in use (what memory pressure does)."""
COMPARE = Operation("compare")
"""The merged trees and the uppers are compared."""

_EXPECTED_IN_LOG = "INFO: done without: "


class MismatchError(AssertionError):
    """The two differ. `what` names the kind of difference: an operation, or what was compared."""

    def __init__(self, what: str, text: str) -> None:
        super().__init__(text)
        self.what = what

    def __reduce__(self) -> tuple[type[MismatchError], tuple[str, str]]:
        return type(self), (self.what, str(self))


class Pair:
    """A kernel overlay and a pyoverlay mount over the same lowers, each with an upper of its own.

    Args:
        base: an empty directory for both stacks' own directories.
        lowers: the shared lower layers, topmost first; never written.
        options: further mount options for both.
        own_options: further ones for pyoverlay alone.
        prefix: the prefix of overlay's own attributes under these options.
        ours: which pyoverlay, by its transport.
        circumstances: which of those named in `allowed` this is.
    """

    def __init__(
        self,
        base: Path,
        lowers: list[Path],
        *options: str,
        prefix: str = "trusted.overlay.",
        ours: Kind = Kind.PYOVERLAY,
        own_options: tuple[str, ...] = (),
        circumstances: frozenset[str] = frozenset(),
    ) -> None:
        self.prefix = prefix
        self._circumstances = circumstances
        self.history: list[tuple[Operation, Outcome]] = []
        self._over = False
        self.releases = 0
        """How often all that was held open was closed, as it would show different files from then on."""
        self.kernel = Mount(Kind.KERNEL, _stack(base / "kernel", lowers), *options)
        self._log = base / "log"
        stack = _stack(base / "pyoverlay", lowers)
        self.pyoverlay = Mount(ours, stack, *options, *own_options, log=self._log)
        self._mounts = (self.kernel, self.pyoverlay)
        self._in_lowers = set().union(*(_numbers(lower) for lower in lowers))

    def __enter__(self) -> Self:
        self.kernel.mount()
        try:
            self.pyoverlay.mount()
        except BaseException:
            self.kernel.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()
        try:
            self.pyoverlay.remove()
        finally:
            self.kernel.remove()

    def is_over(self) -> bool:
        """Whether the trees differ by now as the table allows: nothing more is performed or compared."""
        return self._over

    # --- what is done --------------------------------------------------------------------------------------

    def perform(self, operation: Operation) -> Outcome:
        """Performs the operation on both mounts and returns the kernel's answer.

        Raises:
            MismatchError: the answers, or what was compared, differ in a way that isn't allowed.
        """
        if self._over:
            return Outcome(None)
        if operation in (REMOUNT, FORGET, COMPARE):
            return self._perform_on_the_mounts(operation)
        expected, actual = self._answers(operation)
        differ = expected != actual
        line = allowed(operation, expected, actual, self._circumstances) if differ else None
        if differ and line is None:
            raise MismatchError(
                operation.name,
                f"{operation}\n  kernel:    {expected}\n  pyoverlay: {actual}\nafter:\n{self._told()}",
            )
        self.history.append((operation, expected))
        if (operation.name, expected.error) in NEEDLESS_COPIES:
            self._copy_up_too(operation)
        if line is not None and line.ends_script:
            self._over = True
        if line is not None and line.ends_slots:
            self._release()
            self._forget()
            self.releases += 1
        return expected

    def perform_all(self, operations: Iterable[Operation]) -> list[Outcome]:
        """Performs the operations one after the other; raises as `perform` does."""
        return [self.perform(operation) for operation in operations]

    def _answers(self, operation: Operation) -> tuple[Outcome, Outcome]:
        expected, actual = (actors.perform(os.fsencode(mount.path), operation) for mount in self._mounts)
        return expected, actual

    def _copy_up_too(self, operation: Operation) -> None:
        """Lets pyoverlay copy up what the kernel copied up needlessly, so that both go on alike."""
        if isinstance(operation.arguments[0], bytes):
            self._answers(operations.touch_same(operation.arguments[0]))
        else:
            self._answers(replace(copy_up_of(operation.arguments[0]), caller=operation.caller))

    def _perform_on_the_mounts(self, operation: Operation) -> Outcome:
        if operation == REMOUNT:
            self._release()
            for mount in self._mounts:
                with self._living():
                    mount.remount()
        elif operation == FORGET:
            self._forget()
        else:
            self.compare()
        self.history.append((operation, Outcome(None)))
        return Outcome(None)

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        """A daemon that doesn't end, or a mount that is refused, is a mismatch like others."""
        try:
            yield
        except (AssertionError, MountRefusedError, OSError) as error:
            raise MismatchError("life", f"{error}\nafter:\n{self._told()}") from error

    def _forget(self) -> None:
        for mount in self._mounts:
            libc.mount("none", mount.path, "none", libc.MS_REMOUNT)

    def _release(self) -> None:
        for mount in self._mounts:
            actors.release(os.fsencode(mount.path))

    # --- what is compared ----------------------------------------------------------------------------------

    def compare(self) -> None:
        """Asserts that both show the same tree and have the same on disk; mounted or not, for the latter."""
        self.compare_merged()
        self.compare_uppers()

    def compare_merged(self) -> None:
        """Asserts that both mounts show the same tree, with the same numbers for what is in a lower."""
        expected, actual = (snapshot(mount.path, exact=True) for mount in self._mounts)
        self._assert_same(_visible(expected), _visible(actual), "merged view")
        self._compare_identities(inode_numbers(expected), inode_numbers(actual))

    def compare_uppers(self) -> None:
        """Asserts that the same lies on disk in both uppers, mounted or not."""
        expected, actual = (on_disk(mount.stack.upper, prefix=self.prefix) for mount in self._mounts)
        named = self._marked_needlessly()
        for path in expected.keys() & actual.keys():
            # By its last part, too: below a directory that is held, that is all the script says of it.
            if not {path, os.path.basename(path)} & named:
                continue
            if without_mark(expected[path], self.prefix) == actual[path]:
                expected[path] = actual[path]
        self._assert_same(expected, actual, "upper directory")

    def finish(self) -> None:
        """Compares everything, unmounts, compares what is left on disk, and lets each read the other's."""
        self._release()
        if self._over:
            return
        self.compare_merged()
        for mount in self._mounts:
            with self._living():
                mount.unmount()
        self.compare_uppers()
        if self._said():
            raise MismatchError("log", f"the daemon spoke, after:\n{self._told()}")
        left = leftovers(self.pyoverlay.stack.work)
        if left:
            raise MismatchError("work directory", f"pyoverlay left in its work directory: {left}")

    def cross(self) -> None:
        """After `finish`: mounts each upper with both programs, which must show the same tree."""
        if self._over:
            return
        for writer in self._mounts:
            pictures = []
            for reader in self._mounts:
                with Mount(reader.kind, writer.stack, *reader.options) as mount:
                    pictures.append(snapshot(mount.path, exact=True))
            what = f"upper written by {writer.kind.value}"
            expected, actual = (_without_identity(picture) for picture in pictures)
            self._assert_same(expected, actual, what, "read by the kernel", "read by pyoverlay")
            numbers = [inode_numbers(picture) for picture in pictures]
            wrong = [path for path, number in numbers[0].items() if numbers[1][path] != number]
            wrong = [path for path in wrong if not self._may_differ(numbers[0][path], numbers[1][path])]
            if wrong:
                raise MismatchError(f"{what}: inode", f"{what}: other inode numbers: {wrong}\n{self._told()}")

    def _marked_needlessly(self) -> set[bytes]:
        """The names, with the directories above, of operations that ended as NEEDLESS_MARKS says."""
        named = {
            argument
            for operation, outcome in self.history
            if (operation.name, outcome.error) in NEEDLESS_MARKS
            for argument in operation.arguments
        }
        return {name[:end] for name in named if isinstance(name, bytes) for end in _ends(name)}

    def _compare_identities(self, expected: dict[bytes, int], actual: dict[bytes, int]) -> None:
        own = self._in_lowers
        wrong = [
            f"{path!r}: kernel {number}, pyoverlay {actual[path]}"
            for path, number in expected.items()
            if actual[path] != number
            and (number in own or actual[path] in own)
            and not self._may_differ(number, actual[path])
        ]
        if wrong:
            text = "inode numbers of lower objects differ:\n" + "\n".join(wrong)
            raise MismatchError("inode numbers", f"{text}\nafter:\n{self._told()}")
        if SEVERAL_FILE_SYSTEMS in self._circumstances:
            return
        if WITHOUT_HANDLES in self._circumstances:
            expected = expected | inode_numbers(snapshot(self.kernel.stack.upper, exact=True))
        if _linked_names(actual) != _linked_names({path: expected[path] for path in actual}):
            raise MismatchError("hard links", f"other names are one file\nafter:\n{self._told()}")

    def _may_differ(self, expected: int, actual: int) -> bool:
        """Whether pyoverlay may show another number.

        Without handles the kernel doesn't find the lower's number, where pyoverlay does; over several file
        systems each has its own way to tell their numbers apart.
        """
        if SEVERAL_FILE_SYSTEMS in self._circumstances:
            return True
        without_handles = WITHOUT_HANDLES in self._circumstances
        return without_handles and expected not in self._in_lowers and actual in self._in_lowers

    def _assert_same(
        self,
        expected: Mapping[bytes, Entry],
        actual: Mapping[bytes, Entry],
        what: str,
        left: str = "kernel",
        right: str = "pyoverlay",
    ) -> None:
        found = differences(expected, actual, (left, right))
        if found:
            text = f"the {what} differs:\n" + "\n".join(found)
            raise MismatchError(what, f"{text}\nafter:\n{self._told()}")

    def _told(self) -> str:
        steps = "\n".join(f"  {operation} -> {outcome}" for operation, outcome in self.history[-40:])
        said = self._said()
        return f"{steps}\nthe daemon said:\n{said}" if said else steps

    def _said(self) -> str:
        """Return what the daemon logged, but for what a mount does without in every user namespace."""
        lines = self._log.read_text().splitlines(keepends=True) if self._log.exists() else []
        return "".join(line for line in lines if _EXPECTED_IN_LOG not in line)


def differences(
    expected: Mapping[bytes, Entry], actual: Mapping[bytes, Entry], names: tuple[str, str]
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


def _stack(base: Path, lowers: list[Path]) -> Stack:
    stack = make_stack(base, lowers=0)
    stack.lowers = lowers
    return stack


def _numbers(lower: Path) -> set[int]:
    return set(inode_numbers(snapshot(lower, xattrs=False, exact=True)).values())


def _visible(picture: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: with_coarse_time(entry) for path, entry in _without_identity(picture).items()}


def _without_identity(picture: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: replace(entry, identity=None) for path, entry in picture.items()}


def _linked_names(numbers: dict[bytes, int]) -> list[list[bytes]]:
    """The groups of names that show one inode number."""
    groups: dict[int, list[bytes]] = defaultdict(list)
    for path, number in numbers.items():
        groups[number].append(path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
