"""What does rename do across layers: files, directories, every flag, and what it leaves on disk?"""

import errno
import os
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, snapshot
from tests.harness.content import (
    is_opaque,
    is_whiteout,
    make_directory,
    make_file,
    make_symlink,
    make_whiteout,
    names,
)
from tests.harness.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2


def test_upper_file(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.upper / "a", "content")
    make_directory(stack.lower / "d")
    mount = mount_overlay()
    (mount.path / "a").rename(mount.path / "d" / "b")
    assert list(snapshot(stack.upper)) == [b".", b"d", b"d/b"], "no whiteout where no lower has the name"
    mount.remount()
    assert (mount.path / "d" / "b").read_text() == "content"
    assert names(mount.path) == ["d"]


def test_lower_file(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a", "content", 0o4755)
    make_directory(stack.lower / "d")
    mount = mount_overlay()
    before = (mount.path / "a").stat()
    (mount.path / "a").rename(mount.path / "d" / "b")
    assert is_whiteout(stack.upper / "a")
    for _ in range(2):
        after = (mount.path / "d" / "b").stat()
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
        assert after.st_ino == before.st_ino
        assert (mount.path / "d" / "b").read_text() == "content"
        assert names(mount.path) == ["d"]
        mount.remount()


@pytest.mark.parametrize("source", ["upper", "lower"])
@pytest.mark.parametrize("target", ["upper", "lower", "both", "whiteout"])
def test_file_over_a_file(stack: Stack, mount_overlay: MountFactory, source: str, target: str) -> None:
    make_file((stack.upper if source == "upper" else stack.lower) / "source", "new")
    if target != "upper":
        make_file(stack.lower / "target", "old")
    if target in ("upper", "both"):
        make_file(stack.upper / "target", "old")
    if target == "whiteout":
        make_whiteout(stack.upper / "target")
    mount = mount_overlay()
    (mount.path / "source").rename(mount.path / "target")
    assert is_whiteout(stack.upper / "source") == (source == "lower")
    for _ in range(2):
        assert names(mount.path) == ["target"]
        assert (mount.path / "target").read_text() == "new"
        mount.remount()
    (mount.path / "target").unlink()
    assert is_whiteout(stack.upper / "target") == (target != "upper")


def test_replacing_by_rename_many_times(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "config", "0")
    mount = mount_overlay()
    for number in range(1, 6):
        make_file(mount.path / "d" / "config.new", str(number))
        os.replace(mount.path / "d" / "config.new", mount.path / "d" / "config")
        assert (mount.path / "d" / "config").read_text() == str(number)
    assert names(stack.upper / "d") == ["config"]
    mount.remount()
    assert (mount.path / "d" / "config").read_text() == "5"


def test_types_that_do_not_replace_each_other(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "file")
    make_file(stack.upper / "upper_file")
    make_file(stack.lower / "full" / "x")
    make_directory(stack.lower / "empty")
    merged = mount_overlay().path
    (merged / "new").mkdir()
    for source, target, number in (
        ("file", "empty", errno.EISDIR),
        ("upper_file", "full", errno.EISDIR),
        ("new", "file", errno.ENOTDIR),
        ("new", "upper_file", errno.ENOTDIR),
        ("new", "full", errno.ENOTEMPTY),
        ("new", "new/inside", errno.EINVAL),
        ("nothing", "new", errno.ENOENT),
        ("file", "nowhere/x", errno.ENOENT),
        ("file", "upper_file/x", errno.ENOTDIR),
        ("file", "n" * 256, errno.ENAMETOOLONG),
    ):
        with fails_with(number):
            os.rename(merged / source, merged / target)
    assert names(merged) == ["empty", "file", "full", "new", "upper_file"]


def test_lower_and_merged_directories_are_refused(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "low" / "x", "x")
    make_file(stack.lower / "both" / "x", "x")
    make_file(stack.upper / "both" / "y", "y")
    make_directory(stack.lower / "other")
    merged = mount_overlay().path
    for source in ("low", "both"):
        for target in ("new", "other/new", "other"):
            with fails_with(errno.EXDEV):
                os.rename(merged / source, merged / target)
        with fails_with(errno.EXDEV):
            renameat2(merged / source, merged / "new", RENAME_NOREPLACE)
    (merged / "fresh").mkdir()
    for source in ("low", "both"):
        with fails_with(errno.EXDEV):
            renameat2(merged / source, merged / "fresh", RENAME_EXCHANGE)
        with fails_with(errno.EXDEV):
            renameat2(merged / "fresh", merged / source, RENAME_EXCHANGE)
    assert names(merged) == ["both", "fresh", "low", "other"]
    assert names(merged / "both") == ["x", "y"]


def test_directory_of_the_upper(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.upper / "a" / "sub" / "file", "content")
    make_directory(stack.lower / "low")
    mount = mount_overlay()
    descriptor = os.open(mount.path / "a" / "sub", os.O_RDONLY | os.O_DIRECTORY)
    (mount.path / "a").rename(mount.path / "b")
    (mount.path / "b").rename(mount.path / "low" / "c")
    assert os.listdir(descriptor) == ["file"]
    assert os.stat("file", dir_fd=descriptor).st_size == 7
    os.close(descriptor)
    (mount.path / "low" / "c" / "sub" / "new").touch()
    for _ in range(2):
        assert names(mount.path) == ["low"]
        assert names(mount.path / "low" / "c" / "sub") == ["file", "new"]
        mount.remount()
    assert is_opaque(stack.upper / "low" / "c"), "what a lower may show there later stays hidden"


def test_directory_of_the_upper_onto_a_whiteout(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "gone" / "old", "old")
    mount = mount_overlay()
    (mount.path / "gone" / "old").unlink()
    (mount.path / "gone").rmdir()
    make_file(mount.path / "new" / "file", "new")
    (mount.path / "new").rename(mount.path / "gone")
    assert is_opaque(stack.upper / "gone")
    assert names(stack.upper) == ["gone"]
    mount.remount()
    assert names(mount.path / "gone") == ["file"]


@pytest.mark.parametrize("target", ["empty lower", "emptied lower", "empty upper", "merged and empty"])
def test_directory_of_the_upper_onto_an_empty_directory(
    stack: Stack, mount_overlay: MountFactory, target: str
) -> None:
    if target != "empty upper":
        make_directory(stack.lower / "target")
    if target in ("empty upper", "merged and empty"):
        make_directory(stack.upper / "target")
    if target == "emptied lower":
        make_file(stack.lower / "target" / "x")
        make_whiteout(stack.upper / "target" / "x")
    mount = mount_overlay()
    make_file(mount.path / "source" / "file", "new")
    (mount.path / "source").rename(mount.path / "target")
    assert names(stack.upper) == ["target"]
    if target != "empty upper":
        assert is_opaque(stack.upper / "target")
    for _ in range(2):
        assert names(mount.path) == ["target"]
        assert names(mount.path / "target") == ["file"]
        mount.remount()


def test_directory_moved_away_and_the_old_name_used_again(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "old", "old")
    mount = mount_overlay()
    (mount.path / "d" / "old").unlink()
    (mount.path / "d").rmdir()
    (mount.path / "d").mkdir()
    make_file(mount.path / "d" / "new", "new")
    (mount.path / "d").rename(mount.path / "e")
    assert is_whiteout(stack.upper / "d"), "the lower's directory doesn't come back"
    for _ in range(2):
        assert names(mount.path) == ["e"]
        assert names(mount.path / "e") == ["new"]
        mount.remount()
    (mount.path / "d").mkdir()
    mount.remount()
    assert names(mount.path / "d") == []


def test_symlinks_and_special_files(stack: Stack, mount_overlay: MountFactory) -> None:
    make_symlink(stack.lower / "link", "target")
    os.mkfifo(stack.lower / "fifo", 0o640)
    mount = mount_overlay()
    (mount.path / "link").rename(mount.path / "link2")
    (mount.path / "fifo").rename(mount.path / "fifo2")
    for _ in range(2):
        assert names(mount.path) == ["fifo2", "link2"]
        assert os.readlink(mount.path / "link2") == "target"
        assert (mount.path / "fifo2").is_fifo()
        mount.remount()


@pytest.mark.parametrize("layer", ["upper", "lower"])
def test_onto_itself_and_onto_another_name_of_the_same_file(
    stack: Stack, mount_overlay: MountFactory, layer: str
) -> None:
    make_file((stack.upper if layer == "upper" else stack.lower) / "a", "content")
    merged = mount_overlay().path
    os.rename(merged / "a", merged / "a")
    assert names(merged) == ["a"]
    os.link(merged / "a", merged / "b")
    os.rename(merged / "a", merged / "b")
    assert names(merged) == ["a", "b"], "two names of one file: nothing happens"


def test_noreplace(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "low", "low")
    make_file(stack.upper / "up", "up")
    make_file(stack.lower / "gone")
    make_whiteout(stack.upper / "gone")
    mount = mount_overlay()
    for source, target in (("low", "up"), ("up", "low")):
        with fails_with(errno.EEXIST):
            renameat2(mount.path / source, mount.path / target, RENAME_NOREPLACE)
    renameat2(mount.path / "low", mount.path / "gone", RENAME_NOREPLACE)
    renameat2(mount.path / "up", mount.path / "new", RENAME_NOREPLACE)
    for _ in range(2):
        assert names(mount.path) == ["gone", "new"]
        assert (mount.path / "gone").read_text() == "low"
        mount.remount()


@pytest.mark.parametrize("left", ["upper", "lower"])
@pytest.mark.parametrize("right", ["upper", "lower"])
def test_exchange_of_files(stack: Stack, mount_overlay: MountFactory, left: str, right: str) -> None:
    make_file((stack.upper if left == "upper" else stack.lower) / "d" / "left", "left")
    make_file((stack.upper if right == "upper" else stack.lower) / "right", "right")
    mount = mount_overlay()
    inodes = [(mount.path / name).stat().st_ino for name in ("d/left", "right")]
    renameat2(mount.path / "d" / "left", mount.path / "right", RENAME_EXCHANGE)
    for _ in range(2):
        assert (mount.path / "d" / "left").read_text() == "right"
        assert (mount.path / "right").read_text() == "left"
        assert [(mount.path / name).stat().st_ino for name in ("right", "d/left")] == inodes
        mount.remount()


def test_exchange_of_a_file_and_a_directory(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "file", "content")
    mount = mount_overlay()
    make_file(mount.path / "d" / "inner", "inner")
    renameat2(mount.path / "file", mount.path / "d", RENAME_EXCHANGE)
    for _ in range(2):
        assert (mount.path / "d").read_text() == "content"
        assert names(mount.path / "file") == ["inner"]
        mount.remount()
    assert is_opaque(stack.upper / "file")


def test_exchange_of_upper_directories(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "low")
    mount = mount_overlay()
    make_file(mount.path / "a" / "from_a")
    make_file(mount.path / "low" / "b" / "from_b")
    renameat2(mount.path / "a", mount.path / "low" / "b", RENAME_EXCHANGE)
    for _ in range(2):
        assert names(mount.path / "a") == ["from_b"]
        assert names(mount.path / "low" / "b") == ["from_a"]
        mount.remount()
    with fails_with(errno.EINVAL):
        renameat2(mount.path / "low", mount.path / "low" / "b", RENAME_EXCHANGE)


def test_exchange_needs_both_names(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "here")
    make_file(stack.lower / "gone")
    make_whiteout(stack.upper / "gone")
    merged = mount_overlay().path
    for other in ("gone", "nothing"):
        with fails_with(errno.ENOENT):
            renameat2(merged / "here", merged / other, RENAME_EXCHANGE)
        with fails_with(errno.ENOENT):
            renameat2(merged / other, merged / "here", RENAME_EXCHANGE)
    assert names(merged) == ["here"]


@pytest.mark.parametrize(
    "flags", [RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE, RENAME_EXCHANGE | RENAME_NOREPLACE, 8]
)
def test_other_flags_are_refused(stack: Stack, mount_overlay: MountFactory, flags: int) -> None:
    make_file(stack.lower / "a", "a")
    make_file(stack.upper / "b", "b")
    merged = mount_overlay().path
    for source, target in (("a", "c"), ("b", "c")):
        with fails_with(errno.EINVAL, errno.ENOENT if flags & RENAME_EXCHANGE else errno.EINVAL):
            renameat2(merged / source, merged / target, flags)
    for source, target in (("a", "b"), ("b", "a")):
        with fails_with(errno.EEXIST if flags == RENAME_WHITEOUT | RENAME_NOREPLACE else errno.EINVAL):
            renameat2(merged / source, merged / target, flags)
    assert names(merged) == ["a", "b"]
    assert names(stack.upper) == ["b"]


def test_parents_times_move(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "from" / "file")
    make_directory(stack.lower / "to")
    for name in ("from", "to"):
        os.utime(stack.lower / name, ns=(1, 1))
    merged = mount_overlay().path
    (merged / "from" / "file").rename(merged / "to" / "file")
    for name in ("from", "to"):
        assert (merged / name).stat().st_mtime_ns > 10**18


def test_descriptor_follows_its_renamed_and_replaced_file(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a", "a")
    make_file(stack.lower / "b", "b")
    merged = mount_overlay().path
    with (merged / "a").open("r+b", buffering=0) as moved, (merged / "b").open("rb", buffering=0) as replaced:
        (merged / "a").rename(merged / "b")
        moved.write(b"written")
        assert replaced.read() == b"b"
        assert os.fstat(moved.fileno()).st_ino == (merged / "b").stat().st_ino
    assert (merged / "b").read_text() == "written"
    assert Path(stack.upper / "b").read_text() == "written"
