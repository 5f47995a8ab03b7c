"""What does a merged directory list, and how stable is a listing while it is read?"""

import errno
import os
import random
import stat
from collections import Counter
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with
from tests.harness.content import (
    make_directory,
    make_file,
    make_symlink,
    make_whiteout,
    make_xattr_whiteout,
    names,
)
from tests.harness.libc import DirectoryStream, getdents

TYPES = {
    stat.S_IFREG: 8,
    stat.S_IFDIR: 4,
    stat.S_IFLNK: 10,
    stat.S_IFIFO: 1,
    stat.S_IFSOCK: 12,
    stat.S_IFCHR: 2,
    stat.S_IFBLK: 6,
}


@pytest.mark.lowers(2)
def test_every_name_once_with_its_type_and_inode_number(stack: Stack, mount_overlay: MountFactory) -> None:
    for layer in (stack.upper, *stack.lowers):
        make_file(layer / "d" / "everywhere")
        make_file(layer / "d" / "tree" / f"from_{layer.name}")
        make_file(layer / "d" / f"only_{layer.name}")
    make_symlink(stack.lowers[1] / "d" / "link", "x")
    os.mkfifo(stack.lowers[0] / "d" / "fifo")
    os.mknod(stack.lowers[1] / "d" / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(stack.lowers[1] / "d" / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(stack.upper / "d" / "block", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    make_whiteout(stack.upper / "d" / "gone")
    make_file(stack.lowers[0] / "d" / "gone")
    directory = mount_overlay().path / "d"
    os.stat(directory / "tree")  # the kernel writes the origin that this hand-made upper lacks at its lookup
    with DirectoryStream(directory) as stream:
        entries = list(stream)
    expected = [
        *(".", "..", "everywhere", "tree", "only_u", "only_l1", "only_l2"),
        *("link", "fifo", "socket", "char", "block"),
    ]
    assert sorted(os.fsdecode(entry.name) for entry in entries) == sorted(expected)
    for entry in entries:
        status = os.lstat(os.fsencode(directory) + b"/" + entry.name)
        assert entry.inode == status.st_ino, entry
        assert entry.kind == TYPES[stat.S_IFMT(status.st_mode)], entry


def test_inode_numbers_in_listings_follow_a_copy_up(stack: Stack, mount_overlay: MountFactory) -> None:
    for name in ("file", "other", "moved"):
        make_file(stack.lower / "d" / name)
    make_file(stack.lower / "d" / "tree" / "inner")
    mount = mount_overlay()
    directory = mount.path / "d"
    before = {entry.name: entry.inode() for entry in os.scandir(directory)}
    os.chmod(directory / "file", 0o600)
    os.chmod(directory / "tree", 0o700)
    os.rename(directory / "moved", directory / "renamed")
    before["renamed"] = before.pop("moved")
    for _ in range(2):
        listed = {entry.name: entry.inode() for entry in os.scandir(directory)}
        assert listed == before
        assert listed == {name: os.lstat(directory / name).st_ino for name in listed}
        mount.remount()


def test_empty_directory(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "empty")
    make_file(stack.lower / "emptied" / "x")
    make_whiteout(stack.upper / "emptied" / "x")
    merged = mount_overlay().path
    for name in ("empty", "emptied"):
        with DirectoryStream(merged / name) as stream:
            assert sorted(entry.name for entry in stream) == [b".", b".."]
            assert stream.read() is None


def test_listing_what_is_no_directory(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "f")
    merged = mount_overlay().path
    with fails_with(errno.ENOTDIR):
        os.listdir(merged / "f")
    with fails_with(errno.ENOENT):
        os.listdir(merged / "nothing")


@pytest.mark.lowers(2)
def test_xattr_whiteouts_in_a_merged_directory_are_not_listed(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    for number in range(50):
        make_file(stack.lowers[1] / "d" / f"f{number}")
        if number % 2:
            make_xattr_whiteout(stack.lowers[0] / "d" / f"f{number}")
    merged = mount_overlay().path
    assert names(merged / "d") == sorted(f"f{number}" for number in range(0, 50, 2))


@pytest.mark.lowers(2)
def test_telldir_and_seekdir_return_to_any_entry(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(300):
        make_file((stack.upper, *stack.lowers)[number % 3] / "d" / f"name{number:04}")
    directory = mount_overlay().path / "d"
    with DirectoryStream(directory) as stream:
        positions = []
        while True:
            position = stream.tell()
            entry = stream.read()
            if entry is None:
                break
            positions.append((position, entry.name))
        assert len({position for position, _ in positions}) == 302, "every position is another"
        random.Random(1).shuffle(positions)
        for position, name in positions[:60]:
            stream.seek(position)
            found = stream.read()
            assert found is not None
            assert found.name == name
            assert stream.tell() == found.offset
        stream.rewind()
        assert sum(1 for _ in stream) == 302


def test_lseek_on_a_directory_descriptor(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(20):
        make_file(stack.lower / "d" / f"name{number}")
    descriptor = os.open(mount_overlay().path / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries = []
        while part := getdents(descriptor, 64):
            entries += part
        assert len({entry.name for entry in entries}) == len(entries) == 22
        os.lseek(descriptor, entries[9].offset, os.SEEK_SET)
        assert [entry.name for entry in getdents(descriptor, 4096)] == [entry.name for entry in entries[10:]]
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert len(getdents(descriptor, 4096)) == 22
    finally:
        os.close(descriptor)


def test_buffer_too_small_for_an_entry_is_an_error(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / ("n" * 200))
    descriptor = os.open(mount_overlay().path / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with fails_with(errno.EINVAL):
            while getdents(descriptor, 48):
                pass
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.lowers(2)
def test_names_that_stay_are_listed_once_while_others_come_and_go(
    stack: Stack, mount_overlay: MountFactory, seed: int
) -> None:
    rng = random.Random(seed)
    stay = {f"stay{number}" for number in range(200)}
    for number, name in enumerate(sorted(stay)):
        make_file((stack.upper, *stack.lowers)[number % 3] / "d" / name)
    for number in range(100):
        make_file((stack.upper, *stack.lowers)[number % 3] / "d" / f"goes{number}")
    directory = mount_overlay().path / "d"
    leaving = [directory / f"goes{number}" for number in range(100)]
    rng.shuffle(leaving)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        seen: Counter[str] = Counter()
        step = 0
        while part := getdents(descriptor, 256):
            seen.update(os.fsdecode(entry.name) for entry in part)
            step += 1
            (directory / f"comes{step}").touch()
            if leaving:
                leaving.pop().unlink()
            if step % 5 == 0:
                os.chmod(directory / f"stay{rng.randrange(200)}", 0o600)
            if step % 7 == 0:
                os.rename(directory / f"comes{step}", directory / f"renamed{step}")
    finally:
        os.close(descriptor)
    assert {name for name in seen if name.startswith("stay")} == stay
    assert max(seen.values()) == 1, "no name is listed twice"


@pytest.mark.lowers(2)
def test_position_in_a_directory_stays_good_while_names_come_and_go(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    for number in range(300):
        make_file((stack.upper, *stack.lowers)[number % 3] / "d" / f"name{number}")
    directory = mount_overlay().path / "d"
    with DirectoryStream(directory) as stream:
        before = [stream.read() for _ in range(150)]
        position = stream.tell()
        after = {entry.name for entry in stream}
        passed = {entry.name for entry in before if entry}
        for name in [*sorted(passed)[20:60], *sorted(after)[20:60]]:
            if name not in (b".", b".."):
                os.unlink(os.fsencode(directory) + b"/" + name)
        for number in range(50):
            (directory / f"added{number}").touch()
        stream.seek(position)
        again = Counter(entry.name for entry in stream)
    stayed = {name for name in after if (name in (b".", b"..")) or (directory / os.fsdecode(name)).exists()}
    assert stayed <= set(again)
    assert max(again.values()) == 1
    assert not {name for name in passed if name.startswith(b"name")} & set(again), "nothing is listed twice"


def test_two_readers_do_not_disturb_each_other(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(100):
        make_file(stack.lower / "d" / f"name{number}")
    directory = mount_overlay().path / "d"
    with DirectoryStream(directory) as one, DirectoryStream(directory) as two:
        first = [one.read() for _ in range(40)]
        assert len(list(two)) == 102
        rest = list(one)
    assert len({entry.name for entry in [*first, *rest] if entry}) == 102


def test_rewound_stream_lists_what_is_there_now(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "old")
    make_file(stack.lower / "d" / "stays")
    directory = mount_overlay().path / "d"
    with DirectoryStream(directory) as stream:
        assert {entry.name for entry in stream} == {b".", b"..", b"old", b"stays"}
        (directory / "new").touch()
        (directory / "old").unlink()
        stream.rewind()
        assert {entry.name for entry in stream} == {b".", b"..", b"new", b"stays"}


def test_directory_opened_before_its_copy_up_lists_on(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "old")
    directory = mount_overlay().path / "d"
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.listdir(descriptor) == ["old"]
        (directory / "new").touch()
        assert sorted(os.listdir(descriptor)) == ["new", "old"]
        os.fsync(descriptor)
        assert os.stat("new", dir_fd=descriptor).st_size == 0
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_removed_directory_that_is_still_open_is_empty(
    stack: Stack, mount_overlay: MountFactory, layer: str
) -> None:
    make_directory((stack.lower if layer == "lower" else stack.upper) / "d")
    directory = mount_overlay().path / "d"
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        directory.rmdir()
        assert os.listdir(descriptor) == []
        with fails_with(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
        with fails_with(errno.ENOENT):
            os.mkdir("new", dir_fd=descriptor)
    finally:
        os.close(descriptor)


def test_removing_everything_while_reading(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(500):
        make_file((stack.lower, stack.upper)[number % 2] / "d" / f"name{number}")
    mount = mount_overlay()
    directory = mount.path / "d"
    with DirectoryStream(directory) as stream:
        for entry in stream:
            if entry.name not in (b".", b".."):
                os.unlink(os.fsencode(directory) + b"/" + entry.name)
    assert names(directory) == []
    directory.rmdir()
    mount.remount()
    assert names(mount.path) == []


def test_huge_directory(stack: Stack, mount_overlay: MountFactory, long: bool) -> None:
    count = 100_000 if long else 20_000
    _fill(stack.lower / "d", count // 2, "lower")
    _fill(stack.upper / "d", count // 2, "upper")
    directory = mount_overlay(check_lowers=False).path / "d"
    seen = Counter(os.listdir(directory))
    assert len(seen) == count
    assert max(seen.values()) == 1
    for name in ("lower0", f"upper{count // 2 - 1}"):
        (directory / name).unlink()
    (directory / "added").touch()
    after = os.listdir(directory)
    assert len(after) == len(set(after)) == count - 1
    assert set(after) == set(seen) - {"lower0", f"upper{count // 2 - 1}"} | {"added"}


def _fill(directory: Path, count: int, prefix: str) -> None:
    """Many names of few inodes: hard links are made faster than files."""
    directory.mkdir()
    make_file(directory.parent / f"{prefix}-source")
    source = directory.parent / f"{prefix}-source"
    for number in range(count):
        if number % 50_000 == 0:
            source = make_file(directory / f"{prefix}{number}")
        else:
            os.link(source, directory / f"{prefix}{number}")
