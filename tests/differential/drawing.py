"""Which operation comes next? Drawn from dice, from what exists now, and from what is held open.

Most operations are aimed at names of the right type, so that about half of all steps succeed; the rest goes
wrong in every way: missing, taken, of another type, below a file, hidden, too long, not allowed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace

from tests.differential import operations
from tests.differential.dice import Dice
from tests.differential.drawn_layers import DIRECTORY_MODES, MODES, NAMES, NULL, TARGETS, ZERO, allowed_mode
from tests.differential.layers import OLD_SECONDS, access_list, capability
from tests.differential.operation import DEFAULT_UMASK, ROOT, Caller, Operation
from tests.differential.tally import Aim, Tally
from tests.differential.world import World
from tests.harness.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT

_FRIEND, _STRANGER = Caller(1000, 1000, (1001,)), Caller(1001, 1001)
_CALLERS = {
    Aim.SUCCESS: {ROOT: 8, _FRIEND: 2, _STRANGER: 1},
    Aim.ANY: {ROOT: 6, _FRIEND: 3, _STRANGER: 1},
    Aim.FAILURE: {ROOT: 3, _FRIEND: 3, _STRANGER: 3},
}
_STRAYING = {Aim.SUCCESS: 3, Aim.ANY: 15, Aim.FAILURE: 75}
"""In how many of a hundred cases a name is taken that needn't be right."""

ANY_KIND = ("file", "directory", "symlink", "special")
_UMASKS = (DEFAULT_UMASK, DEFAULT_UMASK, 0, 0o077)
IDS = (0, 1000, 1001, 65534, -1, -1)
SIZES = (0, 1, 5, 100, 4096, 5000, 70_000)
OFFSETS = (0, 0, 3, 4096, 100_000)
_ACCESS = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
_OPEN_FLAGS = (0, 0, 0, os.O_APPEND, os.O_TRUNC, os.O_SYNC, os.O_NOFOLLOW, os.O_NOATIME)
_CREATE_FLAGS = (os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC)
_RENAME_FLAGS = {0: 12, RENAME_NOREPLACE: 3, RENAME_EXCHANGE: 5, RENAME_WHITEOUT: 1}
_TYPES = (
    (stat.S_IFIFO, 0),
    (stat.S_IFSOCK, 0),
    (stat.S_IFREG, 0),
    (stat.S_IFCHR, NULL),
    (stat.S_IFCHR, ZERO),
    (stat.S_IFBLK, os.makedev(240, 0)),
    (stat.S_IFCHR, 0),
)
ATTRIBUTES = (
    b"user.colour",
    b"user.colour",
    b"user.note",
    b"trusted.secret",
    b"trusted.overlay.opaque",
    b"user.overlay.opaque",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"unknown.name",
)


