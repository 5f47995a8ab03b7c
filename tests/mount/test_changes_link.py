"""Hard links: made in the tree, found in a lower, broken by a copy-up as the kernel does with index=off."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, snapshot
from tests.harness.content import is_whiteout, make_directory, make_file, make_symlink, make_whiteout, names


@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_link_to_a_file_of_either_layer(stack: Stack, mount_overlay: MountFactory, layer: str) -> None:
    make_file((stack.upper if layer == "upper" else stack.lower) / "a", "content")
    make_directory(stack.lower / "d")
    mount = mount_overlay()
    number = (mount.path / "a").stat().st_ino
    os.link(mount.path / "a", mount.path / "d" / "b")
    on_disk = [(stack.upper / name).stat().st_ino for name in ("a", "d/b")]
    assert on_disk[0] == on_disk[1], "one inode in the upper"
    for _ in range(2):
        first, second = (mount.path / "a").stat(), (mount.path / "d" / "b").stat()
        assert first.st_ino == second.st_ino == number
        assert first.st_nlink == second.st_nlink == 2
        mount.remount()
    with (mount.path / "a").open("a") as file:
        file.write(" and more")
    assert (mount.path / "d" / "b").read_text() == "content and more"
    (mount.path / "d" / "b").chmod(0o600)
    assert stat.S_IMODE((mount.path / "a").stat().st_mode) == 0o600
    (mount.path / "a").unlink()
    assert is_whiteout(stack.upper / "a") == (layer == "lower")
    for _ in range(2):
        assert (mount.path / "d" / "b").stat().st_nlink == 1
        assert (mount.path / "d" / "b").read_text() == "content and more"
        mount.remount()


def test_data_written_through_any_name_is_there_after_a_remount(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "source", "x")
    mount = mount_overlay()
    every = [mount.path / f"name{number}" for number in range(5)]
    for name in every:
        os.link(mount.path / "source", name)
    for number, name in enumerate(every):
        with name.open("a") as file:
            file.write(str(number))
        for other in every:
            assert other.read_text() == "x" + "01234"[: number + 1]
    mount.remount()
    for name in every:
        assert name.read_text() == "x01234"
        assert name.stat().st_nlink == 6


def test_lower_hard_links_are_broken_by_a_copy_up_and_nothing_is_lost(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "a", "old")
    os.link(stack.lower / "a", stack.lower / "b")
    make_directory(stack.lower / "d")
    os.link(stack.lower / "a", stack.lower / "d" / "c")
    mount = mount_overlay()
    for name in ("a", "b", "d/c"):
        assert (mount.path / name).stat().st_nlink == 3
        assert (mount.path / name).read_text() == "old"
    (mount.path / "b").write_text("written through b")
    for _ in range(2):
        assert (mount.path / "b").read_text() == "written through b"
        assert (mount.path / "b").stat().st_nlink == 1
        for name in ("a", "d/c"):
            assert (mount.path / name).read_text() == "old"
        mount.remount()
    (mount.path / "d" / "c").chmod(0o600)
    assert stat.S_IMODE((mount.path / "a").stat().st_mode) == 0o644
    (mount.path / "a").write_text("written through a")
    for _ in range(2):
        assert [(mount.path / name).read_text() for name in ("a", "b", "d/c")] == [
            "written through a",
            "written through b",
            "old",
        ]
        mount.remount()


def test_descriptors_of_two_lower_links_part_at_the_copy_up(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "a", "old")
    os.link(stack.lower / "a", stack.lower / "b")
    merged = mount_overlay().path
    with (merged / "a").open("rb", buffering=0) as first, (merged / "b").open("rb", buffering=0) as second:
        (merged / "a").write_text("new")
        assert first.read() == b"new"
        assert second.read() == b"old"
    (merged / "a").unlink()
    assert (merged / "b").read_text() == "old"


def test_removing_one_lower_link_leaves_the_others(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a", "content")
    os.link(stack.lower / "a", stack.lower / "b")
    mount = mount_overlay()
    (mount.path / "a").unlink()
    for _ in range(2):
        assert names(mount.path) == ["b"]
        assert (mount.path / "b").read_text() == "content"
        mount.remount()


def test_linking_one_of_the_lower_links(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a", "content")
    os.link(stack.lower / "a", stack.lower / "b")
    mount = mount_overlay()
    os.link(mount.path / "a", mount.path / "c")
    for _ in range(2):
        assert (mount.path / "a").stat().st_ino == (mount.path / "c").stat().st_ino
        assert (mount.path / "a").stat().st_nlink == 2
        mount.remount()
    (mount.path / "c").write_text("new")
    assert (mount.path / "a").read_text() == "new"
    assert (mount.path / "b").read_text() == "content"


def test_link_over_a_whiteout(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "gone", "old")
    make_whiteout(stack.upper / "gone")
    make_file(stack.lower / "a", "content")
    mount = mount_overlay()
    os.link(mount.path / "a", mount.path / "gone")
    for _ in range(2):
        assert names(mount.path) == ["a", "gone"]
        assert (mount.path / "gone").read_text() == "content"
        assert (mount.path / "gone").stat().st_nlink == 2
        mount.remount()


def test_links_that_are_refused(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a")
    make_file(stack.upper / "b")
    make_directory(stack.lower / "d")
    merged = mount_overlay().path
    for source, target, number in (
        ("a", "b", errno.EEXIST),
        ("b", "a", errno.EEXIST),
        ("a", "d", errno.EEXIST),
        ("a", "a", errno.EEXIST),
        ("d", "e", errno.EPERM),
        ("nothing", "e", errno.ENOENT),
        ("a", "nowhere/e", errno.ENOENT),
        ("a", "b/e", errno.ENOTDIR),
        ("a", "n" * 256, errno.ENAMETOOLONG),
    ):
        with fails_with(number):
            os.link(merged / source, merged / target)
    assert names(merged) == ["a", "b", "d"]


def test_link_to_a_symlink_and_to_a_fifo(stack: Stack, mount_overlay: MountFactory) -> None:
    make_symlink(stack.lower / "link", "target")
    os.mkfifo(stack.lower / "fifo")
    mount = mount_overlay()
    for name in ("link", "fifo"):
        os.link(mount.path / name, mount.path / f"{name}2", follow_symlinks=False)
    for _ in range(2):
        assert os.readlink(mount.path / "link2") == "target"
        for name in ("link", "fifo"):
            first, second = os.lstat(mount.path / name), os.lstat(mount.path / f"{name}2")
            assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)
        mount.remount()


def test_descriptors_of_both_names_are_one_file(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a", "content")
    merged = mount_overlay().path
    os.link(merged / "a", merged / "b")
    with (merged / "a").open("r+b", buffering=0) as first, (merged / "b").open("r+b", buffering=0) as second:
        first.write(b"CON")
        assert second.read() == b"CONtent"
        second.truncate(3)
        assert os.fstat(first.fileno()).st_size == 3
        os.unlink(merged / "a")
        assert os.fstat(first.fileno()).st_nlink == 1
        os.unlink(merged / "b")
        assert os.fstat(first.fileno()).st_nlink == 0
        assert os.pread(second.fileno(), 10, 0) == b"CON"


def test_renaming_links(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.upper / "a", "content")
    mount = mount_overlay()
    os.link(mount.path / "a", mount.path / "b")
    (mount.path / "a").rename(mount.path / "c")
    with (mount.path / "c").open("a") as file:
        file.write("!")
    for _ in range(2):
        assert list(snapshot(mount.path)) == [b".", b"b", b"c"]
        assert (mount.path / "b").read_text() == "content!"
        assert (mount.path / "b").stat().st_nlink == 2
        mount.remount()


def test_linking_an_open_file_by_its_descriptor(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a", "content")
    merged = mount_overlay().path
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    with (merged / "a").open("rb") as file:
        # With a directory descriptor, for only then does Python ask linkat(2) to follow.
        os.link(str(file.fileno()), merged / "b", src_dir_fd=descriptors, follow_symlinks=True)
    os.close(descriptors)
    assert (merged / "b").stat().st_ino == (merged / "a").stat().st_ino
    Path(merged / "b").write_text("new")
    assert (merged / "a").read_text() == "new"
