"""Do podman, skopeo and umoci load what was saved, and show the same trees; and is theirs loaded here?"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.images import pulling, saving
from pyoverlay.images.digests import Digest
from pyoverlay.images.limits import Limits
from pyoverlay.images.saving import Form, Wanted
from pyoverlay.images.stacking import lower_directories
from pyoverlay.images.store import Store
from tests.harness import Entry, snapshot
from tests.images.making import Image, LayerTar, pax_header, pax_record, write_layout
from tests.images.merged import merged
from tests.images.storing import Watched, load
from tests.images.test_unpacking import CAPABILITY
from tests.mount.command import wait_for


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout


def capable(name: str) -> LayerTar:
    records = pax_record(b"SCHILY.xattr.security.capability", CAPABILITY)
    return (
        LayerTar()
        .raw(pax_header(records + pax_record(b"mtime", b"1500000000.5")))
        .add(name, b"x", mode=0o755)
    )


LOW = (
    LayerTar()
    .directory("./", 0o755, mtime=5)
    .directory("tmp", 0o1777, mtime=10)
    .directory("etc", 0o755, mtime=20)
    .add("etc/passwd", b"root:x:0:0::/:/bin/sh\n", mode=0o644)
    .add("etc/shadow", b"secret", mode=0o640, owner=(0, 42))
    .directory("usr", 0o755, mtime=30)
    .directory("usr/bin", 0o2755, owner=(3, 4), mtime=40)
    .add("usr/bin/su", b"program" * 1000, mode=0o4755)
    .link("usr/bin/also", "usr/bin/su", mode=0o4755)
    .symlink("bin", "usr/bin", owner=(1, 1))
    .directory("var", 0o755, mtime=50)
    .directory("var/old", 0o755, mtime=60)
    .add("var/old/a", b"a")
    .add("var/old/b", b"b")
    .add("fifo", kind=tarfile.FIFOTYPE, mode=0o620)
    .bytes()
)
MIDDLE = (
    LayerTar()
    .directory("./", 0o755, mtime=5)
    .directory("etc", 0o755, mtime=21)
    .add("etc/.wh.shadow")
    .directory("var", 0o755, mtime=51)
    .directory("var/old", 0o700, owner=(5, 5), mtime=61)
    .add("var/old/.wh..wh..opq")
    .add("var/old/new", b"new")
    .bytes()
)
TOP = (
    capable("ping")
    .directory("./", 0o711, mtime=6)
    .directory("etc", 0o755, mtime=22)
    .add("etc/shadow", b"2")
    .bytes()
)
IMAGE = Image([LOW, MIDDLE, TOP], "localhost/made:1")


@pytest.fixture
def loaded(base: Path, store: Store) -> dict[bytes, Entry]:
    """The image is in the store; its tree, as the kernel's overlay shows it."""
    load(store, write_layout(base / "layout", IMAGE))
    return tree_of(store, IMAGE, base)


def tree_of(store: Store, image: Image, base: Path) -> dict[bytes, Entry]:
    layers = [Digest(layer) for layer in image.diff_ids]
    with merged(lower_directories(store, layers), base / "merged") as tree:
        return snapshot(tree)


def save(store: Store, target: Path, form: Form) -> Path:
    saving.save(store, [Wanted(Digest(IMAGE.image_id), [IMAGE.name])], str(target), form, "none")
    return target


class Podman:
    """podman with a store of its own."""

    def __init__(self, base: Path) -> None:
        self.words = ("podman", "--root", str(base / "podman"), "--runroot", str(base / "run"))

    def __call__(self, *words: str | Path) -> str:
        return run(*self.words, *words)

    def has_reset(self) -> bool:
        """Empty the store; False while something of podman's own still uses it."""
        reset = (*self.words, "system", "reset", "--force")
        return subprocess.run(reset, check=False, capture_output=True, timeout=120).returncode == 0


