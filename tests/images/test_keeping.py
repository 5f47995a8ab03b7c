"""Does the store notice what was changed in it, give up what nobody has, and survive what is done to it?"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.images import catalogue, checking, committing, image_checking, inspecting, stacking
from pyoverlay.images.committing import Commit
from pyoverlay.images.digests import Digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.store import Store
from tests.harness import run_as
from tests.images.making import Image, LayerTar, sha256, simple_layer, write_layout
from tests.images.storing import load
from tests.mount.command import PYOVERLAY, environment, fail, pyoverlay, succeed

LAYER = (
    LayerTar()
    .directory("d", 0o755)
    .add("d/file", b"content", pax={"SCHILY.xattr.user.note": "x"})
    .symlink("d/link", "file")
    .link("d/hard", "d/file")
    .add("empty")
    .directory("opaque")
    .add("opaque/.wh..wh..opq")
    .add(".wh.gone")
    .bytes()
)


def same_time(path: Path, change: Callable[[], object]) -> None:
    status = path.lstat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def copy_in_place(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (
        lambda d: same_time(d / "d/file", lambda: (d / "d/file").write_bytes(b"CONTENT")),
        "/d/file has another content",
    ),
    "shorter": (lambda d: os.truncate(d / "d/file", 3), "/d/file is shorter"),
    "longer": (
        lambda d: same_time(d / "empty", lambda: (d / "empty").write_bytes(b"x")),
        "/empty has another size",
    ),
    "mode": (lambda d: (d / "empty").chmod(0o600), "/empty has another mode"),
    "owner": (lambda d: os.chown(d / "empty", 1, 0), "/empty has another owner"),
    "owner of a symlink": (lambda d: os.lchown(d / "d/link", 1, 0), "/d/link has another owner"),
    "time": (lambda d: os.utime(d / "empty", ns=(1, 1)), "/empty has another modification time"),
    "xattr": (lambda d: os.setxattr(d / "d/file", "user.note", b"y"), "/d/file has another set"),
    "another xattr": (lambda d: os.setxattr(d / "empty", "user.more", b"y"), "/empty has another set"),
    "missing": (lambda d: (d / "empty").unlink(), "/empty is missing"),
    "missing with content": (
        lambda d: remove(d / "d/file", d / "d/hard"),
        "/d/file is missing",
    ),
    "missing whiteout": (lambda d: (d / "gone").unlink(), "/gone: its whiteout is missing"),
    "not opaque": (
        lambda d: os.removexattr(d / "opaque", "trusted.overlay.opaque"),
        "/opaque has another set",
    ),
    "added": (lambda d: same_time(d / "d", (d / "d/new").touch), "/d/new was added"),
    "type": (
        lambda d: same_time(d, lambda: replace_by_directory(d / "empty")),
        "/empty has another type",
    ),
    "target": (
        lambda d: same_time(d / "d", lambda: relink(d / "d/link", "hard")),
        "/d/link has another target",
    ),
    "no hard link any more": (
        lambda d: same_time(d / "d", lambda: copy_in_place(d / "d/hard")),
        "/d/hard has another identity",
    ),
    "record": (lambda d: (d.parent / "record").write_bytes(b"nothing"), "record .* damaged"),
    "no record": (lambda d: (d.parent / "record").unlink(), "record can't be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_check_tells_what_was_changed(name: str, base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", Image([LAYER])))
    layer = Digest(sha256(LAYER))
    assert checking.check_layer(store, layer) == []
    damage, message = DAMAGE[name]
    damage(store.layer_directory(layer))
    problems = " | ".join(checking.check_layer(store, layer))
    assert re.search(message, problems), problems


def test_check_as_a_command(base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", Image([LAYER])))
    assert succeed(pyoverlay("image", "check", "--root", store.root)) == b"1 layers checked, no problems\n"
    (store.layer_directory(Digest(sha256(LAYER))) / "empty").chmod(0)
    result = pyoverlay("image", "check", "--root", store.root)
    assert result.returncode == 1
    assert b"/empty has another mode than it had" in result.stdout
    assert b"1 layers checked, 1 problem\n" in result.stdout


def test_an_image_that_was_changed_is_not_saved(base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", Image([LAYER])))
    (store.layer_directory(Digest(sha256(LAYER))) / "d/file").write_bytes(b"CONTENT")
    line = fail(pyoverlay("image", "save", "--root", store.root, "made:1", base / "saved.tar"))
    assert "/d/file has another content than it had" in line
    assert not (base / "saved.tar").exists()


# Removing


def test_a_layer_stays_as_long_as_somebody_has_it(base: Path, store: Store) -> None:
    shared, mine, theirs = (simple_layer(name) for name in ("shared", "mine", "theirs"))
    load(store, write_layout(base / "one", Image([shared, mine], "localhost/one:1")))
    load(store, write_layout(base / "two", Image([shared, theirs], "localhost/two:1")))
    with store.adding():
        store.pin("container", [Digest(sha256(shared)), Digest(sha256(theirs))])
    removed = catalogue.remove(store, ["one:1"])
    assert (removed.names, removed.layers) == (["localhost/one:1"], [sha256(mine)])
    removed = catalogue.remove(store, ["two:1"])
    assert (len(removed.images), removed.layers) == (1, [])
    store.unpin("container")
    assert sorted(catalogue.prune(store).layers) == sorted([sha256(shared), sha256(theirs)])
    assert store.layers() == []


def test_one_of_several_names(base: Path, store: Store) -> None:
    image = Image([LAYER])
    load(store, write_layout(base / "layout", image))
    catalogue.tag(store, Digest(image.image_id), "localhost/second:1")
    assert catalogue.remove(store, ["second:1"]).images == []
    catalogue.tag(store, Digest(image.image_id), "localhost/second:1")
    assert catalogue.remove(store, [image.image_id[7:15]]).images == [image.image_id]
    with pytest.raises(ImageError, match="there is no image"):
        catalogue.remove(store, ["second:1"])


def test_a_name_that_means_several(base: Path, store: Store) -> None:
    load(store, write_layout(base / "one", Image([simple_layer("1")], "localhost/app:1")))
    load(store, write_layout(base / "two", Image([simple_layer("2")], "quay.io/app:1")))
    with pytest.raises(ImageError, match="stands for 2 images"):
        catalogue.find_image(store, "app:1")
    assert catalogue.find_image(store, "localhost/app:1")


def test_reading_makes_no_store(base: Path, store: Store) -> None:
    assert succeed(pyoverlay("image", "list", "--root", store.root)).startswith(b"REPOSITORY")
    assert "there is no image 'x'" in fail(pyoverlay("image", "inspect", "--root", store.root, "x"))
    assert not store.root.exists()


# Several at once, and killed ones


def big_images(base: Path) -> list[tuple[Path, Image]]:
    """Two images with the same three layers beneath, of 400 files each."""
    shared = []
    for number in range(3):
        layer = LayerTar()
        for name in range(400):
            layer.add(f"{number}/{name}", b"%d" % name * 500)
        shared.append(layer.bytes())
    images = [Image([*shared, simple_layer(name)], f"localhost/{name}:1") for name in ("one", "two")]
    return [(write_layout(base / image.name.partition("/")[2], image), image) for image in images]


def start_load(store: Store, layout: Path) -> subprocess.Popen[str]:
    words = [*PYOVERLAY, "image", "load", "--root", str(store.root), str(layout)]
    return subprocess.Popen(
        words,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_loads_at_once_unpack_each_layer_once(base: Path, store: Store) -> None:
    images = big_images(base)
    running = [start_load(store, layout) for layout, _ in images]
    told = []
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        told += out.splitlines()
    unpacked = sorted(line.partition(":")[0] for line in told if line.endswith("Unpacked"))
    assert unpacked == sorted({layer[7:19] for _, image in images for layer in image.diff_ids})
    assert sum(line.endswith("Already exists") for line in told) == 3
    assert [checking.check_layer(store, layer) for layer in store.layers()] == [[]] * 5
    assert set(store.images()) == {image.image_id for _, image in images}


def test_a_killed_load_leaves_nothing_half_there(base: Path, store_in_memory: Store, long: bool) -> None:
    store = store_in_memory
    (layout, image), _ = big_images(base)
    chance = random.Random(7)
    started = time.monotonic()
    process = start_load(Store(store.root / "measured"), layout)
    process.communicate(timeout=120)
    takes = time.monotonic() - started
    for _ in range(50 if long else 10):
        process = start_load(store, layout)
        time.sleep(chance.uniform(0.3, 1) * takes)  # At a random moment: there is nothing to wait for.
        process.send_signal(signal.SIGKILL)
        process.communicate()
        problems = [text for layer in store.layers() for text in checking.check_layer(store, layer)]
        assert problems == []
        for image_id in store.images():
            assert image_checking.check_image(store, image_id) == []
        load(store, layout)
        assert image_checking.check_image(store, Digest(image.image_id)) == []
        assert sorted(store.layers()) == sorted(image.diff_ids)
        catalogue.prune(store, every=True)
        assert store.layers() == []
        assert not any((store.root / "unfinished").iterdir())


def test_a_killed_commit_leaves_nothing_half_there(base: Path, store_in_memory: Store, long: bool) -> None:
    store = store_in_memory
    upper = base / "upper"
    upper.mkdir()
    for number in range(400):
        (upper / f"{number}").write_bytes(b"%d" % number * 3000)
    words = [*PYOVERLAY, "commit", "--root", str(store.root), str(upper), "localhost/made:1"]
    chance = random.Random(8)
    started = time.monotonic()
    subprocess.run(words, env=environment(), check=True, capture_output=True)
    takes = time.monotonic() - started
    for _ in range(50 if long else 5):
        catalogue.prune(store, every=True)
        process = subprocess.Popen(
            words, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chance.uniform(0.3, 1) * takes)  # At a random moment: there is nothing to wait for.
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [text for layer in store.layers() for text in checking.check_layer(store, layer)] == []
        image_id = committing.commit(store, Commit(str(upper), names=["localhost/made:1"]))
        assert image_checking.check_image(store, image_id) == []
        (layer,) = inspecting.layers_of(store, image_id)
        assert checking.check_layer(store, layer) == []


def test_leftovers_go_with_prune(base: Path, store: Store) -> None:
    store.prepare()
    left = store.root / "unfinished" / ("0" * 64)
    (left / "diff/d").mkdir(parents=True)
    (store.root / ".new-images").touch()
    (store.root / "configs/sha256/.new-config").touch()
    out = succeed(pyoverlay("image", "prune", "--root", store.root))
    assert out == b"Removed what 1 unfinished loads left\n"
    assert not left.exists()
    assert not list(store.root.rglob(".new-*"))
    assert sorted(path.name for path in (store.root / "locks").iterdir()) == ["images", "store"]


def test_a_configuration_that_no_image_has_goes_with_prune(base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", Image([LAYER])))
    orphan = store.root / "configs/sha256" / ("0" * 64)
    orphan.write_text("{}")
    catalogue.prune(store)
    assert not orphan.exists()
    assert len(list(orphan.parent.iterdir())) == 1


@pytest.mark.parametrize("hurt", [True, False])
def test_after_a_restart_of_the_machine_a_layer_is_looked_at_once(
    hurt: bool, base: Path, store: Store
) -> None:
    layout = write_layout(base / "layout", Image([LAYER]))
    load(store, layout)
    layer = Digest(sha256(LAYER))
    place = store.layer_directory(layer).parent
    assert not store.is_doubtful(layer)
    (place / "boot").write_text("an earlier start")
    if hurt:
        (place / "diff/empty").unlink()
        with pytest.raises(ImageError, match="not as it was"):
            stacking.lower_directories(store, [layer])
    _, watched = load(store, layout)
    assert watched.existed == {layer: not hurt}
    assert not store.is_doubtful(layer)
    assert checking.check_layer(store, layer) == []
    assert stacking.lower_directories(store, [layer]) == [place / "diff"]


@pytest.mark.parametrize("lost", ["layer.json", "record", "diff"])
def test_a_crash_of_the_machine_that_took_away_what_is_known_of_a_layer(
    lost: str, base: Path, store: Store
) -> None:
    # A second layer without its parent makes "check" look at attributes, too.
    above = LayerTar().add("d/above").bytes()
    image = Image([LayerTar().directory("d", 0o700).bytes(), above])
    layout = write_layout(base / "layout", image)
    load(store, layout)
    layer = Digest(image.diff_ids[0])
    place = store.layer_directory(layer).parent
    (place / "boot").write_bytes(b"")
    if lost == "diff":
        shutil.rmtree(place / "diff")
    else:
        (place / lost).write_bytes(b"")
    result = pyoverlay("image", "check", "--root", store.root)
    assert (result.returncode, result.stderr) == (1, b"")
    assert f"layer {layer}: ".encode() in result.stdout
    _, watched = load(store, layout)
    assert watched.existed == {layer: False, image.diff_ids[1]: True}
    assert image_checking.check_image(store, Digest(image.image_id)) == []
    (place / "layer.json").write_bytes(b"")
    assert layer in catalogue.remove(store, [image.image_id]).layers


def test_a_store_that_can_only_be_read(base: Path, store: Store) -> None:
    load(store, write_layout(base / "layout", Image([LAYER])))
    (store.layer_directory(Digest(sha256(LAYER))).parent / "boot").write_text("an earlier start")
    subprocess.run(["mount", "--bind", store.root, store.root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", store.root], check=True)
        for words in (["lowers", "made:1"], ["check"], ["save", "made:1", f"{base}/saved.tar"]):
            succeed(pyoverlay("image", words[0], "--root", store.root, *words[1:]))
        line = fail(pyoverlay("image", "prune", "--root", store.root))
        assert line.endswith("Read-only file system\n")
    finally:
        subprocess.run(["umount", store.root], check=True)
    load(Store(base / "other"), base / "saved.tar")


@pytest.mark.parametrize("mode", [None, 0o755])
def test_no_other_user_reaches_a_set_user_id_program(mode: int | None, base: Path, store: Store) -> None:
    if mode is not None:
        store.root.mkdir()
        store.root.chmod(mode)
    layer = LayerTar().add("su", b"program", mode=0o4755).bytes()
    load(store, write_layout(base / "layout", Image([layer])))
    program = store.layer_directory(Digest(sha256(layer))) / "su"
    assert program.stat().st_mode & 0o7777 == 0o4755
    with pytest.raises(PermissionError):
        run_as(1000, program.read_bytes)


def test_a_store_that_can_not_be_written(base: Path) -> None:
    layout = write_layout(base / "layout", Image([LAYER]))
    (base / "file").touch()
    line = fail(pyoverlay("image", "load", "--root", base / "file", layout))
    assert "the store can't be made here" in line
    shutil.rmtree(layout)
