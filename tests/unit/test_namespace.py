"""What do creating, linking, removing and renaming leave on disk, whatever was in memory before?"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from pyoverlay.layers.layer import LayerObject
from pyoverlay.layers.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from pyoverlay.overlay.birth import Caller
from pyoverlay.overlay.node import ROOT_NODEID
from tests.harness import Entry, fails_with, make_stack, snapshot
from tests.harness import Stack as LayerDirectories
from tests.harness.content import (
    DEFAULT_ACL,
    attribute,
    is_opaque,
    is_whiteout,
    left_in_work,
    make_directory,
    make_file,
    make_opaque,
    make_whiteout,
)
from tests.unit.vfs import Vfs

ORIGIN = b"trusted.overlay.origin"
SOMEBODY = Caller(1000, 1001, 0o027)


def leftovers(stack: LayerDirectories) -> list[str]:
    """What lies in the work directory, but for the inode that all whiteouts share."""
    return left_in_work(stack.work)


# Creating


def test_a_new_object_is_its_makers(stack: LayerDirectories, overlay: Vfs) -> None:
    overlay.create(b"file", b"content", 0o6777, SOMEBODY)
    overlay.mkdir(b"directory", 0o1777, SOMEBODY)
    overlay.symlink(b"symlink", b"target", SOMEBODY)
    overlay.mknod(b"fifo", stat.S_IFIFO | 0o666, 0, SOMEBODY)
    overlay.mknod(b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), SOMEBODY)
    expected = {"file": 0o6750, "directory": 0o1750, "fifo": 0o640, "null": 0o640}
    for path in stack.upper.iterdir():
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (1000, 1001)
        if path.name in expected:
            assert stat.S_IMODE(status.st_mode) == expected[path.name], path.name
    assert os.readlink(stack.upper / "symlink") == "target"
    assert (stack.upper / "null").stat().st_rdev == os.makedev(1, 3)
    assert (stack.upper / "file").read_text() == "content"


@pytest.mark.parametrize("over_whiteout", [False, True])
def test_a_new_object_in_a_setgid_directory(
    stack: LayerDirectories, overlay: Vfs, over_whiteout: bool
) -> None:
    directory = make_directory(stack.upper / "d")
    os.chown(directory, 5, 77)
    directory.chmod(0o2777)
    for name in ("file", "sub"):
        if over_whiteout:
            make_whiteout(directory / name)
    overlay.create(b"d/file", b"", 0o666, SOMEBODY)
    overlay.mkdir(b"d/sub", 0o777, SOMEBODY)
    assert (directory / "file").stat().st_gid == (directory / "sub").stat().st_gid == 77
    assert stat.S_IMODE((directory / "sub").stat().st_mode) == 0o2750
    assert stat.S_IMODE((directory / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("over_whiteout", [False, True])
def test_a_new_object_under_a_default_acl(stack: LayerDirectories, overlay: Vfs, over_whiteout: bool) -> None:
    """The default ACL takes the umask's place; what a plain directory gives is right."""
    acl = bytes.fromhex(
        "0200000001000700ffffffff02000600e803000004000500ffffffff10000700ffffffff20000000ffffffff"
    )
    plain = make_directory(stack.base / "plain")
    directory = make_directory(stack.upper / "d")
    for path in (plain, directory):
        os.setxattr(path, DEFAULT_ACL, acl)
    if over_whiteout:
        make_whiteout(directory / "file")
        make_whiteout(directory / "sub")
    overlay.create(b"d/file", b"", 0o666, Caller(0, 0, 0o077))
    overlay.mkdir(b"d/sub", 0o777, Caller(0, 0, 0o077))
    os.close(os.open(plain / "file", os.O_CREAT | os.O_WRONLY, 0o666))
    (plain / "sub").mkdir(0o777)
    ours = snapshot(directory, times=False)
    if over_whiteout:
        kept = tuple(pair for pair in ours[b"sub"].xattrs if b"overlay" not in pair[0])
        ours[b"sub"] = dataclasses.replace(ours[b"sub"], xattrs=kept)
    theirs = snapshot(plain, times=False)
    assert (ours[b"file"], ours[b"sub"]) == (theirs[b"file"], theirs[b"sub"])


