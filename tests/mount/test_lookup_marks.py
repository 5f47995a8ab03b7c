"""Redirects, metacopies and overlay's own attributes: followed, refused or hidden, never guessed at."""

import errno
import os
import stat

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack, fails_with, snapshot
from tests.harness.content import make_directory, make_file, make_opaque, names

REDIRECT = "trusted.overlay.redirect"
METACOPY = "trusted.overlay.metacopy"


@pytest.fixture
def redirected(stack: Stack) -> Stack:
    """A stack of two lowers in which the kernel itself renamed directories with redirect_dir=on.

    The upper of the kernel's mount becomes the topmost lower; `upper` is fresh.
    """
    make_file(stack.lower / "d" / "file", "content")
    make_file(stack.lower / "d" / "sub" / "deep", "deep content")
    make_file(stack.lower / "other" / "file", "other")
    with Mount(Kind.KERNEL, stack, "redirect_dir=on") as overlay:
        os.rename(overlay.path / "d", overlay.path / "same_parent")
        os.rename(overlay.path / "same_parent" / "sub", overlay.path / "other" / "moved")
        make_file(overlay.path / "other" / "moved" / "added", "added")
    renamed, fresh = stack.upper, stack.base / "fresh"
    assert os.getxattr(renamed / "same_parent", REDIRECT) == b"d"
    assert os.getxattr(renamed / "other" / "moved", REDIRECT) == b"/d/sub"
    fresh.mkdir()
    return Stack(stack.base, [renamed, *stack.lowers], fresh, stack.work, stack.merged)


def test_redirects_in_a_lower_are_followed(redirected: Stack, mount_overlay: MountFactory) -> None:
    merged = mount_overlay(stack=redirected).path
    assert names(merged) == ["other", "same_parent"]
    assert names(merged / "same_parent") == ["file"]
    assert (merged / "same_parent" / "file").read_text() == "content"
    assert names(merged / "other") == ["file", "moved"]
    assert names(merged / "other" / "moved") == ["added", "deep"]
    assert (merged / "other" / "moved" / "deep").read_text() == "deep content"


def test_redirects_in_an_upper_are_followed(redirected: Stack, mount_overlay: MountFactory) -> None:
    on_upper = Stack(
        redirected.base, redirected.lowers[1:], redirected.lowers[0], redirected.work, redirected.merged
    )
    merged = mount_overlay(stack=on_upper).path
    assert (merged / "same_parent" / "file").read_text() == "content"
    assert names(merged / "other" / "moved") == ["added", "deep"]


def test_changes_below_a_redirect(redirected: Stack, mount_overlay: MountFactory) -> None:
    mount = mount_overlay(stack=redirected)
    (mount.path / "same_parent" / "file").write_text("changed")
    (mount.path / "other" / "moved" / "deep").unlink()
    mount.remount()
    assert (mount.path / "same_parent" / "file").read_text() == "changed"
    assert names(mount.path / "other" / "moved") == ["added"]
    assert (redirected.lowers[1] / "d" / "file").read_text() == "content"


@pytest.mark.parametrize("option", ["redirect_dir=nofollow", "userxattr"])
def test_redirect_that_is_not_followed_is_refused(
    redirected: Stack, mount_overlay: MountFactory, option: str
) -> None:
    if option == "userxattr":
        directory = redirected.lowers[0] / "same_parent"
        os.setxattr(directory, "user.overlay.redirect", b"d")
    merged = mount_overlay(option, stack=redirected).path
    with fails_with(errno.EPERM):
        os.stat(merged / "same_parent")
    with fails_with(errno.EPERM):
        os.stat(merged / "same_parent" / "file")
    assert (merged / "other" / "file").read_text() == "other"


@pytest.mark.lowers(3)
def test_relative_and_absolute_redirects_over_several_layers(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lowers[2] / "a" / "b" / "one", "1")
    make_file(stack.lowers[1] / "a" / "c" / "two", "2")
    os.setxattr(stack.lowers[1] / "a" / "c", REDIRECT, b"b")
    make_file(stack.lowers[0] / "z" / "three", "3")
    os.setxattr(stack.lowers[0] / "z", REDIRECT, b"/a/c")
    merged = mount_overlay().path
    assert names(merged / "z") == ["one", "three", "two"]
    assert (merged / "z" / "one").read_text() == "1"
    assert names(merged / "a" / "c") == ["one", "two"]


