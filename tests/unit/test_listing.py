"""How is a merged directory listed: its names, its offsets, and what happens while it is being read?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.layers import marks, syscalls
from pyoverlay.overlay.filesystem import LoadNeeded, NameOnly, Node
from pyoverlay.overlay.merging import DirectoryLoad
from pyoverlay.overlay.node import ROOT_NODEID
from tests.harness import Stack as LayerDirectories
from tests.harness import fails_with, make_stack
from tests.harness.content import (
    is_whiteout,
    make_directory,
    make_file,
    make_opaque,
    make_whiteout,
    make_xattr_whiteout,
)
from tests.unit.vfs import NAMES_OF_EVERY_DIRECTORY, Vfs, open_descriptors

OpenOverlay = Callable[..., Vfs]


class Reader:
    """A program that reads a directory entry by entry."""

    def __init__(self, vfs: Vfs, path: bytes = b"") -> None:
        self.vfs = vfs
        self.nodeid = vfs.node(path).nodeid
        self.offset = 0

    def read(self, count: int = 1 << 20) -> list[bytes]:
        names: list[bytes] = []
        for name, _entry, following in self.vfs.run(
            lambda: self.vfs.fs.read_directory(self.nodeid, self.offset)
        ):
            if len(names) == count:
                break
            names.append(name)
            self.offset = following
        return names


# Names


@pytest.mark.lowers(2)
def test_every_name_shows_once(stack: LayerDirectories, overlay: Vfs) -> None:
    l1, l2 = stack.lowers
    for layer in (stack.upper, l1, l2):
        make_file(layer / "everywhere")
        make_file(layer / "directory" / layer.name)
        make_file(layer / f"only-{layer.name}")
    make_whiteout(stack.upper / "only-l2")
    assert sorted(overlay.names()) == [b"directory", b"everywhere", b"only-l1", b"only-u"]
    assert sorted(overlay.names(b"directory")) == [b"l1", b"l2", b"u"]


@pytest.mark.lowers(2)
def test_marks_do_not_show_and_hide_what_they_should(stack: LayerDirectories, overlay: Vfs) -> None:
    l1, l2 = stack.lowers
    for name in ("gone", "aufs-gone", "attribute-gone", "kept", "inside/opaque/hidden", "aufs-opaque/hidden"):
        make_file(l2 / name)
    make_whiteout(l1 / "gone")
    make_file(l1 / ".wh.aufs-gone")
    make_xattr_whiteout(l1 / "attribute-gone")
    make_opaque(l1 / "inside" / "opaque")
    make_file(l1 / "aufs-opaque" / ".wh..wh..opq")
    make_file(l1 / ".wh..wh.plnk")
    os.mknod(l1 / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert sorted(overlay.names()) == [b"aufs-opaque", b"device", b"inside", b"kept"]
    assert overlay.names(b"inside/opaque") == overlay.names(b"aufs-opaque") == []


def test_a_listed_name_is_found_and_an_unlisted_one_is_not(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "lower")
    make_file(stack.upper / "upper")
    make_whiteout(stack.upper / "nothing")
    listed = set(overlay.names())
    assert {name for name in (b"lower", b"upper", b"nothing", b"absent") if overlay.exists(name)} == listed


def test_an_entry_that_can_not_be_looked_up_is_listed(
    stack: LayerDirectories, open_overlay: OpenOverlay
) -> None:
    redirected = make_directory(stack.upper / "redirected")
    os.setxattr(redirected, marks.TRUSTED.attribute("redirect"), b"old")
    vfs = open_overlay(redirect_dir="nofollow")
    entries = {name: entry for name, entry, _next in vfs.fs.read_directory(ROOT_NODEID, 0)}
    unreachable = entries[b"redirected"]
    assert isinstance(unreachable, NameOnly)
    assert unreachable.inode == redirected.stat().st_ino and stat.S_ISDIR(unreachable.mode)


def test_the_dots_are_the_directory_and_its_parent(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "a" / "b" / "file")
    directory = overlay.directory(b"a/b")
    entries = list(overlay.fs.read_directory(directory.nodeid, 0))
    assert [(name, entry) for name, entry, _next in entries[:2]] == [
        (b".", directory),
        (b"..", overlay.node(b"a")),
    ]


# Offsets


def test_reading_goes_on_where_it_stopped(stack: LayerDirectories, overlay: Vfs) -> None:
    for number in range(20):
        make_file((stack.lower if number % 2 else stack.upper) / f"f{number}")
    whole = Reader(overlay).read()
    assert len(whole) == len(set(whole)) == 22
    for count in (1, 2, 3, 7):
        reader, got = Reader(overlay), []
        while piece := reader.read(count):
            got += piece
        assert got == whole


def test_every_offset_can_be_returned_to(stack: LayerDirectories, overlay: Vfs) -> None:
    for number in range(5):
        make_file(stack.lower / f"f{number}")
    reader = Reader(overlay)
    entries = list(overlay.fs.read_directory(reader.nodeid, 0))
    for index, (_name, _entry, following) in enumerate(entries):
        reader.offset = following
        assert reader.read() == [name for name, _entry, _next in entries[index + 1 :]]


def test_offsets_survive_changes(stack: LayerDirectories, overlay: Vfs) -> None:
    for number in range(10):
        make_file(stack.lower / f"f{number}")
    reader = Reader(overlay)
    first = reader.read(6)
    seen = first[2:]
    for name in seen:
        overlay.unlink(name)
    overlay.create(b"new")
    rest = reader.read()
    assert b"new" not in rest
    assert sorted(seen + rest) == [b"f%d" % number for number in range(10)]


def test_offsets_fit_programs_that_know_31_bits(stack: LayerDirectories, overlay: Vfs) -> None:
    """After changes, too."""
    make_file(stack.lower / "lower")
    reader = Reader(overlay)
    for number in range(10):
        overlay.create(b"new%d" % number)
        reader.offset = 0
        assert len(reader.read()) == number + 4
        assert reader.offset < 1 << 31


@pytest.mark.parametrize(("renewed", "positions"), [(1 << 11, 12), (0, 1 << 20), (1 << 20, 1 << 25)])
def test_offsets_that_need_more_bits(
    stack: LayerDirectories, overlay: Vfs, renewed: int, positions: int
) -> None:
    """After very many changes, or of very many names."""
    for number in range(10):
        make_file(stack.lower / f"f{number}")
    reader = Reader(overlay)
    reader.read()
    order = overlay.directory(b"").listing_order
    assert order is not None
    order.epoch, order.next_position = renewed, positions
    overlay.create(b"new")
    for first in range(1, 12):
        reader.offset = 0
        seen = reader.read(first)
        assert sorted(seen + reader.read()) == sorted([*overlay.names(), b".", b".."])
        assert reader.offset >> 32


def test_a_name_that_has_gone_is_left_out_and_rewinding_begins_anew(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    for name in ("a", "b", "c"):
        make_file(stack.lower / name)
    reader = Reader(overlay)
    reader.read(2)
    overlay.unlink(b"b")
    overlay.create(b"d")
    assert sorted(reader.read()) == [b"a", b"c"]
    reader.offset = 0
    assert sorted(reader.read()) == [b".", b"..", b"a", b"c", b"d"]


def test_a_removed_directory_lists_nothing(stack: LayerDirectories, overlay: Vfs) -> None:
    for layer in (stack.lower, stack.upper):
        make_directory(layer / "merged")
    make_directory(stack.lower / "lower")
    overlay.mkdir(b"new")
    for path in (b"merged", b"lower", b"new"):
        reader = Reader(overlay, path)
        overlay.rmdir(path)
        assert reader.read() == list(NAMES_OF_EVERY_DIRECTORY)


def test_what_is_no_directory_is_not_listed(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file")
    with fails_with(errno.ENOTDIR):
        overlay.fs.read_directory(overlay.node(b"file").nodeid, 0)
    with fails_with(errno.ESTALE):
        overlay.fs.read_directory(1 << 40, 0)


def test_a_name_keeps_its_position_while_it_stays(stack: LayerDirectories, overlay: Vfs) -> None:
    """Also over listings from the beginning, which heed the changes; no position is used twice."""
    for number in range(10):
        make_file(stack.lower / f"f{number}")
    positions: dict[bytes, int] = {}
    used: set[int] = set()
    for step in range(10):
        entries = list(overlay.fs.read_directory(ROOT_NODEID, 0))[2:]
        now = {name: following & 0xFFFFF for name, _node, following in entries}
        assert list(now.values()) == sorted(now.values())
        stayed = positions.keys() & now.keys()
        assert {name: positions[name] for name in stayed} == {name: now[name] for name in stayed}
        new = {now[name] for name in now.keys() - stayed}
        assert not new & used
        used |= new
        positions = now
        overlay.unlink(b"f%d" % step)
        overlay.create(b"new%d" % step)


def test_only_names_that_change_begin_another_listing(stack: LayerDirectories, overlay: Vfs) -> None:
    """Else the kernel would keep two, that no reader can go on with."""
    for name in ("a", "b"):
        make_file(stack.lower / name)
    first = [following for _name, _entry, following in overlay.fs.read_directory(ROOT_NODEID, 0)]
    overlay.node(b"a")
    overlay.write(b"b", b"copied up")
    assert [following for _name, _entry, following in overlay.fs.read_directory(ROOT_NODEID, 0)] == first
    overlay.create(b"c")
    other = [following for _name, _entry, following in overlay.fs.read_directory(ROOT_NODEID, 0)]
    assert not set(first) & set(other)
    assert len(set(first) | set(other)) == 9


def test_a_listing_that_names_changed_during_is_not_to_be_kept(stack: LayerDirectories, overlay: Vfs) -> None:
    """Its end says so, not that of one without a change."""
    make_file(stack.lower / "a")
    reader, other = Reader(overlay), Reader(overlay)
    reader.read()
    other.read()
    assert reader.read() == []
    assert overlay.fs.take_changed_listings() == []
    overlay.create(b"b")
    assert other.read() == []
    assert overlay.fs.take_changed_listings() == [ROOT_NODEID]
    other.offset = 0
    other.read()
    assert other.read() == []
    assert overlay.fs.take_changed_listings() == []


# Loading


def test_a_loaded_directory_costs_no_more_reading(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file")
    overlay.names()
    overlay.create(b"new")
    before = overlay.stack.operations()
    assert sorted(overlay.names()) == [b"file", b"new"]
    assert overlay.stack.operations() == before


@pytest.fixture
def large(stack: LayerDirectories) -> Path:
    """A directory `d` of a lower that is too large to be read in passing."""
    directory = make_directory(stack.lower / "d")
    for number in range(300):
        make_file(directory / f"{number:0200d}")
    assert directory.stat().st_size > 64 * 1024
    return directory


def begin_load(vfs: Vfs) -> DirectoryLoad:
    nodeid = vfs.node(b"d").nodeid
    with pytest.raises(LoadNeeded) as needed:
        vfs.fs.read_directory(nodeid, 0)
    return needed.value.load


@pytest.mark.parametrize(("lowers", "lookups"), [(1, 9), (2, 5), (4, 3), (12, 2)])
def test_a_directory_of_many_layers_is_read_after_fewer_lookups(
    base: Path, lowers: int, lookups: int
) -> None:
    """Each name that is looked for costs more there; a directory that is only passed is never read."""
    layers = make_stack(base / "many", lowers=lowers)
    for lower in layers.lowers:
        make_file(lower / "d" / lower.name)
    overlay = Vfs(layers)
    try:
        directory = overlay.directory(b"d")
        seen = []
        for _ in range(lookups):
            seen.append(directory.loaded)
            assert not overlay.exists(b"d/absent")
        assert not any(seen)
        assert directory.loaded
    finally:
        overlay.close()


def test_a_large_directory_is_asked_for(stack: LayerDirectories, overlay: Vfs, large: Path) -> None:
    before = open_descriptors()
    load = begin_load(overlay)
    assert not overlay.directory(b"d").loaded
    load.run()
    assert not overlay.directory(b"d").loaded
    load.publish()
    assert overlay.directory(b"d").loaded
    assert len(overlay.names(b"d")) == 300
    overlay.stack.cache.close()
    assert open_descriptors() <= before


def test_two_loads_of_one_directory(overlay: Vfs, large: Path) -> None:
    first, second = begin_load(overlay), begin_load(overlay)
    first.run()
    second.run()
    first.publish()
    overlay.create(b"d/new")
    second.publish()
    assert len(overlay.names(b"d")) == 301


Operation = Callable[[Vfs], object]
OLD = b"d/" + b"%0200d" % 7


def replace(vfs: Vfs) -> None:
    vfs.unlink(OLD)
    vfs.create(OLD, b"new")


def create_and_remove(vfs: Vfs) -> None:
    vfs.create(b"d/new")
    vfs.unlink(b"d/new")


CHANGES: dict[str, Operation] = {
    "create": lambda vfs: vfs.create(b"d/new", b"new"),
    "mkdir": lambda vfs: vfs.mkdir(b"d/new"),
    "unlink": lambda vfs: vfs.unlink(OLD),
    "rename": lambda vfs: vfs.rename(OLD, b"d/new"),
    "rename-out": lambda vfs: vfs.rename(OLD, b"out"),
    "rename-in": lambda vfs: vfs.rename(b"other", b"d/new"),
    "rename-over": lambda vfs: vfs.rename(b"other", OLD),
    "replace": replace,
    "copy-up": lambda vfs: vfs.write(OLD, b"new"),
    "create-and-remove": create_and_remove,
    "copy-up-of-a-directory": lambda vfs: vfs.change(b"d/sub", mode=0o700),
    "create-below": lambda vfs: vfs.create(b"d/sub/new"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("has_upper", [False, True], ids=["lower-only", "merged"])
@pytest.mark.parametrize("when", ["before-reading", "after-reading"])
def test_a_change_while_a_directory_is_being_read(
    stack: LayerDirectories, overlay: Vfs, large: Path, change: Operation, has_upper: bool, when: str
) -> None:
    """The directory shows the same as if it had been read afterwards, and goes on doing so."""
    make_file(stack.lower / "other", "other")
    make_file(large / "sub" / "file")
    if has_upper:
        make_file(stack.upper / "d" / "upper")
    overlay.node(OLD)
    load = begin_load(overlay)
    if when == "before-reading":
        change(overlay)
        load.run()
    else:
        load.run()
        change(overlay)
    load.publish()
    assert overlay.directory(b"d").loaded
    live = set(overlay.names(b"d"))
    overlay.start_anew()
    assert live == set(overlay.names(b"d"))


@pytest.mark.parametrize("remove", ["unlink", "rename", "replaced"])
@pytest.mark.parametrize("has_upper", [False, True], ids=["lower-only", "merged"])
def test_what_was_copied_up_while_its_directory_was_being_read_leaves_a_whiteout(
    stack: LayerDirectories, overlay: Vfs, large: Path, remove: str, has_upper: bool
) -> None:
    """Else the lower's file comes back from the dead."""
    if has_upper:
        make_file(stack.upper / "d" / "upper")
    overlay.node(OLD)
    load = begin_load(overlay)
    load.run()
    overlay.write(OLD, b"new")
    load.publish()
    if remove == "unlink":
        overlay.unlink(OLD)
    elif remove == "rename":
        overlay.rename(OLD, b"out")
    else:
        overlay.unlink(OLD)
        overlay.create(OLD)
        overlay.unlink(OLD)
    assert is_whiteout(stack.upper / os.fsdecode(OLD))
    overlay.start_anew()
    assert not overlay.exists(OLD)