KINDS: dict[str, Callable[[Vfs, bytes], object]] = {
    "file": lambda vfs, path: vfs.create(path, b"new"),
    "symlink": lambda vfs, path: vfs.symlink(path, b"new"),
    "fifo": lambda vfs, path: vfs.mknod(path, stat.S_IFIFO | 0o600),
    "directory": lambda vfs, path: vfs.mkdir(path),
    "link": lambda vfs, path: vfs.link(b"source", path),
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


@kinds
def test_creating_over_a_whiteout(
    stack: LayerDirectories, overlay: Vfs, make: Callable[[Vfs, bytes], object]
) -> None:
    make_file(stack.upper / "source")
    make_file(stack.lower / "name" / "old")
    make_whiteout(stack.upper / "name")
    make(overlay, b"name")
    assert not is_whiteout(stack.upper / "name")
    if (stack.upper / "name").is_dir():
        assert is_opaque(stack.upper / "name")
        assert overlay.names(b"name") == []
    overlay.start_anew()
    if overlay.node(b"name").is_directory:
        assert overlay.names(b"name") == []
    assert leftovers(stack) == []


@kinds
def test_a_failure_over_a_whiteout_leaves_it(
    stack: LayerDirectories,
    overlay: Vfs,
    make: Callable[[Vfs, bytes], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_file(stack.upper / "source")
    make_whiteout(stack.upper / "name")

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(LayerObject, "rename", fail)
        with fails_with(errno.ENOSPC):
            make(overlay, b"name")
    assert is_whiteout(stack.upper / "name")
    assert leftovers(stack) == []
    assert not overlay.exists(b"name")
    make(overlay, b"name")


@pytest.mark.parametrize("kind", ["file", "fifo", "symlink", "directory"])
def test_a_new_object_that_can_not_be_finished_is_gone(
    stack: LayerDirectories, overlay: Vfs, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    make: dict[str, Callable[[], object]] = {
        "file": lambda: overlay.create(b"new", b"", 0o666, SOMEBODY),
        "fifo": lambda: overlay.mknod(b"new", stat.S_IFIFO | 0o666, 0, SOMEBODY),
        "symlink": lambda: overlay.symlink(b"new", b"x", SOMEBODY),
        "directory": lambda: overlay.mkdir(b"new", 0o777, SOMEBODY),
    }
    with monkeypatch.context() as broken:
        broken.setattr(LayerObject, "set_owner", fail)
        with fails_with(errno.EDQUOT):
            make[kind]()
    assert os.listdir(stack.upper) == []
    assert not overlay.exists(b"new")


def test_names_that_would_be_marks(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.upper / "source")
    for make in KINDS.values():
        with fails_with(errno.EINVAL):
            make(overlay, b".wh.name")
    with fails_with(errno.EINVAL):
        overlay.rename(b"source", b".wh.name")
    with fails_with(errno.EPERM):
        overlay.mknod(b"name", stat.S_IFCHR, 0)
    assert os.listdir(stack.upper) == ["source"]


def test_mkdir_in_the_upper_alone_marks_nothing(stack: LayerDirectories, overlay: Vfs) -> None:
    overlay.mkdir(b"a")
    overlay.mkdir(b"a/b")
    assert not os.listxattr(stack.upper / "a") and not os.listxattr(stack.upper / "a" / "b")


# Linking


@pytest.mark.parametrize("over_whiteout", [False, True])
def test_a_new_directory_is_known_to_be_empty(
    stack: LayerDirectories, overlay: Vfs, over_whiteout: bool
) -> None:
    if over_whiteout:
        make_file(stack.lower / "new" / "hidden")
        overlay.unlink(b"new/hidden")
        overlay.rmdir(b"new")
    overlay.mkdir(b"new")
    directory = overlay.directory(b"new")
    before = overlay.stack.operations()
    with fails_with(errno.ENOENT):
        overlay.fs.lookup(directory.nodeid, b"hidden")
    assert overlay.stack.operations() == before
    overlay.create(b"new/file")
    assert overlay.names(b"new") == [b"file"]


def test_a_link_to_a_lower_file_copies_it_once(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file", "content")
    node = overlay.link(b"file", b"second")
    assert overlay.node(b"file") is node
    assert (stack.upper / "file").stat().st_ino == (stack.upper / "second").stat().st_ino
    assert overlay.fs.attributes(node).links == 2
    assert attribute(stack.upper, "trusted.overlay.impure") == b"y"
    overlay.unlink(b"file")
    assert overlay.fs.attributes(node).links == 1
    assert is_whiteout(stack.upper / "file")
    assert overlay.read(b"second") == b"content"


def test_an_unlinked_file_gets_no_new_name(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file")
    node = overlay.node(b"file")
    overlay.unlink(b"file")
    with fails_with(errno.ENOENT):
        overlay.run(lambda: overlay.fs.link(node.nodeid, ROOT_NODEID, b"new"))


# Removing


def test_removing_a_lower_file_leaves_a_whiteout_and_copies_nothing(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    make_file(stack.lower / "d" / "file", "content")
    node = overlay.node(b"d/file")
    overlay.unlink(b"d/file")
    assert is_whiteout(stack.upper / "d" / "file")
    assert overlay.fs.attributes(node).links == 0
    assert overlay.names(b"d") == []
    assert leftovers(stack) == []


def test_removing_an_upper_file_leaves_nothing(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.upper / "file")
    overlay.create(b"new")
    overlay.unlink(b"file")
    overlay.unlink(b"new")
    assert os.listdir(stack.upper) == []


def test_removing_a_copy_leaves_a_whiteout(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "file")
    overlay.write(b"file", b"new")
    overlay.unlink(b"file")
    assert is_whiteout(stack.upper / "file")


@pytest.mark.lowers(2)
def test_no_whiteout_over_what_a_lower_hides(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lowers[1] / "file")
    make_whiteout(stack.lowers[0] / "file")
    overlay.create(b"file")
    overlay.unlink(b"file")
    assert os.listdir(stack.upper) == []


@pytest.mark.parametrize("where", ["upper", "lower", "both"])
def test_removing_directories(stack: LayerDirectories, overlay: Vfs, where: str) -> None:
    for layer in (stack.upper, stack.lower):
        if where in ("both", "upper" if layer == stack.upper else "lower"):
            make_directory(layer / "d")
    if where == "both":
        make_file(stack.lower / "d" / "old")
        make_whiteout(stack.upper / "d" / "old")
    node = overlay.node(b"d")
    overlay.rmdir(b"d")
    # The kernel's overlay says so: of a removed directory it shows what its real one has, of a merged one 1.
    assert overlay.fs.attributes(node).links == {"lower": 2, "upper": 0, "both": 1}[where]
    assert os.listdir(stack.upper) == ([] if where == "upper" else ["d"])
    assert where == "upper" or is_whiteout(stack.upper / "d")
    assert len(leftovers(stack)) == (where == "both")
    assert not overlay.fs.tidy_up()
    assert leftovers(stack) == []


def test_a_directory_of_whiteouts_alone_is_removed(stack: LayerDirectories, overlay: Vfs) -> None:
    make_whiteout(stack.upper / "d" / "x")
    overlay.rmdir(b"d")
    assert os.listdir(stack.upper) == leftovers(stack) == []


def test_what_is_of_the_wrong_kind(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "d" / "file")
    with fails_with(errno.EISDIR):
        overlay.unlink(b"d")
    with fails_with(errno.ENOTDIR):
        overlay.rmdir(b"d/file")
    with fails_with(errno.ENOTEMPTY):
        overlay.rmdir(b"d")
    assert os.listdir(stack.upper) == []


@pytest.mark.parametrize("where", ["upper", "lower"])
def test_an_unlinked_file_can_be_used_and_changed(stack: LayerDirectories, overlay: Vfs, where: str) -> None:
    make_file((stack.upper if where == "upper" else stack.lower) / "file", "content")
    node = overlay.node(b"file")
    reading = overlay.open(b"file")
    overlay.unlink(b"file")
    overlay.create(b"file", b"another")
    overlay.run(lambda: overlay.fs.set_extended_attribute(node.nodeid, b"user.x", b"y"))
    writing = overlay.run(lambda: overlay.fs.open(node.nodeid, os.O_WRONLY))
    overlay.fs.write(writing, 0, b"CONTENT")
    assert os.pread(overlay.fs.descriptor_for_reading(reading), 100, 0) == b"CONTENT"
    assert overlay.fs.extended_attribute(node.nodeid, b"user.x") == b"y"
    assert (stack.upper / "file").read_text() == "another"
    assert not os.listxattr(stack.upper / "file")


def test_a_failed_removal_does_not_tie_a_file_to_its_old_name(
    stack: LayerDirectories, overlay: Vfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(stack.upper / "file", "content")
    overlay.names()
    overlay.node(b"file")

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(LayerObject, "remove_file", fail)
        with fails_with(errno.EIO):
            overlay.unlink(b"file")
    overlay.rename(b"file", b"renamed")
    overlay.forget_everything()
    assert overlay.read(b"renamed") == b"content"


# Renaming


def test_renaming_a_lower_file(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "a" / "old", "content")
    make_directory(stack.lower / "b")
    node = overlay.node(b"a/old")
    overlay.rename(b"a/old", b"b/new")
    assert overlay.node(b"b/new") is node
    assert is_whiteout(stack.upper / "a" / "old")
    assert (stack.upper / "b" / "new").read_text() == "content"
    assert attribute(stack.upper / "b", "trusted.overlay.impure") == b"y"


@pytest.mark.parametrize("new_name_was", ["nothing", "whiteout", "upper", "lower", "both"])
@pytest.mark.parametrize("old_name_covers", [False, True])
def test_what_renaming_leaves_at_both_names(
    stack: LayerDirectories, overlay: Vfs, new_name_was: str, old_name_covers: bool
) -> None:
    make_file(stack.upper / "old", "content")
    if old_name_covers:
        make_file(stack.lower / "old", "below")
    if new_name_was in ("lower", "both", "whiteout"):
        make_file(stack.lower / "new", "replaced")
    if new_name_was in ("upper", "both"):
        make_file(stack.upper / "new", "replaced")
    if new_name_was == "whiteout":
        make_whiteout(stack.upper / "new")
    overlay.rename(b"old", b"new")
    assert is_whiteout(stack.upper / "old") is old_name_covers
    assert (stack.upper / "new").read_text() == "content"
    assert overlay.names() == [b"new"]
    overlay.start_anew()
    assert overlay.names() == [b"new"]
    overlay.unlink(b"new")
    assert is_whiteout(stack.upper / "new") is (new_name_was in ("lower", "both", "whiteout"))


def test_directories_with_a_part_in_a_lower_do_not_move(stack: LayerDirectories, overlay: Vfs) -> None:
    make_directory(stack.lower / "lower")
    for layer in (stack.lower, stack.upper):
        make_directory(layer / "merged")
    for name in (b"lower", b"merged"):
        with fails_with(errno.EXDEV):
            overlay.rename(name, b"new")
    overlay.mkdir(b"upper")
    for old, new in ((b"upper", b"merged"), (b"lower", b"upper")):
        with fails_with(errno.EXDEV):
            overlay.rename(old, new, RENAME_EXCHANGE)
    assert sorted(os.listdir(stack.upper)) == ["merged", "upper"]


@pytest.mark.parametrize("target", ["nothing", "whiteout", "lower", "merged", "upper", "whited-out"])
def test_a_directory_of_the_upper_moves_opaque(stack: LayerDirectories, overlay: Vfs, target: str) -> None:
    make_file(stack.upper / "moving" / "file", "content")
    make_directory(stack.lower / "d" / "x")
    new = stack.upper / "d" / "new"
    if target in ("lower", "merged", "whiteout"):
        make_directory(stack.lower / "d" / "new")
    if target in ("merged", "upper"):
        make_directory(new)
    if target == "whiteout":
        make_whiteout(new)
    if target == "whited-out":
        make_file(stack.lower / "d" / "new" / "old")
        make_whiteout(new / "old")
    file = overlay.node(b"moving/file")
    overlay.rename(b"moving", b"d/new")
    assert is_opaque(new)
    assert os.listdir(stack.upper) == ["d"]
    assert overlay.node(b"d/new/file") is file
    assert overlay.names(b"d/new") == [b"file"]
    overlay.stack.cache.close()
    assert overlay.read(b"d/new/file") == b"content"
    overlay.start_anew()
    assert overlay.names(b"d/new") == [b"file"]
    assert leftovers(stack) == []


def test_refused_renames_change_nothing(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "full" / "file")
    make_file(stack.lower / "file")
    make_directory(stack.upper / "d")
    before = snapshot(stack.upper, exact=True)
    refused: list[tuple[bytes, bytes, int, int]] = [
        (b"absent", b"new", 0, errno.ENOENT),
        (b"file", b"full", 0, errno.EISDIR),
        (b"d", b"file", 0, errno.ENOTDIR),
        (b"d", b"full", 0, errno.ENOTEMPTY),
        (b"file", b"full/file", RENAME_NOREPLACE, errno.EEXIST),
        (b"file", b"absent", RENAME_EXCHANGE, errno.ENOENT),
        (b"file", b"new", RENAME_WHITEOUT, errno.EINVAL),
    ]
    for old, new, flags, expected in refused:
        with fails_with(expected):
            overlay.rename(old, new, flags)
    assert snapshot(stack.upper, exact=True) == before


def test_two_names_of_one_file_do_not_replace_each_other(stack: LayerDirectories, overlay: Vfs) -> None:
    overlay.create(b"one", b"content")
    overlay.link(b"one", b"two")
    overlay.rename(b"one", b"two")
    assert sorted(overlay.names()) == [b"one", b"two"]


def test_exchanging(stack: LayerDirectories, overlay: Vfs) -> None:
    make_file(stack.lower / "a" / "file", "file")
    make_file(stack.upper / "d" / "inside", "inside")
    file, directory = overlay.node(b"a/file"), overlay.node(b"d")
    overlay.rename(b"a/file", b"d", RENAME_EXCHANGE)
    assert overlay.node(b"d") is file and overlay.node(b"a/file") is directory
    assert overlay.read(b"a/file/inside") == b"inside" and overlay.read(b"d") == b"file"
    assert is_opaque(stack.upper / "a" / "file")
    overlay.unlink(b"d")
    overlay.unlink(b"a/file/inside")
    overlay.rmdir(b"a/file")
    assert is_whiteout(stack.upper / "a" / "file")
    assert os.listdir(stack.upper) == ["a"]


def test_exchanging_names_of_hard_links(stack: LayerDirectories, overlay: Vfs) -> None:
    overlay.mkdir(b"d")
    overlay.create(b"one", b"linked")
    overlay.link(b"one", b"d/two")
    overlay.create(b"other", b"other")
    overlay.rename(b"d/two", b"other", RENAME_EXCHANGE)
    assert overlay.read(b"d/two") == b"other"
    assert overlay.node(b"one") is overlay.node(b"other")
    overlay.unlink(b"one")
    overlay.stack.cache.close()
    assert overlay.read(b"other") == b"linked"


# Whatever was in memory before: at random

PATHS = [b"a", b"b", b"a/a", b"a/b", b"a/a/a"]
Layout = dict[bytes, str]
Step = tuple[str, bytes, bytes]


def build(layer: Path, layout: Layout, *, upper: bool) -> None:
    for path in PATHS:
        kind = layout.get(path, "absent")
        place = layer / os.fsdecode(path)
        if kind == "absent" or not place.parent.is_dir():
            continue
        if kind == "file":
            make_file(place, f"{layer.name} {place.name}")
        elif kind == "directory":
            make_directory(place)
        elif kind == "opaque":
            make_opaque(place)
        elif kind == "whiteout":
            make_whiteout(place)
        elif kind == "link" and upper:
            source = layer / "z"
            if not source.exists():
                make_file(source, "linked")
            os.link(source, place)
        elif kind == "aufs" and not upper:
            make_file(place.with_name(f".wh.{place.name}"))


STEPS: dict[str, Callable[[Vfs, bytes, bytes], object]] = {
    "create": lambda vfs, path, other: vfs.create(path, b"new " + other),
    "mkdir": lambda vfs, path, _other: vfs.mkdir(path),
    "symlink": lambda vfs, path, other: vfs.symlink(path, other),
    "link": lambda vfs, path, other: vfs.link(other, path),
    "unlink": lambda vfs, path, _other: vfs.unlink(path),
    "rmdir": lambda vfs, path, _other: vfs.rmdir(path),
    "rename": lambda vfs, path, other: vfs.rename(path, other),
    "exchange": lambda vfs, path, other: vfs.rename(path, other, RENAME_EXCHANGE),
    "write": lambda vfs, path, other: vfs.write(path, b"written " + other),
    "chmod": lambda vfs, path, _other: vfs.change(path, mode=0o700),
}
MEMORY: dict[str, Callable[[Vfs, bytes, bytes], object]] = {
    "list": lambda vfs, path, _other: vfs.names(path),
    "list-root": lambda vfs, _path, _other: vfs.names(),
    "look": lambda vfs, path, _other: vfs.node(path),
    "forget": lambda vfs, path, _other: vfs.forget(vfs.node(path).nodeid),
    "forget-all": lambda vfs, _path, _other: vfs.forget_everything(),
    "close-descriptors": lambda vfs, _path, _other: vfs.stack.cache.close(),
}


def outcome(vfs: Vfs, step: Step) -> str:
    name, path, other = step
    action = STEPS.get(name) or MEMORY[name]
    try:
        action(vfs, path, other)
    except OSError as failure:
        return errno.errorcode[failure.errno or 0]
    return "done"


def picture(upper: Path) -> dict[bytes, Entry]:
    """The upper, without what differs between two copies of one tree."""

    def same(entry: Entry) -> Entry:
        return dataclasses.replace(
            entry, xattrs=tuple((name, b"" if name == ORIGIN else value) for name, value in entry.xattrs)
        )

    return {path: same(entry) for path, entry in snapshot(upper, times=False).items()}


def layouts(kinds: str) -> st.SearchStrategy[Layout]:
    return st.fixed_dictionaries({path: st.sampled_from(kinds.split()) for path in PATHS})


layers_of_all_kinds = st.tuples(
    layouts("absent absent absent absent directory directory opaque whiteout link file"),
    layouts("absent absent directory opaque whiteout file file aufs"),
    layouts("absent directory directory file file"),
)
steps = st.tuples(
    st.sampled_from([*STEPS, *MEMORY, "list-root", "unlink", "write", "create"]),
    st.sampled_from([*PATHS, b"z"]),
    st.sampled_from([*PATHS, b"z"]),
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(layers=layers_of_all_kinds, script=st.lists(steps, min_size=10, max_size=40))
@example(
    layers=({}, {b"a": "file"}, {}),
    script=[
        ("list-root", b"a", b"a"),
        ("write", b"a", b"b"),
        ("forget-all", b"a", b"a"),
        ("unlink", b"a", b"a"),
    ],
)
@example(
    layers=({}, {b"a": "file"}, {}),
    script=[
        ("list-root", b"a", b"a"),
        ("unlink", b"a", b"a"),
        ("create", b"a", b"a"),
        ("unlink", b"a", b"a"),
    ],
)
def test_memory_makes_no_difference(layers: tuple[Layout, Layout, Layout], script: list[Step]) -> None:
    """One overlay loads, looks and forgets at random moments, another knows nothing before each step.

    Both must answer the same and leave the same upper; and what the first shows in the end must be what a new
    mount shows.
    """
    with tempfile.TemporaryDirectory(prefix="overlay-") as directory:
        overlays: list[tuple[LayerDirectories, Vfs]] = []
        try:
            for name in ("remembering", "forgetful"):
                stack = make_stack(Path(directory) / name, lowers=2)
                for layer, layout in zip((stack.upper, *stack.lowers), layers, strict=True):
                    build(layer, layout, upper=layer == stack.upper)
                overlays.append((stack, Vfs(stack)))
            compare(overlays, script)
        finally:
            for _stack, vfs in overlays:
                vfs.close()


def compare(overlays: list[tuple[LayerDirectories, Vfs]], script: list[Step]) -> None:
    (stack, remembering), (other_stack, forgetful) = overlays
    for step in script:
        answer = outcome(remembering, step)
        if step[0] in STEPS:
            assert answer == outcome(forgetful, step), step
            forgetful.start_anew()
    live: dict[bytes, Any] = remembering.tree()
    assert picture(stack.upper) == picture(other_stack.upper)
    assert live == forgetful.tree()
    while remembering.fs.tidy_up() or forgetful.fs.tidy_up():
        pass
    assert leftovers(stack) == leftovers(other_stack) == []
    remembering.start_anew()
    assert live == remembering.tree()
