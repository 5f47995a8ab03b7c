"""Are layers that the kernel wrote with redirect_dir, metacopy, index and xino read as the kernel reads them?

A kernel mount with such options changes a tree; its upper is then mounted without them, as an upper and as a
lower. Redirects are followed; a file whose data is elsewhere is refused, never served as zeros.
"""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import (
    Entry,
    Kind,
    Mount,
    MountFactory,
    MountRefusedError,
    Stack,
    fails_with,
    snapshot,
)
from tests.harness.content import attribute, make_directory, make_file, make_symlink, names
from tests.harness.libc import RENAME_EXCHANGE, renameat2

OPTIONS = {
    "redirect_dir": ("redirect_dir=on",),
    "index": ("index=on",),
    "xino": ("xino=on",),
    "all but metacopy": ("redirect_dir=on", "index=on", "xino=on"),
    "metacopy": ("metacopy=on", "redirect_dir=on"),
    "all": ("redirect_dir=on", "metacopy=on", "index=on", "xino=on"),
}
WITH_METACOPY = ("metacopy", "all")
METACOPY = "trusted.overlay.metacopy"
REDIRECT = "trusted.overlay.redirect"


def _plant(lower: Path) -> None:
    for directory in ("d", "d/sub", "d/sub/deep", "e", "e/inner", "emptied"):
        for name in ("one", "two", "three"):
            make_file(lower / directory / name, f"{directory}/{name}, from the lower")
    make_file(lower / "big", bytes(range(1, 256)) * 1000)
    make_symlink(lower / "d" / "link", "sub/one")
    make_file(lower / "links" / "a", "linked")
    for name in ("b", "c"):
        os.link(lower / "links" / "a", lower / "links" / name)
    for name in ("chmod", "chown", "attribute", "times", "moved", "written"):
        make_file(lower / "meta" / name, f"{name}, data that must not turn into zeros")
    make_file(lower / "meta" / "untouched", "untouched")


def _rename(source: Path, target: Path) -> None:
    """As mv does it: by copying and removing where the kernel refuses to rename."""
    subprocess.run(["mv", "-T", source, target], check=True)


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _use(root: Path) -> None:
    """Work on the tree in a way that makes the kernel write each mark that it has."""
    (root / "e" / "inner" / "one").write_text("written before the rename")
    _rename(root / "d" / "sub", root / "d" / "sub renamed")
    _rename(root / "d" / "sub renamed" / "deep", root / "e" / "deep moved")
    _rename(root / "e", root / "e moved")
    _rename(root / "e moved" / "inner", root / "inner at the top")
    make_file(root / "e" / "one", "a new directory of the old name")
    (root / "d" / "sub renamed" / "one").unlink()
    (root / "e moved" / "deep moved" / "added").write_text("added")
    shutil.rmtree(root / "emptied")
    make_file(root / "emptied" / "new", "new")
    _append(root / "links" / "a", " and appended")
    (root / "links" / "b").unlink()
    os.link(root / "links" / "c", root / "links" / "later")
    (root / "meta" / "chmod").chmod(0o600)
    os.chown(root / "meta" / "chown", 1000, 1001)
    os.setxattr(root / "meta" / "attribute", "user.note", b"set")
    os.utime(root / "meta" / "times", ns=(5, 6))
    (root / "meta" / "moved").rename(root / "d" / "moved here")
    (root / "d" / "moved here").chmod(0o640)
    (root / "meta" / "written").chmod(0o600)
    _append(root / "meta" / "written", ", written")
    (root / "big").chmod(0o600)


@pytest.fixture(params=OPTIONS)
def written(request: pytest.FixtureRequest, stack: Stack) -> tuple[Stack, str]:
    """A stack whose upper the kernel wrote, and with which options."""
    _plant(stack.lower)
    with Mount(Kind.KERNEL, stack, *OPTIONS[request.param]) as mount:
        _use(mount.path)
    marks = _marks(stack.upper)
    assert ("redirect" in marks) == ("redirect_dir=on" in OPTIONS[request.param])
    assert ("metacopy" in marks) == (request.param in WITH_METACOPY)
    assert ("nlink" in marks) == ("index=on" in OPTIONS[request.param])
    return stack, request.param


def _marks(layer: Path) -> set[str]:
    return {
        os.fsdecode(name).removeprefix("trusted.overlay.")
        for entry in snapshot(layer).values()
        for name, _ in entry.xattrs
    }


def _shown(stack: Stack, options: tuple[str, ...]) -> dict[bytes, Entry]:
    """The tree as the kernel shows it with the options with which it was written."""
    with Mount(Kind.KERNEL, stack, *options) as mount:
        return snapshot(mount.path)


def _as_lower(stack: Stack) -> Stack:
    """The written upper as the topmost lower below a fresh upper."""
    upper, work = (make_directory(stack.base / name) for name in ("fresh-upper", "fresh-work"))
    return Stack(stack.base, [stack.upper, *stack.lowers], upper, work, stack.merged)


