"""What does the node table keep, under which names, and does it give everything back?"""

from __future__ import annotations

import stat
from collections import Counter
from typing import cast

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyoverlay.layers.layer import Layer, LayerObject
from pyoverlay.overlay.node import (
    ROOT_NODEID,
    SUPERSEDED,
    Directory,
    InodeNumbers,
    Node,
    names_of,
)
from pyoverlay.overlay.node_table import NodeTable

NO_LAYER = cast(Layer, None)
"""The table does no I/O: the objects of these tests lie in no layer."""


def make_root() -> Directory:
    return Directory(100, LayerObject(NO_LAYER, None, b""), ())


class Tree:
    """A table, and ways to put nodes into it."""

    def __init__(self) -> None:
        self.root = make_root()
        self.table = NodeTable(self.root)
        self._inode = 100

    def add(self, parent: Directory, name: bytes) -> Node:
        return self._add(Node(stat.S_IFREG, self._next(), self._place(parent, name), None), parent, name)

    def add_directory(self, parent: Directory, name: bytes) -> Directory:
        directory = Directory(self._next(), self._place(parent, name), ())
        self._add(directory, parent, name)
        return directory

    def _next(self) -> int:
        self._inode += 1
        return self._inode

    @staticmethod
    def _place(parent: Directory, name: bytes) -> LayerObject:
        assert parent.upper is not None
        return parent.upper.child(name)

    def _add(self, node: Node, parent: Directory, name: bytes) -> Node:
        self.table.add_name(node, parent, name)
        return node


@pytest.fixture
def tree() -> Tree:
    return Tree()


def path_of(place: LayerObject) -> tuple[bytes, ...]:
    names = []
    current: LayerObject | None = place
    while current is not None and current.parent is not None:
        names.append(current.name)
        current = current.parent
    return tuple(reversed(names))


# Numbers


def test_the_root_is_known_from_the_start_and_never_forgotten(tree: Tree) -> None:
    assert tree.table[ROOT_NODEID] is tree.root
    tree.table.forget(ROOT_NODEID, 1000)
    assert tree.table[ROOT_NODEID] is tree.root and tree.root.lookups == 1
    assert len(tree.table) == 1


def test_a_nodeid_is_never_used_twice(tree: Tree) -> None:
    file = tree.add(tree.root, b"file")
    seen = set()
    for _round in range(3):
        tree.table.remember(file)
        assert file.nodeid not in seen
        seen.add(file.nodeid)
        assert tree.table.get(file.nodeid) is file
        tree.table.forget(file.nodeid, 1)
    assert all(tree.table.get(nodeid) is None for nodeid in seen)
    with pytest.raises(KeyError):
        tree.table[max(seen)]


def test_a_node_stays_until_its_last_lookup_is_taken_back(tree: Tree) -> None:
    file = tree.add(tree.root, b"file")
    for _lookup in range(5):
        tree.table.remember(file)
    nodeid = file.nodeid
    tree.table.forget(nodeid, 2)
    tree.table.forget(nodeid, 2)
    assert tree.table[nodeid] is file
    tree.table.forget(nodeid, 1)
    assert tree.table.get(nodeid) is None
    assert b"file" not in tree.root.entries


def test_forgetting_what_is_not_known_does_nothing(tree: Tree) -> None:
    file = tree.add(tree.root, b"file")
    tree.table.remember(file)
    tree.table.forget(4711, 1)
    assert tree.table[file.nodeid] is file


def test_forgetting_too_often_counts_as_once(tree: Tree) -> None:
    directory = tree.add_directory(tree.root, b"directory")
    file = tree.add(directory, b"file")
    tree.table.remember(directory)
    tree.table.remember(file)
    tree.table.forget(file.nodeid, 100)
    assert directory.referenced_children == 0
    assert len(tree.table) == 2


def test_a_superseded_file_has_two_nodeids_until_the_old_one_is_forgotten(tree: Tree) -> None:
    file = tree.add(tree.root, b"file")
    tree.table.remember(file)
    tree.table.remember(file)
    old = file.nodeid

    tree.table.supersede(file)
    kept = [file.may_be_kept]
    tree.table.remember(file)
    new = file.nodeid

    assert new != old
    assert tree.table[old] is tree.table[new] is file
    tree.table.forget(old, 1)
    assert tree.table[old] is file
    tree.table.forget(old, 1)
    assert tree.table.get(old) is None
    assert tree.table[new] is file
    kept.append(file.may_be_kept)
    assert kept == [False, True]
    tree.table.forget(new, 1)
    assert len(tree.table) == 1


