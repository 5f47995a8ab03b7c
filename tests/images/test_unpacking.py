"""Does a layer's directory have what its tar says, and the parents that the tar leaves out?"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from pyoverlay.images import applying, checking, implied
from pyoverlay.images.changes_by_layer import changes_by_layer
from pyoverlay.images.digests import Digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.removing import remove_tree
from pyoverlay.images.stacking import lower_directories
from pyoverlay.images.store import Store
from tests.harness import run_as, snapshot
from tests.images.making import WHEN, Image, LayerTar, pax_header, pax_record, sha256, write_layout
from tests.images.merged import merged
from tests.images.storing import apply, load

# VFS_CAP_REVISION_2 with the effective flag: cap_net_raw.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def test_attributes(base: Path) -> None:
    layer = LayerTar()
    layer.directory("d", 0o1777, owner=(5, 6), mtime=1000)
    layer.add("d/program", b"text", mode=0o6755, owner=(7, 8))
    layer.raw(
        pax_header(
            pax_record(b"SCHILY.xattr.security.capability", CAPABILITY)
            + pax_record(b"SCHILY.xattr.user.note", b"\0\xff")
            + pax_record(b"SCHILY.xattr.security.selinux", b"label")
            + pax_record(b"mtime", b"1600000000.123456789")
        )
    )
    layer.add("d/capable", mode=0o755, owner=(1, 1))
    layer.symlink("d/link", "program", owner=(9, 9))
    layer.add("d/fifo", kind=tarfile.FIFOTYPE, mode=0o622)
    layer.add("d/null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    layer.add("d/disk", kind=tarfile.BLKTYPE, device=(259, 70_000), mode=0o660)
    layer.link("hard", "d/program").link("soft", "d/link")
    layer.directory("./", 0o711, owner=(3, 4))
    warnings = apply(layer.bytes(), base / "layer")
    assert warnings == ["d/capable: some extended attributes were left out"]
    found = snapshot(base / "layer")
    assert (found[b"."].mode, found[b"."].uid, found[b"."].gid) == (0o711, 3, 4)
    assert (found[b"d"].mode, found[b"d"].uid, found[b"d"].gid, found[b"d"].mtime) == (
        0o1777,
        5,
        6,
        1000 * 10**9,
    )
    program = found[b"d/program"]
    assert (program.mode, program.uid, program.gid, program.nlink) == (0o6755, 7, 8, 2)
    assert program == found[b"hard"]
    assert found[b"d/capable"].xattrs == ((b"security.capability", CAPABILITY), (b"user.note", b"\0\xff"))
    assert found[b"d/capable"].mtime == 1_600_000_000_123_456_789
    link = found[b"d/link"]
    assert (link.target, link.uid, link.mtime, link.nlink) == (b"program", 9, WHEN * 10**9, 2)
    assert stat.S_ISLNK(found[b"soft"].kind)
    assert (found[b"d/fifo"].kind, found[b"d/fifo"].mode) == (stat.S_IFIFO, 0o622)
    assert (found[b"d/null"].rdev, found[b"d/null"].mode) == (os.makedev(1, 3), 0o666)
    assert found[b"d/disk"].rdev == os.makedev(259, 70_000)


def test_sparse_files_stay_sparse(base: Path) -> None:
    records = pax_record(b"GNU.sparse.size", b"1000000000") + pax_record(
        b"GNU.sparse.map", b"4096,5,500000000,3"
    )
    apply(LayerTar().raw(pax_header(records)).add("sparse", b"hallo" + b"end").bytes(), base / "layer")
    with (base / "layer/sparse").open("rb") as file:
        status = os.fstat(file.fileno())
        assert (status.st_size, status.st_blocks < 64) == (10**9, True)
        assert os.pread(file.fileno(), 7, 4095) == b"\0hallo\0"
        assert os.pread(file.fileno(), 4, 500_000_000) == b"end\0"


def test_marks(base: Path) -> None:
    layer = LayerTar()
    layer.directory("replaced").add("replaced/new").add(".wh.replaced")
    layer.add(".wh.gone").add("gone/.wh.below")
    layer.directory("emptied").add("emptied/.wh..wh..opq").add("emptied/.wh.old")
    layer.add("kept").add(".wh.kept").add("deep/er/.wh.gone")
    apply(layer.bytes(), base / "layer")
    found = snapshot(base / "layer")
    opaque = ((b"trusted.overlay.opaque", b"y"),)
    assert {path for path, entry in found.items() if entry.xattrs == opaque} == {b"replaced", b"emptied"}
    whiteouts = {path for path, entry in found.items() if stat.S_ISCHR(entry.kind) and entry.rdev == 0}
    assert whiteouts == {b"gone", b"deep/er/gone"}
    assert set(found) == {
        b".",
        b"replaced",
        b"replaced/new",
        b"kept",
        b"emptied",
        b"deep",
        b"deep/er",
        *whiteouts,
    }


def test_marks_of_a_user(base: Path) -> None:
    base.chmod(0o777)
    layer = LayerTar().directory("d", 0o555).add("d/.wh..wh..opq").add(".wh.gone").add("f", b"1", mode=0)
    run_as(1000, lambda: apply(layer.bytes(), base / "layer"))
    found = snapshot(base / "layer")
    assert found[b"d"].xattrs == ((b"user.overlay.opaque", b"y"),)
    assert (found[b"d"].mode, found[b"d"].uid) == (0o755, 1000)
    assert (found[b"gone"].kind, found[b"gone"].rdev) == (stat.S_IFCHR, 0)
    # Or the layer could not be read again.
    assert found[b"f"].mode == 0o400


def test_a_user_s_store_saves_what_root_s_does(base: Path) -> None:
    base.chmod(0o777)
    layer = (
        LayerTar().directory("d", 0o2755, owner=(5, 5)).add("d/f", b"1", mode=0o4000, owner=(6, 6)).bytes()
    )
    layout = write_layout(base / "layout", Image([layer]))

    def as_user() -> tuple[list[str], list[str]]:
        store = Store(base / "store")
        load(store, layout)
        return list(store.layers()), checking.check_layer(store, Digest(sha256(layer)))

    assert run_as(1000, as_user) == ([sha256(layer)], [])


@pytest.mark.parametrize("name", ["duplicate directory", "parent after its child"])
def test_the_last_word_about_a_directory_counts(name: str, base: Path) -> None:
    layer = LayerTar()
    if name == "duplicate directory":
        layer.directory("d", 0o700)
    layer.add("d/file").directory("d/", 0o750, owner=(1, 2), mtime=77)
    apply(layer.bytes(), base / "layer")
    entry = snapshot(base / "layer")[b"d"]
    assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (0o750, 1, 2, 77 * 10**9)


def test_names_that_are_any_bytes(base: Path) -> None:
    names = [b"\xff\xfe", "ü".encode(), b"new\nline", b" ", b"-", b"n" * 255]
    layer = LayerTar()
    for name in names:
        layer.add(name.decode("utf-8", "surrogateescape"), name)
    apply(layer.bytes(), base / "layer")
    assert sorted(os.listdir(os.fsencode(base / "layer"))) == sorted(names)


ACCESS_LISTS = {
    "that is a mode": ((0x01, 6), (0x04, 4), (0x20, 4)),
    "with a mask": ((0x01, 6), (0x02, 7), (0x04, 4), (0x10, 7), (0x20, 4)),
}
"""Tags and permissions: owner, a user, group, mask, others (linux/posix_acl.h)."""


@pytest.mark.parametrize("kind", ACCESS_LISTS)
def test_an_access_control_list_is_no_damage(kind: str, base: Path, store: Store) -> None:
    packed = struct.pack("<I", 2)
    for tag, bits in ACCESS_LISTS[kind]:
        packed += struct.pack("<HHI", tag, bits, 5 if tag == 0x02 else 0xFFFFFFFF)
    record = pax_record(b"SCHILY.xattr.system.posix_acl_access", packed)
    layer = LayerTar().raw(pax_header(record)).add("file", mode=0o640).bytes()
    load(store, write_layout(base / "layout", Image([layer])))
    diff_id = Digest(sha256(layer))
    assert checking.check_layer(store, diff_id) == []
    file = store.layer_directory(diff_id) / "file"
    times = file.stat().st_mtime_ns
    os.setxattr(file, "system.posix_acl_access", packed[:4] + packed[4:].replace(b"\x06\0", b"\x07\0"))
    os.utime(file, ns=(times, times))
    expected = (
        [] if kind == "that is a mode" else ["/file has another set of extended attributes than it had"]
    )
    assert checking.check_layer(store, diff_id) == expected


@pytest.mark.parametrize("what", ["mount point", "where one is"])
def test_a_directory_that_can_not_be_replaced(what: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = base / "place"
    place.mkdir()
    if what == "mount point":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    else:
        monkeypatch.chdir(place)
    try:
        with pytest.raises(ImageError, match="can't be replaced"):
            apply(LayerTar().add("a").bytes(), place)
    finally:
        if what == "mount point":
            subprocess.run(["umount", place], check=True)
    assert list(base.iterdir()) == [place]


def test_a_deep_tree(base: Path) -> None:
    path = "d/" * 2000 + "file"
    apply(LayerTar().add(path, b"deep").bytes(), base / "layer")
    try:
        os.chdir(base / "layer")
        assert Path(path).read_text() == "deep"
    finally:
        os.chdir("/")
        remove_tree(base / "layer")
    assert not (base / "layer").exists()


def test_a_deep_tree_in_a_store(base: Path, store: Store) -> None:
    names = ["d" * 200] * 20
    deep = "/".join(names)
    below = LayerTar()
    for depth in range(1, len(names) + 1):
        below.directory("/".join(names[:depth]), 0o711)
    layers = [below.add(f"{deep}/file", b"old").bytes(), LayerTar().add(f"{deep}/file", b"new").bytes()]
    image = Image(layers)
    load(store, write_layout(base / "layout", image))
    diff_ids = [Digest(diff_id) for diff_id in image.diff_ids]
    try:
        assert implied.is_adjusted(store, diff_ids)
        assert len(lower_directories(store, diff_ids)) == 3
        (waste,) = changes_by_layer(store, diff_ids).waste
        assert (waste.path, waste.size) == (f"/{deep}/file", 3)
        # Somebody makes it deeper than a path can be.
        place = os.open(store.layer_directory(diff_ids[1]), os.O_RDONLY)
        for _ in range(30):
            os.mkdir("e" * 200, dir_fd=place)
            inner = os.open("e" * 200, os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = inner
        os.close(place)
        problems = checking.check_layer(store, diff_ids[1])
        assert [text.rpartition(" ")[2] for text in problems] == ["had", "added"]
    finally:
        remove_tree(store.root)


def test_a_digest_can_be_asked_for(base: Path) -> None:
    layer = LayerTar().add("a").bytes()
    archive = base / "layer.tar"
    archive.write_bytes(layer)
    with archive.open("rb") as file, pytest.raises(ImageError, match="its digest is"):
        applying.apply(file, "layer.tar", str(base / "layer"), Limits(), "sha256:" + "0" * 64)
    with archive.open("rb") as file:
        applying.apply(file, "layer.tar", str(base / "layer"), Limits(), sha256(layer))
    assert (base / "layer/a").exists()


# Parents that the tar leaves out


BELOW = (
    LayerTar()
    .directory("./", 0o755, mtime=50)
    .directory("tmp", 0o1777, mtime=100)
    .directory("srv", 0o750, owner=(33, 34), mtime=200, pax={"SCHILY.xattr.user.note": "kept"})
    .directory("srv/data", 0o2775, owner=(33, 34), mtime=300)
    .add("file")
    .bytes()
)
ABOVE = LayerTar().add("tmp/new").add("srv/data/new").add("new/file").bytes()


def test_a_parent_that_is_left_out_is_as_it_was(base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", Image([BELOW, ABOVE])))
    layers = [Digest(sha256(BELOW)), Digest(sha256(ABOVE))]
    lowers = lower_directories(store, layers)
    assert len(lowers) == 3
    with merged(lowers, base / "merged") as tree:
        found = snapshot(tree)
    assert (found[b"tmp"].mode, found[b"tmp"].mtime) == (0o1777, 100 * 10**9)
    srv = found[b"srv"]
    assert (srv.mode, srv.uid, srv.gid, srv.mtime, srv.xattrs) == (
        0o750,
        33,
        34,
        200 * 10**9,
        ((b"user.note", b"kept"),),
    )
    assert (found[b"srv/data"].mode, found[b"srv/data"].uid) == (0o2775, 33)
    assert (found[b"new"].mode, found[b"new"].uid, found[b"new"].mtime) == (0o755, 0, 0)
    assert {b"tmp/new", b"srv/data/new", b"new/file", b"file"} <= set(found)


def test_one_layer_over_two_others_is_stored_once(base: Path, store: Store) -> None:
    other = LayerTar().directory("tmp", 0o700, owner=(1, 1)).bytes()
    plain = LayerTar().directory("elsewhere").bytes()
    images = [
        Image([below, ABOVE], f"localhost/{number}") for number, below in enumerate((BELOW, other, plain))
    ]
    for number, image in enumerate(images):
        load(store, write_layout(base / f"layout{number}", image))
    assert len(store.layers()) == 4
    modes = []
    for below in (BELOW, other):
        with merged(
            lower_directories(store, [Digest(sha256(below)), Digest(sha256(ABOVE))]), base / "m"
        ) as tree:
            modes.append(snapshot(tree)[b"tmp"].mode)
    assert modes == [0o1777, 0o700]
    # Where nothing lies beneath, none is needed.
    assert len(lower_directories(store, [Digest(sha256(plain)), Digest(sha256(ABOVE))])) == 2


def test_an_adjusted_directory_that_was_changed_is_found(base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", Image([BELOW, ABOVE])))
    layers = [Digest(sha256(BELOW)), Digest(sha256(ABOVE))]
    assert implied.is_adjusted(store, layers)
    (lower_directories(store, layers)[0] / "tmp").chmod(0o755)
    assert not implied.is_adjusted(store, layers)


def test_what_is_hidden_lends_no_attributes(base: Path, store: Store) -> None:
    middle = LayerTar().add(".wh.tmp").directory("srv", 0o711).add("srv/.wh..wh..opq").bytes()
    load(store, write_layout(base / "layout", Image([BELOW, middle, ABOVE])))
    layers = [Digest(sha256(layer)) for layer in (BELOW, middle, ABOVE)]
    with merged(lower_directories(store, layers), base / "merged") as tree:
        found = snapshot(tree)
    assert (found[b"tmp"].mode, found[b"srv"].mode, found[b"srv/data"].mode) == (0o755, 0o711, 0o755)
    assert set(found) == {
        b".",
        b"file",
        b"tmp",
        b"tmp/new",
        b"srv",
        b"srv/data",
        b"srv/data/new",
        b"new",
        b"new/file",
    }


def test_a_layer_that_is_there_twice_stands_where_it_is_highest(base: Path, store: Store) -> None:
    twice = LayerTar().directory("d", 0o700).add("d/a", b"1").add(".wh.file").add("new/x").bytes()
    between = LayerTar().directory("d", 0o711).add("d/.wh.a").add("d/b").add("file", b"2").bytes()
    image = Image([BELOW, twice, between, twice])
    load(store, write_layout(base / "layout", image))
    lowers = lower_directories(store, [Digest(layer) for layer in image.diff_ids])
    assert lowers.count(store.layer_directory(Digest(sha256(twice)))) == 1
    with merged(lowers, base / "merged") as tree:
        found = snapshot(tree)
    assert {path for path in found if path[:1] in b"dfn"} == {b"d", b"d/a", b"d/b", b"new", b"new/x"}
    assert found[b"d"].mode == 0o700


def test_nothing_shows_beneath_an_opaque_root(base: Path, store: Store) -> None:
    """Overlays don't heed the mark on a layer's root."""
    top = LayerTar().add(".wh..wh..opq").add("only").bytes()
    load(store, write_layout(base / "layout", Image([BELOW, top])))
    lowers = lower_directories(store, [Digest(sha256(BELOW)), Digest(sha256(top))])
    with merged(lowers, base / "merged") as tree:
        assert set(snapshot(tree)) == {b".", b"only"}
