"""Are changes of data and attributes seen at once, whatever the kernel holds in its caches?

The fixture `merged` has filled them: dentries, negative ones, attributes, pages, listings, symlinks, xattrs.
Each test changes something through one path and looks through another: a second name, descriptor or process.
"""

import errno
import mmap
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, in_child, run_as, snapshot
from tests.harness.content import ACCESS_ACL, make_directory, make_file, names, posix_acl

USER = 1000


@pytest.mark.parametrize("name", ["low", "both", "up"])
def test_written_data_and_size_show_everywhere(merged: Path, name: str) -> None:
    path = merged / "d" / name
    with path.open("rb", buffering=0) as reader:
        reader.read()
        for text in ("short", "something longer than it was before", "", "end"):
            path.write_text(text)
            assert path.read_text() == text
            assert os.pread(reader.fileno(), 1000, 0) == text.encode()
            assert path.stat().st_size == os.fstat(reader.fileno()).st_size == len(text)
            assert in_child(path.read_text) == text
            assert in_child(lambda: path.stat().st_size) == len(text)


def test_each_write_moves_size_and_mtime(merged: Path) -> None:
    path = merged / "d" / "low"
    size, mtime = path.stat().st_size, path.stat().st_mtime_ns
    with path.open("ab", buffering=0) as writer:
        for _ in range(5):
            _wait_for_a_tick()
            writer.write(b"0123456789")
            size += 10
            status = path.stat()
            assert status.st_size == size
            assert status.st_mtime_ns > mtime
            assert status.st_mtime_ns == os.fstat(writer.fileno()).st_mtime_ns
            mtime = status.st_mtime_ns
    assert path.stat().st_mtime_ns == mtime


def _wait_for_a_tick() -> None:
    """Until the clock moves that file systems take their times from (CLOCK_REALTIME_COARSE)."""
    before = time.clock_gettime_ns(5)
    while time.clock_gettime_ns(5) == before:
        time.sleep(0.001)