@pytest.fixture
def podman(base: Path) -> Iterator[Podman]:
    podman = Podman(base)
    yield podman
    wait_for(podman.has_reset)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_podman_loads_what_was_saved(
    form: Form, base: Path, store: Store, loaded: dict[bytes, Entry], podman: Podman
) -> None:
    assert "localhost/made:1" in podman("load", "--input", save(store, base / "saved.tar", form))
    found = podman("image", "inspect", "--format", "{{.Id}} {{.RootFS.Layers}}", IMAGE.name).strip()
    assert found == f"{IMAGE.image_id.partition(':')[2]} [{' '.join(IMAGE.diff_ids)}]"
    tree = Path(podman("image", "mount", IMAGE.name).strip())
    try:
        found_tree = snapshot(tree)
        # podman makes the root by itself, whatever the layers say.
        assert {**found_tree, b".": loaded[b"."]} == loaded
    finally:
        podman("image", "unmount", IMAGE.name)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_what_podman_saves_is_loaded(
    form: Form, base: Path, store: Store, loaded: dict[bytes, Entry], podman: Podman
) -> None:
    podman("load", "--input", save(store, base / "saved.tar", form))
    podman("save", "--format", form, "--output", base / "theirs.tar", IMAGE.name)
    elsewhere = Store(base / "elsewhere")
    (image,), _ = load(elsewhere, base / "theirs.tar")
    assert image.image_id == IMAGE.image_id
    assert image.names == [IMAGE.name]
    assert tree_of(elsewhere, IMAGE, base) == loaded


def test_podman_s_store_is_pulled_from(
    base: Path, store: Store, loaded: dict[bytes, Entry], podman: Podman
) -> None:
    podman("load", "--input", save(store, base / "saved.tar", "oci-archive"))
    elsewhere = Store(base / "elsewhere")
    reference = f"containers-storage:[overlay@{base}/podman+{base}/run]{IMAGE.name}"
    (image,) = pulling.pull(elsewhere, reference, Watched(), Limits())
    assert (image.image_id, image.names) == (IMAGE.image_id, [IMAGE.name])
    assert tree_of(elsewhere, IMAGE, base) == loaded


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_umoci_unpacks_what_was_saved(
    compression: str, base: Path, store: Store, loaded: dict[bytes, Entry]
) -> None:
    assert compression in ("none", "gzip")
    saved = base / "saved.tar"
    wanted = [Wanted(Digest(IMAGE.image_id), [IMAGE.name])]
    saving.save(store, wanted, str(saved), "oci-archive", "gzip" if compression == "gzip" else "none")
    (base / "saved").mkdir()
    shutil.unpack_archive(saved, base / "saved", filter="fully_trusted")
    assert run("umoci", "ls", "--layout", base / "saved").split() == ["1"]
    run("umoci", "unpack", "--image", f"{base}/saved:1", base / "bundle")
    # umoci keeps no time of a directory that it writes into later.
    assert without_directories_times(snapshot(base / "bundle/rootfs")) == without_directories_times(loaded)


def without_directories_times(tree: dict[bytes, Entry]) -> dict[bytes, tuple[object, ...]]:
    return {
        path: (
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.target,
            entry.xattrs,
            entry.digest,
        )
        for path, entry in tree.items()
    }


def test_what_umoci_makes_is_loaded(base: Path, store: Store) -> None:
    layout, bundle = base / "umoci", base / "bundle"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    for step in range(2):
        shutil.rmtree(bundle, ignore_errors=True)
        run("umoci", "unpack", "--image", f"{layout}:v1", bundle)
        root = bundle / "rootfs"
        if step == 0:
            (root / "d").mkdir(mode=0o750)
            (root / "d/file").write_text("content")
            os.chown(root / "d/file", 3, 4)
            os.link(root / "d/file", root / "hard")
            os.setxattr(root / "d/file", "user.note", b"kept")
            (root / "gone").touch()
        else:
            (root / "gone").unlink()
            (root / "link").symlink_to("d/file")
        run("umoci", "repack", "--image", f"{layout}:v1", bundle)
    (image,), _ = load(store, layout)
    layers = [Digest(layer) for layer in store.images()[image.image_id].layers]
    expected = snapshot(bundle / "rootfs", times=False)
    with merged(lower_directories(store, layers), base / "merged") as tree:
        assert snapshot(tree, times=False) == expected


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_skopeo_copies_what_was_saved(
    form: Form, base: Path, store: Store, loaded: dict[bytes, Entry]
) -> None:
    saved = save(store, base / "saved.tar", form)
    run("skopeo", "copy", f"{form}:{saved}", f"dir:{base}/copied")
    elsewhere = Store(base / "elsewhere")
    (image,), _ = load(elsewhere, base / "copied")
    assert image.image_id == IMAGE.image_id
    assert tree_of(elsewhere, IMAGE, base) == loaded
