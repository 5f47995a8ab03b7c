"""What is a file's identity: numbers, names, places in the layers, lookup counts?

A `Node` is one object of the merged tree.  Its ``nodeid`` is an index of ours, never used twice;
the inode number that programs see is another number (`InodeNumbers`).  This file does no I/O.
"""

from __future__ import annotations

import array
import itertools
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from pyoverlay.layers.layer import Layer, LayerObject
from pyoverlay.overlay.birth import Caller, Inheritance
from pyoverlay.overlay.shown import Attributes

ROOT_NODEID: Final = 1

OPEN_UNSEEN: Final = 1
"""The kernel reads and writes it by itself: what we know of its size and times is old."""
WRITTEN_UNSEEN: Final = 2
"""It may be mapped and written to: not even the kernel's FUSE knows when its times move."""
PASSED: Final = 4
"""It was open so once: what FUSE's page cache has of it may be old."""
LOWER_BIRTH_TOLD: Final = 8
"""The kernel was told when its lower was created, which it keeps until it asks for that again."""
SUPERSEDED: Final = 16
"""The kernel knows it by two nodeids: what is changed by one is not known by the other."""
WRITER_CAME: Final = 32
"""Somebody came to write to it while the kernel read its lower by itself: that isn't done again."""
OPENED: Final = 64
"""It was opened by the nodeid that it has now: the kernel may read it, and keep what it read."""
NOT_WATCHED: Final = OPEN_UNSEEN | WRITTEN_UNSEEN

_FILE_SYSTEM_SHIFT: Final = 56


Field = TypeVar("Field")


class _Rare(Generic[Field]):
    """A field in which few nodes differ from what it is at first: those few keep it in ``Node.rare``."""

    def __init__(self, usual: Field) -> None:
        self._usual = usual

    def __set_name__(self, owner: type[Node], name: str) -> None:
        self._name = name

    def __get__(self, node: Node, owner: type[Node]) -> Field:
        rare = node.rare
        return self._usual if rare is None else rare.get(self._name, self._usual)

    def __set__(self, node: Node, value: Field) -> None:
        if node.rare is None:
            if value == self._usual:
                return
            node.rare = {}
        node.rare[self._name] = value


class Node:
    """One object of the merged tree.

    ``parent`` and ``name`` are one of its names (hard links have more, in ``aliases``).  ``upper`` is its
    place in the upper, ``lower_directory`` the directory in which it has its data in a lower, under its name,
    until it is copied up.  ``attributes`` are kept until something changes them: we are the only writer.
    """

    __slots__ = (
        "attribute_names",
        "attributes",
        "file_type",
        "inode",
        "link_key",
        "lookups",
        "lower_directory",
        "name",
        "nodeid",
        "parent",
        "privileged",
        "protection",
        "rare",
        "unseen",
        "upper",
    )

    aliases = _Rare[set[tuple["Directory", bytes]] | None](None)
    unlinked = _Rare(usual=False)
    lost_names = _Rare(0)
    """How many names of a lower file were whited out through this node."""
    verified = _Rare(usual=False)
    """Whether its data is known to be there: no file of metadata only (``metacopy``)."""
    program_text = _Rare[bool | None](None)
    """Whether its data in a lower is a program or a library; None when it isn't known."""
    privilege_killers = _Rare[tuple[Caller, ...]](())
    """At whose changes of data, under way, suid, sgid and capabilities must go."""

    def __init__(
        self, file_type: int, inode: int, upper: LayerObject | None, lower_directory: LayerObject | None
    ) -> None:
        """Describe an object; the node table gives it names, and a nodeid when the kernel hears of it."""
        self.nodeid = 0
        self.lookups = 0
        self.parent: Directory | None = None
        self.name = b""
        self.file_type = file_type
        self.inode = inode
        self.upper = upper
        self.lower_directory = lower_directory
        self.attributes: Attributes | None = None
        self.attribute_names: tuple[bytes, ...] | None = None
        """Where known: on disk it has no extended attributes but these, or fewer."""
        self.link_key = 0
        """Names the upper's inode, when that has or had several names: `link_key`."""
        self.unseen = 0
        """What may happen to it, or has happened, without our being told: `OPEN_UNSEEN` and so on."""
        self.protection: int | None = None
        """Whether it is immutable, append-only, both or neither (`protection`); None when it isn't known."""
        self.privileged = True
        """Whether it may have suid, sgid or capabilities: not when it is new, and once they were cleared."""
        self.rare: dict[str, Any] | None = None

    @property
    def lower(self) -> LayerObject | None:
        """The place of its data in a lower, unless it was in the upper when it was found.

        Made when somebody asks: of most files, nobody asks more than what the lookup told.  Nothing that is
        in a lower alone is renamed, so it has its name there.
        """
        return None if self.lower_directory is None else self.lower_directory.child(self.name)

    @property
    def real(self) -> LayerObject:
        """The object that answers for attributes and data."""
        real = self.upper or self.lower
        assert real is not None
        return real

    @property
    def may_be_kept(self) -> bool:
        """Whether the kernel may keep its attributes, as they move only when it is told, or may be told."""
        if self.unseen & (WRITTEN_UNSEEN | SUPERSEDED):
            return False
        return not self.unseen & LOWER_BIRTH_TOLD or self.upper is None

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.file_type == stat.S_IFDIR

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return self.file_type == stat.S_IFREG

    @property
    def referenced(self) -> bool:
        """Whether it must stay in memory for the kernel's or its children's sake."""
        return self.lookups > 0


