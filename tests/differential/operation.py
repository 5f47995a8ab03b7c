"""What is an operation on a tree, and what is its outcome? Values, and how one is performed here and now.

An `Operation` is plain data, so that one list of them can be performed on a kernel overlay and on pyoverlay,
drawn, minimised, and printed as a script. The calls themselves are in `operations` (on paths) and in
`descriptors` (on what is held open), which register them here.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

Value = object
"""What an operation gives back: something that compares equal when the two file systems answered alike."""

DEFAULT_UMASK = 0o022


@dataclass(frozen=True, slots=True)
class Caller:
    """Who performs an operation: a process with these ids and, unless it is root's, without capabilities."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = Caller(0, 0)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call on a tree: the name of an action and its arguments (paths relative to the root)."""

    name: str
    arguments: tuple[object, ...] = ()
    caller: Caller = ROOT
    umask: int = DEFAULT_UMASK

    def __str__(self) -> str:
        words = ", ".join(_shown(argument) for argument in self.arguments)
        whose = f" as {self.caller.uid}:{self.caller.gid}" if self.caller != ROOT else ""
        return f"{self.name}({words}){whose}"

    def by(self, uid: int, gid: int, *groups: int) -> Operation:
        """The same operation performed by another user."""
        return replace(self, caller=Caller(uid, gid, groups))

    def with_umask(self, umask: int) -> Operation:
        """The same operation under another umask."""
        return replace(self, umask=umask)


def _shown(argument: object) -> str:
    if isinstance(argument, bytes) and len(argument) > 48:
        return f"{argument[:24]!r}...({len(argument)} bytes)"
    return oct(argument) if isinstance(argument, int) and argument > 9 else repr(argument)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: the name of its errno, or None and the value that it gave back."""

    error: str | None
    value: Value = field(default=None)

    @property
    def succeeded(self) -> bool:
        return self.error is None

    def __str__(self) -> str:
        return self.error or f"ok {self.value!r}"


class Held:
    """What one caller holds open in one mount: descriptors and maps, by the numbers that a script gives."""

    def __init__(self) -> None:
        self.descriptors: dict[int, int] = {}
        self.maps: dict[int, Map] = {}

    def descriptor(self, slot: int) -> int:
        """The descriptor in a slot; EBADF when there is none."""
        try:
            return self.descriptors[slot]
        except KeyError:
            raise OSError(errno.EBADF, "nothing is open in this slot") from None

    def put(self, slot: int, descriptor: int) -> None:
        """Holds a descriptor in place of what the slot held."""
        before = self.descriptors.pop(slot, None)
        if before is not None:
            os.close(before)
        self.descriptors[slot] = descriptor

    def release(self) -> None:
        """Closes and unmaps everything."""
        for slot in list(self.maps):
            self.maps.pop(slot).close()
        for slot in list(self.descriptors):
            os.close(self.descriptors.pop(slot))


@dataclass
class Map:
    """A map, and a descriptor of what it maps."""

    memory: mmap.mmap
    descriptor: int

    def close(self) -> None:
        self.memory.close()
        os.close(self.descriptor)


Action = Callable[..., Value]
_ACTIONS: dict[str, Action] = {}


def action(function: Action) -> Callable[..., Operation]:
    """Registers `function` (held, *arguments) under its name; returns the constructor of its operations."""
    name = function.__name__
    _ACTIONS[name] = function

    def operation(*arguments: object) -> Operation:
        return Operation(name, arguments)

    operation.__name__ = name
    operation.__doc__ = function.__doc__
    return operation


def path_action(function: Action) -> Callable[..., Operation]:
    """Registers a function that needs nothing held open."""

    def ignoring_held(_held: Held, *arguments: object) -> Value:
        return function(*arguments)

    ignoring_held.__name__ = function.__name__
    ignoring_held.__doc__ = function.__doc__
    return action(ignoring_held)


def error_name(number: int) -> str:
    """The name of an errno; of the two that EOPNOTSUPP has, the one that file systems use."""
    return "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, str(number))


def perform_here(root: bytes, operation: Operation, held: Held) -> Outcome:
    """Performs `operation` below the directory `root`, with the ids that this process has.

    Not for several threads at once: umask and working directory belong to the process.

    Returns:
        the outcome; an OSError becomes the outcome's errno, any other exception is a fault of the test and is
        raised.
    """
    try:
        with _standing_in(root), _umask(operation.umask):
            return Outcome(None, _ACTIONS[operation.name](held, *operation.arguments))
    except OSError as error:
        return Outcome(error_name(error.errno or 0))


@contextlib.contextmanager
def _standing_in(directory: bytes) -> Iterator[None]:
    # Relative names: the directories above the root may be closed to the caller, and are no part of the test.
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir("/")


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