def test_a_superseded_file_may_be_forgotten_before_it_is_looked_up_again(tree: Tree) -> None:
    directory = tree.add_directory(tree.root, b"directory")
    file = tree.add(directory, b"file")
    tree.table.remember(directory)
    tree.table.remember(file)
    tree.table.supersede(file)
    old = next(nodeid for nodeid in range(2, 10) if tree.table.get(nodeid) is file)

    tree.table.forget(old, 1)

    assert tree.table.get(old) is None
    assert directory.referenced_children == 0
    assert b"file" not in directory.entries


# What keeps what


def test_a_child_keeps_its_directories(tree: Tree) -> None:
    a = tree.add_directory(tree.root, b"a")
    b = tree.add_directory(a, b"b")
    file = tree.add(b, b"file")
    for node in (a, b, file):
        tree.table.remember(node)
    tree.table.forget(a.nodeid, 1)
    tree.table.forget(b.nodeid, 1)
    assert tree.root.entries[b"a"] is a and a.entries[b"b"] is b
    assert len(tree.table) == 2
    tree.table.forget(file.nodeid, 1)
    assert len(tree.table) == 1
    assert tree.root.entries == {} and tree.root.referenced_children == 0


def test_a_directory_that_only_a_child_kept_gets_a_new_nodeid(tree: Tree) -> None:
    directory = tree.add_directory(tree.root, b"directory")
    file = tree.add(directory, b"file")
    tree.table.remember(directory)
    tree.table.remember(file)
    first = directory.nodeid
    tree.table.forget(first, 1)
    tree.table.remember(directory)
    assert directory.nodeid != first
    tree.table.forget(file.nodeid, 1)
    tree.table.forget(directory.nodeid, 1)
    assert len(tree.table) == 1 and tree.root.entries == {}


def test_a_forgotten_directory_forgets_its_entries(tree: Tree) -> None:
    directory = tree.add_directory(tree.root, b"directory")
    tree.table.remember(directory)
    tree.add(directory, b"file")
    directory.loaded = True
    directory.covered.add(b"file")
    tree.table.forget(directory.nodeid, 1)
    assert (directory.entries, directory.covered, directory.loaded) == ({}, set(), False)


def test_a_loaded_directory_keeps_knowing_its_names(tree: Tree) -> None:
    tree.root.loaded = True
    file = tree.add(tree.root, b"file")
    tree.table.remember(file)
    tree.table.forget(file.nodeid, 1)
    assert b"file" in tree.root.entries
    assert len(tree.table) == 1


def test_a_deep_tree_is_forgotten_from_below_at_once(tree: Tree) -> None:
    """Deeper than Python recurses."""
    chain = [tree.root]
    for _level in range(5000):
        chain.append(tree.add_directory(chain[-1], b"d"))
    tree.table.remember(chain[-1])
    assert all(directory.referenced_children == 1 for directory in chain[:-1])
    tree.table.forget(chain[-1].nodeid, 1)
    assert tree.root.entries == {} and len(tree.table) == 1


def test_forgetting_costs_in_proportion_to_what_is_forgotten(tree: Tree) -> None:
    """A crowd that stays isn't looked at."""

    class CountingDict(dict[int, Node]):
        looked_at = 0

        def __iter__(self):  # type: ignore[no-untyped-def] # noqa: ANN204
            CountingDict.looked_at += len(self)
            return super().__iter__()

    for number in range(100):
        tree.table.remember(tree.add(tree.root, b"%d" % number))
    tree.table._nodes = CountingDict(tree.table._nodes)
    one = tree.add(tree.root, b"one")
    tree.table.remember(one)
    tree.table.forget(one.nodeid, 1)
    assert CountingDict.looked_at == 0


# Names


def test_hard_links_refer_to_all_their_directories(tree: Tree) -> None:
    a, b = tree.add_directory(tree.root, b"a"), tree.add_directory(tree.root, b"b")
    file = tree.add(a, b"one")
    tree.table.add_name(file, b, b"two")
    tree.table.add_name(file, a, b"three")
    tree.table.remember(file)
    tree.table.register_hard_link(7, file)
    assert (a.referenced_children, b.referenced_children) == (2, 1)
    assert set(names_of(file)) == {(a, b"one"), (b, b"two"), (a, b"three")}
    assert tree.table.hard_link(7) is file
    tree.table.forget(file.nodeid, 1)
    assert tree.table.hard_link(7) is None
    assert tree.root.entries == {} and a.entries == {} and b.entries == {}


