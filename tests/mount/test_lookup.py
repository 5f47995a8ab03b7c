"""Which layer's object does a name show? Layers' order, whiteouts, opaque directories, types."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, make_stack, snapshot
from tests.harness.content import (
    make_directory,
    make_file,
    make_opaque,
    make_symlink,
    make_whiteout,
    make_xattr_whiteout,
    names,
)


@pytest.mark.lowers(3)
def test_topmost_layer_that_has_a_name_wins(stack: Stack, mount_overlay: MountFactory) -> None:
    layers = [stack.upper, *stack.lowers]
    for depth in range(4):
        for layer in layers[depth:]:
            make_file(layer / f"file{depth}", f"from {layer.name}")
            make_file(layer / "directory" / f"file{depth}", f"inner from {layer.name}")
    merged = mount_overlay().path
    for depth in range(4):
        assert (merged / f"file{depth}").read_text() == f"from {layers[depth].name}"
        assert (merged / "directory" / f"file{depth}").read_text() == f"inner from {layers[depth].name}"


@pytest.mark.lowers(3)
def test_merged_directory_shows_the_attributes_of_its_topmost_layer(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_directory(stack.lowers[2] / "d", 0o755)
    make_directory(stack.lowers[1] / "d", 0o2710)
    os.chown(stack.lowers[1] / "d", 1000, 1001)
    os.chmod(stack.lowers[1] / "d", 0o2710)
    os.setxattr(stack.lowers[1] / "d", "user.from", b"l2")
    os.setxattr(stack.lowers[2] / "d", "user.other", b"l3")
    os.utime(stack.lowers[1] / "d", ns=(10**18, 10**18 + 7))
    merged = mount_overlay().path
    status = (merged / "d").stat()
    assert stat.S_IMODE(status.st_mode) == 0o2710
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (1000, 1001, 10**18 + 7)
    assert os.listxattr(merged / "d") == ["user.from"]


@pytest.mark.lowers(3)
def test_whiteout_hides_a_name_in_the_layers_below_it(stack: Stack, mount_overlay: MountFactory) -> None:
    for name in ("by_upper", "by_middle", "shown_again"):
        make_file(stack.lowers[2] / name, "lowest")
        make_file(stack.lowers[2] / "tree" / name / "deep", "lowest")
    make_whiteout(stack.upper / "by_upper")
    make_whiteout(stack.upper / "tree" / "by_upper")
    make_whiteout(stack.lowers[1] / "by_middle")
    make_whiteout(stack.lowers[1] / "tree" / "by_middle")
    make_whiteout(stack.lowers[1] / "shown_again")
    make_file(stack.lowers[0] / "shown_again", "top")
    merged = mount_overlay().path
    assert names(merged) == ["shown_again", "tree"]
    assert names(merged / "tree") == ["shown_again"]
    assert (merged / "shown_again").read_text() == "top"
    for hidden in ("by_upper", "by_middle", "tree/by_upper", "tree/by_middle", "tree/by_upper/deep"):
        with fails_with(errno.ENOENT):
            os.lstat(merged / hidden)


def test_whiteout_over_nothing_and_in_the_lowest_layer_shows_nothing(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_whiteout(stack.lower / "a")
    make_whiteout(stack.lower / "d" / "b")
    make_file(stack.lower / "d" / "c")
    make_whiteout(stack.upper / "e")
    merged = mount_overlay().path
    make_file(merged / "d" / "merges")
    assert names(merged) == ["d"]
    assert names(merged / "d") == ["c", "merges"]
    for hidden in ("a", "d/b", "e"):
        assert not os.path.lexists(merged / hidden)


def test_whiteout_is_one_whatever_its_mode_and_another_character_device_is_none(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "hidden")
    os.mknod(stack.upper / "hidden", stat.S_IFCHR | 0o644, os.makedev(0, 0))
    os.mknod(stack.upper / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(stack.upper / "block", stat.S_IFBLK | 0o600, os.makedev(0, 0))
    merged = mount_overlay().path
    assert names(merged) == ["block", "device"]
    assert (merged / "device").stat().st_rdev == os.makedev(1, 3)


@pytest.mark.lowers(2)
def test_whiteout_of_a_directory_and_a_directory_above_it(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "d" / "old")
    make_whiteout(stack.lowers[0] / "d")
    make_file(stack.upper / "d" / "new")
    merged = mount_overlay().path
    assert names(merged / "d") == ["new"]
    assert not (merged / "d" / "old").exists()


@pytest.mark.lowers(3)
def test_opaque_directory_hides_what_lies_below_it(stack: Stack, mount_overlay: MountFactory) -> None:
    for number, layer in enumerate(stack.lowers, 1):
        make_file(layer / "d" / f"from{number}")
        make_file(layer / "d" / "sub" / f"from{number}")
        make_file(layer / "sibling" / f"from{number}")
    make_opaque(stack.lowers[1] / "d")
    make_opaque(stack.upper / "u")
    make_file(stack.lowers[2] / "u" / "hidden")
    merged = mount_overlay().path
    assert names(merged / "d") == ["from1", "from2", "sub"]
    assert names(merged / "d" / "sub") == ["from1", "from2"]
    assert names(merged / "sibling") == ["from1", "from2", "from3"]
    assert names(merged / "u") == []
    with fails_with(errno.ENOENT):
        os.stat(merged / "d" / "from3")
    with fails_with(errno.ENOENT):
        os.stat(merged / "d" / "sub" / "from3")
    with fails_with(errno.ENOENT):
        os.stat(merged / "u" / "hidden")


@pytest.mark.lowers(2)
def test_opaque_directory_below_a_merged_one(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "a" / "b" / "c" / "old")
    make_opaque(stack.lowers[0] / "a" / "b")
    make_file(stack.upper / "a" / "b" / "c" / "new")
    merged = mount_overlay().path
    assert names(merged / "a" / "b" / "c") == ["new"]


@pytest.mark.lowers(2)
def test_file_over_directory(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "x" / "inner")
    make_file(stack.lowers[0] / "x", "a file")
    make_file(stack.lowers[0] / "y" / "inner")
    make_symlink(stack.upper / "y", "x")
    merged = mount_overlay().path
    assert (merged / "x").read_text() == "a file"
    assert os.readlink(merged / "y") == "x"
    with fails_with(errno.ENOTDIR):
        os.stat(merged / "x" / "inner")
    with fails_with(errno.ENOTDIR):
        os.stat(merged / "y" / "inner")


@pytest.mark.lowers(3)
def test_directory_over_file_ends_the_merge(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[2] / "x" / "unreachable")
    make_file(stack.lowers[1] / "x", "a file")
    make_file(stack.lowers[0] / "x" / "inner")
    merged = mount_overlay().path
    assert names(merged / "x") == ["inner"]
    with fails_with(errno.ENOENT):
        os.stat(merged / "x" / "unreachable")


@pytest.mark.lowers(2)
def test_every_type_of_object_is_found_in_a_lower(stack: Stack, mount_overlay: MountFactory) -> None:
    lower = stack.lowers[1]
    make_file(lower / "file", "content", 0o4711)
    make_symlink(lower / "link", "/nowhere/at all")
    os.mkfifo(lower / "fifo", 0o640)
    os.mknod(lower / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(lower / "char", stat.S_IFCHR | 0o622, os.makedev(1, 5))
    os.mknod(lower / "block", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    make_directory(lower / "directory", 0o1777)
    expected = snapshot(lower)
    merged = mount_overlay().path
    seen = snapshot(merged)
    del expected[b"."], seen[b"."]
    assert seen == expected


@pytest.mark.lowers(2)
def test_xattr_whiteouts_hide_names_in_a_directory_marked_x(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    for name in ("hidden", "shown"):
        make_file(stack.lowers[1] / "d" / name, "below")
    make_xattr_whiteout(stack.lowers[0] / "d" / "hidden")
    make_file(stack.lowers[0] / "d" / "empty")
    merged = mount_overlay().path
    assert names(merged / "d") == ["empty", "shown"]
    assert not (merged / "d" / "hidden").exists()
    (merged / "d" / "hidden").write_text("new")
    assert names(merged / "d") == ["empty", "hidden", "shown"]
    assert (merged / "d" / "hidden").read_text() == "new"


@pytest.mark.lowers(2)
def test_directory_marked_x_still_merges(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "d" / "sub" / "below")
    make_file(stack.lowers[0] / "d" / "sub" / "above")
    os.setxattr(stack.lowers[0] / "d", "trusted.overlay.opaque", b"x")
    merged = mount_overlay().path
    assert names(merged / "d") == ["sub"]
    assert names(merged / "d" / "sub") == ["above", "below"]


@pytest.mark.lowers(2)
def test_marks_in_the_user_namespace_count_with_userxattr(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "d" / "below")
    make_file(stack.lowers[0] / "d" / "above")
    os.setxattr(stack.lowers[0] / "d", "user.overlay.opaque", b"y")
    mount = mount_overlay("userxattr")
    assert names(mount.path / "d") == ["above"]
    (mount.path / "d" / "above").unlink()
    (mount.path / "d").rmdir()
    (mount.path / "d").mkdir()
    assert os.getxattr(stack.upper / "d", "user.overlay.opaque") == b"y"
    mount.remount()
    assert names(mount.path / "d") == []
    assert "user.overlay.opaque" not in os.listxattr(mount.path / "d")


def test_many_lowers(base: Path, mount_overlay: MountFactory) -> None:
    count = 200
    stack = make_stack(base / "many", lowers=count)
    for number, layer in enumerate(stack.lowers):
        make_file(layer / f"only{number}", str(number))
        make_file(layer / "shared", str(number))
        make_file(layer / "d" / f"only{number}", str(number))
    lowerdir = ":".join(layer.name for layer in stack.lowers)
    merged = mount_overlay(f"lowerdir={lowerdir}", stack=stack, cwd=stack.base).path
    assert (merged / "shared").read_text() == "0"
    assert len(names(merged)) == count + 2
    assert names(merged / "d") == sorted(f"only{number}" for number in range(count))
    for number in (0, 1, 77, count - 1):
        assert (merged / "d" / f"only{number}").read_text() == str(number)


@pytest.mark.parametrize("name", ["a:b", "with, comma", "back\\slash", "sp ace", "x=y", "quo\"te'"])
def test_layer_directories_with_awkward_names(base: Path, mount_overlay: MountFactory, name: str) -> None:
    stack = make_stack(base / name, lowers=2)
    make_file(stack.lowers[1] / "low", "low")
    merged = mount_overlay(stack=stack).path
    (merged / "new").write_text("new")
    assert names(merged) == ["low", "new"]
    assert (stack.upper / "new").read_text() == "new"


@pytest.mark.lowers(2)
def test_without_an_upper_the_tree_is_read_only(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "d" / "below", "below")
    make_file(stack.lowers[0] / "d" / "above", "above")
    merged = mount_overlay(read_only=True).path
    assert names(merged / "d") == ["above", "below"]
    assert (merged / "d" / "below").read_text() == "below"
