"""Is it said rightly what each layer does, and what is wasted?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyoverlay.images.changes_by_layer import ImageChanges, changes_by_layer
from pyoverlay.images.digests import Digest
from pyoverlay.images.store import Store
from tests.images.making import Image, LayerTar, write_layout
from tests.images.storing import load
from tests.mount.command import pyoverlay, succeed

LOW = (
    LayerTar()
    .directory("d")
    .add("d/replaced", b"x" * 1000)
    .add("d/kept", b"k" * 10)
    .directory("gone")
    .add("gone/a", b"a" * 200)
    .directory("gone/b")
    .add("gone/b/c", b"c" * 30)
    .directory("anew")
    .add("anew/old", b"o" * 4)
    .bytes()
)
MIDDLE = (
    LayerTar()
    .add("d/replaced", b"y" * 500)
    .add(".wh.gone")
    .directory("anew")
    .add("anew/.wh..wh..opq")
    .bytes()
)
TOP = LayerTar().add("d/replaced", b"z").add("new", b"n" * 7).bytes()
IMAGE = Image([LOW, MIDDLE, TOP], "localhost/made:1")


@pytest.fixture
def changes(base: Path, store: Store) -> ImageChanges:
    load(store, write_layout(base / "layout", IMAGE))
    return changes_by_layer(store, [Digest(layer) for layer in IMAGE.diff_ids])


def test_what_each_layer_does(changes: ImageChanges) -> None:
    low, middle, top = ([str(change) for change in layer.changes] for layer in changes.layers)
    assert [line[0] for line in low] == ["A"] * 9
    # The tar says nothing about d, which only holds what changed.
    assert middle == ["C /anew", "D /anew/old", "C /d/replaced", "D /gone"]
    assert top == ["C /d/replaced", "A /new"]


def test_what_is_wasted(changes: ImageChanges) -> None:
    found = [(waste.path, waste.size, str(waste.kind), waste.layers) for waste in changes.waste]
    assert found == [
        ("/d/replaced", 1000, "C", (0, 1)),
        ("/d/replaced", 500, "C", (1, 2)),
        ("/gone", 230, "D", (0, 1)),
        ("/anew/old", 4, "D", (0, 1)),
    ]
    assert [layer.hidden for layer in changes.layers] == [1234, 500, 0]
    assert changes.wasted == 1734


def test_an_opaque_root_hides_all(base: Path, store: Store) -> None:
    image = Image([LOW, LayerTar().add(".wh..wh..opq").add("only", b"1").bytes()])
    load(store, write_layout(base / "layout", image))
    changes = changes_by_layer(store, [Digest(layer) for layer in image.diff_ids])
    assert [str(change) for change in changes.layers[1].changes] == ["A /only"]
    assert changes.wasted == 1000 + 10 + 200 + 30 + 4


def test_the_picture(changes: ImageChanges, store: Store) -> None:
    del changes
    out = succeed(pyoverlay("image", "tree", "--root", store.root, "made:1", "--depth", "1")).decode()
    assert out.splitlines()[0] == "made:1  3 layers, 1.75kB"
    assert "─   d/  1 C, 1B" in out
    assert "D gone" in out
    assert "wasted: 1.73kB" in out
    data = json.loads(succeed(pyoverlay("image", "tree", "--root", store.root, "--json", "made:1")))
    assert data["Wasted"] == 1734
    assert [layer["DiffId"] for layer in data["Layers"]] == IMAGE.diff_ids


def test_no_name_speaks_to_the_terminal(base: Path, store: Store) -> None:
    name = "\udcff\x1b[31mred\nline"
    layers = [LayerTar().add(name, content).bytes() for content in (b"old", b"newer")]
    history = [{"created_by": "\x1b]0;title\x07"}] * 2
    load(store, write_layout(base / "layout", Image(layers, config={"history": history})))
    drawn = succeed(pyoverlay("image", "tree", "--root", store.root, "made:1")).decode()
    told = succeed(pyoverlay("image", "history", "--root", store.root, "made:1")).decode()
    assert "/\\xff\\x1b[31mred\\nline  in " in drawn
    assert "\\x1b]0;title\\x07" in drawn
    assert "\\x1b]0;title\\x07" in told
    assert "\x1b" not in drawn + told


def test_no_column_is_cut_where_no_terminal_is(base: Path, store: Store) -> None:
    name = f"registry.example.org/{'project/' * 15}image:tag"
    load(store, write_layout(base / "layout", Image([LOW], name)))
    line = succeed(pyoverlay("image", "list", "--root", store.root)).decode().splitlines()[1]
    assert line.split()[:2] == name.rsplit(":", 1)


def test_the_most_names_are_drawn_and_the_rest_counted(base: Path, store: Store) -> None:
    layer = LayerTar()
    for number in range(20):
        layer.add(f"file{number:02}", b"x" * (100 - number))
    load(store, write_layout(base / "layout", Image([layer.bytes()])))
    out = succeed(pyoverlay("image", "tree", "--root", store.root, "--most", "3", "made:1")).decode()
    assert out.count("A file") == 3
    assert "... 17 more, 1.51kB" in out