class Draw:
    """Draws the arguments of one operation."""

    def __init__(self, dice: Dice, world: World, aim: Aim = Aim.ANY) -> None:
        self.dice = dice
        self.world = world
        self.aim = aim
        self.pick = dice.pick
        self.happens = dice.happens

    def existing(self, *kinds: str) -> bytes:
        """A name of one of the kinds; now and then, or to fail, any name at all."""
        if self._strays():
            return self.any()
        names = [path for path, kind in self.world.tree.items() if kind in (kinds or ANY_KIND)]
        return self.pick(names or [b"a"])

    def _strays(self) -> bool:
        return self.happens(_STRAYING[self.aim])

    def empty_directory(self) -> bytes:
        tree = self.world.tree
        full = {os.path.dirname(path) for path in tree}
        empty = [path for path, kind in tree.items() if kind == "directory" and path not in full]
        return self.pick(empty) if empty and self.happens(70) else self.existing("directory")

    def free(self) -> bytes:
        """A name that is free in a directory that exists; now and then, or to fail, any name at all."""
        if self._strays():
            return self.any() if self.happens(50) else self.pick([b".", *self.world.tree])
        tree = self.world.tree
        hidden = [path for path in self.world.gone if path not in tree and self._has_parent(path)]
        if hidden and self.happens(40):
            return self.pick(hidden)
        directories = [b"", *(path for path, kind in tree.items() if kind == "directory")]
        for _ in range(8):
            path = os.path.join(self.pick(directories), self.pick(NAMES))
            if path not in tree:
                return path
        return b"free-%d" % self.dice.below(30)

    def _has_parent(self, path: bytes) -> bool:
        parent = os.path.dirname(path)
        return not parent or self.world.tree.get(parent) == "directory"

    def any(self) -> bytes:
        """Existing, missing, hidden, below a file, through a symlink, too long, odd."""
        if self.aim is Aim.FAILURE and self.happens(50):
            return self.pick([self.pick([b"a", *self.world.gone]), b"missing/a", b"x" * 256])
        existing = self.pick([b".", *self.world.tree])
        return self.pick(
            [
                existing,
                self.pick([b"a", *self.world.gone]),
                existing + b"/" + self.pick(NAMES),
                self.pick(NAMES),
                existing + b"/",
                self.pick([b"a", *self.world.tree]) + b"/..",
                b"missing/" + self.pick(NAMES),
                b"x" * 256,
            ]
        )

    def ids(self) -> tuple[int, int]:
        """User and group for a chown(2), not both -1 where that may be taken for a write: see the table."""
        user, group = self.pick(IDS), self.pick(IDS)
        unclear = self.world.set_ids and self.world.slots
        return (0 if unclear and user == group == -1 else user), group

    def mode(self) -> int:
        """The mode of what is no directory."""
        return allowed_mode(self.pick(MODES), set_ids=self.world.set_ids)

    def content(self) -> bytes:
        return bytes([65 + self.dice.below(26)]) * self.pick(SIZES)

    def rich(self) -> bytes:
        """A name that has extended attributes, if there is one among a few."""
        for _ in range(6):
            path = self.existing()
            if self.world.attributes(path):
                return path
        return self.existing()

    def attribute_of(self, path: bytes) -> bytes:
        """The name of an extended attribute that `path` has, more often than not."""
        has = self.world.attributes(path)
        return self.pick(has) if has and not self._strays() else self.pick(ATTRIBUTES)

    def time(self) -> int:
        """Nanoseconds since the epoch, in 2001, odd to the last digit."""
        return (OLD_SECONDS + self.dice.below(60_000)) * 10**9 + 100_000_000 + self.dice.below(60_000)

    def attribute(self) -> tuple[bytes, bytes]:
        """Name and value of an extended attribute."""
        name = self.pick(ATTRIBUTES)
        if name == b"security.capability" and self.world.set_ids:
            name = b"user.note"
        if name.startswith(b"system."):
            return name, self.pick((access_list(user=1000), access_list(user=1001), _plain_acl(), b"junk"))
        if name.startswith(b"security."):
            return name, capability()
        return name, self.content()[:300]


def _plain_acl() -> bytes:
    """An ACL that says no more than the mode 0640."""
    nobody = b"\xff" * 4
    return b"\2\0\0\0\1\0\6\0" + nobody + b"\4\0\4\0" + nobody + b"\x20\0\0\0" + nobody


Maker = Callable[[Draw], Operation]

FAMILIES: dict[str, dict[Maker, int]] = {}
"""The kinds of steps; in each, what can be drawn, with weights."""


def in_family(family: str, weight: int = 1) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        FAMILIES.setdefault(family, {})[maker] = weight
        return maker

    return register


def draw_operation(family: str, dice: Dice, world: World, tally: Tally[Maker]) -> tuple[Maker, Operation]:
    """One operation of the family, and who drew it."""
    maker = tally.choose(dice, FAMILIES[family])
    aim = tally.aim(dice, maker)
    operation = replace(maker(Draw(dice, world, aim)), umask=dice.pick(_UMASKS))
    if family not in OF_HOLDERS:
        operation = replace(operation, caller=dice.weighted(_CALLERS[aim]))
    return maker, operation


OF_HOLDERS = frozenset({"held", "held contents", "held attributes", "held names", "maps", "mapping"})
"""Families whose operations are performed by who holds what they are about."""


# --- making names ------------------------------------------------------------------------------------------


@in_family("making", 4)
def _create(draw: Draw) -> Operation:
    return operations.create(draw.free(), draw.content(), draw.mode())


@in_family("making", 4)
def _mkdir(draw: Draw) -> Operation:
    return operations.mkdir(draw.free(), draw.pick(DIRECTORY_MODES))


@in_family("making", 2)
def _mknod(draw: Draw) -> Operation:
    kind, device = draw.pick(_TYPES)
    return operations.mknod(draw.free(), kind | draw.mode(), device)


@in_family("making", 2)
def _symlink(draw: Draw) -> Operation:
    return operations.symlink(draw.pick(TARGETS), draw.free())


