"""Does an image come in from each kind of archive, each layer once, and go out as it came?"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from pyoverlay.images import catalogue, checking, image_checking, inspecting, pulling, saving
from pyoverlay.images.compression import Compression
from pyoverlay.images.digests import Digest, digest_of
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.saving import Form, Wanted
from pyoverlay.images.store import Store
from tests.harness import snapshot
from tests.images.making import (
    Image,
    LayerTar,
    archive_of,
    sha256,
    simple_layer,
    write_docker_archive,
    write_layout,
)
from tests.images.storing import Watched, load
from tests.mount.command import PYOVERLAY, environment, fail, pyoverlay, succeed

BASE = simple_layer("base/a", "base/b", content=b"x" * 100_000)
TOP = LayerTar().add(".wh.base").add("top", b"t" * 5000).link("link", "top").bytes()
# What a tar may have behind its end.
PADDED = simple_layer("padded") + bytes(8192) + b"rest"
IMAGE = Image([BASE, TOP, PADDED], "localhost/made:1")


def sources(base: Path) -> dict[str, Path]:
    found = {}
    for compression in ("", "+gzip", "+zstd"):
        found[f"layout{compression}"] = write_layout(base / f"l{compression}", IMAGE, compression=compression)
        found[f"docker{compression}"] = write_docker_archive(
            base / f"d{compression}.tar", IMAGE, compression=compression
        )
    found["oci-archive"] = archive_of(found["layout"], base / "oci.tar")
    whole = base / "oci.tar.gz"
    whole.write_bytes(gzip.compress(found["oci-archive"].read_bytes(), 1))
    found["compressed oci-archive"] = whole
    return found


@pytest.mark.parametrize(
    "kind",
    [
        "layout",
        "layout+gzip",
        "layout+zstd",
        "docker",
        "docker+gzip",
        "docker+zstd",
        "oci-archive",
        "compressed oci-archive",
    ],
)
def test_each_kind_of_archive(kind: str, base: Path, store: Store) -> None:
    (loaded,), watched = load(store, sources(base)[kind])
    assert loaded.image_id == IMAGE.image_id
    assert loaded.names == ["localhost/made:1"]
    assert watched.existed == dict.fromkeys(IMAGE.diff_ids, False)
    assert store.config_bytes(loaded.image_id) == IMAGE.config_bytes()
    assert [checking.check_layer(store, layer) for layer in store.layers()] == [[], [], []]
    assert not any((store.root / "unfinished").iterdir())
    _, again = load(store, sources(base)[kind])
    assert again.existed == dict.fromkeys(IMAGE.diff_ids, True)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_what_is_saved_is_what_came(form: Form, compression: Compression, base: Path, store: Store) -> None:
    if form == "docker-archive" and compression != "none":
        compression = "none"
    other = Image([BASE, simple_layer("other")], "quay.io/team/other:2")
    (first, second), _ = load(store, write_docker_archive(base / "two.tar", IMAGE, other))
    wanted = [Wanted(image.image_id, image.names) for image in (first, second)]
    saved = base / "saved.tar"
    saving.save(store, wanted, str(saved), form, compression)
    assert saved.stat().st_mode & 0o777 == 0o644
    elsewhere = Store(base / "elsewhere")
    loaded, _ = load(elsewhere, saved)
    assert loaded == [first, second]
    for layer in store.layers():
        buffer = io.BytesIO()
        saving.write_layer_tar(elsewhere, layer, buffer)
        assert digest_of(buffer.getvalue()) == layer
        theirs, ours = (snapshot(place.layer_directory(layer)) for place in (elsewhere, store))
        assert theirs == ours
    again = base / "again.tar"
    saving.save(elsewhere, wanted, str(again), form, compression)
    assert again.read_bytes() == saved.read_bytes()


def test_standard_input(base: Path, store: Store) -> None:
    archive = sources(base)["compressed oci-archive"]
    out = succeed(pyoverlay("image", "load", "--root", store.root, "-", text=archive.read_bytes())).decode()
    lines = [f"{layer.partition(':')[2][:12]}: Unpacked" for layer in IMAGE.diff_ids]
    assert out.splitlines() == [*lines, "Loaded image: localhost/made:1"]


def test_an_index_of_several_machines(base: Path, store: Store) -> None:
    layout = write_layout(base / "layout", IMAGE)
    index = json.loads((layout / "index.json").read_text())
    (manifest,) = index["manifests"]
    del manifest["annotations"]
    theirs = {**manifest, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "vax"}}
    ours = {
        **manifest,
        "platform": {"os": "linux", "architecture": json.loads(IMAGE.config_bytes())["architecture"]},
    }
    inner = json.dumps({"schemaVersion": 2, "manifests": [theirs, ours]}).encode()
    (layout / "blobs/sha256" / sha256(inner).partition(":")[2]).write_bytes(inner)
    described = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": sha256(inner),
        "size": len(inner),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (loaded,), _ = load(store, layout)
    assert loaded.image_id == IMAGE.image_id
    # The layout knows only a tag, so its own name is the image's.
    assert loaded.names == ["docker.io/library/layout:v1"]


def test_an_image_for_another_machine_alone(base: Path, store: Store) -> None:
    layout = write_layout(base / "layout", IMAGE)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "vax"}
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(ImageError, match="empty"):
        load(store, layout)


@pytest.mark.parametrize("what", ["layer", "config", "file", "directory", "archive", "document"])
def test_what_is_missing_or_no_image(what: str, base: Path, store: Store) -> None:
    layout = write_layout(base / "layout", IMAGE)
    source = layout
    if what in ("layer", "config"):
        wanted = sha256(IMAGE.config_bytes()) if what == "config" else sha256(gzip.compress(BASE, mtime=0))
        (layout / "blobs/sha256" / wanted.partition(":")[2]).unlink()
        message = "missing"
    elif what == "file":
        source, message = base / "none", "No such file"
    elif what == "directory":
        source, message = base, "no image in it"
    elif what == "archive":
        source, message = base / "layer.tar", "no image in it"
        source.write_bytes(BASE)
    else:
        source, message = base / "text", "no image archive"
        source.write_text("text" * 1000)
    with pytest.raises(ImageError, match=message):
        load(store, source)
    assert store.images() == {}


def test_archives_links_lead_nowhere_else(base: Path, store: Store) -> None:
    (base / "secret").write_text("{}")
    archive = base / "archive.tar"
    with tarfile.open(archive, "w") as file:
        info = tarfile.TarInfo("manifest.json")
        info.type, info.linkname = tarfile.SYMTYPE, str(base / "secret")
        file.addfile(info)
    with pytest.raises(ImageError, match="no image in it"):
        load(store, archive)


def test_a_name_moves_to_the_image_that_takes_it(base: Path, store: Store) -> None:
    old, new = Image([BASE]), Image([TOP])
    load(store, write_layout(base / "old", old))
    load(store, write_layout(base / "new", new))
    assert catalogue.find_image(store, "localhost/made:1") == new.image_id
    assert store.images()[Digest(old.image_id)].names == []
    removed = catalogue.prune(store)
    assert removed.images == [old.image_id]
    assert store.layers() == [sha256(TOP)]


@pytest.mark.parametrize("name", ["docker.io/library/made@sha256:" + "0" * 64, "UPPER/Case:1", "a b:1"])
def test_an_image_whose_own_name_is_none_has_its_id(name: str, base: Path, store: Store) -> None:
    image = Image([simple_layer("a")], name)
    for number, source in enumerate(
        (write_layout(base / "layout", image), write_docker_archive(base / "docker.tar", image))
    ):
        (loaded,), _ = load(Store(base / f"store{number}"), source)
        assert (loaded.image_id, loaded.names) == (image.image_id, [])


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("kind", ["signature", "manifest of an unknown kind"])
def test_what_lies_beside_an_image_is_left_there(kind: str, alone: bool, base: Path, store: Store) -> None:
    image = Image([simple_layer("a")])
    layout = write_layout(base / "layout", image)
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "config": empty, "layers": [empty]}).encode()
    for blob in (b"{}", manifest):
        (layout / "blobs" / sha256(blob).replace(":", "/")).write_bytes(blob)
    index = json.loads((layout / "index.json").read_text())
    described = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json" if kind == "signature" else "application/x",
        "digest": sha256(manifest),
        "size": len(manifest),
        "annotations": {"org.opencontainers.image.ref.name": "localhost/made:signature"},
    }
    index["manifests"] = [described] if alone else [described, *index["manifests"]]
    (layout / "index.json").write_text(json.dumps(index))
    if alone:
        with pytest.raises(ImageError, match=r"is no image's|no kind of manifest"):
            load(store, layout)
    else:
        (loaded,), _ = load(store, layout)
        assert loaded.image_id == image.image_id


@pytest.mark.parametrize("layers", ["null", "[]"])
def test_an_image_without_layers(layers: str, base: Path, store: Store) -> None:
    image = Image([], config={"rootfs": {"type": "layers", "diff_ids": json.loads(layers)}})
    listed = f'[{{"Config": "config", "RepoTags": null, "Layers": {layers}}}]'
    (base / "docker").mkdir()
    (base / "docker/config").write_bytes(image.config_bytes())
    (base / "docker/manifest.json").write_text(listed)
    (loaded,), _ = load(store, base / "docker")
    assert loaded.image_id == image.image_id
    assert image_checking.check_image(store, loaded.image_id) == []
    assert inspecting.inspect(store, loaded.image_id)["RootFS"]["Layers"] == []
    line = fail(pyoverlay("container", "run", "--root", store.root, image.image_id[7:19]))
    assert "has no layers" in line


def test_inspect_is_in_docker_s_words(base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", IMAGE))
    found = inspecting.inspect(store, Digest(IMAGE.image_id))
    assert (found["Id"], found["RepoTags"]) == (IMAGE.image_id, ["localhost/made:1"])
    assert found["RootFS"] == {"Type": "layers", "Layers": IMAGE.diff_ids}
    assert found["Config"] == {"Cmd": ["sh"], "Env": ["A=b"]}
    data = found["GraphDriver"]["Data"]
    directories = [data["UpperDir"], *data["LowerDir"].split(":")]
    assert directories == [layer["Directory"] for layer in reversed(found["Layers"])]
    assert all(Path(directory).is_dir() for directory in directories)
    assert [layer["Size"] for layer in found["Layers"]] == [200_000, 5000, 8]
    assert found["Size"] == 205_008


def test_skopeo_pulls_from_anywhere(base: Path, store: Store) -> None:
    layout = write_layout(base / "layout", Image(IMAGE.layers, "v1"))
    watched = Watched()
    (loaded,) = pulling.pull(store, f"oci:{layout}:v1", watched, Limits())
    assert (loaded.image_id, loaded.names) == (IMAGE.image_id, ["docker.io/library/layout:v1"])
    assert watched.existed == dict.fromkeys(IMAGE.diff_ids, False)
    archive = write_docker_archive(base / "docker.tar", IMAGE)
    (loaded,) = pulling.pull(store, f"docker-archive:{archive}", watched, Limits(), ["localhost/other:1"])
    assert (loaded.image_id, loaded.names) == (IMAGE.image_id, ["localhost/other:1"])
    assert watched.existed == dict.fromkeys(IMAGE.diff_ids, True)
    with pytest.raises(ImageError, match=r"skopeo failed: .*nowhere"):
        pulling.pull(store, f"oci:{base}/nowhere:v1", watched, Limits())
    assert not any((store.root / "unfinished").iterdir())


def test_the_archive_may_lie_on_a_pipe(base: Path, store: Store) -> None:
    shutil.copy(sources(base)["docker"], base / "copy.tar")
    words = [*PYOVERLAY, "image", "load", "--root", str(store.root), "/dev/stdin"]
    with subprocess.Popen(["cat", base / "copy.tar"], stdout=subprocess.PIPE) as cat:
        result = subprocess.run(
            words,
            stdin=cat.stdout,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert catalogue.find_image(store, "made:1") == IMAGE.image_id
