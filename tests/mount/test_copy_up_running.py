"""Copy-up while others look: open descriptors, several callers, a killed caller, a full disk, a crash."""

import errno
import fcntl
import mmap
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Mount, MountFactory, Stack, fails_with, in_child, make_stack
from tests.harness.content import left_in_work, make_directory, make_file, names
from tests.harness.libc import mount as mount_file_system
from tests.harness.libc import umount

MIB = 1 << 20
EXT4_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NO_LOG_FLUSH = 2


def test_descriptor_opened_before_copy_up_reads_the_new_data(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "file", "old data")
    merged = mount_overlay().path
    with (
        (merged / "file").open("rb", buffering=0) as old,
        (merged / "file").open("rb", buffering=0) as second,
    ):
        assert old.read() == b"old data"
        with (merged / "file").open("r+b", buffering=0) as writer:
            writer.write(b"NEW")
            assert os.pread(old.fileno(), 100, 0) == b"NEW data"
            writer.seek(0, os.SEEK_END)
            writer.write(b" and more")
        assert os.pread(old.fileno(), 100, 0) == b"NEW data and more"
        assert second.read() == b"NEW data and more"
        assert os.fstat(old.fileno()).st_size == 17
        os.truncate(merged / "file", 3)
        assert os.pread(old.fileno(), 100, 0) == b"NEW"
        assert os.fstat(old.fileno()).st_size == 3
        with (merged / "file").open("rb", buffering=0) as third:
            assert third.read() == b"NEW"
    assert (stack.lower / "file").read_text() == "old data"


def test_descriptor_opened_before_a_chmod_sees_later_writes(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "file", "old data")
    merged = mount_overlay().path
    with (merged / "file").open("rb", buffering=0) as old:
        os.chmod(merged / "file", 0o600)
        assert os.fstat(old.fileno()).st_mode & 0o777 == 0o600
        assert old.read() == b"old data"
        (merged / "file").write_text("changed!")
        assert os.pread(old.fileno(), 100, 0) == b"changed!"