def test_a_directory_copied_up_while_its_parent_was_being_read_leaves_a_whiteout(
    stack: LayerDirectories, overlay: Vfs, large: Path
) -> None:
    make_directory(large / "sub")
    make_file(stack.upper / "d" / "upper")
    overlay.node(b"d/sub")
    load = begin_load(overlay)
    load.run()
    overlay.change(b"d/sub", mode=0o700)
    load.publish()
    overlay.rmdir(b"d/sub")
    assert is_whiteout(stack.upper / "d" / "sub")


def test_a_directory_that_is_removed_while_it_is_being_read(
    stack: LayerDirectories, overlay: Vfs, large: Path
) -> None:
    load = begin_load(overlay)
    load.run()
    directory = overlay.directory(b"d")
    for name in os.listdir(large):
        overlay.unlink(b"d/" + os.fsencode(name))
    overlay.rmdir(b"d")
    load.publish()
    assert directory.entries == {}
    overlay.mkdir(b"d")
    assert overlay.names(b"d") == []


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_failed_reading_loses_no_descriptor(
    stack: LayerDirectories, overlay: Vfs, large: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    make_file(stack.lower / "small" / "file")
    path = b"d" if size == "large" else b"small"

    def fail(descriptor: int) -> list[tuple[bytes, int]]:
        raise OSError(errno.EIO, os.strerror(errno.EIO), descriptor)

    overlay.node(path)
    before = open_descriptors()
    with monkeypatch.context() as broken:
        broken.setattr(syscalls, "read_directory", fail)
        for _attempt in range(3):
            with fails_with(errno.EIO):
                overlay.names(path)
    overlay.stack.cache.close()
    assert open_descriptors() <= before
    assert overlay.names(path)


def test_emptiness_is_that_of_the_merged_directory(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "hidden" / "file")
    make_whiteout(stack.upper / "hidden" / "file")
    make_file(stack.lower / "shown" / "file")
    make_directory(stack.upper / "shown")
    with fails_with(errno.ENOTEMPTY):
        overlay.rmdir(b"shown")
    overlay.rmdir(b"hidden")
    assert overlay.names() == [b"shown"]


def test_a_file_of_several_names_is_listed_without_its_attributes(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    """Its number and type are listed; how many names it has is told only when somebody asks."""
    os.link(make_file(stack.upper / "several"), stack.upper / "another")
    make_file(stack.upper / "one")
    listed = {name: node for name, node, _offset in overlay.fs.read_directory(ROOT_NODEID, 0)}
    number = (stack.upper / "several").stat().st_ino
    assert listed[b"several"] == listed[b"another"] == NameOnly(number, stat.S_IFREG)
    assert isinstance(listed[b"one"], Node)
