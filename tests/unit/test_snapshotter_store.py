"""Does a snapshot go from state to state as containerd wants it, and is every step whole or undone?"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.containers.snapshotter.directories import Directories
from pyoverlay.containers.snapshotter.mounts import Mount
from pyoverlay.containers.snapshotter.snapshot import (
    GID_MAPPING,
    UID_MAPPING,
    Kind,
    SnapshotArgumentError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotStateError,
)
from pyoverlay.containers.snapshotter.snapshotter import Snapshotter
from pyoverlay.layers.layer import LayerObject

PROGRAM = "/usr/bin/pyoverlay"


@pytest.fixture
def root(base: Path) -> Path:
    return base / "root"


@pytest.fixture
def snapshotter(root: Path) -> Iterator[Snapshotter]:
    opened = Snapshotter(root, PROGRAM)
    yield opened
    opened.close()


def prepare(snapshotter: Snapshotter, key: str, parent: str = "", **labels: str) -> Mount:
    return snapshotter.create(Kind.ACTIVE, key, parent, labels)


def commit(snapshotter: Snapshotter, name: str, parent: str = "") -> None:
    prepare(snapshotter, f"making {name}", parent)
    snapshotter.commit(f"making {name}", name, {})


def names(snapshotter: Snapshotter) -> list[str]:
    return [each.name for each in snapshotter.list_information([])]


def directories(root: Path) -> set[str]:
    return set(os.listdir(root / "snapshots"))


# How it is mounted


def test_one_layer_is_bound(snapshotter: Snapshotter, root: Path) -> None:
    assert prepare(snapshotter, "a") == Mount("bind", f"{root}/snapshots/1/fs", ("rw", "rbind"))
    assert snapshotter.mount("a") == Mount("bind", f"{root}/snapshots/1/fs", ("rw", "rbind"))
    snapshotter.commit("a", "one", {})
    view = snapshotter.create(Kind.VIEW, "v", "one", {})
    assert view == snapshotter.mount("v") == Mount("bind", f"{root}/snapshots/1/fs", ("ro", "rbind"))


def test_several_layers_are_stacked(snapshotter: Snapshotter, root: Path) -> None:
    commit(snapshotter, "one")
    commit(snapshotter, "two", "one")
    layers = root / "snapshots"
    lowers = f"lowerdir={layers}/2/fs:{layers}/1/fs"
    writable = prepare(snapshotter, "a", "two")
    assert writable == Mount(
        f"fuse3.{PROGRAM}", "overlay", (f"workdir={layers}/3/work", f"upperdir={layers}/3/fs", lowers)
    )
    assert snapshotter.mount("a") == writable
    view = snapshotter.create(Kind.VIEW, "v", "two", {})
    assert view == snapshotter.mount("v") == Mount(f"fuse3.{PROGRAM}", "overlay", (lowers,))


@pytest.mark.parametrize(
    ("key", "unpacked"),
    [
        ("default/7/extract-123-aB_c sha256:0123abc", True),
        ("extract-1 sha256:0123abc", True),
        ("default/7/extract-1", False),
        ("default/7/my extract-1 sha256:0123abc", False),
        ("default/extract-1 sha256:0123abc/7", False),
    ],
)
def test_a_layer_is_unpacked_straight_into_the_upper(
    snapshotter: Snapshotter, key: str, unpacked: bool
) -> None:
    assert prepare(snapshotter, "extract-1 sha256:a").kind == "bind"
    commit(snapshotter, "one")
    mount = prepare(snapshotter, key, "one")
    assert (mount.kind, mount.source) == ("overlay" if unpacked else f"fuse3.{PROGRAM}", "overlay")
    assert [option.partition("=")[0] for option in mount.options] == ["workdir", "upperdir", "lowerdir"]
    assert snapshotter.mount(key) == mount
    assert snapshotter.create(Kind.VIEW, "v", "one", {}).kind == "bind"


def test_an_empty_view_is_empty(snapshotter: Snapshotter, root: Path) -> None:
    view = snapshotter.create(Kind.VIEW, "v", "", {})
    assert view == Mount("bind", f"{root}/snapshots/1/fs", ("ro", "rbind"))


def test_shifted_ids(snapshotter: Snapshotter) -> None:
    commit(snapshotter, "one")
    labels = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "0:200000:10:10:300000:5"}
    expected = ("uidmapping=0:100000:65536", "gidmapping=0:200000:10:10:300000:5")
    assert snapshotter.create(Kind.ACTIVE, "a", "one", labels).options[-2:] == expected
    assert snapshotter.mount("a").options[-2:] == expected
    assert snapshotter.create(Kind.VIEW, "v", "one", labels).options[1:] == expected


@pytest.mark.parametrize("value", ["", "0:1", "0:1:0", "x", "0:1:2,lowerdir=/etc"])
def test_ids_that_cant_be_shifted(snapshotter: Snapshotter, value: str, root: Path) -> None:
    with pytest.raises(SnapshotArgumentError, match="uidmapping"):
        prepare(snapshotter, "a", "", **{UID_MAPPING: value})
    assert names(snapshotter) == []
    assert directories(root) == set()
    prepare(snapshotter, "a")
    with pytest.raises(SnapshotArgumentError, match="uidmapping"):
        snapshotter.update("a", {UID_MAPPING: value}, [])
    assert snapshotter.information("a").labels == {}


# Its states


def test_a_key_is_taken_once(snapshotter: Snapshotter, root: Path) -> None:
    prepare(snapshotter, "a")
    for kind in (Kind.ACTIVE, Kind.VIEW):
        with pytest.raises(SnapshotExistsError, match="'a'"):
            snapshotter.create(kind, "a", "", {})
    assert directories(root) == {"1"}


def test_a_parent_is_committed(snapshotter: Snapshotter, root: Path) -> None:
    prepare(snapshotter, "a")
    with pytest.raises(SnapshotArgumentError, match="isn't committed"):
        prepare(snapshotter, "b", "a")
    with pytest.raises(SnapshotNotFoundError, match="'nobody'"):
        prepare(snapshotter, "b", "nobody")
    assert directories(root) == {"1"}


def test_committing_gives_another_name_and_other_labels(snapshotter: Snapshotter) -> None:
    prepare(snapshotter, "a", kept="no")
    before = snapshotter.information("a")
    assert (before.kind, before.labels) == (Kind.ACTIVE, {"kept": "no"})
    snapshotter.commit("a", "one", {"new": "yes", "without value": ""})
    after = snapshotter.information("one")
    assert (after.kind, after.parent, after.labels) == (Kind.COMMITTED, "", {"new": "yes"})
    assert after.created == after.updated > before.created
    with pytest.raises(SnapshotNotFoundError):
        snapshotter.information("a")
    prepare(snapshotter, "a", "one")
    assert snapshotter.information("a").parent == "one"


def test_what_cant_be_committed(snapshotter: Snapshotter) -> None:
    commit(snapshotter, "one")
    snapshotter.create(Kind.VIEW, "v", "one", {})
    prepare(snapshotter, "a", "one")
    with pytest.raises(SnapshotStateError, match="isn't active"):
        snapshotter.commit("v", "two", {})
    with pytest.raises(SnapshotStateError, match="isn't active"):
        snapshotter.commit("one", "two", {})
    with pytest.raises(SnapshotNotFoundError):
        snapshotter.commit("nobody", "two", {})
    with pytest.raises(SnapshotExistsError):
        snapshotter.commit("a", "one", {})
    assert names(snapshotter) == ["a", "one", "v"]


def test_what_is_committed_isnt_mounted(snapshotter: Snapshotter) -> None:
    commit(snapshotter, "one")
    with pytest.raises(SnapshotStateError, match="committed"):
        snapshotter.mount("one")
    with pytest.raises(SnapshotNotFoundError):
        snapshotter.mount("nobody")


def test_a_parent_isnt_removed(snapshotter: Snapshotter) -> None:
    commit(snapshotter, "one")
    commit(snapshotter, "two", "one")
    with pytest.raises(SnapshotStateError, match="'two'"):
        snapshotter.remove("one")
    snapshotter.remove("two")
    snapshotter.remove("one")
    with pytest.raises(SnapshotNotFoundError):
        snapshotter.remove("one")
    assert names(snapshotter) == []


def test_names_and_labels_have_limits(snapshotter: Snapshotter) -> None:
    with pytest.raises(SnapshotArgumentError, match="key is empty"):
        prepare(snapshotter, "")
    with pytest.raises(SnapshotArgumentError, match="4096"):
        prepare(snapshotter, "a", label="x" * 4096)
    prepare(snapshotter, "a", label="x" * 4091)
    with pytest.raises(SnapshotArgumentError, match="name is empty"):
        snapshotter.commit("a", "", {})


# Labels


@pytest.mark.parametrize(
    ("labels", "fields", "expected"),
    [
        ({"new": "1"}, [], {"new": "1"}),
        ({"new": "1"}, ["labels"], {"new": "1"}),
        ({"new": "1", "other": "2"}, ["labels.new"], {"a": "1", "b": "2", "new": "1"}),
        ({}, ["labels.a"], {"b": "2"}),
        ({"b": "3", "x.y": "4"}, ["labels.b", "labels.x.y"], {"a": "1", "b": "3", "x.y": "4"}),
        ({}, [], {}),
    ],
)
def test_updating_labels(
    snapshotter: Snapshotter, labels: dict[str, str], fields: list[str], expected: dict[str, str]
) -> None:
    prepare(snapshotter, "one", a="1", b="2")
    before = snapshotter.information("one")
    updated = snapshotter.update("one", labels, fields)
    assert updated == snapshotter.information("one")
    assert updated.labels == expected
    assert updated.created == before.created
    assert updated.updated > before.updated


@pytest.mark.parametrize("field", ["parent", "kind", "name", "created_at", "label"])
def test_nothing_else_is_updated(snapshotter: Snapshotter, field: str) -> None:
    prepare(snapshotter, "one", a="1")
    with pytest.raises(SnapshotArgumentError, match=field):
        snapshotter.update("one", {"a": "2"}, ["labels.a", field])
    assert snapshotter.information("one").labels == {"a": "1"}
    with pytest.raises(SnapshotNotFoundError):
        snapshotter.update("nobody", {}, [])


# The directories


def test_the_root_of_a_layer_is_as_its_parents(snapshotter: Snapshotter, root: Path) -> None:
    prepare(snapshotter, "a")
    layer = root / "snapshots/1/fs"
    assert stat.S_IMODE(layer.stat().st_mode) == 0o755
    os.chown(layer, 5, 6)
    layer.chmod(0o1770)
    snapshotter.commit("a", "one", {})
    prepare(snapshotter, "b", "one")
    status = (root / "snapshots/2/fs").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (5, 6, 0o1770)


def test_usage_counts_blocks_of_each_inode_once(snapshotter: Snapshotter, root: Path) -> None:
    prepare(snapshotter, "a")
    layer = root / "snapshots/1/fs"
    (layer / "d").mkdir()
    (layer / "d/file").write_bytes(b"x" * 10_000)
    os.link(layer / "d/file", layer / "again")
    with (layer / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    paths = [layer, layer / "d", layer / "d/file", layer / "sparse"]
    size = sum(path.stat().st_blocks * 512 for path in paths)
    usage = snapshotter.usage("a")
    assert (usage.size, usage.inodes) == (size, 4)
    snapshotter.commit("a", "one", {})
    (layer / "later").write_bytes(b"never measured again")
    assert snapshotter.usage("one") == usage
    snapshotter.create(Kind.VIEW, "v", "one", {})
    assert (snapshotter.usage("v").size, snapshotter.usage("v").inodes) == (0, 0)


def test_usage_of_a_tree_of_any_depth_that_changes(
    snapshotter: Snapshotter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(snapshotter, "a")
    layer = root / "snapshots/1/fs"
    _make_deep_tree(layer, levels=1500)
    (layer / "gone").mkdir()
    (layer / "gone/too").touch()
    list_entries = LayerObject.list_entries

    def list_and_change(directory: LayerObject) -> list[tuple[bytes, int]]:
        found = list_entries(directory)
        shutil.rmtree(layer / "gone", ignore_errors=True)
        return found

    monkeypatch.setattr(LayerObject, "list_entries", list_and_change)
    measured = snapshotter.usage("a")
    assert measured.inodes == 1501
    snapshotter.commit("a", "one", {})
    assert snapshotter.usage("one") == measured
    snapshotter.remove("one")
    snapshotter.clean_up()


def test_a_removed_snapshots_directory_goes_with_the_next_clean_up(
    snapshotter: Snapshotter, root: Path
) -> None:
    commit(snapshotter, "one")
    prepare(snapshotter, "a", "one")
    _make_deep_tree(root / "snapshots/2/fs", levels=1500)
    snapshotter.remove("a")
    assert directories(root) == {"1", "2"}
    snapshotter.clean_up()
    assert directories(root) == {"1"}


def _make_deep_tree(directory: Path, levels: int) -> None:
    """Deeper than Python's recursion and than a path may be."""
    descriptor = os.open(directory, os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("directory", dir_fd=descriptor)
        below = os.open("directory", os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def test_numbers_are_never_given_twice(snapshotter: Snapshotter, root: Path) -> None:
    prepare(snapshotter, "a")
    snapshotter.remove("a")
    prepare(snapshotter, "a")
    assert directories(root) == {"1", "2"}


# What a killed process leaves


def test_killed_before_the_transaction_that_names_a_directory(
    snapshotter: Snapshotter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Directories.make

    def fail_late(*words: object, **more: object) -> None:
        made(*words, **more)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Directories, "make", fail_late)
    with pytest.raises(KeyboardInterrupt):
        prepare(snapshotter, "a")
    monkeypatch.undo()
    assert directories(root) == {"1"}
    (root / "snapshots/1/fs/left").touch()
    prepare(snapshotter, "a")
    # A clean-up may be about to remove the first one's.
    assert directories(root) == {"1", "2"}
    assert list((root / "snapshots/2/fs").iterdir()) == []


def test_what_is_made_during_a_clean_up_stays(
    snapshotter: Snapshotter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, remove = Directories.make, Directories.remove

    def make_and_fail(*words: object, **more: object) -> None:
        make(*words, **more)  # type: ignore[arg-type]
        raise SnapshotError("the disk is full")

    def prepare_and_remove(self: Directories, orphans: list[str]) -> None:
        prepare(snapshotter, "a")
        remove(self, orphans)

    monkeypatch.setattr(Directories, "make", make_and_fail)
    with pytest.raises(SnapshotError, match="full"):
        prepare(snapshotter, "a")
    monkeypatch.setattr(Directories, "make", make)
    monkeypatch.setattr(Directories, "remove", prepare_and_remove)
    snapshotter.clean_up()
    assert Path(snapshotter.mount("a").source).is_dir()


def test_a_start_removes_what_belongs_to_no_snapshot(root: Path) -> None:
    with contextlib.closing(Snapshotter(root, PROGRAM)) as first:
        commit(first, "one")
    for name in ("7", "new-x"):
        (root / "snapshots" / name / "fs/d").mkdir(parents=True)
    (root / "snapshots/file").touch()
    with contextlib.closing(Snapshotter(root, PROGRAM)) as again:
        assert directories(root) == {"1"}
        assert names(again) == ["one"]


def test_one_snapshotter_a_root(snapshotter: Snapshotter, root: Path) -> None:
    with pytest.raises(SnapshotError, match="another snapshotter"):
        Snapshotter(root, PROGRAM)
    prepare(snapshotter, "a")


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b", 'a"b', "a\nb"])
def test_roots_that_mount_options_cant_name(base: Path, name: str) -> None:
    with pytest.raises(SnapshotError, match="choose another"):
        Snapshotter(base / name, PROGRAM)
    assert list(base.iterdir()) == []


def test_a_database_of_something_else(root: Path) -> None:
    root.mkdir()
    (root / "metadata.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(SnapshotError, match=r"metadata\.db"):
        Snapshotter(root, PROGRAM)


@pytest.mark.parametrize("left", [None, b""])
def test_a_database_that_was_lost(root: Path, left: bytes | None) -> None:
    """What containers write to isn't taken for garbage."""
    with contextlib.closing(Snapshotter(root, PROGRAM)) as first:
        prepare(first, "a")
    database = root / "metadata.db"
    database.unlink()
    if left is not None:
        database.write_bytes(left)
    for _ in range(2):
        with pytest.raises(SnapshotError, match=r"metadata\.db is missing or empty"):
            Snapshotter(root, PROGRAM)
    assert directories(root) == {"1"}
    assert database.exists() is (left is not None)


def test_a_damaged_database(root: Path) -> None:
    with contextlib.closing(Snapshotter(root, PROGRAM)) as first:
        prepare(first, "a")
    with contextlib.closing(sqlite3.connect(root / "metadata.db")) as database:
        ((size,),) = database.execute("PRAGMA page_size")
        ((page,),) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'children'")
    with (root / "metadata.db").open("r+b") as file:
        # The number of the index's entries: SQLite itself sees nothing wrong with an empty one.
        file.seek((page - 1) * size + 3)
        file.write(b"\0\0")
    with pytest.raises(SnapshotError, match=r"metadata\.db can't be used"):
        Snapshotter(root, PROGRAM)
    assert directories(root) == {"1"}


def test_a_database_of_a_newer_version(root: Path) -> None:
    Snapshotter(root, PROGRAM).close()
    database = sqlite3.connect(root / "metadata.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SnapshotError, match="99"):
        Snapshotter(root, PROGRAM)


# What a killed process may not have answered


@pytest.fixture
def killed(root: Path) -> Iterator[Snapshotter]:
    """After a process that answered for "one" and "a", and was killed before it could for others."""
    with contextlib.closing(Snapshotter(root, PROGRAM)) as first:
        commit(first, "one")
        prepare(first, "a", "one", kept="yes")
        for name in ("one", "a"):
            first.acknowledge(name)
        prepare(first, "b", "one")
        first.create(Kind.VIEW, "v", "one", {})
        prepare(first, "making two", "one", kept="yes")
        first.commit("making two", "two", {"new": "yes"})
    with contextlib.closing(Snapshotter(root, PROGRAM)) as again:
        yield again


def test_what_nobody_was_told_of_is_created_once_more(killed: Snapshotter, root: Path) -> None:
    again = prepare(killed, "b", "one", x="1")
    assert again == killed.mount("b")
    assert killed.information("b").labels == {"x": "1"}
    with pytest.raises(SnapshotExistsError):
        prepare(killed, "b", "one", x="1")
    assert killed.create(Kind.VIEW, "v", "one", {}) == killed.mount("v")
    assert directories(root) == {"1", "2", "3", "4", "5"}


def test_what_may_be_known_isnt_created_once_more(killed: Snapshotter) -> None:
    for key, kind, parent in (("a", Kind.ACTIVE, "one"), ("b", Kind.VIEW, "one"), ("b", Kind.ACTIVE, "")):
        with pytest.raises(SnapshotExistsError):
            killed.create(kind, key, parent, {})
    # Asked for by its name: it is known.
    killed.information("b")
    with pytest.raises(SnapshotExistsError):
        prepare(killed, "b", "one")


@pytest.mark.parametrize("name", ["two", "another two"])
def test_a_commit_is_made_once_more(killed: Snapshotter, name: str) -> None:
    killed.commit("making two", name, {"newer": "yes"})
    assert killed.information(name).labels == {"newer": "yes"}
    assert names(killed) == sorted(["a", "b", "one", "v", name])
    with pytest.raises(SnapshotNotFoundError):
        killed.commit("making two", "more", {})


def test_a_commit_is_undone_for_whom_doesnt_know_of_it(killed: Snapshotter, root: Path) -> None:
    mount = killed.mount("making two")
    assert f"upperdir={root}/snapshots/5/fs" in mount.options
    found = killed.information("making two")
    assert (found.kind, found.parent, found.labels) == (Kind.ACTIVE, "one", {"kept": "yes"})
    with pytest.raises(SnapshotNotFoundError):
        killed.information("two")


def test_a_commit_nobody_knows_of_is_garbage_in_two_steps(killed: Snapshotter, root: Path) -> None:
    killed.remove("two")
    assert killed.information("making two").kind is Kind.ACTIVE
    killed.clean_up()
    assert "5" in directories(root)
    killed.remove("making two")
    assert names(killed) == ["a", "b", "one", "v"]


def test_a_commit_that_is_known_stays(killed: Snapshotter, root: Path) -> None:
    prepare(killed, "child", "two")
    for ask in (killed.mount, killed.information, killed.remove):
        with pytest.raises(SnapshotNotFoundError):
            ask("making two")
    killed.remove("child")
    killed.remove("two")
    assert names(killed) == ["a", "b", "one", "v"]


def test_a_commit_with_children_is_never_undone(root: Path) -> None:
    with contextlib.closing(Snapshotter(root, PROGRAM)) as first:
        commit(first, "one")
        prepare(first, "child", "one")
        # As if it were killed now: nothing is written at the end.
        copy = root.parent / "copy"
        shutil.copytree(root, copy)
    with contextlib.closing(Snapshotter(copy, PROGRAM)) as again:
        with pytest.raises(SnapshotNotFoundError):
            again.mount("making one")
        assert again.information("child").parent == "one"


def test_an_answer_without_a_receiver_is_lost(snapshotter: Snapshotter) -> None:
    """Whoever cancels a request may ask again, of the same process."""
    prepare(snapshotter, "a")
    snapshotter.doubt("a")
    prepare(snapshotter, "a")
    snapshotter.acknowledge("a")
    snapshotter.commit("a", "one", {})
    snapshotter.doubt("one")
    assert snapshotter.information("a").kind is Kind.ACTIVE
    snapshotter.doubt("a")
    with pytest.raises(SnapshotExistsError):
        prepare(snapshotter, "a")


def test_the_same_process_never_gives_way(snapshotter: Snapshotter) -> None:
    prepare(snapshotter, "a")
    with pytest.raises(SnapshotExistsError):
        prepare(snapshotter, "a")
    snapshotter.commit("a", "one", {})
    with pytest.raises(SnapshotNotFoundError):
        snapshotter.mount("a")
    snapshotter.remove("one")
    assert names(snapshotter) == []
