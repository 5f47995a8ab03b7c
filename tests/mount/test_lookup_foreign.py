"""Marks that the kernel doesn't know, from images and from fuse-overlayfs; and what only we can mount."""

import errno
import os
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, pyoverlay_only, snapshot
from tests.harness.content import (
    is_opaque,
    is_whiteout,
    make_file,
    make_opaque,
    make_whiteout,
    names,
)

pytestmark = pyoverlay_only


@pytest.mark.lowers(2)
@pytest.mark.parametrize("attribute", ["user.overlay.opaque", "user.fuseoverlayfs.opaque"])
def test_other_opaque_attributes_count(stack: Stack, mount_overlay: MountFactory, attribute: str) -> None:
    make_file(stack.lowers[1] / "d" / "below")
    make_opaque(stack.lowers[0] / "d", attribute)
    make_file(stack.lowers[0] / "d" / "above")
    merged = mount_overlay().path
    assert names(merged / "d") == ["above"]
    assert not (merged / "d" / "below").exists()


@pytest.mark.lowers(3)
def test_aufs_whiteouts_hide_names_in_the_layers_below(stack: Stack, mount_overlay: MountFactory) -> None:
    for name in ("file", "tree/deep", "kept", "again"):
        make_file(stack.lowers[2] / "d" / name, "lowest")
    for name in (".wh.file", ".wh.tree", ".wh.again"):
        make_file(stack.lowers[1] / "d" / name)
    make_file(stack.lowers[0] / "d" / "again", "top")
    before = snapshot(stack.lowers[1], exact=True)
    mount = mount_overlay()
    assert names(mount.path / "d") == ["again", "kept"]
    assert (mount.path / "d" / "again").read_text() == "top"
    for hidden in ("file", "tree", "tree/deep", ".wh.file", ".wh.tree", ".wh.again"):
        with fails_with(errno.ENOENT):
            os.lstat(mount.path / "d" / hidden)
    (mount.path / "d" / "file").write_text("new")
    (mount.path / "d" / "tree").mkdir()
    mount.remount()
    assert names(mount.path / "d") == ["again", "file", "kept", "tree"]
    assert names(mount.path / "d" / "tree") == []
    assert snapshot(stack.lowers[1], exact=True) == before


@pytest.mark.lowers(2)
def test_aufs_whiteout_beside_the_name_hides_only_what_is_below(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lowers[1] / "d" / "x" / "below")
    make_file(stack.lowers[0] / "d" / "x" / "above")
    make_file(stack.lowers[0] / "d" / ".wh.x")
    merged = mount_overlay().path
    assert names(merged / "d") == ["x"]
    assert names(merged / "d" / "x") == ["above"]


@pytest.mark.lowers(2)
def test_aufs_opaque_mark(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lowers[1] / "d" / "below")
    make_file(stack.lowers[0] / "d" / ".wh..wh..opq")
    make_file(stack.lowers[0] / "d" / "above")
    mount = mount_overlay()
    assert names(mount.path / "d") == ["above"]
    assert not (mount.path / "d" / "below").exists()
    assert not (mount.path / "d" / ".wh..wh..opq").exists()
    (mount.path / "d" / "above").unlink()
    os.rmdir(mount.path / "d")
    assert is_whiteout(stack.upper / "d")
    mount.remount()
    assert names(mount.path) == []


@pytest.mark.lowers(2)
def test_removing_a_lower_name_leaves_a_device_and_no_aufs_mark(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lowers[1] / "d" / "a")
    make_file(stack.lowers[0] / "d" / ".wh.b")
    merged = mount_overlay().path
    (merged / "d" / "a").unlink()
    assert is_whiteout(stack.upper / "d" / "a")
    assert names(stack.upper / "d") == ["a"]


def test_name_of_an_aufs_mark_is_refused(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "f")
    make_file(stack.lower / "d" / "inner")
    merged = mount_overlay().path
    (merged / "new").mkdir()
    for name in (".wh.f", ".wh.", ".wh..wh..opq", "d/.wh.inner"):
        refused = merged / name
        for attempt in (
            Path.touch,
            Path.mkdir,
            lambda path: path.symlink_to("f"),
            os.mkfifo,
            lambda path: os.link(merged / "f", path),
            lambda path: os.rename(merged / "f", path),
            lambda path: os.rename(merged / "new", path),
        ):
            with fails_with(errno.EINVAL, errno.EPERM):
                attempt(refused)
    assert names(merged) == ["d", "f", "new"]
    assert names(merged / "d") == ["inner"]
    assert names(stack.upper) == ["new"], "what was refused left nothing behind"


def test_one_lower_without_an_upper(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "f", "content")
    make_whiteout(stack.lower / "gone")
    merged = mount_overlay(read_only=True).path
    assert names(merged) == ["d"]
    assert (merged / "d" / "f").read_text() == "content"
    with fails_with(errno.EROFS):
        (merged / "d" / "f").write_text("x")


@pytest.mark.lowers(2)
def test_whiteouts_inside_an_opaque_lower_directory_are_no_entries(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    """The kernel lists them as they are, for a directory of one layer is passed straight through."""
    make_file(stack.lowers[1] / "d" / "x")
    make_opaque(stack.lowers[0] / "d")
    make_whiteout(stack.lowers[0] / "d" / "x")
    make_file(stack.lowers[0] / "d" / "y")
    merged = mount_overlay().path
    assert names(merged / "d") == ["y"]
    (merged / "d" / "y").unlink()
    (merged / "d").rmdir()
    (merged / "d").mkdir()
    assert is_opaque(stack.upper / "d")
