"""Does an upper become a layer's tar, and that an upper again, with marks, links and attributes?"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.images import catalogue, committing, inspecting, packing
from pyoverlay.images.committing import Commit
from pyoverlay.images.digests import Digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.stacking import lower_directories
from pyoverlay.images.store import Store
from tests.harness import Mount, MountFactory, Stack, snapshot
from tests.images.making import Image, sha256, simple_layer, write_layout
from tests.images.merged import merged
from tests.images.storing import apply, load
from tests.images.test_unpacking import CAPABILITY
from tests.mount.command import fail, pyoverlay, succeed


def pack(upper: Path, epoch: int | None = None) -> bytes:
    target = io.BytesIO()
    packing.pack(str(upper), target, epoch=epoch)
    return target.getvalue()


def names(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return archive.getnames()


def fill(upper: Path) -> None:
    (upper / "d").mkdir()
    (upper / "d").chmod(0o1750)
    (upper / "d/file").write_bytes(b"content" * 1000)
    os.chown(upper / "d/file", 7, 8)
    (upper / "d/file").chmod(0o6711)
    os.setxattr(upper / "d/file", "security.capability", CAPABILITY)
    os.setxattr(upper / "d/file", "user.note", b"\xff\0")
    os.link(upper / "d/file", upper / "d/hard")
    os.link(upper / "d/file", upper / "another")
    (upper / "d/link").symlink_to("file")
    os.lchown(upper / "d/link", 9, 9)
    os.mkfifo(upper / "fifo", 0o600)
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (upper / ("long" * 40)).touch()
    (upper / os.fsdecode(b"\xff\xfe")).write_text("name that is no text")
    with (upper / "sparse").open("wb") as file:
        file.truncate(100_000)
    os.utime(upper / "sparse", ns=(1, 1_600_000_000_123_456_789))
    os.utime(upper / "fifo", ns=(1, -5_500_000_000))


def test_a_tree_comes_back_as_it_was(base: Path) -> None:
    upper = base / "upper"
    upper.mkdir(mode=0o711)
    fill(upper)
    apply(pack(upper), base / "again")
    assert snapshot(base / "again") == snapshot(upper)
    assert pack(base / "again") == pack(upper)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    for inner in path.iterdir():
        inner.unlink()
    path.rmdir()
    make(path)


def link_elsewhere(tree: Path) -> None:
    (tree / "file").rename(tree / "x")
    os.link(tree / "x", tree / "d/y")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file is deleted": lambda tree: (tree / "file").unlink(),
    "a directory is replaced": lambda tree: replace(tree / "d", Path.mkdir),
    "a file is changed": lambda tree: (tree / "d/a").write_text("changed"),
    "a directory becomes a file": lambda tree: replace(tree / "d", Path.touch),
    "a file is renamed": lambda tree: (tree / "d/a").rename(tree / "e"),
    "a mode is changed": lambda tree: (tree / "d").chmod(0o700),
    "a file is linked": link_elsewhere,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_survives_the_way_through_a_tar(
    name: str, mount_overlay: MountFactory, stack: Stack, base: Path
) -> None:
    lower = stack.lowers[0]
    (lower / "d").mkdir()
    for path in ("file", "d/a", "d/b"):
        (lower / path).write_text(path)
    overlay: Mount = mount_overlay()
    CHANGES[name](overlay.path)
    seen = snapshot(overlay.path, nlink=False)
    overlay.remove()
    apply(pack(stack.upper), base / "again")
    with merged([base / "again", lower], base / "merged") as tree:
        assert snapshot(tree, nlink=False) == seen


def test_marks_of_every_dialect(base: Path) -> None:
    upper = base / "upper"
    for name in ("trusted", "user", "fuse", "aufs", "plain"):
        (upper / name).mkdir(parents=True)
    os.setxattr(upper / "trusted", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "user", "user.overlay.opaque", b"y")
    os.setxattr(upper / "fuse", "user.fuseoverlayfs.opaque", b"y")
    (upper / "aufs/.wh..wh..opq").touch()
    (upper / "plain/.wh.gone").touch()
    os.mknod(upper / "plain/deleted", stat.S_IFCHR)
    # Nothing is beneath an opaque directory to be hidden.
    os.mknod(upper / "trusted/deleted", stat.S_IFCHR)
    os.setxattr(upper / "plain", "trusted.overlay.origin", b"")
    os.setxattr(upper / "plain", "trusted.overlay.overlay.metacopy", b"a user's")
    layer = pack(upper)
    assert names(layer) == [
        ".",
        "aufs",
        "aufs/.wh..wh..opq",
        "fuse",
        "fuse/.wh..wh..opq",
        "plain",
        "plain/.wh.deleted",
        "plain/.wh.gone",
        "trusted",
        "trusted/.wh..wh..opq",
        "user",
        "user/.wh..wh..opq",
    ]
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        kept = {key for member in archive for key in member.pax_headers if key.startswith("SCHILY")}
    assert kept == {"SCHILY.xattr.trusted.overlay.metacopy"}


@pytest.mark.parametrize("mark", ["redirect", "metacopy"])
def test_what_a_tar_has_no_word_for_is_refused(mark: str, base: Path) -> None:
    (base / "upper/d").mkdir(parents=True)
    os.setxattr(base / "upper/d", f"trusted.overlay.{mark}", b"elsewhere")
    with pytest.raises(ImageError, match="lies elsewhere"):
        pack(base / "upper")
    result = pyoverlay("diff", base / "upper", base / "layer.tar")
    assert result.returncode == 1
    assert not (base / "layer.tar").exists()


def test_the_same_upper_gives_the_same_bytes(base: Path) -> None:
    layers = []
    for name in ("one", "two"):
        upper = base / name
        upper.mkdir()
        # In another order, at another time.
        order = range(50) if name == "one" else reversed(range(50))
        for number in order:
            (upper / f"{number}").write_text(f"{number}")
        layers.append(pack(upper, epoch=1_600_000_000))
    assert layers[0] == layers[1]
    with tarfile.open(fileobj=io.BytesIO(layers[0])) as archive:
        assert {member.mtime for member in archive} == {1_600_000_000}


def test_lowers_leave_out_what_does_not_differ(base: Path) -> None:
    for path in ("lower/d/inner", "upper/d/inner"):
        (base / path).mkdir(parents=True)
    for path in ("lower", "upper"):
        for name in ("d/inner", "d", "."):
            os.utime(base / path / name, ns=(0, 10**18))
    (base / "upper/new").touch()
    os.mknod(base / "upper/nothing", stat.S_IFCHR)
    succeed(pyoverlay("diff", base / "upper", base / "layer.tar", "--lower", base / "lower"))
    assert names((base / "layer.tar").read_bytes()) == [".", "new"]
    succeed(pyoverlay("diff", base / "upper", base / "layer.tar"))
    assert names((base / "layer.tar").read_bytes()) == [".", ".wh.nothing", "d", "d/inner", "new"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_diff_is_applied(compression: str, base: Path) -> None:
    upper = base / "upper"
    upper.mkdir()
    fill(upper)
    for name in ("one", "two"):
        succeed(pyoverlay("diff", "--compress", compression, upper, base / name))
    assert (base / "one").read_bytes() == (base / "two").read_bytes()
    succeed(pyoverlay("apply", base / "one", base / "again"))
    assert snapshot(base / "again") == snapshot(upper)


def test_gnu_tar_reads_what_was_packed(base: Path) -> None:
    upper = base / "upper"
    upper.mkdir()
    fill(upper)
    (base / "again").mkdir()
    words = [
        "tar",
        "-x",
        "-f",
        "-",
        "-C",
        str(base / "again"),
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
    ]
    subprocess.run(words, input=pack(upper), check=True)
    assert snapshot(base / "again") == snapshot(upper)


# Images of uppers


def test_a_commit_is_an_image_with_one_layer_more(base: Path, store: Store) -> None:
    below = Image([simple_layer("below")], "localhost/below:1")
    load(store, write_layout(base / "layout", below))
    upper = base / "upper"
    upper.mkdir()
    fill(upper)
    os.mknod(upper / "below", stat.S_IFCHR)
    wanted = Commit(
        str(upper),
        base=Digest(below.image_id),
        names=["localhost/new:1"],
        author="me",
        message="more",
        created_by="by hand",
        changes={"Cmd": ["run"]},
        epoch=1_600_000_000,
    )
    image_id = committing.commit(store, wanted)
    assert committing.commit(store, wanted) == image_id
    assert catalogue.find_image(store, "new:1") == image_id
    layers = inspecting.layers_of(store, image_id)
    assert layers[0] == sha256(below.layers[0])
    config = store.config(image_id)
    assert config.created == "2020-09-13T12:26:40Z"
    assert config.config is not None
    assert (config.config.cmd, config.config.env) == (["run"], ["A=b"])
    (step, _) = inspecting.history(store, image_id)
    assert (step.created_by, step.comment) == ("by hand", "more")
    with merged(lower_directories(store, layers), base / "merged") as tree:
        assert set(snapshot(tree)) == {path for path in snapshot(upper) if path != b"below"}


def test_a_commit_without_a_base(base: Path, store: Store) -> None:
    (base / "upper").mkdir()
    (base / "upper/file").touch()
    out = succeed(pyoverlay("commit", "--root", store.root, base / "upper", "mine"))
    assert out.decode().strip() in store.images()
    assert store.images()[Digest(out.decode().strip())].names == ["docker.io/library/mine:latest"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Commit("", author="\udcff"), "must be UTF-8"),
        (Commit("", epoch=10**19), "is no time"),
        (Commit("", base=Digest("sha256:" + "0" * 64)), "can't be read"),
    ],
)
def test_a_commit_that_fails_adds_no_layer(wanted: Commit, message: str, base: Path, store: Store) -> None:
    upper = base / "upper"
    upper.mkdir()
    with pytest.raises(ImageError, match=message):
        committing.commit(store, dataclasses.replace(wanted, upper=str(upper)))
    assert (store.layers(), store.images()) == ([], {})


# Where to


@pytest.mark.parametrize("command", ["diff", "save"])
def test_a_device_or_fifo_is_written_to_and_stays(command: str, base: Path, store: Store) -> None:
    (base / "upper").mkdir()
    committing.commit(store, Commit(str(base / "upper"), names=["localhost/made:1"]))
    if command == "diff":
        words = ["diff", f"{base}/upper"]
    else:
        words = ["image", "save", f"--root={store.root}", "made:1"]
    device, fifo = base / "device", base / "fifo"
    os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(fifo)
    succeed(pyoverlay(*words, device))
    assert stat.S_ISCHR(device.stat().st_mode)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        succeed(pyoverlay(*words, fifo))
        assert len(reader.communicate(timeout=60)[0]) >= 1024
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_symlink_stays_and_leads_to_the_new_file(base: Path) -> None:
    (base / "upper").mkdir()
    (base / "elsewhere").mkdir()
    (base / "elsewhere/file").write_text("old")
    for link, target in (("link", "elsewhere/file"), ("dangling", "elsewhere/new")):
        (base / link).symlink_to(target)
        succeed(pyoverlay("diff", base / "upper", base / link))
        assert (base / link).readlink() == Path(target)
        assert (base / target).stat().st_size >= 1024


def test_a_directory_is_no_place_for_an_archive(base: Path) -> None:
    (base / "upper").mkdir()
    line = fail(pyoverlay("diff", base / "upper", base / "upper"))
    assert line == f"pyoverlay: {base}/upper: it can't be written: Is a directory\n"
