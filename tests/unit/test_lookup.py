"""How is a name found through the stack: marks, merging, inode numbers, hard links, what stays in memory?"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyoverlay.layers import marks
from pyoverlay.overlay.node import ROOT_NODEID, Directory
from tests.harness import Stack as LayerDirectories
from tests.harness import fails_with, make_stack
from tests.harness.content import make_directory, make_file, make_opaque, make_whiteout
from tests.unit.vfs import Vfs

TRUSTED = marks.TRUSTED
OpenOverlay = Callable[..., Vfs]


def set_mark(path: Path, mark: marks.Mark, value: bytes) -> None:
    os.setxattr(path, TRUSTED.attribute(mark), value, follow_symlinks=False)


def layer_paths(directory: Directory) -> list[str]:
    return [place.layer.path for place in directory.contributors()]


# What shows


@pytest.mark.lowers(2)
def test_the_topmost_shows(stack: LayerDirectories, overlay: Vfs) -> None:
    for layer in (stack.upper, *stack.lowers):
        for name in ("in-all", f"only-{layer.name}"):
            make_file(layer / name, layer.name)
    make_file(stack.lowers[0] / "in-lowers", "l1")
    make_file(stack.lowers[1] / "in-lowers", "l2")
    assert overlay.read(b"in-all") == b"u"
    assert overlay.read(b"in-lowers") == b"l1"
    for layer in (stack.upper, *stack.lowers):
        assert overlay.read(f"only-{layer.name}".encode()) == layer.name.encode()
    with fails_with(errno.ENOENT):
        overlay.node(b"absent")


@pytest.mark.lowers(3)
def test_directories_merge(stack: LayerDirectories, overlay: Vfs) -> None:
    for layer in (stack.lowers[0], stack.lowers[2], stack.upper):
        make_file(layer / "directory" / layer.name, layer.name)
    directory = overlay.directory(b"directory")
    assert layer_paths(directory) == [str(p) for p in (stack.upper, stack.lowers[0], stack.lowers[2])]
    assert directory.is_merged
    assert overlay.read(b"directory/l3") == b"l3"
    assert overlay.fs.attributes(directory).links == 1


@pytest.mark.lowers(3)
def test_a_whiteout_hides_what_is_below_it_and_not_what_is_above(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    l1, l2, l3 = stack.lowers
    make_file(l3 / "gone", "below")
    make_whiteout(l2 / "gone")
    make_file(l3 / "back", "below")
    make_whiteout(l2 / "back")
    make_file(l1 / "back", "above")
    make_file(l3 / "directory" / "old")
    make_whiteout(l2 / "directory")
    make_file(stack.upper / "directory" / "new")
    with fails_with(errno.ENOENT):
        overlay.node(b"gone")
    assert overlay.read(b"back") == b"above"
    assert layer_paths(overlay.directory(b"directory")) == [str(stack.upper)]
    with fails_with(errno.ENOENT):
        overlay.node(b"directory/old")


@pytest.mark.lowers(2)
def test_a_file_hides_directories_and_a_directory_hides_files(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.upper / "file-above", "file")
    make_directory(stack.lowers[0] / "file-above")
    make_directory(stack.upper / "file-between")
    make_file(stack.lowers[0] / "file-between")
    make_file(stack.lowers[1] / "file-between" / "hidden")
    assert overlay.read(b"file-above") == b"file"
    assert layer_paths(overlay.directory(b"file-between")) == [str(stack.upper)]
    with fails_with(errno.ENOENT):
        overlay.node(b"file-between/hidden")


@pytest.mark.parametrize("attribute", [os.fsdecode(name) for name in marks.OPAQUE_ATTRIBUTES])
@pytest.mark.parametrize("where", ["upper", "lower"])
@pytest.mark.lowers(2)
def test_an_opaque_directory_merges_nothing_below(
    stack: LayerDirectories, overlay: Vfs, attribute: str, where: str
) -> None:
    opaque = stack.upper if where == "upper" else stack.lowers[0]
    make_opaque(opaque / "directory", attribute)
    make_file(opaque / "directory" / "kept")
    make_file(stack.lowers[1] / "directory" / "hidden")
    assert layer_paths(overlay.directory(b"directory")) == [str(opaque)]
    assert overlay.exists(b"directory/kept")
    assert not overlay.exists(b"directory/hidden")


@pytest.mark.lowers(2)
def test_aufs_marks(stack: LayerDirectories, overlay: Vfs) -> None:
    top, bottom = stack.lowers
    make_file(bottom / "gone")
    make_file(top / ".wh.gone")
    make_file(bottom / "both", "old")
    make_file(top / "both", "new")
    make_file(top / ".wh.both")
    make_file(top / "opaque" / ".wh..wh..opq")
    make_file(bottom / "opaque" / "hidden")
    make_file(top / "replaced" / "new")
    make_file(top / ".wh.replaced")
    make_file(bottom / "replaced" / "old")
    assert not overlay.exists(b"gone")
    assert overlay.read(b"both") == b"new"
    assert not overlay.exists(b"opaque/hidden")
    assert overlay.exists(b"replaced/new") and not overlay.exists(b"replaced/old")
    for mark in (b".wh.gone", b"opaque/.wh..wh..opq"):
        assert not overlay.exists(mark)


def test_a_whiteout_made_of_an_attribute(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "gone")
    set_mark(stack.lower / "gone", "whiteout", b"y")
    os.setxattr(stack.lower, TRUSTED.attribute("opaque"), b"x")
    make_file(stack.lower / "full", "content")
    set_mark(stack.lower / "full", "whiteout", b"y")
    assert not overlay.exists(b"gone")
    assert overlay.read(b"full") == b"content"


def test_a_long_name(overlay: Vfs) -> None:
    with fails_with(errno.ENOENT):
        overlay.node(b"n" * 255)
    with fails_with(errno.ENAMETOOLONG):
        overlay.node(b"n" * 256)


def test_a_lower_that_contains_the_upper_does_not_show_it(base: Path) -> None:
    layers = make_stack(base / "inner")
    make_file(layers.lower / "file")
    vfs = Vfs(layers, lowerdir=(str(base),))
    try:
        assert vfs.exists(b"inner/l1/file")
        for name in (b"inner/u", b"inner/w"):
            with fails_with(errno.ELOOP):
                vfs.node(name)
        assert set(vfs.names(b"inner")) >= {b"l1", b"m"}
    finally:
        vfs.close()


def test_lookups_change_nothing_and_cost_no_memory(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file")
    for number in range(5):
        assert not overlay.exists(b"absent-%d" % number)
    assert set(overlay.directory(b"").entries) <= {b"file"}
    assert os.listdir(stack.upper) == []


# Redirects and metacopy


@pytest.mark.lowers(3)
def test_a_redirect_is_followed_below(stack: LayerDirectories, overlay: Vfs) -> None:
    l1, l2, l3 = stack.lowers
    make_file(stack.upper / "d" / "new" / "u")
    set_mark(stack.upper / "d" / "new", "redirect", b"old")
    make_file(l1 / "d" / "old" / "l1")
    set_mark(l1 / "d" / "old", "redirect", b"/elsewhere/older")
    make_file(l2 / "elsewhere" / "older" / "l2")
    make_file(l3 / "elsewhere" / "older" / "l3")
    make_file(l2 / "d" / "old" / "not-this")
    make_file(l2 / "d" / "new" / "nor-this")
    assert sorted(overlay.names(b"d/new")) == [b"l1", b"l2", b"l3", b"u"]


@pytest.mark.lowers(2)
def test_a_redirect_ends_at_a_whiteout(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.upper / "new" / "u")
    set_mark(stack.upper / "new", "redirect", b"old")
    make_whiteout(stack.lowers[0] / "old")
    make_file(stack.lowers[1] / "old" / "hidden")
    assert overlay.names(b"new") == [b"u"]


def test_redirects_that_may_not_be_followed(stack: LayerDirectories, open_overlay: OpenOverlay) -> None:
    make_directory(stack.upper / "new")
    set_mark(stack.upper / "new", "redirect", b"old")
    vfs = open_overlay(redirect_dir="nofollow")
    with fails_with(errno.EPERM):
        vfs.node(b"new")


@pytest.mark.parametrize("value", [b"", b"a/b", b"/a//b", b"..", b"/a/../b"])
def test_a_malformed_redirect(stack: LayerDirectories, overlay: Vfs, value: bytes) -> None:
    make_directory(stack.upper / "new")
    set_mark(stack.upper / "new", "redirect", value)
    with fails_with(errno.EINVAL):
        overlay.node(b"new")


@pytest.mark.parametrize("where", ["upper", "lower"])
def test_a_file_of_metadata_only_is_refused(stack: LayerDirectories, overlay: Vfs, where: str) -> None:
    """It would serve zeros."""
    file = (stack.upper if where == "upper" else stack.lower) / "file"
    make_file(file)
    os.truncate(file, 1 << 20)
    set_mark(file, "metacopy", b"")
    with fails_with(errno.EPERM):
        overlay.read(b"file")


def test_a_sparse_file_is_no_file_of_metadata_only(stack: LayerDirectories, overlay: Vfs) -> None:
    os.truncate(make_file(stack.lower / "file"), 1 << 20)
    assert overlay.read(b"file") == bytes(1 << 20)


# Inode numbers


def test_numbers_are_those_of_the_layers(stack: LayerDirectories, overlay: Vfs) -> None:
    lower_file = make_file(stack.lower / "file").stat()
    make_file(stack.lower / "merged" / "x")
    make_file(stack.upper / "merged" / "y")
    assert overlay.node(b"file").inode == lower_file.st_ino
    assert overlay.node(b"merged").inode == (stack.lower / "merged").stat().st_ino
    assert overlay.node(b"merged/y").inode == (stack.upper / "merged/y").stat().st_ino
    assert overlay.fs.node(ROOT_NODEID).inode == stack.upper.stat().st_ino


def test_a_number_stays_after_copy_up_and_in_the_next_mount(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "d" / "file", "content")
    (stack.lower / "link").symlink_to("x")
    before = {name: overlay.node(name).inode for name in (b"d", b"d/file", b"link")}
    overlay.change(b"d/file", mode=0o600)
    overlay.change(b"link", user=5)
    for _mount in range(2):
        assert {name: overlay.node(name).inode for name in before} == before
        overlay.start_anew()


def test_a_number_whose_lower_file_has_gone_is_the_uppers(stack: LayerDirectories, overlay: Vfs) -> None:
    file = make_file(stack.lower / "file", "content")
    overlay.change(b"file", mode=0o600)
    file.unlink()
    overlay.start_anew()
    assert overlay.node(b"file").inode == (stack.upper / "file").stat().st_ino


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="overlay-") as directory:
        yield Path(directory)


def test_numbers_of_two_file_systems_do_not_meet(
    stack: LayerDirectories, elsewhere: Path, open_overlay: OpenOverlay
) -> None:
    make_file(elsewhere / "other", "content")
    make_file(stack.lower / "near")
    vfs = open_overlay(lowerdir=(str(stack.lower), str(elsewhere)))
    assert vfs.node(b"near").inode == (stack.lower / "near").stat().st_ino
    number = vfs.node(b"other").inode
    assert number != (elsewhere / "other").stat().st_ino
    vfs.change(b"other", mode=0o600)
    assert vfs.node(b"other").inode == number


# Hard links


def test_hard_links_in_the_upper_are_one_node(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.upper / "a" / "one", "content")
    make_directory(stack.upper / "b")
    os.link(stack.upper / "a" / "one", stack.upper / "b" / "two")
    one, two = overlay.node(b"a/one"), overlay.node(b"b/two")
    assert one is two and overlay.fs.attributes(one).links == 2
    overlay.write(b"b/two", b"CONTENT")
    assert overlay.read(b"a/one") == b"CONTENT"


def test_hard_links_in_a_lower_are_files_of_their_own(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "one", "content")
    os.link(stack.lower / "one", stack.lower / "two")
    assert overlay.node(b"one").inode == overlay.node(b"two").inode
    overlay.write(b"one", b"CONTENT")
    assert overlay.read(b"two") == b"content"


def test_the_other_name_of_an_unlinked_file_is_the_same_file(stack: LayerDirectories, overlay: Vfs) -> None:
    """It was not known when the first name went; a second node would have a page cache of its own."""
    make_file(stack.upper / "one", "content")
    os.link(stack.upper / "one", stack.upper / "two")
    node = overlay.node(b"one")
    writing = overlay.open(b"one", os.O_WRONLY)
    overlay.unlink(b"one")
    assert overlay.fs.attributes(overlay.node(b"two")).size == len(b"content")
    overlay.fs.write(writing, 0, b"more content")
    overlay.fs.release(writing)
    assert overlay.fs.attributes(overlay.node(b"two")).size == len(b"more content")
    assert overlay.node(b"two") is node


def test_the_other_name_of_an_unlinked_file_is_as_good_as_ever(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.upper / "one", "content")
    os.link(stack.upper / "one", stack.upper / "two")
    overlay.node(b"one")
    overlay.unlink(b"one")
    overlay.link(b"two", b"three")
    overlay.rename(b"two", b"four")
    assert overlay.fs.attributes(overlay.node(b"four")).links == 2
    overlay.unlink(b"three")
    assert overlay.read(b"four") == b"content"
    overlay.forget_everything()
    assert overlay.read(b"four") == b"content"


def test_a_file_found_while_asking_whether_a_directory_is_empty(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    """Nobody was told of it, so nobody forgets it; it must not be taken for the file of later."""
    make_file(stack.upper / "directory" / "one", "content")
    os.link(stack.upper / "directory" / "one", stack.upper / "two")
    overlay.node(b"directory")
    with fails_with(errno.ENOTEMPTY):
        overlay.rmdir(b"directory")
    overlay.forget_everything()
    node = overlay.node(b"directory/one")
    overlay.rename(b"directory", b"renamed")
    overlay.stack.cache.close()
    node.attributes = None
    assert overlay.fs.attributes(node).links == 2
    assert overlay.read(b"renamed/one") == b"content"


# What stays in memory


@pytest.mark.parametrize("oldest_first", [True, False])
def test_forgetting_everything_leaves_the_root(
    stack: LayerDirectories, overlay: Vfs, oldest_first: bool
) -> None:
    for number in range(5):
        make_file(stack.lower / "a" / f"d{number}" / "file")
        make_file(stack.upper / "a" / f"d{number}" / "other")
    os.link(stack.upper / "a" / "d0" / "other", stack.upper / "linked")
    overlay.tree()
    overlay.create(b"a/d1/new")
    overlay.unlink(b"a/d2/file")
    overlay.rename(b"a/d3/other", b"a/d4/moved")
    overlay.write(b"a/d0/file", b"content")
    assert len(overlay.fs.nodes) > 15
    for nodeid in sorted(overlay.told, reverse=not oldest_first):
        overlay.forget(nodeid)
    assert len(overlay.fs.nodes) == 1
    root = overlay.fs.directory(ROOT_NODEID)
    assert root.referenced_children == 0
    assert not overlay.fs.nodes._hard_links
    overlay.forget_everything()


def test_an_unknown_nodeid_is_stale(overlay: Vfs, stack: LayerDirectories) -> None:
    make_file(stack.lower / "file")
    nodeid = overlay.node(b"file").nodeid
    overlay.forget(nodeid)
    with fails_with(errno.ESTALE):
        overlay.fs.node(nodeid)
    with fails_with(errno.ENOTDIR):
        overlay.fs.lookup(overlay.node(b"file").nodeid, b"x")


def test_many_lookups_load_a_directory_and_then_absent_names_are_free(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    for number in range(30):
        make_file(stack.lower / "directory" / str(number))
    directory = overlay.directory(b"directory")
    asked = 0
    while not directory.loaded:
        assert asked < 30
        overlay.node(b"directory/%d" % asked)
        asked += 1
    assert asked > 1
    before = overlay.stack.operations()
    with fails_with(errno.ENOENT):
        overlay.fs.lookup(directory.nodeid, b"absent")
    assert overlay.stack.operations() == before


def test_a_known_name_costs_nothing(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file")
    overlay.node(b"file")
    before = overlay.stack.operations()
    node = overlay.node(b"file")
    assert stat.S_ISREG(overlay.fs.attributes(node).mode)
    assert overlay.stack.operations() == before
