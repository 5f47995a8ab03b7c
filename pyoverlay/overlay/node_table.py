"""Which nodes does the kernel know, and what becomes of them when it forgets?

It does no I/O, and knows nothing of layers.
"""

from __future__ import annotations

from pyoverlay.overlay.node import OPENED, ROOT_NODEID, SUPERSEDED, Directory, Node, names_of


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