def test_a_hard_link_that_the_kernel_was_not_told_of_goes_with_its_directory(tree: Tree) -> None:
    """Found when a directory was asked whether it is empty, say: nobody will ever forget it."""
    directory = tree.add_directory(tree.root, b"directory")
    tree.table.remember(directory)
    file = tree.add(directory, b"file")
    tree.table.register_hard_link(7, file)
    assert tree.table.hard_link(7) is None
    tree.table.forget(directory.nodeid, 1)
    assert tree.table.hard_link(7) is None
    assert not tree.table._hard_links


def test_a_node_that_loses_a_name_goes_on_under_another(tree: Tree) -> None:
    a, b = tree.add_directory(tree.root, b"a"), tree.add_directory(tree.root, b"b")
    file = tree.add(a, b"one")
    tree.table.add_name(file, b, b"two")
    tree.table.remember(file)
    tree.table.remove_name(file, a, b"one")
    assert names_of(file) == [(b, b"two")]
    assert file.upper is not None and path_of(file.upper) == (b"b", b"two")
    assert a.referenced_children == 0 and b.referenced_children == 1
    tree.table.remove_name(file, b, b"two")
    assert names_of(file) == [] and b.referenced_children == 0


def test_an_alias_is_removed_and_renamed_as_the_first_name_is(tree: Tree) -> None:
    a = tree.add_directory(tree.root, b"a")
    file = tree.add(tree.root, b"one")
    tree.table.add_name(file, a, b"two")
    tree.table.remember(file)
    tree.table.move_name(file, (a, b"two"), (tree.root, b"three"))
    assert set(names_of(file)) == {(tree.root, b"one"), (tree.root, b"three")}
    assert file.upper is not None and path_of(file.upper) == (b"one",)
    tree.table.remove_name(file, tree.root, b"three")
    assert names_of(file) == [(tree.root, b"one")]
    assert a.entries == {} and set(tree.root.entries) == {b"a", b"one"}


def test_what_lies_below_a_renamed_directory_is_not_touched(tree: Tree) -> None:
    a, b = tree.add_directory(tree.root, b"a"), tree.add_directory(tree.root, b"b")
    file = tree.add(a, b"file")
    for node in (a, b, file):
        tree.table.remember(node)
    tree.table.move_name(a, (tree.root, b"a"), (b, b"c"))
    assert file.parent is a and a.parent is b
    assert file.upper is not None and path_of(file.upper) == (b"b", b"c", b"file")
    assert (tree.root.referenced_children, b.referenced_children) == (1, 1)


def test_an_unlinked_node_is_given_back(tree: Tree) -> None:
    directory = tree.add_directory(tree.root, b"directory")
    file = tree.add(directory, b"file")
    tree.table.remember(directory)
    tree.table.remember(file)
    tree.table.remove_name(file, directory, b"file")
    tree.table.forget(directory.nodeid, 1)
    assert tree.root.entries == {}
    assert tree.table[file.nodeid] is file
    tree.table.forget(file.nodeid, 1)
    assert len(tree.table) == 1


def test_every_change_of_names_counts(tree: Tree) -> None:
    other = tree.add_directory(tree.root, b"other")
    versions = [tree.root.version]
    file = tree.add(tree.root, b"file")
    versions.append(tree.root.version)
    tree.table.move_name(file, (tree.root, b"file"), (other, b"file"))
    versions.append(tree.root.version)
    assert len(set(versions)) == 3
    before = other.version
    tree.table.remove_name(file, other, b"file")
    assert other.version != before


# Inode numbers


class _OnDevice:
    def __init__(self, device: int) -> None:
        self.device = device


def test_numbers_of_one_file_system_are_its_own() -> None:
    layers = [cast(Layer, _OnDevice(5)), cast(Layer, _OnDevice(5))]
    numbers = InodeNumbers(layers)
    assert [numbers.number(layer, 77) for layer in layers] == [77, 77]


def test_numbers_of_several_file_systems_do_not_meet() -> None:
    layers = [cast(Layer, _OnDevice(device)) for device in (5, 6, 7, 6)]
    numbers = InodeNumbers(layers)
    shown = [numbers.number(layer, 77) for layer in layers]
    assert shown[0] == 77
    assert len(set(shown)) == 3 and shown[1] == shown[3]
    assert all(0 < number < 1 << 63 for number in shown)


# Everything at random