def test_path_descriptor_opened_before_copy_up(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", "old data")
    merged = mount_overlay().path
    handle = os.open(merged / "d" / "file", os.O_PATH)
    directory = os.open(merged / "d", os.O_PATH | os.O_DIRECTORY)
    try:
        os.chmod(merged / "d" / "file", 0o600)
        assert os.fstat(handle).st_mode & 0o777 == 0o600
        Path(f"/proc/self/fd/{handle}").write_text("through the handle")
        assert (merged / "d" / "file").read_text() == "through the handle"
        made = os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        os.close(made)
        assert names(merged / "d") == ["file", "new"]
    finally:
        os.close(handle)
        os.close(directory)


def test_writing_through_the_magic_link_of_a_read_only_descriptor(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "file", "old data")
    merged = mount_overlay().path
    with (merged / "file").open("rb", buffering=0) as old:
        with open(f"/proc/self/fd/{old.fileno()}", "r+b", buffering=0) as writer:
            writer.write(b"NEW")
        assert old.read() == b"NEW data"
    assert (stack.upper / "file").read_text() == "NEW data"


def test_private_map_of_a_lower_file_survives_copy_up(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "file", b"a" * 10_000)
    merged = mount_overlay().path

    def map_it() -> tuple[bytes, bytes]:
        with (merged / "file").open("rb") as file:
            pages = mmap.mmap(file.fileno(), 10_000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            before = pages[:10]
            with (merged / "file").open("r+b") as writer:
                writer.seek(5000)
                writer.write(b"b")
            return before, pages[9990:]

    assert in_child(map_it) == (b"a" * 10, b"a" * 10)
    assert (merged / "file").read_bytes()[4999:5002] == b"aba"


def test_locked_descriptors_before_and_after_copy_up_exclude_each_other(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    make_file(stack.lower / "file", "x")
    merged = mount_overlay().path
    with (merged / "file").open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        with (merged / "file").open("r+b") as writer:
            with pytest.raises(BlockingIOError):
                fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(reader, fcntl.LOCK_UN)
            fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_many_callers_copy_a_file_once(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", b"." * (8 * MIB))
    merged = mount_overlay().path
    ready = threading.Barrier(8)
    inodes: list[int] = []

    def write(number: int) -> None:
        ready.wait()
        descriptor = os.open(merged / "d" / "file", os.O_RDWR)
        inodes.append((stack.upper / "d" / "file").stat().st_ino)
        os.pwrite(descriptor, b"%d" % number, number * MIB)
        os.close(descriptor)

    callers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(inodes) == 8
    assert set(inodes) == {(stack.upper / "d" / "file").stat().st_ino}
    content = (stack.upper / "d" / "file").read_bytes()
    assert len(content) == 8 * MIB
    assert [content[number * MIB : number * MIB + 2] for number in range(8)] == [
        b"%d." % number for number in range(8)
    ]


def test_many_callers_bring_their_parents_up_once(stack: Stack, mount_overlay: MountFactory) -> None:
    deep = Path("a/b/c/d/e/f")
    for number in range(16):
        make_file(stack.lower / deep / f"file{number}", str(number))
    merged = mount_overlay().path
    ready = threading.Barrier(16)
    failures: list[OSError] = []

    def change(number: int) -> None:
        ready.wait()
        try:
            with (merged / deep / f"file{number}").open("a") as file:
                file.write("!")
        except OSError as error:
            failures.append(error)

    callers = [threading.Thread(target=change, args=(number,)) for number in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert failures == []
    for number in range(16):
        assert (stack.upper / deep / f"file{number}").read_text() == f"{number}!"


def _data(path: Path, size: int) -> None:
    """A file of `size` bytes with no hole in it."""
    piece = bytes(range(1, 256)) * 4112
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(piece[: size - file.tell()])


def test_others_go_on_while_a_big_file_is_copied(stack: Stack, mount_overlay: MountFactory) -> None:
    _data(stack.lower / "big", 256 * MIB)
    for number in range(2000):
        make_file(stack.lower / "d" / f"file{number}", str(number))
    merged = mount_overlay(check_lowers=False).path
    copier = subprocess.Popen(
        ["/bin/sh", "-c", f"echo started; : >> {merged}/big; echo done"], stdout=subprocess.PIPE
    )
    assert copier.stdout is not None
    with copier, copier.stdout:
        assert copier.stdout.readline() == b"started\n"
        while_copying = 0
        for number in range(2000):
            assert (merged / "d" / f"file{number}").read_text() == str(number)
            if (stack.upper / "big").exists():
                break
            while_copying += 1
        assert copier.stdout.readline() == b"done\n"
    assert while_copying >= 10, "reads elsewhere are not held up by the copy"
    assert (stack.upper / "big").stat().st_size == 256 * MIB


@pytest.mark.parametrize("tries", [6])
def test_killed_caller_leaves_a_whole_file_or_none(
    stack: Stack, mount_overlay: MountFactory, tries: int
) -> None:
    size = 128 * MIB
    _data(stack.lower / "big0", size)
    for number in range(1, tries):
        os.link(stack.lower / "big0", stack.lower / f"big{number}")
    merged = mount_overlay(check_lowers=False).path
    for number in range(tries):
        caller = subprocess.Popen(
            ["/bin/sh", "-c", f"echo started; : >> {merged}/big{number}"], stdout=subprocess.PIPE
        )
        assert caller.stdout is not None
        with caller, caller.stdout:
            caller.stdout.readline()
            threading.Event().wait(number * 0.01)  # not for luck: every moment must be safe
            caller.send_signal(signal.SIGKILL)
        copied = stack.upper / f"big{number}"
        if copied.exists():
            assert copied.stat().st_size == size
            assert copied.stat().st_blocks * 512 >= size
        assert (merged / f"big{number}").stat().st_size == size
        with (merged / f"big{number}").open("rb") as file:
            assert os.pread(file.fileno(), 3, size - 255 * 3) != bytes(3)
    _wait_until_empty(stack.work)


def _wait_until_empty(work: Path) -> None:
    limit = time.monotonic() + 10
    while left := left_in_work(work):
        assert time.monotonic() < limit, f"left in the work directory: {left}"
        time.sleep(0.01)


@pytest.fixture
def small_upper(base: Path) -> Iterator[Stack]:
    """A stack whose upper and work directory lie on a file system of 2 MiB."""
    small = make_stack(base / "small")
    disk = make_directory(small.base / "disk")
    mount_file_system("tmpfs", disk, "tmpfs", data="size=2M,mode=755")
    small.upper, small.work = make_directory(disk / "u"), make_directory(disk / "w")
    yield small
    umount(disk)


def test_no_space_leaves_the_lower_visible_and_nothing_in_the_upper(
    small_upper: Stack, mount_overlay: MountFactory
) -> None:
    stack = small_upper
    _data(stack.lower / "big", 4 * MIB)
    make_file(stack.lower / "d" / "small", "small")
    overlay = mount_overlay(stack=stack)
    changes: list[Callable[[], None]] = [
        lambda: os.close(os.open(overlay.path / "big", os.O_RDWR)),
        lambda: os.chmod(overlay.path / "big", 0o600),
        lambda: os.rename(overlay.path / "big", overlay.path / "elsewhere"),
        lambda: os.link(overlay.path / "big", overlay.path / "elsewhere"),
    ]
    for change in changes:
        with fails_with(errno.ENOSPC):
            change()
        assert names(stack.upper) == []
        assert names(overlay.path) == ["big", "d"]
    assert (overlay.path / "big").stat().st_mode & 0o777 == 0o644
    assert (overlay.path / "big").read_bytes() == (stack.lower / "big").read_bytes()
    (overlay.path / "d" / "small").write_text("there is room for this")
    os.close(os.open(overlay.path / "big", os.O_WRONLY | os.O_TRUNC))
    assert (overlay.path / "big").stat().st_size == 0
    _wait_until_empty(stack.work)


@pytest.fixture
def crashing_upper(base: Path) -> Iterator[Stack]:
    """A stack whose upper and work directory lie on an ext4 that can be shut down as by a crash."""
    stack = make_stack(base / "crash")
    image, disk = stack.base / "image", make_directory(stack.base / "disk")
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
    stack.upper, stack.work = make_directory(disk / "u"), make_directory(disk / "w")
    yield stack
    umount(disk)


def test_copied_file_is_on_disk_before_it_is_published(
    crashing_upper: Stack, mount_overlay: MountFactory
) -> None:
    """A crash after the copy-up, with the directory's journal on disk, never leaves an empty file."""
    stack = crashing_upper
    _data(stack.lower / "file", 3 * MIB)
    expected = (stack.lower / "file").read_bytes()
    overlay: Mount = mount_overlay(stack=stack)
    os.chmod(overlay.path / "file", 0o600)
    disk = stack.upper.parent
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NO_LOG_FLUSH))
    finally:
        os.close(descriptor)
    overlay.remove()
    umount(disk)
    subprocess.run(["mount", "-o", "loop", str(stack.base / "image"), str(disk)], check=True)
    if (stack.upper / "file").exists():
        assert (stack.upper / "file").read_bytes() == expected
        assert (stack.upper / "file").stat().st_mode & 0o777 == 0o600
