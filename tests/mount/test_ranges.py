"""Ranges of open files: allocated, freed, found, copied; and what is known of the files afterwards."""

import errno
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack, fails_with, make_stack, run_as
from tests.harness.content import NET_RAW, make_file
from tests.harness.disk import file_system
from tests.harness.libc import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate

BLOCK = 4096
MIB = 1 << 20
NOBODY = 65534
CONTENT = bytes(range(1, 129)) * (16 * BLOCK // 128)


@pytest.fixture(params=["lower", "upper", "upper, not passed through"])
def file(request: pytest.FixtureRequest, kind: Kind, stack: Stack, mount_overlay: MountFactory) -> Path:
    """A file of 16 blocks in the merged tree; its size and times are in the kernel's cache."""
    make_file((stack.lower if request.param == "lower" else stack.upper) / "d" / "file", CONTENT)
    asked = request.param == "upper, not passed through" and kind is not Kind.KERNEL
    path: Path = mount_overlay(*(["passthrough=off"] if asked else [])).path / "d" / "file"
    assert path.stat().st_size == len(CONTENT)
    return path


def _age(path: Path) -> None:
    os.utime(path, (1, 1))
    assert path.stat().st_mtime == 1


# --- fallocate(2) ------------------------------------------------------------------------------------------


def test_allocation_makes_a_file_longer(stack: Stack, file: Path) -> None:
    _age(file)
    with open(file, "r+b") as opened:
        fallocate(opened.fileno(), 0, len(CONTENT), MIB)
        status = file.stat()
        assert status.st_size == os.fstat(opened.fileno()).st_size == len(CONTENT) + MIB
        assert status.st_blocks * 512 >= len(CONTENT) + MIB
        assert status.st_mtime > 1
        assert opened.read() == CONTENT + bytes(MIB)
    assert (stack.upper / "d" / "file").stat().st_size == len(CONTENT) + MIB


def test_allocation_beyond_the_end_keeps_the_size(file: Path) -> None:
    with open(file, "r+b") as opened:
        fallocate(opened.fileno(), KEEP_SIZE, 0, MIB)
        status = file.stat()
        assert status.st_size == len(CONTENT)
        assert status.st_blocks * 512 >= MIB
        assert opened.read() == CONTENT


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
def test_a_range_is_emptied_for_everybody_who_reads(file: Path, mode: int) -> None:
    expected = CONTENT[:BLOCK] + bytes(2 * BLOCK) + CONTENT[3 * BLOCK :]
    with open(file, "r+b") as opened, open(file, "rb", buffering=0) as reader:
        assert reader.read() == CONTENT
        _age(file)
        before = file.stat().st_blocks
        fallocate(opened.fileno(), mode, BLOCK, 2 * BLOCK)
        assert os.pread(reader.fileno(), len(CONTENT), 0) == expected
        assert file.read_bytes() == expected
        status = file.stat()
        assert status.st_size == len(CONTENT)
        assert status.st_mtime > 1
        if mode & PUNCH_HOLE:
            assert status.st_blocks == before - 2 * BLOCK // 512


def test_allocation_wants_a_descriptor_for_writing(stack: Stack, file: Path) -> None:
    with open(file, "rb") as opened, fails_with(errno.EBADF):
        fallocate(opened.fileno(), 0, 0, BLOCK)
    assert file.read_bytes() == CONTENT


def test_modes_that_the_file_system_has_not(file: Path) -> None:
    with open(file, "r+b") as opened:
        with fails_with(errno.EOPNOTSUPP):
            fallocate(opened.fileno(), PUNCH_HOLE, 0, BLOCK)
        with fails_with(errno.EOPNOTSUPP):
            fallocate(opened.fileno(), 0x8000, 0, BLOCK)
        with fails_with(errno.EINVAL):
            fallocate(opened.fileno(), 0, -1, BLOCK)
        with fails_with(errno.EINVAL):
            fallocate(opened.fileno(), 0, 0, 0)
        with fails_with(errno.EFBIG):
            fallocate(opened.fileno(), 0, 1 << 62, 1 << 60)
    assert file.read_bytes() == CONTENT


def test_allocation_on_a_full_disk(kind: Kind) -> None:
    with file_system("tmpfs") as place:
        stack = make_stack(place)
        with Mount(kind, stack) as mount, open(mount.path / "new", "w+b") as opened:
            size = os.statvfs(place).f_blocks * os.statvfs(place).f_frsize
            with fails_with(errno.ENOSPC):
                fallocate(opened.fileno(), 0, 0, size * 2)
            assert os.fstat(opened.fileno()).st_size == 0


@pytest.mark.parametrize("user", [0, NOBODY])
def test_set_id_bits_fall_as_with_a_write(stack: Stack, mount_overlay: MountFactory, user: int) -> None:
    file = make_file(stack.upper / "file", CONTENT)
    os.chmod(file, 0o6777)
    path = mount_overlay().path / "file"
    assert path.stat().st_mode & stat.S_ISUID

    def allocate() -> None:
        with open(path, "r+b") as opened:
            fallocate(opened.fileno(), 0, 0, BLOCK)

    run_as(user, allocate) if user else allocate()
    assert stat.S_IMODE(path.stat().st_mode) == (0o777 if user else 0o6777)


def test_capabilities_fall_as_with_a_write(stack: Stack, mount_overlay: MountFactory) -> None:
    file = make_file(stack.upper / "file", CONTENT)
    os.setxattr(file, "security.capability", NET_RAW)
    path = mount_overlay().path / "file"
    with open(path, "r+b") as opened:
        fallocate(opened.fileno(), 0, 0, BLOCK)
    with fails_with(errno.ENODATA):
        os.getxattr(path, "security.capability")


# --- lseek(2): SEEK_DATA, SEEK_HOLE ------------------------------------------------------------------------


@pytest.fixture(params=["lower", "upper"])
def sparse(request: pytest.FixtureRequest, stack: Stack, mount_overlay: MountFactory) -> Path:
    """A file of 2 MiB with one block of data at 1 MiB."""
    with open((stack.lower if request.param == "lower" else stack.upper) / "sparse", "wb") as file:
        file.seek(MIB)
        file.write(b"x" * BLOCK)
        file.truncate(2 * MIB)
    path: Path = mount_overlay().path / "sparse"
    return path


def test_data_and_holes_are_where_the_layer_has_them(sparse: Path) -> None:
    with open(sparse, "rb", buffering=0) as opened:
        descriptor = opened.fileno()
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == MIB
        assert os.lseek(descriptor, MIB + 5, os.SEEK_DATA) == MIB + 5
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 0
        assert os.lseek(descriptor, MIB, os.SEEK_HOLE) == MIB + BLOCK
        assert os.read(descriptor, 1) == b"\0"
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == MIB + BLOCK + 1
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails_with(errno.ENXIO):
                os.lseek(descriptor, 2 * MIB, whence)
        with fails_with(errno.ENXIO):
            os.lseek(descriptor, MIB + BLOCK, os.SEEK_DATA)
        assert os.lseek(descriptor, 0, os.SEEK_END) == 2 * MIB


def test_holes_of_a_file_that_was_copied_up_meanwhile(sparse: Path) -> None:
    with open(sparse, "rb", buffering=0) as old, open(sparse, "r+b", buffering=0) as new:
        assert os.lseek(old.fileno(), 0, os.SEEK_DATA) == MIB
        os.pwrite(new.fileno(), b"y" * BLOCK, 4 * BLOCK)
        assert os.lseek(old.fileno(), 0, os.SEEK_DATA) == 4 * BLOCK
        fallocate(new.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, 8 * BLOCK)
        assert os.lseek(old.fileno(), 0, os.SEEK_DATA) == MIB


def test_programs_copy_sparse_files_sparsely(sparse: Path) -> None:
    copy = sparse.with_name("copy")
    subprocess.run(["cp", "--sparse=auto", "--reflink=never", sparse, copy], check=True)
    assert copy.read_bytes() == sparse.read_bytes()
    assert copy.stat().st_blocks * 512 <= 4 * BLOCK


# --- copy_file_range(2) ------------------------------------------------------------------------------------


def _copy(source: Path, target: Path, count: int, from_: int | None, to: int | None, flags: int) -> int:
    reading = os.open(source, os.O_RDONLY)
    writing = os.open(target, flags)
    try:
        return os.copy_file_range(reading, writing, count, from_, to)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_range_is_copied_into_another_file(file: Path) -> None:
    target = file.with_name("target")
    target.write_bytes(b"-" * 3 * BLOCK)
    _age(target)
    copied = _copy(file, target, 5000, 100, BLOCK, os.O_RDWR)
    assert copied == 5000
    assert target.read_bytes() == b"-" * BLOCK + CONTENT[100:5100] + b"-" * (2 * BLOCK - 5000)
    assert target.stat().st_mtime > 1
    assert target.stat().st_size == 3 * BLOCK


def test_a_range_is_copied_beyond_the_end(file: Path) -> None:
    target = file.with_name("target")
    target.write_bytes(b"")
    assert target.stat().st_size == 0
    assert _copy(file, target, 1 << 40, BLOCK, 10, os.O_WRONLY) == len(CONTENT) - BLOCK
    assert target.stat().st_size == len(CONTENT) - BLOCK + 10
    assert target.read_bytes() == bytes(10) + CONTENT[BLOCK:]
    assert _copy(file, target, 100, len(CONTENT), 0, os.O_WRONLY) == 0


def test_a_range_is_copied_within_a_file(file: Path) -> None:
    assert _copy(file, file, BLOCK, 0, 8 * BLOCK, os.O_RDWR) == BLOCK
    assert file.read_bytes() == CONTENT[: 8 * BLOCK] + CONTENT[:BLOCK] + CONTENT[9 * BLOCK :]
    with fails_with(errno.EINVAL):
        _copy(file, file, 2 * BLOCK, 0, BLOCK, os.O_RDWR)
    with fails_with(errno.EBADF):
        _copy(file, file, BLOCK, 0, 8 * BLOCK, os.O_RDONLY)
    with fails_with(errno.EBADF):
        _copy(file, file, BLOCK, 0, 8 * BLOCK, os.O_WRONLY | os.O_APPEND)


def test_what_is_read_already_shows_the_copied_range(file: Path) -> None:
    target = file.with_name("target")
    target.write_bytes(b"-" * len(CONTENT))
    with open(target, "rb", buffering=0) as reader:
        assert reader.read() == b"-" * len(CONTENT)
        _copy(file, target, len(CONTENT), 0, 0, os.O_RDWR)
        assert os.pread(reader.fileno(), len(CONTENT), 0) == CONTENT


def test_a_file_copied_up_by_the_open_that_it_is_copied_to(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "from", CONTENT)
    make_file(stack.lower / "to", b"-" * len(CONTENT))
    merged = mount_overlay().path
    assert _copy(merged / "from", merged / "to", BLOCK, 0, 0, os.O_RDWR) == BLOCK
    assert (merged / "to").read_bytes() == CONTENT[:BLOCK] + b"-" * 15 * BLOCK
    assert not (stack.upper / "from").exists()


@pytest.mark.parametrize("user", [0, NOBODY])
def test_set_id_bits_fall_when_a_range_is_copied(
    stack: Stack, mount_overlay: MountFactory, user: int
) -> None:
    make_file(stack.lower / "from", CONTENT)
    os.chmod(make_file(stack.upper / "to"), 0o6777)
    merged = mount_overlay().path

    def copy() -> int:
        return _copy(merged / "from", merged / "to", BLOCK, 0, 0, os.O_RDWR)

    assert (run_as(user, copy) if user else copy()) == BLOCK
    assert stat.S_IMODE((merged / "to").stat().st_mode) == (0o777 if user else 0o6777)


@pytest.fixture(params=["xfs", "btrfs"])
def sharing(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system that can share blocks."""
    with file_system(request.param) as place:
        yield place


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_blocks_are_shared_where_the_file_system_can(kind: Kind, sharing: Path, layer: str) -> None:
    stack = make_stack(sharing)
    source = make_file((stack.lower if layer == "lower" else stack.upper) / "from", os.urandom(64 * MIB))
    os.sync()
    before = os.statvfs(sharing)
    with Mount(kind, stack) as mount:
        target = mount.path / "to"
        target.write_bytes(b"")
        left = 64 * MIB
        with open(mount.path / "from", "rb") as reading, open(target, "r+b") as writing:
            while copied := os.copy_file_range(reading.fileno(), writing.fileno(), left):
                left -= copied
        assert left == 0
        assert target.read_bytes() == source.read_bytes()
        os.sync()
        used = (before.f_bfree - os.statvfs(sharing).f_bfree) * before.f_frsize
        assert used < 8 * MIB


def test_one_call_shares_whole_blocks_and_copies_no_more(kind: Kind, sharing: Path) -> None:
    """It is the caller who asks for the rest, as of any copy that came out short."""
    stack = make_stack(sharing)
    make_file(stack.upper / "from", b"x" * 8192)
    with Mount(kind, stack) as mount:
        target = mount.path / "to"
        target.write_bytes(b"")
        with open(mount.path / "from", "rb") as reading, open(target, "r+b") as writing:
            assert os.copy_file_range(reading.fileno(), writing.fileno(), 5000) == 4096
            assert os.copy_file_range(reading.fileno(), writing.fileno(), 904) == 904
        assert target.read_bytes() == b"x" * 5000


def test_others_are_answered_while_a_range_is_copied(
    kind: Kind, stack: Stack, mount_overlay: MountFactory
) -> None:
    """And a signal ends the copy early."""
    with open(stack.upper / "from", "wb") as file:
        file.truncate(0)
        fallocate(file.fileno(), 0, 0, 512 * MIB)
    merged = mount_overlay().path
    (merged / "to").write_bytes(b"")
    child = os.fork()
    if child == 0:
        reading, writing = os.open(merged / "from", os.O_RDONLY), os.open(merged / "to", os.O_RDWR)
        while os.copy_file_range(reading, writing, 512 * MIB):
            pass
        os._exit(0)
    try:
        _wait_until(lambda: (stack.upper / "to").stat().st_size > 0)
        assert sorted(os.listdir(merged)) == ["from", "to"]
        (merged / "other").write_text("meanwhile")
    finally:
        os.kill(child, signal.SIGKILL)
        assert _ended(child)
    assert (merged / "to").stat().st_size == (stack.upper / "to").stat().st_size


def _wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def _ended(child: int, seconds: float = 30) -> bool:
    waiting = threading.Thread(target=os.waitpid, args=(child, 0), daemon=True)
    waiting.start()
    waiting.join(seconds)
    return not waiting.is_alive()