class Disk:
    """What lies in the upper: {directory's inode: {name: inode}}."""

    def __init__(self) -> None:
        self.directories: dict[int, dict[bytes, int]] = {100: {}}
        self.next_inode = 101

    def links(self, inode: int) -> int:
        return sum(list(names.values()).count(inode) for names in self.directories.values())

    def resolve(self, path: tuple[bytes, ...]) -> int | None:
        inode = 100
        for name in path:
            inode = self.directories.get(inode, {}).get(name, -1)
            if inode < 0:
                return None
        return inode

    def is_below(self, inode: int, above: int) -> bool:
        return inode == above or any(
            self.is_below(inode, child)
            for child in self.directories.get(above, {}).values()
            if child in self.directories
        )


class NodeTableMachine(RuleBasedStateMachine):
    """A kernel that looks up, forgets and changes names in any order, over a disk of the simplest kind.

    Nodes come and go as lookups and forgets tell; the table must find the same objects as on disk, at the
    right place, count what refers to them, and in the end give all back.
    """

    names = st.sampled_from([b"a", b"b", b"c"])
    choices = st.integers(0, 1 << 16)

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.root = make_root()
        self.table = NodeTable(self.root)
        self.kernel: dict[int, tuple[Node, int]] = {}
        self.lookups: Counter[int] = Counter()

    # As the rooms above the table use it

    def find(self, parent: Directory, name: bytes) -> Node | None:
        known = parent.entries.get(name)
        if isinstance(known, Node) and (known.referenced or not known.link_key):
            return known
        inode = self.disk.directories[parent.inode].get(name)
        if inode is None:
            return None
        assert parent.upper is not None
        if inode in self.disk.directories:
            node: Node = Directory(inode, parent.upper.child(name), ())
        else:
            links = self.disk.links(inode)
            linked = self.table.hard_link(inode)
            node = linked or Node(stat.S_IFREG, inode, parent.upper.child(name), None)
            if links > 1 and linked is None:
                self.table.register_hard_link(inode, node)
        self.table.add_name(node, parent, name)
        return node

    def known_directories(self) -> list[Directory]:
        known = [node for node, _inode in self.kernel.values() if isinstance(node, Directory)]
        return [self.root, *(node for node in known if node.parent is not None)]

    def pick_directory(self, choice: int) -> Directory:
        directories = self.known_directories()
        return directories[choice % len(directories)]

    def tell(self, node: Node) -> None:
        self.table.remember(node)
        self.kernel[node.nodeid] = (node, node.inode)
        self.lookups[node.nodeid] += 1

    def find_and_tell(self, parent: Directory, name: bytes) -> Node | None:
        node = self.find(parent, name)
        if node is not None:
            self.tell(node)
        return node

    # What the kernel does

    @rule(choice=choices, name=names)
    def look_up(self, choice: int, name: bytes) -> None:
        parent = self.pick_directory(choice)
        node = self.find_and_tell(parent, name)
        assert (node.inode if node else None) == self.disk.directories[parent.inode].get(name)

    @rule(choice=choices, name=names)
    def find_without_telling(self, choice: int, name: bytes) -> None:
        """As when a directory is asked whether it is empty."""
        self.find(self.pick_directory(choice), name)

    @rule(choice=choices)
    def load(self, choice: int) -> None:
        directory = self.pick_directory(choice)
        names = self.disk.directories[directory.inode]
        assert directory.upper is not None
        directory.entries = {name: directory.entries.get(name, (directory.upper,)) for name in names}
        directory.loaded = True

    @rule(choice=choices, name=names, is_directory=st.booleans())
    def create(self, choice: int, name: bytes, is_directory: bool) -> None:
        parent = self.pick_directory(choice)
        if name in self.disk.directories[parent.inode]:
            return
        inode = self.disk.next_inode
        self.disk.next_inode += 1
        self.disk.directories[parent.inode][name] = inode
        assert parent.upper is not None
        place = parent.upper.child(name)
        if is_directory:
            self.disk.directories[inode] = {}
            node: Node = Directory(inode, place, ())
        else:
            node = Node(stat.S_IFREG, inode, place, None)
        self.table.add_name(node, parent, name)
        self.tell(node)

    @rule(choice=choices, directory=choices, name=names)
    def link(self, choice: int, directory: int, name: bytes) -> None:
        files = [node for node, _inode in self.kernel.values() if not node.is_directory and node.parent]
        parent = self.pick_directory(directory)
        if not files or name in self.disk.directories[parent.inode]:
            return
        node = files[choice % len(files)]
        self.disk.directories[parent.inode][name] = node.inode
        self.table.add_name(node, parent, name)
        self.table.register_hard_link(node.inode, node)
        self.tell(node)

    @rule(choice=choices, name=names)
    def remove(self, choice: int, name: bytes) -> None:
        parent = self.pick_directory(choice)
        node = self.find_and_tell(parent, name)
        if node is None or self.disk.directories.get(node.inode):
            return
        self._remove(node, parent, name)

    def _remove(self, node: Node, parent: Directory, name: bytes) -> None:
        if node.referenced and not node.aliases and node.upper is not None:
            node.upper.held = True
        del self.disk.directories[parent.inode][name]
        self.table.remove_name(node, parent, name)
        if node.is_directory:
            self.disk.directories.pop(node.inode)
        if node.parent is None:
            node.unlinked = True

    @rule(old=choices, old_name=names, new=choices, new_name=names)
    def rename(self, old: int, old_name: bytes, new: int, new_name: bytes) -> None:
        old_parent, new_parent = self.pick_directory(old), self.pick_directory(new)
        node = self.find_and_tell(old_parent, old_name)
        target = self.find_and_tell(new_parent, new_name)
        if node is None or node is target or self.disk.is_below(new_parent.inode, node.inode):
            return
        if target is not None:
            if target.is_directory != node.is_directory or self.disk.directories.get(target.inode):
                return
            self._remove(target, new_parent, new_name)
        del self.disk.directories[old_parent.inode][old_name]
        self.disk.directories[new_parent.inode][new_name] = node.inode
        self.table.move_name(node, (old_parent, old_name), (new_parent, new_name))

    @precondition(lambda self: self.kernel)
    @rule(choice=choices, lookups=st.integers(1, 3))
    def forget(self, choice: int, lookups: int) -> None:
        nodeid = list(self.kernel)[choice % len(self.kernel)]
        lookups = min(lookups, self.lookups[nodeid])
        self.table.forget(nodeid, lookups)
        self.lookups[nodeid] -= lookups
        if not self.lookups[nodeid]:
            del self.kernel[nodeid]
            assert self.table.get(nodeid) is None

    @rule(choice=choices)
    def supersede(self, choice: int) -> None:
        current = [node for nodeid, (node, _inode) in self.kernel.items() if nodeid == node.nodeid]
        files = [node for node in current if not node.is_directory]
        if files:
            self.table.supersede(files[choice % len(files)])

    # What holds

    @invariant()
    def the_kernel_finds_what_it_knows(self) -> None:
        assert len(self.table) == len(self.kernel) + 1
        for nodeid, (node, inode) in self.kernel.items():
            assert self.table[nodeid] is node
            assert node.inode == inode
            numbers = [number for number, (known, _inode) in self.kernel.items() if known is node]
            assert node.lookups == sum(self.lookups[number] for number in numbers)
            assert bool(node.unseen & SUPERSEDED) == any(number != node.nodeid for number in numbers)

    @invariant()
    def names_and_places_are_those_on_disk(self) -> None:
        for node, inode in self.kernel.values():
            for parent, name in names_of(node):
                assert self.disk.directories[parent.inode].get(name) == inode
                assert parent.entries.get(name) is node
            if node.upper is not None and not node.upper.held:
                assert self.disk.resolve(path_of(node.upper)) == inode

    @invariant()
    def references_are_counted(self) -> None:
        """Each directory that a referenced node names counts that name, and no more."""
        expected: dict[int, int] = {}
        pending = list(dict.fromkeys(node for node, _inode in self.kernel.values()))
        seen = {id(node) for node in pending}
        directories: list[Directory] = [self.root]
        while pending:
            node = pending.pop()
            for parent, _name in names_of(node):
                expected[id(parent)] = expected.get(id(parent), 0) + 1
                if id(parent) not in seen and parent is not self.root:
                    seen.add(id(parent))
                    pending.append(parent)
            if isinstance(node, Directory):
                directories.append(node)
        for directory in directories:
            assert directory.referenced_children == expected.get(id(directory), 0)

    def teardown(self) -> None:
        for nodeid in list(self.kernel):
            self.table.forget(nodeid, self.lookups[nodeid])
        assert len(self.table) == 1
        assert self.root.referenced_children == 0
        if not self.root.loaded:
            assert all(not node.referenced for node in self.root.entries.values() if isinstance(node, Node))


TestNodeTable = NodeTableMachine.TestCase
TestNodeTable.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