@in_family("making", 3)
def _link(draw: Draw) -> Operation:
    return operations.link(draw.existing("file", "symlink", "special"), draw.free())


@in_family("making")
def _link_target(draw: Draw) -> Operation:
    return operations.link_target(draw.existing("symlink", "file"), draw.free())


@in_family("making")
def _unnamed_file(draw: Draw) -> Operation:
    return operations.unnamed_file(draw.existing("directory"), draw.content(), draw.mode())


# --- removing and renaming ---------------------------------------------------------------------------------


@in_family("removing", 3)
def _unlink(draw: Draw) -> Operation:
    return operations.unlink(draw.existing("file", "symlink", "special"))


@in_family("removing", 3)
def _rmdir(draw: Draw) -> Operation:
    return operations.rmdir(draw.empty_directory())


@in_family("removing")
def _remove_tree(draw: Draw) -> Operation:
    return operations.remove_tree(draw.existing("directory"))


@in_family("renaming", 4)
def _rename(draw: Draw) -> Operation:
    source = draw.existing()
    flags = draw.dice.weighted(_RENAME_FLAGS)
    if flags != RENAME_EXCHANGE and draw.happens(60):
        return operations.rename(source, draw.free(), flags)
    return operations.rename(source, draw.existing(draw.world.tree.get(source, "file")), flags)


@in_family("renaming", 2)
def _rename_directory(draw: Draw) -> Operation:
    target = draw.free() if draw.happens(50) else draw.empty_directory()
    return operations.rename(draw.existing("directory"), target, draw.pick((0, 0, RENAME_NOREPLACE)))


@in_family("renaming")
def _rewrite_whole(draw: Draw) -> Operation:
    return operations.rewrite_whole(draw.existing("file"), draw.content())


# --- contents ----------------------------------------------------------------------------------------------


@in_family("contents", 2)
def _overwrite(draw: Draw) -> Operation:
    path = draw.existing("file") if draw.happens(60) else draw.free()
    return operations.overwrite(path, draw.content(), draw.mode())


@in_family("contents", 2)
def _write(draw: Draw) -> Operation:
    return operations.write(draw.existing("file"), draw.pick(OFFSETS), draw.content())


@in_family("contents")
def _append(draw: Draw) -> Operation:
    return operations.append(draw.existing("file"), draw.content())


@in_family("contents")
def _truncate(draw: Draw) -> Operation:
    return operations.truncate(draw.existing("file"), draw.pick(SIZES))


@in_family("contents")
def _copy_up(draw: Draw) -> Operation:
    return operations.copy_up(draw.existing("file"))


# --- attributes --------------------------------------------------------------------------------------------


@in_family("attributes", 3)
def _chmod(draw: Draw) -> Operation:
    path = draw.existing("file", "directory", "special")
    directory = draw.world.tree.get(path) == "directory"
    return operations.chmod(path, draw.pick(DIRECTORY_MODES) if directory else draw.mode())


@in_family("attributes", 3)
def _chown(draw: Draw) -> Operation:
    return operations.chown(draw.existing(), *draw.ids())


@in_family("attributes", 2)
def _utimens(draw: Draw) -> Operation:
    return operations.utimens(draw.existing(), draw.time(), draw.time())


@in_family("attributes")
def _touch(draw: Draw) -> Operation:
    times = ("now", "omit", draw.time())
    return operations.touch(draw.existing("file", "directory", "special"), draw.pick(times), draw.pick(times))


@in_family("extended attributes", 4)
def _setxattr(draw: Draw) -> Operation:
    flags = draw.pick((0, 0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
    return operations.setxattr(draw.existing("file", "directory"), *draw.attribute(), flags)


@in_family("extended attributes")
def _setxattr_of_any(draw: Draw) -> Operation:
    return operations.setxattr(draw.existing("symlink", "special"), *draw.attribute(), 0)


@in_family("extended attributes", 2)
def _removexattr(draw: Draw) -> Operation:
    path = draw.rich()
    return operations.removexattr(path, draw.attribute_of(path))


@in_family("extended attributes")
def _getxattr(draw: Draw) -> Operation:
    path = draw.rich()
    return operations.getxattr(path, draw.attribute_of(path))


@in_family("extended attributes")
def _listxattr(draw: Draw) -> Operation:
    return operations.listxattr(draw.existing())
