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
    """Whether its data in a lower is a program or a shared library; None when it isn't known."""
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


class NodeTable:
    """The nodes that the kernel knows, by nodeid, and the upper's hard links, by inode.

    A node is *referenced* while the kernel holds lookups of it, or it is a directory with a
    referenced child: then its directories stay in memory, too.  Forgetting costs in proportion to what is
    forgotten; nothing here walks all nodes.

    A node may be *superseded*: it gets a new nodeid at the next lookup, and the old one goes on to name it
    until the kernel has forgotten it.  ``Node.lookups`` counts those of all its nodeids.
    """

    def __init__(self, root: Directory) -> None:
        """Start with the root, which is never forgotten."""
        root.nodeid = ROOT_NODEID
        root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT_NODEID: root}
        self._next_nodeid = ROOT_NODEID + 1
        self._superseded: dict[Node, dict[int, int]] = {}
        """The lookups of each former nodeid, of nodes that have some."""
        self._hard_links: dict[int, Node] = {}
        self.changed_listings: list[Directory] = []
        """Of which the kernel must not keep a listing, though it saw no name change."""

    def __len__(self) -> int:
        """Return how many nodes the kernel knows."""
        return len(self._nodes)

    def __getitem__(self, nodeid: int) -> Node:
        """Return a node by its nodeid, or raise KeyError."""
        return self._nodes[nodeid]

    def get(self, nodeid: int) -> Node | None:
        """Return a node by its nodeid, None when it isn't known."""
        return self._nodes.get(nodeid)

    def remember(self, node: Node) -> None:
        """Count one lookup of ``node`` by the kernel."""
        if node.nodeid:
            node.lookups += 1
            return
        node.nodeid = self._next_nodeid
        self._next_nodeid += 1
        self._nodes[node.nodeid] = node
        if node.link_key:
            self._hard_links[node.link_key] = node
        was_referenced = node.referenced
        node.lookups += 1
        if was_referenced:
            return
        parent = node.parent
        if node.rare is None and parent is not None and parent.lookups:
            parent.referenced_children += 1  # mostly that is all there is to do
        else:
            _reference(node)

    def supersede(self, node: Node) -> None:
        """Let the next lookup of a file that the kernel knows tell another nodeid."""
        former = self._superseded.setdefault(node, {})
        former[node.nodeid] = node.lookups - sum(former.values())
        node.nodeid = 0
        node.unseen |= SUPERSEDED

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take back ``lookups`` lookups; the last one frees the node."""
        node = self._nodes.get(nodeid)
        if node is None or nodeid == ROOT_NODEID:
            return
        node.lookups -= lookups
        left = self._left(node, nodeid, lookups) if node.unseen & SUPERSEDED else node.lookups
        if left > 0:
            return
        del self._nodes[nodeid]
        if nodeid == node.nodeid:
            node.nodeid = 0
            node.unseen &= ~OPENED
        if node.lookups > 0:
            return
        node.lookups = 0
        if not node.referenced:
            self._release(node)

    def _left(self, node: Node, nodeid: int, lookups: int) -> int:
        """Return how many lookups of one of a node's nodeids are left, after ``lookups`` were taken back."""
        former = self._superseded[node]
        if nodeid == node.nodeid:
            return node.lookups - sum(former.values())
        former[nodeid] -= lookups
        left = former[nodeid]
        if left <= 0:
            del former[nodeid]
        if not former:
            del self._superseded[node]
            node.unseen &= ~SUPERSEDED
        return left

    def _release(self, node: Node) -> None:
        """Let go of a node that nothing refers to any more, and of directories that it alone held."""
        pending = [node]
        while pending:
            current = pending.pop()
            self._retire(current)
            for parent, _name in names_of(current):
                parent.referenced_children -= 1
                if not parent.referenced:
                    pending.append(parent)

    def _retire(self, node: Node) -> None:
        """Free what a node holds.  A loaded directory goes on knowing its entries, with their attributes."""
        if isinstance(node, Directory):
            node.forget_entries()
        if node.upper is not None and node.upper.held:
            node.upper.close()
        if self._hard_links.get(node.link_key) is node:
            del self._hard_links[node.link_key]
        for parent, name in names_of(node):
            if parent.entries.get(name) is not node:
                continue
            if not parent.loaded:
                del parent.entries[name]
            elif node.link_key and parent.upper is not None:
                parent.entries[name] = (parent.upper,)

    # Names

    def add_name(self, node: Node, parent: Directory, name: bytes) -> None:
        """Give ``node`` a (further) name."""
        self.found_name(node, parent, name)
        parent.names_changed()

    def found_name(self, node: Node, parent: Directory, name: bytes) -> None:
        """Take note of a name that ``node`` has."""
        parent.entries[name] = node
        if node.rare is not None:
            node.unlinked = False
        if node.parent is None:
            node.parent, node.name = parent, name
        else:
            node.aliases = node.aliases or set()
            node.aliases.add((parent, name))
        if node.referenced:
            parent.referenced_children += 1

    def remove_name(self, node: Node, parent: Directory, name: bytes) -> None:
        """Take a name away from ``node``; its place in the upper follows one of those that are left."""
        parent.entries.pop(name, None)
        parent.names_changed()
        if node.aliases and (parent, name) in node.aliases:
            node.aliases.discard((parent, name))
        elif node.aliases:
            _settle(node, *node.aliases.pop())
        else:
            node.parent = None
        if node.referenced:
            parent.referenced_children -= 1

    def move_name(self, node: Node, old: tuple[Directory, bytes], new: tuple[Directory, bytes]) -> None:
        """Rename ``node`` from one (directory, name) to another; touches nothing below it."""
        old[0].entries.pop(old[1], None)
        new[0].entries[new[1]] = node
        old[0].names_changed()
        new[0].names_changed()
        if node.aliases and old in node.aliases:
            node.aliases.discard(old)
            node.aliases.add(new)
        else:
            _settle(node, *new)
        if node.referenced:
            old[0].referenced_children -= 1
            new[0].referenced_children += 1

    def change_listing(self, directory: Directory) -> None:
        """Take note that something else is listed now, though no name has changed: an inode number."""
        directory.names_changed()
        self.changed_listings.append(directory)

    # Hard links in the upper

    def hard_link(self, key: int) -> Node | None:
        """Return the node of an upper inode that has, or had, several names, when the kernel knows it.

        A node that the kernel doesn't know may have lost track of its directories: it is looked up anew.
        """
        return self._hard_links.get(key)

    def register_hard_link(self, key: int, node: Node) -> None:
        """Remember the node of an upper inode that has, or had, several names."""
        node.link_key = key
        if node.referenced:
            self._hard_links[key] = node


def _reference(node: Node) -> None:
    """Count a node that has just become referenced in its directories, and those in theirs."""
    pending = [node]
    while pending:
        for parent, _name in names_of(pending.pop()):
            was_referenced = parent.referenced
            parent.referenced_children += 1
            if not was_referenced:
                pending.append(parent)


def _settle(node: Node, parent: Directory, name: bytes) -> None:
    """Make (parent, name) the name by which the node's place in the upper is reached."""
    node.parent, node.name = parent, name
    if node.upper is not None:
        node.upper.parent, node.upper.name = parent.upper, name
