"""Can an archive write outside of its layer, or use up the machine?  Each is refused or contained."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.images import applying
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.store import Store
from pyoverlay.images.zstandard import zstd
from tests.harness import run_as, snapshot
from tests.images.making import Image, LayerTar, pax_header, pax_record, sha256, simple_layer, write_layout
from tests.images.storing import apply, load
from tests.mount.command import fail, pyoverlay

SMALL = Limits(size=64 << 20, ratio=100, free=1 << 20, entries=150)


def tar() -> LayerTar:
    return LayerTar()


def with_pax(*records: tuple[bytes, bytes], name: str = "file") -> bytes:
    header = pax_header(b"".join(pax_record(*record) for record in records))
    return tar().raw(header).add(name).bytes()


def negative_size() -> bytes:
    block = bytearray(tar().add("file").unfinished()[:512])
    block[124:136] = b"\xff" * 12
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def huge_time() -> bytes:
    block = bytearray(tar().add("file").unfinished()[:512])
    block[136:148] = b"\x80" + b"\x7f" * 11
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def many_headers() -> bytes:
    layer = tar()
    for number in range(3):
        layer.raw(pax_header(pax_record(b"key%d" % number, b"v" * 500_000)))
    return layer.add("file").bytes()


def broken_header() -> bytes:
    good = tar().add("first", b"1").unfinished()
    bad = bytearray(tar().add("second", b"2").unfinished())
    bad[0] ^= 1
    return good + bytes(bad) + bytes(1024)


def zeros(compress: Callable[[bytes], bytes]) -> bytes:
    return compress(tar().add("zeros", bytes(32 << 20)).bytes())


def many_names() -> bytes:
    layer = tar()
    for number in range(200):
        layer.add(f"{number}")
    return gzip.compress(layer.bytes())


def sparse(size: bytes, mapped: bytes) -> bytes:
    return with_pax((b"GNU.sparse.size", size), (b"GNU.sparse.map", mapped))


REFUSED: dict[str, tuple[bytes, str]] = {
    # Out of the layer
    "parent": (simple_layer("../escaped"), r"'\.\.'"),
    "parent within": (simple_layer("a/../../escaped"), r"'\.\.'"),
    "absolute parent": (simple_layer("/../escaped"), r"'\.\.'"),
    "parent by PAX": (with_pax((b"path", b"../escaped")), r"'\.\.'"),
    "symlink, then through it": (tar().symlink("a", "/").add("a/escaped").bytes(), "file or symlink"),
    "symlink up, then through it": (tar().symlink("a", "../..").add("a/escaped").bytes(), "file or symlink"),
    "symlink, then a directory in it": (
        tar().symlink("a", "../outside").directory("a/b").bytes(),
        "file or symlink",
    ),
    "symlink, then itself as a directory": (
        tar().symlink("a", "../outside").directory("a", 0o777).bytes(),
        "twice",
    ),
    "symlink, then itself as a file": (
        tar().symlink("a", "../outside/victim").add("a", b"!").bytes(),
        "twice",
    ),
    "file, then a file in it": (tar().add("a").add("a/b").bytes(), "file or symlink"),
    "two symlinks, one through the other": (
        tar().symlink("a", ".").symlink("a/b", "../outside").bytes(),
        "file or symlink",
    ),
    "hard link out": (tar().link("a", "../outside/victim").bytes(), r"'\.\.'"),
    "hard link by an absolute name": (tar().link("a", "/etc/hostname").bytes(), "no file of this layer"),
    "hard link through a symlink": (
        tar().symlink("a", "../outside").link("b", "a/victim").bytes(),
        "no file of this layer",
    ),
    "hard link to a directory": (tar().directory("a").link("b", "a").bytes(), "no file of this layer"),
    "hard link to what comes later": (tar().link("b", "a").add("a").bytes(), "no file of this layer"),
    "hard link to the root": (tar().link("a", ".").bytes(), "no file"),
    "hard link, then a file through it": (
        tar().add("a", b"1").link("b", "a").add("b", b"2").bytes(),
        "twice",
    ),
    # Marks
    "whiteout of the parent": (simple_layer("a/.wh..."), "hides no name"),
    "whiteout of the directory itself": (simple_layer("a/.wh.."), "hides no name"),
    "whiteout of nothing": (simple_layer("a/.wh."), "hides no name"),
    "whiteout that is a directory": (tar().directory(".wh.a").bytes(), "empty file"),
    "whiteout that is a symlink": (tar().symlink(".wh.a", "/").bytes(), "empty file"),
    "whiteout that is a hard link": (tar().add("a").link(".wh.b", "a").bytes(), "empty file"),
    "hard link to a whiteout": (tar().add(".wh.a").link("b", ".wh.a").bytes(), "no file"),
    "file below a whiteout": (tar().add(".wh.a").add(".wh.a/b").bytes(), "below a whiteout"),
    "whiteout through a symlink": (
        tar().symlink("a", "../outside").add("a/.wh.victim").bytes(),
        "file or symlink",
    ),
    "opaque through a symlink": (
        tar().symlink("a", "../outside").add("a/.wh..wh..opq").bytes(),
        "file or symlink",
    ),
    "device 0/0": (tar().add("a", kind=tarfile.CHRTYPE).bytes(), "whiteout"),
    # Names and headers
    "duplicate file": (tar().add("a", b"1").add("./a", b"2").bytes(), "twice"),
    "file and directory": (tar().directory("a").add("a").bytes(), "twice"),
    "root as a file": (simple_layer("./"), "root"),
    "long component": (simple_layer("n" * 256), "255"),
    "long path": (simple_layer("/".join(["d" * 200] * 25)), "4095"),
    "NUL in a name": (with_pax((b"path", b"a\0b")), "NUL"),
    "NUL in a target": (
        tar().raw(pax_header(pax_record(b"linkpath", b"a\0b"))).symlink("s", "x").bytes(),
        "NUL",
    ),
    "huge PAX header": (tar().raw(pax_header(b"1" * (2 << 20))).bytes(), "extended headers of"),
    "huge long name": (
        tar().add("x", b"n" * (2 << 20), kind=tarfile.GNUTYPE_LONGNAME).add("y").bytes(),
        "extended headers of",
    ),
    "PAX without an equals sign": (tar().raw(pax_header(b"9 abcdefg\n")).add("a").bytes(), "extended header"),
    "PAX with a wrong length": (tar().raw(pax_header(b"99 a=b\n")).add("a").bytes(), "extended header"),
    "many headers of one name": (many_headers(), "extended headers of"),
    "time beyond all": (huge_time(), "no time"),
    "negative size": (negative_size(), "negative"),
    "size beyond all": (with_pax((b"size", b"9" * 19)), "number"),
    "size that is no number": (with_pax((b"size", b"-1")), "number"),
    "owner that there can't be": (with_pax((b"uid", b"4294967295")), "owner"),
    "time that is none": (with_pax((b"mtime", b"tomorrow")), "no time"),
    "unknown type": (tar().add("a", kind=b"V").bytes(), "type"),
    "xattr without a name": (with_pax((b"SCHILY.xattr.", b"x")), "extended attribute"),
    "sparse map out of order": (sparse(b"10", b"5,0,0,0"), "sparse"),
    "sparse map beyond the end": (sparse(b"10", b"8,4"), "sparse"),
    "sparse map that lies about its data": (sparse(b"10", b"0,10"), "sparse"),
    # Damage
    "no tar": (b"this is no tar" * 100, "no tar"),
    "broken header": (broken_header(), "no tar header"),
    "cut short within a file": (tar().add("a", bytes(4096)).unfinished()[:2048], "cut short"),
    "cut short within a header": (tar().add("a").unfinished()[:100], "cut short"),
    "without an end": (tar().add("a").unfinished(), "cut short"),
    "says more than there is": (tar().add("a", b"", size=1 << 40).bytes(), "files have more than"),
    "gzip cut short": (gzip.compress(simple_layer("a", content=b"x" * 5000))[:-12], "cut short"),
    "gzip damaged": (gzip.compress(simple_layer("a"))[:-8] + b"\0" * 8, "damaged"),
    "zstd cut short": (zstd.compress(simple_layer("a"))[:-3], "cut short"),
    "zstd damaged": (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "damaged"),
    "bzip2": (b"BZh91AY&SY", "bzip2"),
    # Bombs
    "gzip bomb": (zeros(gzip.compress), "bomb"),
    "zstd bomb": (zeros(zstd.compress), "bomb"),
    "bomb in a bomb": (gzip.compress(zeros(gzip.compress)), "no tar"),
    "many names from little": (many_names(), "entries"),
    "endless holes": (sparse(b"9" * 18, b""), "files have more than"),
}


@pytest.fixture
def outside(base: Path) -> Path:
    """A place with something to destroy, and two directories beside it."""
    (base / "outside").mkdir()
    (base / "outside/victim").write_text("intact")
    (base / "place").mkdir()
    return base


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_layer_is_refused_and_leaves_nothing(name: str, outside: Path) -> None:
    layer, message = REFUSED[name]
    place = outside / "place"
    before = snapshot(outside, times=False)
    with pytest.raises(ImageError, match=message) as error:
        apply(layer, place / "layer", SMALL)
    assert snapshot(outside, times=False) == before
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


# A tar without an end is one all the same where its digest proves that nothing is missing.
@pytest.mark.parametrize("name", [name for name in REFUSED if name != "without an end"])
def test_the_store_takes_nothing_of_it(name: str, outside: Path) -> None:
    layer, _ = REFUSED[name]
    store = Store(outside / "place/store")
    store.prepare()
    image = Image([simple_layer("good"), layer])
    write_layout(outside / "layout", image, compression="")
    before = snapshot(outside, times=False)
    with pytest.raises(ImageError):
        load(store, outside / "layout", SMALL)
    assert store.images() == {}
    assert sha256(layer) not in store.layers()
    after = snapshot(outside, times=False)
    inside = b"place/store/"
    assert {path: entry for path, entry in after.items() if not path.startswith(inside)} == {
        path: entry for path, entry in before.items() if not path.startswith(inside)
    }
    assert not any((store.root / "unfinished").iterdir())


# Contained


def test_an_absolute_name_is_one_in_the_layer(outside: Path) -> None:
    apply(tar().add("/outside/victim", b"inside").link("/b", "/outside/victim").bytes(), outside / "layer")
    assert (outside / "layer/outside/victim").read_text() == "inside"
    assert (outside / "layer/b").read_text() == "inside"
    assert (outside / "outside/victim").read_text() == "intact"


def test_a_symlink_leads_out_only_for_who_follows_it(outside: Path) -> None:
    apply(tar().symlink("a", "../outside/victim", owner=(5, 6)).bytes(), outside / "layer")
    assert (outside / "layer/a").readlink() == Path("../outside/victim")
    assert (outside / "layer/a").lstat().st_uid == 5
    assert (outside / "outside/victim").stat().st_uid == 0


def test_an_overlay_mark_of_the_archive_is_a_users_attribute(outside: Path) -> None:
    layer = tar().directory(
        "a",
        pax={"SCHILY.xattr.trusted.overlay.redirect": "/outside", "SCHILY.xattr.user.overlay.opaque": "y"},
    )
    (warning,) = apply(layer.bytes(), outside / "layer")
    assert "extended attributes" in warning
    names = [entry.xattrs for path, entry in snapshot(outside / "layer").items() if path == b"a"]
    assert names == [((b"trusted.overlay.overlay.redirect", b"/outside"),)]


def test_devices_are_left_out_for_who_is_not_root(outside: Path) -> None:
    layer = tar().add("null", kind=tarfile.CHRTYPE, device=(1, 3)).add("a", mode=0o4755, owner=(0, 0)).bytes()
    (outside / "place").chmod(0o777)
    warnings = run_as(1000, lambda: apply(layer, outside / "place/layer"))
    assert warnings == ["null: left out, as only root may make a character device"]
    assert [path.name for path in (outside / "place/layer").iterdir()] == ["a"]
    # Without its owner, a set-user-id program is anybody's.
    assert (outside / "place/layer/a").stat().st_mode & 0o7777 == 0o755


def test_files_of_aufs_are_left_out(outside: Path) -> None:
    layer = tar().directory(".wh..wh.plnk").add(".wh..wh.plnk/1.2", b"x").add(".wh..wh.aufs").add("a").bytes()
    warnings = apply(layer, outside / "layer")
    assert len(warnings) == 3
    assert [path.name for path in (outside / "layer").iterdir()] == ["a"]


def test_what_the_store_inherits_does_not_spread(outside: Path) -> None:
    place = outside / "place"
    place.chmod(0o2777)
    apply(tar().directory("d").add("d/a").bytes(), place / "layer")
    picture = snapshot(place / "layer")
    assert {entry.gid for entry in picture.values()} == {0}
    assert picture[b"d"].mode == 0o755


# Wrong digests


def test_a_layer_that_is_another_than_its_configuration_says(base: Path, store: Store) -> None:
    image = Image(
        [simple_layer("a")], config={"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}
    )
    with pytest.raises(ImageError, match="damaged or exchanged"):
        load(store, write_layout(base / "layout", image))
    assert store.layers() == []


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_a_blob_with_another_digest(which: str, base: Path, store: Store) -> None:
    image = Image([simple_layer("a", content=b"x" * 10_000)])
    layout = write_layout(base / "layout", image, compression="")
    for blob in (layout / "blobs/sha256").iterdir():
        data = blob.read_bytes()
        kind = (
            "layer" if blob.stat().st_size > 10_000 else "manifest" if b"schemaVersion" in data else "config"
        )
        if kind == which:
            blob.write_bytes(
                data.replace(b"x" * 100, b"y" * 100).replace(b"linux", b"Linux").replace(b": 2", b":2 ")
            )
    with pytest.raises(ImageError, match="damaged"):
        load(store, layout)
    assert store.layers() == []
    assert store.images() == {}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("not JSON", "index.json can't be read"),
        ('{"schemaVersion": 2, "manifests": "none"}', "index.json can't be read"),
        ('{"schemaVersion": 2, "manifests": []}', "empty"),
        (
            (
                '{"schemaVersion": 2, "manifests": [{'
                '"mediaType": "application/vnd.oci.image.manifest.v1+json", '
                '"digest": "sha256:../../../../etc/hostname", "size": 1}]}'
            ),
            "no sha256 digest",
        ),
        (
            (
                '{"schemaVersion": 2, "manifests": [{'
                '"mediaType": "application/vnd.oci.image.manifest.v1+json", '
                '"digest": "md5:00", "size": 1}]}'
            ),
            "no sha256 digest",
        ),
    ],
)
def test_an_index_that_makes_no_sense(index: str, message: str, base: Path, store: Store) -> None:
    layout = write_layout(base / "layout", Image([simple_layer("a")]))
    (layout / "index.json").write_text(index)
    with pytest.raises(ImageError, match=message):
        load(store, layout)


@pytest.mark.parametrize("place", ["fifo", "/dev/zero", "../outside"])
def test_a_directory_that_leads_to_what_is_none_of_it(place: str, base: Path, store: Store) -> None:
    image = Image([simple_layer("a")])
    (base / "outside").write_bytes(image.config_bytes())
    (base / "directory").mkdir()
    os.mkfifo(base / "directory/fifo")
    (base / "directory/manifest.json").write_text(json.dumps([{"Config": place, "Layers": ["layer"]}]))
    with pytest.raises(ImageError, match=f"{place} is missing"):
        load(store, base / "directory")


def test_an_archive_that_is_a_bomb(base: Path, store: Store) -> None:
    (base / "bomb.tar.gz").write_bytes(gzip.compress(simple_layer("a", content=bytes(32 << 20))))
    with pytest.raises(ImageError, match="bomb"):
        load(store, base / "bomb.tar.gz", SMALL)
    assert list(store.root.glob("unfinished/*")) == []


def test_an_archive_with_a_name_of_endless_headers(base: Path, store: Store) -> None:
    archive = tar()
    for _ in range(5000):
        archive.add("././@LongLink", b"name", kind=tarfile.GNUTYPE_LONGNAME)
    (base / "archive.tar").write_bytes(archive.add("file").bytes())
    with pytest.raises(ImageError, match="too many headers"):
        load(store, base / "archive.tar")


def test_an_archive_whose_config_is_endless(base: Path, store: Store) -> None:
    layout = write_layout(base / "layout", Image([simple_layer("a")]))
    (layout / "index.json").write_bytes(b" " * (9 << 20))
    with pytest.raises(ImageError, match="is the most"):
        load(store, layout)


def test_the_message_is_one_line_of_the_command(base: Path) -> None:
    (base / "bad.tar").write_bytes(simple_layer("../bad\nname"))
    line = fail(pyoverlay("apply", base / "bad.tar", base / "layer"))
    assert "bad.tar: ../bad\\nname: the name has '..'" in line
    assert not (base / "layer").exists()


def test_a_layer_goes_into_no_full_directory(base: Path) -> None:
    (base / "full").mkdir()
    (base / "full/file").touch()
    (base / "link").symlink_to(base / "full")
    for name in ("full", "full/file", "link"):
        with pytest.raises(ImageError, match="empty directory"):
            applying.apply(io.BytesIO(simple_layer("a")), "layer.tar", str(base / name), Limits())