def test_redirect_and_opaque_together_do_not_merge(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a" / "below")
    make_opaque(stack.upper / "b")
    os.setxattr(stack.upper / "b", REDIRECT, b"a")
    merged = mount_overlay().path
    assert names(merged / "b") == []


def test_redirect_to_nothing_shows_an_upper_directory(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "b" / "below")
    make_file(stack.upper / "b" / "above")
    os.setxattr(stack.upper / "b", REDIRECT, b"/gone")
    merged = mount_overlay().path
    assert names(merged / "b") == ["above"]


@pytest.mark.parametrize("value", [b"a/b", b"", b"/a//b", b"/a/"])
def test_malformed_redirect_is_an_error(stack: Stack, mount_overlay: MountFactory, value: bytes) -> None:
    make_file(stack.lower / "d" / "below")
    make_directory(stack.upper / "d")
    os.setxattr(stack.upper / "d", REDIRECT, value)
    merged = mount_overlay().path
    with fails_with(errno.EINVAL):
        os.stat(merged / "d")


@pytest.fixture
def metacopied(stack: Stack) -> Stack:
    """A stack whose upper holds a file of which the kernel copied up only the metadata."""
    make_file(stack.lower / "d" / "file", "real data")
    make_file(stack.lower / "d" / "plain", "plain")
    with Mount(Kind.KERNEL, stack, "metacopy=on", "redirect_dir=on") as overlay:
        os.chmod(overlay.path / "d" / "file", 0o600)
    assert os.listxattr(stack.upper / "d" / "file").count(METACOPY) == 1
    assert (stack.upper / "d" / "file").read_bytes() == bytes(9), "the upper has no data"
    return stack


@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_metacopy_is_refused_and_never_served_as_zeros(
    metacopied: Stack, mount_overlay: MountFactory, layer: str
) -> None:
    stack = metacopied
    if layer == "lower":
        (stack.base / "fresh").mkdir()
        stack = Stack(
            stack.base, [stack.upper, *stack.lowers], stack.base / "fresh", stack.work, stack.merged
        )
    merged = mount_overlay(stack=stack).path
    with fails_with(errno.EPERM):
        os.stat(merged / "d" / "file")
    with fails_with(errno.EPERM):
        (merged / "d" / "file").read_bytes()
    with fails_with(errno.EPERM):
        (merged / "d" / "file").write_bytes(b"new")
    with fails_with(errno.EPERM):
        os.rename(merged / "d" / "file", merged / "d" / "elsewhere")
    assert (merged / "d" / "plain").read_text() == "plain"
    if layer == "lower":  # the kernel can't list the other one: it looks up what has an origin mark
        assert names(merged / "d") == ["file", "plain"]


def test_own_attributes_are_hidden(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "below")
    make_opaque(stack.upper / "d")
    os.setxattr(stack.upper / "d", "user.mine", b"kept")
    make_file(stack.upper / "f")
    os.setxattr(stack.upper / "f", "trusted.overlay.unheard", b"of")
    os.setxattr(stack.upper / "f", "trusted.kept", b"yes")
    merged = mount_overlay().path
    assert os.listxattr(merged / "d") == ["user.mine"]
    assert os.listxattr(merged / "f") == ["trusted.kept"]
    for path, attribute in (("d", "opaque"), ("f", "unheard")):
        with fails_with(errno.ENODATA):
            os.getxattr(merged / path, f"trusted.overlay.{attribute}")
        with fails_with(errno.ENODATA):
            os.removexattr(merged / path, f"trusted.overlay.{attribute}")
    assert os.getxattr(stack.upper / "d", "trusted.overlay.opaque") == b"y"


def test_no_mark_of_a_well_used_upper_shows(stack: Stack, mount_overlay: MountFactory) -> None:
    for name in ("changed", "moved", "gone"):
        make_file(stack.lower / "d" / name, name)
    make_file(stack.lower / "opaque" / "old")
    with Mount(Kind.KERNEL, stack) as overlay:
        (overlay.path / "d" / "changed").write_text("new")
        (overlay.path / "d" / "moved").rename(overlay.path / "d" / "there")
        (overlay.path / "d" / "gone").unlink()
        (overlay.path / "opaque" / "old").unlink()
        (overlay.path / "opaque").rmdir()
        make_file(overlay.path / "opaque" / "new")
        expected = snapshot(overlay.path)
        inodes = {path: os.lstat(bytes(overlay.path) + b"/" + path).st_ino for path in expected}
    merged = mount_overlay().path
    assert snapshot(merged) == expected
    assert {path: os.lstat(bytes(merged) + b"/" + path).st_ino for path in expected} == inodes
    for path in expected:
        assert os.listxattr(bytes(merged) + b"/" + path) == []


def test_escaped_attributes_are_unescaped(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "d")
    os.setxattr(stack.lower / "d", "trusted.overlay.overlay.opaque", b"y")
    os.setxattr(stack.lower / "d", "trusted.overlay.overlay.overlay.deeper", b"two")
    make_file(stack.lower / "d" / "inner")
    merged = mount_overlay().path
    assert names(merged / "d") == ["inner"]
    assert sorted(os.listxattr(merged / "d")) == ["trusted.overlay.opaque", "trusted.overlay.overlay.deeper"]
    assert os.getxattr(merged / "d", "trusted.overlay.opaque") == b"y"
    assert os.getxattr(merged / "d", "trusted.overlay.overlay.deeper") == b"two"


def test_own_attributes_that_a_user_sets_are_escaped_on_disk(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "d" / "inner")
    mount = mount_overlay()
    os.setxattr(mount.path / "d", "trusted.overlay.opaque", b"y")
    assert os.getxattr(stack.upper / "d", "trusted.overlay.overlay.opaque") == b"y"
    mount.remount()
    assert names(mount.path / "d") == ["inner"]
    assert os.listxattr(mount.path / "d") == ["trusted.overlay.opaque"]
    os.removexattr(mount.path / "d", "trusted.overlay.opaque")
    assert os.listxattr(mount.path / "d") == []
    assert "trusted.overlay.overlay.opaque" not in os.listxattr(stack.upper / "d")


def test_an_empty_file_of_metadata_only_is_refused_by_name(stack: Stack, mount_overlay: MountFactory) -> None:
    os.setxattr(make_file(stack.lower / "d" / "empty"), METACOPY, b"")
    make_file(stack.lower / "d" / "plain")
    directory = mount_overlay().path / "d"
    with fails_with(errno.EPERM):
        (directory / "empty").stat()
    assert names(directory) == ["empty", "plain"]
    for call in (os.stat, os.unlink, lambda path: os.rename(path, directory / "moved")):
        with fails_with(errno.EPERM):
            call(directory / "empty")
    assert (directory / "plain").read_bytes() == b""


def test_escaped_attributes_survive_copy_up_escaped(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "f")
    os.setxattr(stack.lower / "f", "trusted.overlay.overlay.metacopy", b"")
    os.setxattr(stack.lower / "f", "trusted.overlay.unheard", b"of")
    merged = mount_overlay().path
    os.chmod(merged / "f", 0o600)
    on_disk = set(os.listxattr(stack.upper / "f"))
    assert "trusted.overlay.overlay.metacopy" in on_disk
    assert "trusted.overlay.unheard" not in on_disk, "a layer's own marks stay in that layer"
    assert os.listxattr(merged / "f") == ["trusted.overlay.metacopy"]


def test_attributes_of_the_other_dialect_are_the_users(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "f")
    os.setxattr(stack.lower / "f", "trusted.overlay.metacopy", b"")
    merged = mount_overlay("userxattr").path
    assert stat.S_ISREG(os.stat(merged / "f").st_mode)
    assert os.listxattr(merged / "f") == ["trusted.overlay.metacopy"]
    os.setxattr(merged / "f", "user.overlay.mine", b"1")
    assert os.getxattr(stack.upper / "f", "user.overlay.overlay.mine") == b"1"
    assert sorted(os.listxattr(merged / "f")) == ["trusted.overlay.metacopy", "user.overlay.mine"]