def _place(written: tuple[Stack, str], layer: str) -> tuple[Stack, dict[bytes, Entry], str]:
    """The stack with what was written as `layer`, the tree that it has to show, the name of the options."""
    stack, name = written
    if layer == "lower":
        stack = _as_lower(stack)
    options = tuple(option for option in OPTIONS[name] if layer == "upper" or option != "index=on")
    probe = stack
    if layer == "lower":  # the oracle gets an upper of its own: what it mounts with these options isn't fresh
        upper, work = (make_directory(stack.base / f"oracle-{part}") for part in ("upper", "work"))
        probe = Stack(stack.base, stack.lowers, upper, work, stack.merged)
    return stack, _shown(probe, options), name


def _without_root_and_links(tree: dict[bytes, Entry], index: bool) -> dict[bytes, object]:
    # Without its index the kernel counts an indexed file's links as the upper does, the index's own included.
    return {
        path: (entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime, entry.target)
        + ((entry.xattrs, entry.digest) if index else (entry.xattrs, entry.digest, entry.nlink))
        for path, entry in tree.items()
        if path != b"."
    }


@pytest.mark.parametrize("layer", ["upper", "lower"])
@pytest.mark.parametrize("written", [name for name in OPTIONS if name not in WITH_METACOPY], indirect=True)
def test_same_tree(written: tuple[Stack, str], mount_overlay: MountFactory, layer: str) -> None:
    stack, expected, name = _place(written, layer)
    index = "index=on" in OPTIONS[name]
    mount = mount_overlay(stack=stack)
    for _ in range(2):
        assert _without_root_and_links(snapshot(mount.path), index) == _without_root_and_links(
            expected, index
        )
        mount.remount()


@pytest.mark.parametrize("layer", ["upper", "lower"])
@pytest.mark.parametrize("written", WITH_METACOPY, indirect=True)
def test_same_tree_but_for_refused_files(
    written: tuple[Stack, str], mount_overlay: MountFactory, layer: str
) -> None:
    """A file that has metadata only is EPERM in every call; all others have their data."""
    stack, expected, _ = _place(written, layer)
    holder = stack.upper if layer == "upper" else stack.lowers[0]
    merged = mount_overlay(stack=stack).path
    refused = set()
    for path, entry in expected.items():
        place = Path(os.fsdecode(os.path.join(bytes(merged), path)))
        if entry.digest is None:
            assert place.lstat().st_mode == entry.kind | entry.mode or path == b"."
            continue
        on_disk = holder / os.fsdecode(path)
        if os.path.lexists(on_disk) and attribute(on_disk, METACOPY) is not None:
            for call in (os.stat, Path.read_bytes, lambda file: os.truncate(file, 3), os.unlink):
                with fails_with(errno.EPERM):
                    call(place)
            refused.add(os.fsdecode(path))
            continue
        assert place.stat().st_size == entry.size
        assert b"\0" not in place.read_bytes()
    assert refused >= {"meta/chmod", "meta/chown", "meta/attribute", "meta/times", "d/moved here", "big"}
    assert "meta/written" not in refused
    assert (merged / "meta" / "written").read_text().endswith("zeros, written")
    with fails_with(errno.EPERM):
        shutil.rmtree(merged / "meta")
    assert (merged / "d" / "sub renamed" / "two").read_text() == "d/sub/two, from the lower"


@pytest.mark.parametrize("layer", ["upper", "lower"])
@pytest.mark.parametrize("written", ["redirect_dir", "all but metacopy"], indirect=True)
def test_changes_go_on_where_the_kernel_stopped(
    written: tuple[Stack, str], mount_overlay: MountFactory, layer: str
) -> None:
    stack, _, name = _place(written, layer)
    mount = mount_overlay(stack=stack)
    root = mount.path
    (root / "inner at the top" / "two").write_text("changed")
    (root / "d" / "sub renamed" / "two").rename(root / "e moved" / "two moved")
    (root / "e moved" / "deep moved" / "one").unlink()
    (root / "e moved" / "deep moved").chmod(0o700)
    shutil.rmtree(root / "d")
    make_file(root / "d" / "sub" / "one", "new")
    with fails_with(errno.EXDEV):
        (root / "e moved").rename(root / "elsewhere")
    with fails_with(errno.EXDEV):
        renameat2(root / "e moved", root / "e", RENAME_EXCHANGE)
    expected = snapshot(root)
    assert names(root / "e moved" / "deep moved") == ["added", "three", "two"]
    assert names(root / "d" / "sub") == ["one"]
    for kind in (*Kind, Kind.KERNEL):
        mount.unmount()
        mount = mount_overlay(stack=stack, kind=kind)
        assert snapshot(mount.path) == expected
    mount.unmount()
    options = OPTIONS[name] if layer == "upper" else ("redirect_dir=on", "xino=on")
    index = "index=on" in options
    with Mount(Kind.KERNEL, stack, *options) as again:
        assert _without_root_and_links(snapshot(again.path), index) == _without_root_and_links(
            expected, index
        )


