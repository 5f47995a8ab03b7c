"""Does find_changes follow docker diff's rule on raw layers, whatever marks they are written in?"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.layers.changes import Change, ChangeKind, find_changes
from pyoverlay.options import OverlayError

Layers = tuple[Path, Path, Path]
Whiteout = Callable[[Path], None]

LONG_AGO = 1_000_000_000 * 10**9


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    """(upper, higher lower, lower lower)."""
    directories = (tmp_path / "upper", tmp_path / "l1", tmp_path / "l2")
    for directory in directories:
        directory.mkdir()
    return directories


def changes(upper: Path, *lowers: Path) -> list[str]:
    return [str(change) for change in find_changes(str(upper), [str(lower) for lower in lowers])]


def by_marks(upper: Path) -> list[str]:
    return [str(change) for change in find_changes(str(upper), None)]


def write(path: Path, text: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def set_old(*paths: Path) -> None:
    """Give all the same modification time, as copy-up does to directories."""
    for path in paths:
        os.utime(path, ns=(LONG_AGO, LONG_AGO))


def device_whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def aufs_whiteout(path: Path) -> None:
    (path.parent / f".wh.{path.name}").touch()


def trusted_whiteout(path: Path) -> None:
    path.touch()
    os.setxattr(path, "trusted.overlay.whiteout", b"")


def user_whiteout(path: Path) -> None:
    path.touch()
    os.setxattr(path, "user.overlay.whiteout", b"y")


WHITEOUTS = [device_whiteout, aufs_whiteout, trusted_whiteout, user_whiteout]


def trusted_opaque(path: Path) -> None:
    os.setxattr(path, "trusted.overlay.opaque", b"y")


def user_opaque(path: Path) -> None:
    os.setxattr(path, "user.overlay.opaque", b"y")


def fuse_overlayfs_opaque(path: Path) -> None:
    os.setxattr(path, "user.fuseoverlayfs.opaque", b"y")


def aufs_opaque(path: Path) -> None:
    (path / ".wh..wh..opq").touch()


OPAQUES = [trusted_opaque, user_opaque, fuse_overlayfs_opaque, aufs_opaque]


def test_an_empty_upper_changes_nothing(layers: Layers) -> None:
    upper, *lowers = layers
    write(lowers[0] / "file")
    assert changes(upper, *lowers) == []
    assert by_marks(upper) == []


def test_a_name_that_no_lower_has_is_added(layers: Layers) -> None:
    upper, *lowers = layers
    write(lowers[0] / "other")
    write(upper / "file")
    write(upper / "directory" / "inner")
    assert changes(upper, *lowers) == ["A /directory", "A /directory/inner", "A /file"]


@pytest.mark.parametrize("holder", [0, 1])
def test_a_name_that_a_lower_has_is_changed(layers: Layers, holder: int) -> None:
    upper, *lowers = layers
    write(lowers[holder] / "file")
    write(upper / "file")
    assert changes(upper, *lowers) == ["C /file"]


@pytest.mark.parametrize("whiteout", WHITEOUTS)
def test_a_whiteout_of_a_lower_name_is_a_deletion(layers: Layers, whiteout: Whiteout) -> None:
    upper, *lowers = layers
    write(lowers[1] / "file")
    whiteout(upper / "file")
    assert changes(upper, *lowers) == ["D /file"]


@pytest.mark.parametrize("whiteout", WHITEOUTS)
def test_a_deleted_directory_is_one_line(layers: Layers, whiteout: Whiteout) -> None:
    upper, *lowers = layers
    write(lowers[0] / "directory" / "sub" / "file")
    whiteout(upper / "directory")
    assert changes(upper, *lowers) == ["D /directory"]


@pytest.mark.parametrize("whiteout", WHITEOUTS)
def test_a_whiteout_that_hides_nothing_is_no_change(layers: Layers, whiteout: Whiteout) -> None:
    upper, *lowers = layers
    whiteout(upper / "file")
    assert changes(upper, *lowers) == []


@pytest.mark.parametrize("whiteout", WHITEOUTS)
def test_what_a_lower_hides_from_another_counts_as_absent(layers: Layers, whiteout: Whiteout) -> None:
    upper, *lowers = layers
    write(lowers[1] / "file")
    write(lowers[1] / "directory" / "inner")
    whiteout(lowers[0] / "file")
    whiteout(lowers[0] / "directory")
    write(upper / "file")
    write(upper / "directory" / "inner")
    assert changes(upper, *lowers) == ["A /directory", "A /directory/inner", "A /file"]


@pytest.mark.parametrize("opaque", OPAQUES)
def test_what_an_opaque_lower_directory_hides_counts_as_absent(layers: Layers, opaque: Whiteout) -> None:
    upper, *lowers = layers
    write(lowers[1] / "directory" / "hidden")
    write(lowers[0] / "directory" / "shown")
    opaque(lowers[0] / "directory")
    write(upper / "directory" / "hidden")
    write(upper / "directory" / "shown")
    set_old(upper / "directory", lowers[0] / "directory")
    assert changes(upper, *lowers) == ["C /directory", "A /directory/hidden", "C /directory/shown"]


def test_a_lower_file_hides_directories_below_it(layers: Layers) -> None:
    upper, *lowers = layers
    write(lowers[1] / "name" / "inner")
    write(lowers[0] / "name")
    write(upper / "name" / "inner")
    assert changes(upper, *lowers) == ["C /name", "A /name/inner"]


@pytest.mark.parametrize("kind", ["A", "C", "D"])
def test_every_parent_of_a_change_is_changed(layers: Layers, kind: str) -> None:
    upper, *lowers = layers
    write(lowers[0] / "a" / "b" / "old")
    (upper / "a" / "b").mkdir(parents=True)
    if kind == "A":
        write(upper / "a" / "b" / "new")
    elif kind == "C":
        write(upper / "a" / "b" / "old")
    else:
        device_whiteout(upper / "a" / "b" / "old")
    for name in ("a/b", "a"):
        set_old(upper / name, lowers[0] / name)
    last = "new" if kind == "A" else "old"
    assert changes(upper, *lowers) == ["C /a", "C /a/b", f"{kind} /a/b/{last}"]


def test_a_directory_that_was_only_copied_up_is_no_change(layers: Layers) -> None:
    upper, *lowers = layers
    write(lowers[0] / "a" / "b" / "file")
    (upper / "a" / "b").mkdir(parents=True)
    for name in ("a/b", "a"):
        os.setxattr(upper / name, "trusted.overlay.origin", b"")
        set_old(upper / name, lowers[0] / name)
    assert changes(upper, *lowers) == []


@pytest.mark.parametrize("what", ["mode", "owner", "group", "time", "attribute"])
def test_a_directory_with_other_attributes_is_changed(layers: Layers, what: str) -> None:
    upper, *lowers = layers
    (lowers[0] / "directory").mkdir()
    directory = upper / "directory"
    directory.mkdir()
    set_old(directory, lowers[0] / "directory")
    assert changes(upper, *lowers) == []
    if what == "mode":
        directory.chmod(0o700)
    elif what == "owner":
        os.chown(directory, 1, -1)
    elif what == "group":
        os.chown(directory, -1, 1)
    elif what == "time":
        os.utime(directory, ns=(LONG_AGO, LONG_AGO + 10**9))
    else:
        os.setxattr(directory, "trusted.note", b"changed")
    assert changes(upper, *lowers) == ["C /directory"]


def test_a_time_without_nanoseconds_equals_one_with(layers: Layers) -> None:
    upper, *lowers = layers
    (lowers[0] / "directory").mkdir()
    (upper / "directory").mkdir()
    os.utime(lowers[0] / "directory", ns=(LONG_AGO, LONG_AGO))
    os.utime(upper / "directory", ns=(LONG_AGO, LONG_AGO + 7))
    assert changes(upper, *lowers) == []


@pytest.mark.parametrize("opaque", OPAQUES)
def test_an_opaque_directory_is_compared_with_what_it_hides(layers: Layers, opaque: Whiteout) -> None:
    upper, *lowers = layers
    write(lowers[0] / "directory" / "replaced")
    write(lowers[0] / "directory" / "gone")
    write(lowers[1] / "directory" / "gone-too" / "inner")
    write(upper / "directory" / "replaced")
    write(upper / "directory" / "new")
    opaque(upper / "directory")
    assert changes(upper, *lowers) == [
        "C /directory",
        "D /directory/gone",
        "D /directory/gone-too",
        "A /directory/new",
        "C /directory/replaced",
    ]


def test_opaqueness_goes_on_below(layers: Layers) -> None:
    upper, *lowers = layers
    write(lowers[0] / "a" / "b" / "old")
    write(upper / "a" / "b" / "new")
    trusted_opaque(upper / "a")
    set_old(upper / "a/b", lowers[0] / "a/b")
    assert changes(upper, *lowers) == ["C /a", "C /a/b", "A /a/b/new", "D /a/b/old"]


def test_a_file_in_place_of_a_directory_and_the_reverse(layers: Layers) -> None:
    upper, *lowers = layers
    write(lowers[0] / "was-directory" / "inner")
    write(lowers[0] / "was-file")
    write(upper / "was-directory")
    write(upper / "was-file" / "inner")
    assert changes(upper, *lowers) == ["C /was-directory", "C /was-file", "A /was-file/inner"]


@pytest.mark.parametrize("absolute", [True, False])
def test_a_renamed_lower_directory_is_added_with_all_it_holds(layers: Layers, absolute: bool) -> None:
    upper, *lowers = layers
    write(lowers[0] / "old" / "kept" / "file")
    write(lowers[1] / "old" / "deleted")
    (upper / "new").mkdir()
    device_whiteout(upper / "new" / "deleted")
    device_whiteout(upper / "old")
    os.setxattr(upper / "new", "trusted.overlay.redirect", b"/old" if absolute else b"old")
    assert changes(upper, *lowers) == ["A /new", "A /new/kept", "A /new/kept/file", "D /old"]


def test_a_redirect_that_makes_no_sense_is_an_error(layers: Layers) -> None:
    upper, *lowers = layers
    (upper / "directory").mkdir()
    os.setxattr(upper / "directory", "trusted.overlay.redirect", b"a/b")
    with pytest.raises(OverlayError, match="redirect"):
        changes(upper, *lowers)


def test_symlinks_in_layers_are_not_followed(layers: Layers, tmp_path: Path) -> None:
    upper, *lowers = layers
    write(tmp_path / "outside" / "inner")
    (lowers[0] / "link").symlink_to(tmp_path / "outside")
    (upper / "link").symlink_to(tmp_path / "outside")
    (upper / "new").symlink_to("nowhere")
    assert changes(upper, *lowers) == ["C /link", "A /new"]


def test_marks_are_not_listed(layers: Layers) -> None:
    upper, *lowers = layers
    for name in (".wh..wh..opq", ".wh..wh.plnk", ".wh..wh.orph", ".wh."):
        (upper / name).touch()
    assert changes(upper, *lowers) == []
    assert by_marks(upper) == []


def test_the_order_is_that_of_bytes(layers: Layers) -> None:
    upper, *lowers = layers
    for name in (b"b", b"a\n", b"a", b"a-b", b"\xff", "é".encode()):
        Path(os.fsdecode(bytes(upper) + b"/" + name)).touch()
    write(upper / "a.d" / "x")
    found = find_changes(str(upper), [str(lower) for lower in lowers])
    expected = [b"a", b"a\n", b"a-b", b"a.d", b"a.d/x", b"b", "é".encode(), b"\xff"]
    assert found == [Change(ChangeKind.ADDED, os.fsdecode(b"/" + name)) for name in expected]


def test_a_path_longer_than_path_max(layers: Layers) -> None:
    upper, *lowers = layers
    depth = 40
    directory = os.open(upper, os.O_PATH)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=directory)
        inner = os.open("d" * 200, os.O_PATH, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)
    found = find_changes(str(upper), [str(lower) for lower in lowers])
    assert len(found) == depth
    assert found[-1].path == ("/" + "d" * 200) * depth


def test_without_lowers_the_marks_decide(layers: Layers) -> None:
    upper, *_ = layers
    write(upper / "copied-up")
    os.setxattr(upper / "copied-up", "trusted.overlay.origin", b"")
    write(upper / "new" / "copied-up-and-moved")
    os.setxattr(upper / "new" / "copied-up-and-moved", "trusted.overlay.origin", b"")
    write(upper / "merged" / "new")
    os.setxattr(upper / "merged", "user.overlay.origin", b"")
    device_whiteout(upper / "merged" / "gone")
    write(upper / "replaced" / "new")
    trusted_opaque(upper / "replaced")
    aufs_whiteout(upper / "gone")
    assert by_marks(upper) == [
        "C /copied-up",
        "D /gone",
        "C /merged",
        "D /merged/gone",
        "A /merged/new",
        "A /new",
        "A /new/copied-up-and-moved",
        "C /replaced",
        "A /replaced/new",
    ]


def test_a_layer_that_is_no_directory_is_an_error(layers: Layers, tmp_path: Path) -> None:
    upper, *lowers = layers
    write(tmp_path / "file")
    for wrong in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(OverlayError, match=str(wrong)):
            changes(wrong, *lowers)
        with pytest.raises(OverlayError, match=str(wrong)):
            changes(upper, wrong)
