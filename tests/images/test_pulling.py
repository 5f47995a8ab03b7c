"""Are a registry's layers streamed, and only those that the store hasn't got?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.images import checking, pulling
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.store import Store
from tests.images.making import COMPRESS, Image, sha256, simple_layer, write_layout
from tests.images.registry import serving
from tests.images.storing import Watched, load
from tests.mount.command import processes_naming

LOW, TOP = (simple_layer(name, content=name.encode() * 100_000) for name in ("low", "top"))
IMAGE = Image([LOW, TOP], "v1")
CUT: list[str] = []
"""Blobs that the registry breaks off."""


@pytest.fixture
def registry(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of a registry with the image, and the blobs that it was asked for."""
    with serving(write_layout(base / "layout", IMAGE), CUT) as (address, asked):
        configuration = base / "home/.config/containers/registries.conf"
        configuration.parent.mkdir(parents=True)
        configuration.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        monkeypatch.setenv("HOME", str(base / "home"))
        yield address, asked
    CUT.clear()


def test_a_registry_s_image(registry: tuple[str, list[str]], store: Store) -> None:
    address, _ = registry
    watched = Watched()
    (image,) = pulling.pull(store, f"{address}/team/app:v1", watched, Limits())
    assert (image.image_id, image.names) == (IMAGE.image_id, [f"{address}/team/app:v1"])
    assert watched.existed == dict.fromkeys(IMAGE.diff_ids, False)
    assert [checking.check_layer(store, layer) for layer in store.layers()] == [[], []]
    assert processes_naming("experimental-image-proxy") == []


def test_an_image_is_pulled_by_its_digest(registry: tuple[str, list[str]], base: Path, store: Store) -> None:
    address, _ = registry
    index = json.loads((base / "layout/index.json").read_text())
    digest = index["manifests"][0]["digest"]
    (image,) = pulling.pull(store, f"{address}/team/app:v1@{digest}", Watched(), Limits())
    assert (image.image_id, image.names) == (IMAGE.image_id, [])
    with pytest.raises(ImageError, match="no sha256 digest"):
        pulling.pull(store, "alpine@sha256:1", Watched(), Limits())


def test_what_is_here_is_not_fetched(registry: tuple[str, list[str]], base: Path, store: Store) -> None:
    address, asked = registry
    load(store, write_layout(base / "other", Image([LOW], "localhost/other:1")))
    watched = Watched()
    pulling.pull(store, f"docker://{address}/app:v1", watched, Limits())
    assert watched.existed == {IMAGE.diff_ids[0]: True, IMAGE.diff_ids[1]: False}
    low, top = (sha256(COMPRESS["+gzip"](layer)) for layer in (LOW, TOP))
    assert top in asked
    assert low not in asked


def test_a_registry_that_sends_another_layer(
    registry: tuple[str, list[str]], base: Path, store: Store
) -> None:
    address, _ = registry
    path = base / "layout/blobs" / sha256(COMPRESS["+gzip"](TOP)).replace(":", "/")
    path.write_bytes(COMPRESS["+gzip"](simple_layer("evil")).ljust(path.stat().st_size, b"\0"))
    with pytest.raises(ImageError):
        pulling.pull(store, f"{address}/app:v1", Watched(), Limits())
    assert store.images() == {}
    assert sha256(TOP) not in store.layers()


@pytest.mark.parametrize("what", ["no manifest", "no layer", "half a layer", "no registry"])
def test_what_is_not_there(what: str, registry: tuple[str, list[str]], base: Path, store: Store) -> None:
    address, _ = registry
    if what == "no manifest":
        index = json.loads((base / "layout/index.json").read_text())
        index["manifests"][0]["digest"] = "sha256:" + "0" * 64
        (base / "layout/index.json").write_text(json.dumps(index))
    elif what == "no layer":
        (base / "layout/blobs" / sha256(COMPRESS["+gzip"](TOP)).replace(":", "/")).unlink()
    elif what == "half a layer":
        CUT.append(sha256(COMPRESS["+gzip"](TOP)))
    else:
        address = "127.0.0.1:1"
    with pytest.raises(ImageError, match="skopeo failed"):
        pulling.pull(store, f"{address}/app:v1", Watched(), Limits())
    assert store.images() == {}


def test_without_skopeo(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ImageError, match="needs the program skopeo"):
        pulling.pull(store, "alpine", Watched(), Limits())