class ListingOrder:
    """Where the names of a directory stand: positions that outlive changes of other names.

    ``positions`` ascend as ``names`` do; a position is never given to another name.  They are ``outdated``
    when something else is to be listed now.  ``epoch`` counts how often they were renewed.
    """

    __slots__ = ("epoch", "names", "next_position", "outdated", "positions")

    def __init__(self, names: Iterable[bytes], first_position: int) -> None:
        """Begin with ``names``, in their order."""
        self.names = list(names)
        self.next_position = first_position + len(self.names)
        self.positions: Sequence[int] = range(first_position, self.next_position)
        self.outdated = False
        self.epoch = 0

    def renew(self, names: Collection[bytes]) -> None:
        """Take the names as they are now: those that have gone lose their positions, new ones come last."""
        kept = [name in names for name in self.names]
        positions = array.array("Q", itertools.compress(self.positions, kept))
        # Who goes on reading has the lists from before.
        self.names = list(itertools.compress(self.names, kept))
        if len(self.names) < len(names):
            known = set(self.names)
            self.names += [name for name in names if name not in known]
            new = len(self.names) - len(positions)
            positions.extend(range(self.next_position, self.next_position + new))
            self.next_position += new
        self.positions = positions
        self.outdated = False
        self.epoch += 1


class Directory(Node):
    """A directory of the merged tree.

    ``lowers`` are the lower directories that merge into it, topmost first (none below an opaque one).
    ``entries`` are the names known to exist: a Node, or the directories in which the name was seen when the
    whole directory was read (``loaded``); ``covered`` are the names that a lower would show if the
    upper had nothing there, known when loaded.
    """

    __slots__ = (
        "covered",
        "entries",
        "impure",
        "impure_lowers",
        "inheritance",
        "listing_order",
        "loaded",
        "lookups_unloaded",
        "lowers",
        "referenced_children",
        "version",
    )

    def __init__(self, inode: int, upper: LayerObject | None, lowers: tuple[LayerObject, ...]) -> None:
        """Describe a directory."""
        super().__init__(stat.S_IFDIR, inode, upper, None)
        self.lowers = lowers
        self.entries: dict[bytes, Node | tuple[LayerObject, ...]] = {}
        self.loaded = False
        self.covered: set[bytes] = set()
        self.lookups_unloaded = 0
        self.referenced_children = 0
        self.version = 0
        """Counts the changes of its names, and of the layers that have them."""
        self.listing_order: ListingOrder | None = None
        """Where each name stands in a listing, since it was listed first."""
        self.impure = False
        """Whether the upper is known to bear the mark that says: entries have others' inode numbers."""
        self.impure_lowers: tuple[LayerObject, ...] | None = None
        """Those of the lowers that bear it; None when they weren't asked."""
        self.inheritance: Inheritance | None = None
        """What the upper hands on to new objects, kept until its attributes change."""

    @property
    def lower(self) -> LayerObject | None:
        """The topmost of its lowers, if it has any."""
        return self.lowers[0] if self.lowers else None

    @property
    def is_merged(self) -> bool:
        """Whether more than one layer contributes."""
        return len(self.lowers) + (self.upper is not None) > 1

    @property
    def referenced(self) -> bool:
        """Whether it must stay in memory for the kernel's or its children's sake."""
        return self.lookups > 0 or self.referenced_children > 0

    def contributors(self) -> tuple[LayerObject, ...]:
        """Return the directories that merge here, topmost first."""
        return self.lowers if self.upper is None else (self.upper, *self.lowers)

    def names_changed(self) -> None:
        """Take note that something else is to be listed now."""
        self.version += 1
        if self.listing_order is not None:
            self.listing_order.outdated = True

    def forget_entries(self) -> None:
        """Drop what is known of the entries."""
        self.entries = {}
        self.covered = set()
        self.listing_order = None
        self.loaded = False
        self.lookups_unloaded = 0


class InodeNumbers:
    """Which number does a layer's inode have in the merged tree?

    All layers on one file system: the real number.  Otherwise the file system's index goes into the high
    bits, as the kernel's ``xino=on`` does it: a FUSE mount has one st_dev for all, so numbers must not
    meet.
    """

    def __init__(self, layers: list[Layer]) -> None:
        """Number the file systems in the order of ``layers``; the first keeps its numbers."""
        self._indexes: dict[int, int] = {}
        for layer in layers:
            self._indexes.setdefault(layer.device, len(self._indexes))

    def number(self, layer: Layer, inode: int) -> int:
        """Return the merged tree's number for an inode of ``layer``."""
        index = self._indexes[layer.device]
        return inode ^ (index << _FILE_SYSTEM_SHIFT) if index else inode


def link_key(status: os.stat_result) -> int:
    """Return what names an inode of the upper: a subvolume within it has inode numbers of its own."""
    return status.st_dev << 64 | status.st_ino


def names_of(node: Node) -> list[tuple[Directory, bytes]]:
    """Return every known name of a node, as (directory, name)."""
    if node.parent is None:
        return []
    names = [(node.parent, node.name)]
    if node.aliases:
        names.extend(node.aliases)
    return names