def test_pages_that_are_cached_follow_a_copy_up(stack: Stack, mount_overlay: MountFactory) -> None:
    data = os.urandom(1 << 20)
    make_file(stack.lower / "big", data)
    path = mount_overlay().path / "big"
    with path.open("rb", buffering=0) as reader:
        assert reader.readall() == data
        with path.open("r+b", buffering=0) as writer:
            os.pwrite(writer.fileno(), b"changed", 500_000)
            expected = data[:500_000] + b"changed" + data[500_007:]
            assert os.pread(reader.fileno(), 1 << 20, 0) == expected
        assert path.read_bytes() == expected
        os.truncate(path, 700_000)
        os.truncate(path, 1 << 20)
        expected = expected[:700_000] + bytes((1 << 20) - 700_000)
        assert os.pread(reader.fileno(), 1 << 20, 0) == expected
        assert path.read_bytes() == expected
    assert (stack.upper / "big").read_bytes() == expected


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 40_000, 65_536, 65_537])
def test_small_files_are_what_they_are_however_they_change(
    stack: Stack, mount_overlay: MountFactory, size: int
) -> None:
    """What is put in the page cache when a file is opened is all of it, and nothing that was so before."""
    content = os.urandom(size)
    make_file(stack.lower / "file", content)
    path = mount_overlay().path / "file"
    with path.open("rb", buffering=0) as reader:
        assert os.pread(reader.fileno(), 100_000, 0) == content
        with mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content
            assert bytes(memoryview(mapped)) == content
        os.truncate(path, size // 2)
        assert os.pread(reader.fileno(), 100_000, 0) == content[: size // 2]
        os.truncate(path, size)
        assert path.read_bytes() == content[: size // 2] + bytes(size - size // 2)
        path.write_bytes(b"new")
        assert os.pread(reader.fileno(), 100_000, 0) == b"new"
    assert path.read_bytes() == b"new"
    assert (stack.lower / "file").read_bytes() == content


def test_map_sees_what_others_write(merged: Path) -> None:
    path = make_file(merged / "d" / "mapped", b"a" * 8192)

    def map_it() -> list[bytes]:
        seen = []
        with path.open("r+b") as opened:
            pages = mmap.mmap(opened.fileno(), 8192)
            seen.append(pages[4096:4099])
            script = f"f = open({str(path)!r}, 'r+b'); f.seek(4096); f.write(b'new'); f.close()"
            subprocess.run([sys.executable, "-c", script], check=True)
            seen.append(pages[4096:4099])
            pages[0:3] = b"map"
            seen.append(path.read_bytes()[:3])
        return seen

    assert in_child(map_it) == [b"aaa", b"new", b"map"]


def test_write_through_a_map_shows_in_stat_after_msync(merged: Path) -> None:
    path = make_file(merged / "d" / "mapped", b"a" * 4096)
    os.utime(path, ns=(1, 1))
    assert path.stat().st_mtime_ns == 1

    def map_it() -> None:
        with path.open("r+b") as opened:
            pages = mmap.mmap(opened.fileno(), 4096)
            pages[0:3] = b"new"
            pages.flush()
            pages.close()

    in_child(map_it)
    assert path.stat().st_mtime_ns > 10**18
    assert path.read_bytes()[:4] == b"newa"


def test_attributes_show_through_every_name_and_descriptor(merged: Path) -> None:
    path, second = merged / "d" / "low", merged / "second"
    os.link(path, second)
    with second.open("rb") as opened:
        for mode, owner in ((0o600, 5), (0o4755, 6), (0o644, 7)):
            os.chown(path, owner, owner)
            path.chmod(mode)
            for status in (path.stat(), second.stat(), os.fstat(opened.fileno()), in_child(second.stat)):
                assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, owner)
        path.unlink()
        assert os.fstat(opened.fileno()).st_nlink == second.stat().st_nlink == 1
        os.link(second, path)
        assert os.fstat(opened.fileno()).st_nlink == second.stat().st_nlink == path.stat().st_nlink == 2


def test_data_shows_through_every_name(merged: Path) -> None:
    path, second = merged / "d" / "up", merged / "e" / "second"
    os.link(path, second)
    for text in ("one", "three words here", ""):
        path.write_text(text)
        assert second.read_text() == text
        assert second.stat().st_size == len(text)
        second.write_text(text + "!")
        assert path.read_text() == text + "!"


def test_permissions_bind_others_at_once(merged: Path) -> None:
    path = merged / "d" / "low"
    for _ in range(3):
        assert run_as(USER, path.read_text) == "low of the lower"
        path.chmod(0o600)
        with fails_with(errno.EACCES):
            run_as(USER, path.read_text)
        os.setxattr(path, ACCESS_ACL, posix_acl(6, 0, 0, {USER: 4}))
        assert run_as(USER, path.read_text) == "low of the lower"
        os.removexattr(path, ACCESS_ACL)
        with fails_with(errno.EACCES):
            run_as(USER, path.read_text)
        path.chmod(0o644)
        path.parent.chmod(0o700)
        with fails_with(errno.EACCES):
            run_as(USER, path.stat)
        path.parent.chmod(0o755)


def test_extended_attributes_show_at_once(merged: Path) -> None:
    path = merged / "d" / "low"
    with path.open("rb") as opened:
        for value in (b"one", b"two", b""):
            os.setxattr(path, "user.x", value)
            assert os.getxattr(opened.fileno(), "user.x") == value
            assert in_child(lambda: os.listxattr(path)) == ["user.x"]
            os.removexattr(opened.fileno(), "user.x")
            assert os.listxattr(path) == []


def test_replaced_file_and_its_replacement(merged: Path) -> None:
    path = merged / "d" / "low"
    for number in range(5):
        make_file(merged / "e" / "next", f"version {number}")
        with path.open("rb", buffering=0) as old:
            before = old.read()
            os.replace(merged / "e" / "next", path)
            assert os.pread(old.fileno(), 100, 0) == before
        assert path.read_text() == f"version {number}"
        assert path.stat().st_size == len("version 0")
    assert names(merged / "e") == []


def test_times_of_parents_show_at_once(merged: Path) -> None:
    directory = merged / "d"
    changes: list[Callable[[], object]] = [
        (directory / "new").touch,
        lambda: (directory / "new").rename(directory / "new2"),
        (directory / "new2").unlink,
        (directory / "low").unlink,
        (directory / "made").mkdir,
        (directory / "made").rmdir,
        lambda: (directory / "up").rename(merged / "e" / "up"),
        lambda: os.link(merged / "e" / "up", directory / "back"),
        lambda: (directory / "symlink").symlink_to("x"),
    ]
    for number, change in enumerate(changes):
        os.utime(directory, ns=(1, 1))
        assert directory.stat().st_mtime_ns == 1
        change()
        assert directory.stat().st_mtime_ns > 10**18, number


def test_link_count_of_a_new_directory(merged: Path) -> None:
    make_directory(merged / "made")
    for expected, change in (
        (3, (merged / "made" / "a").mkdir),
        (4, (merged / "made" / "b").mkdir),
        (3, lambda: (merged / "made" / "a").rename(merged / "e" / "a")),
        (2, (merged / "made" / "b").rmdir),
        (3, lambda: (merged / "e" / "a").rename(merged / "made" / "a")),
    ):
        change()
        assert (merged / "made").stat().st_nlink == expected


def test_changes_of_another_process_show_here(merged: Path) -> None:
    script = (
        "import os, sys; os.chdir(sys.argv[1]);"
        "open('d/low', 'a').write('!'); os.unlink('d/both'); os.mkdir('d/new'); os.chmod('d/up', 0o600);"
        "os.rename('d/link', 'e/link'); os.symlink('here', 'd/link'); os.setxattr('d', 'user.x', b'1')"
    )
    subprocess.run([sys.executable, "-c", script, str(merged)], check=True)
    assert (merged / "d" / "low").read_text() == "low of the lower!"
    assert names(merged / "d") == ["link", "low", "new", "sub", "up"]
    assert names(merged / "e") == ["link"]
    assert os.readlink(merged / "d" / "link") == "here"
    assert stat.S_IMODE((merged / "d" / "up").stat().st_mode) == 0o600
    assert os.listxattr(merged / "d") == ["user.x"]


def test_cached_tree_and_fresh_mount_agree_after_many_changes(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    for number in range(30):
        make_file(stack.lower / f"d{number % 3}" / f"file{number}", str(number))
    mount = mount_overlay()
    snapshot(mount.path)
    for number in range(30):
        path = mount.path / f"d{number % 3}" / f"file{number}"
        match number % 6:
            case 0:
                path.unlink()
            case 1:
                path.write_text("changed")
            case 2:
                path.rename(path.with_name(f"renamed{number}"))
            case 3:
                os.link(path, path.with_name(f"second{number}"))
            case 4:
                path.unlink()
                make_file(path / "inner", "inner")
            case 5:
                path.chmod(0o600)
                os.setxattr(path, "user.x", b"1")
        snapshot(mount.path)
    cached = snapshot(mount.path)
    mount.remount()
    assert snapshot(mount.path) == cached