def test_redirects_written_over_redirects(stack: Stack, mount_overlay: MountFactory) -> None:
    """Three generations, each the lower of the next, in which the same directories move on."""
    _plant(stack.lower)
    lowers = list(stack.lowers)
    moves = [
        (("d", "d 1"), ("e/inner", "d 1/inner")),
        (("d 1", "d 2"), ("d 2/inner", "inner"), ("d 2/sub/deep", "d 2/deep")),
        (("d 2", "e/d 3"), ("e/d 3/deep", "e/d 3/sub/deep again"), ("inner", "d")),
    ]
    for number, renames in enumerate(moves):
        layer, work = (make_directory(stack.base / f"{name}{number}") for name in ("g", "gw"))
        generation = Stack(stack.base, lowers, layer, work, stack.merged)
        with Mount(Kind.KERNEL, generation, "redirect_dir=on") as mount:
            for source, target in renames:
                (mount.path / source).rename(mount.path / target)
            make_file(mount.path / "e" / f"made by {number}", str(number))
        lowers = [layer, *lowers]
    merged = mount_overlay(stack=Stack(stack.base, lowers, stack.upper, stack.work, stack.merged)).path
    assert names(merged) == ["big", "d", "e", "emptied", "links", "meta"]
    assert names(merged / "e") == ["d 3", "made by 0", "made by 1", "made by 2", "one", "three", "two"]
    assert names(merged / "d") == ["one", "three", "two"]
    assert (merged / "d" / "one").read_text() == "e/inner/one, from the lower"
    assert names(merged / "e" / "d 3") == ["link", "one", "sub", "three", "two"]
    assert (merged / "e/d 3/sub/deep again/two").read_text() == "d/sub/deep/two, from the lower"
    assert (merged / "e/d 3/link").read_text() == "d/sub/one, from the lower"


@pytest.mark.parametrize("writer", list(Kind), ids=lambda kind: f"written by {kind.value}")
@pytest.mark.parametrize("option", ["volatile", "fsync=volatile"])
def test_volatile_mark_of_the_other(
    stack: Stack, mount_overlay: MountFactory, writer: Kind, option: str
) -> None:
    """Such an upper is refused, with volatile too, until its mark is removed; as a lower it is a layer."""
    make_file(stack.lower / "file", "from the lower")
    try:
        with Mount(writer, stack, option) as mount:
            (mount.path / "file").write_text("perhaps on disk")
            os.sync()
    except MountRefusedError:
        assert (writer, option) == (Kind.KERNEL, "fsync=volatile"), "older kernels know `volatile` only"
        pytest.skip("this kernel has no fsync=")
    assert names(stack.work / "work" / "incompat" / "volatile") == ["dirty"]
    for options in ((), (option,)):
        with pytest.raises(MountRefusedError):
            mount_overlay(*options)
    merged = mount_overlay(stack=_as_lower(stack)).path
    assert (merged / "file").read_text() == "perhaps on disk"
    shutil.rmtree(stack.work / "work" / "incompat")
    again = Stack(stack.base, stack.lowers, stack.upper, stack.work, make_directory(stack.base / "again"))
    assert (mount_overlay(stack=again).path / "file").read_text() == "perhaps on disk"


@pytest.mark.lowers(3)
def test_paths_of_redirects_change_on_the_way_down(stack: Stack, mount_overlay: MountFactory) -> None:
    """Directories on the way to a target are renamed, opaque, or lead back to the root themselves."""
    top, middle, bottom = stack.lowers
    for directory in ("first/inner", "second/inner", "third/inner"):
        make_file(bottom / directory / "below", directory)
    for way, target in (("renamed", b"first"), ("rooted", b"/second"), ("opaque", None)):
        made = make_directory(middle / way)
        if target is None:
            os.setxattr(made, "trusted.overlay.opaque", b"y")
        else:
            os.setxattr(made, REDIRECT, target)
    make_file(middle / "opaque" / "inner" / "own", "of the opaque directory")
    make_directory(middle / "opaque" / "away")
    os.setxattr(middle / "opaque" / "away", REDIRECT, b"/third/inner")
    make_file(bottom / "opaque" / "inner" / "hidden", "below the opaque directory")
    for name, redirect in (
        ("a", b"/renamed/inner"),
        ("b", b"/rooted/inner"),
        ("c", b"/opaque/inner"),
        ("d", b"/opaque/away"),
        ("e", b"/opaque/missing"),
    ):
        os.setxattr(make_directory(top / name), REDIRECT, redirect)
    merged = mount_overlay().path
    assert (merged / "a" / "below").read_text() == "first/inner"
    assert (merged / "b" / "below").read_text() == "second/inner"
    assert names(merged / "c") == ["own"]
    assert (merged / "d" / "below").read_text() == "third/inner"
    assert names(merged / "e") == []
