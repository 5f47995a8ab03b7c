"""Open files of every layer: opened, read, written, cut, mapped, locked and flushed."""

import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, in_child
from tests.harness.content import make_directory, make_file, make_symlink, names

CONTENT = b"The quick brown fox jumps over the lazy dog."


@pytest.fixture(params=["lower", "upper"])
def file(request: pytest.FixtureRequest, stack: Stack, mount_overlay: MountFactory) -> Path:
    """A file with CONTENT in the merged tree, from a lower or from the upper."""
    make_file((stack.lower if request.param == "lower" else stack.upper) / "d" / "file", CONTENT)
    path: Path = mount_overlay().path / "d" / "file"
    return path


def test_read_at_every_offset(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        assert os.read(descriptor, 9) == b"The quick"
        assert os.read(descriptor, 6) == b" brown"
        assert os.pread(descriptor, 3, 40) == b"dog"
        assert os.pread(descriptor, 100, 40) == b"dog."
        assert os.pread(descriptor, 100, len(CONTENT)) == b""
        assert os.pread(descriptor, 100, 10**12) == b""
        assert os.lseek(descriptor, -4, os.SEEK_END) == 40
        assert os.read(descriptor, 100) == b"dog."
    finally:
        os.close(descriptor)


def test_write_in_the_middle_at_the_end_and_beyond(stack: Stack, file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        assert os.pwrite(descriptor, b"QUICK", 4) == 5
        assert os.pread(descriptor, 9, 0) == b"The QUICK"
        os.pwrite(descriptor, b"!", len(CONTENT))
        os.pwrite(descriptor, b"far", 100_000)
        expected = CONTENT.replace(b"quick", b"QUICK") + b"!"
        expected += bytes(100_000 - len(expected)) + b"far"
        assert os.fstat(descriptor).st_size == len(expected)
        assert os.pread(descriptor, 200_000, 0) == expected
    finally:
        os.close(descriptor)
    assert file.read_bytes() == expected == (stack.upper / "d" / "file").read_bytes()


def test_append_goes_to_the_end_whoever_writes(file: Path) -> None:
    first = os.open(file, os.O_WRONLY | os.O_APPEND)
    second = os.open(file, os.O_RDWR | os.O_APPEND)
    try:
        for number in range(20):
            os.write(first if number % 2 else second, b"%02d" % number)
        os.lseek(second, 0, os.SEEK_SET)
        os.write(second, b"end")
        assert os.read(second, 10) == b""
    finally:
        os.close(first)
        os.close(second)
    assert file.read_bytes() == CONTENT + b"".join(b"%02d" % number for number in range(20)) + b"end"


def test_appends_of_several_processes_do_not_overwrite_each_other(stack: Stack, file: Path) -> None:
    script = "import os,sys\nfor n in range(200): os.write(1, (sys.argv[1] * 9 + '\\n').encode())"
    with file.open("ab") as out:
        writers = [subprocess.Popen([sys.executable, "-c", script, str(n)], stdout=out) for n in range(3)]
        assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = file.read_bytes()[len(CONTENT) :].split()
    assert sorted(lines) == sorted([b"%d" % n * 9 for n in range(3)] * 200)


@pytest.mark.parametrize("size", [0, 3, len(CONTENT), 5000, 3 << 20])
def test_truncate_and_ftruncate(stack: Stack, file: Path, size: int) -> None:
    expected = CONTENT[:size] + bytes(max(0, size - len(CONTENT)))
    os.truncate(file, size)
    assert file.stat().st_size == size
    assert file.read_bytes() == expected == (stack.upper / "d" / "file").read_bytes()
    with file.open("r+b") as opened:
        os.ftruncate(opened.fileno(), size + 10)
        assert os.fstat(opened.fileno()).st_size == size + 10
        assert opened.read() == expected + bytes(10)
        os.ftruncate(opened.fileno(), 1)
        opened.seek(0)
        assert opened.read() == (expected + bytes(1))[:1]


def test_truncate_moves_the_times_and_the_blocks(stack: Stack, file: Path) -> None:
    with file.open("wb") as opened:
        opened.write(b"x" * (1 << 20))
    os.utime(file, ns=(1, 1))
    os.truncate(file, 4096)
    status = file.stat()
    assert status.st_mtime_ns > 10**18
    assert status.st_blocks == (stack.upper / "d" / "file").stat().st_blocks < 100


def test_truncating_opens(stack: Stack, file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_TRUNC)
    try:
        assert os.fstat(descriptor).st_size == 0
        os.write(descriptor, b"new")
    finally:
        os.close(descriptor)
    assert file.read_bytes() == b"new"
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    assert file.stat().st_size == 0
    assert (stack.upper / "d" / "file").read_bytes() == b""


def test_creating_opens(file: Path) -> None:
    with fails_with(errno.EEXIST):
        os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(file, os.O_CREAT | os.O_RDONLY))
    assert file.read_bytes() == CONTENT
    new = file.with_name("new")
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o400)
    os.write(descriptor, b"written though its mode forbids the next open")
    assert os.pread(descriptor, 7, 0) == b"written"
    os.close(descriptor)
    assert stat.S_IMODE(new.stat().st_mode) == 0o400
    with fails_with(errno.EEXIST):
        os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    make_symlink(file.with_name("dangling"), "made through the link")
    with fails_with(errno.EEXIST):
        os.open(file.with_name("dangling"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(file.with_name("dangling"), os.O_CREAT | os.O_WRONLY))
    assert file.with_name("made through the link").stat().st_size == 0


def test_opens_that_are_refused(file: Path) -> None:
    make_symlink(file.with_name("link"), "file")
    for path, flags, number in (
        (file.parent, os.O_WRONLY, errno.EISDIR),
        (file.parent, os.O_RDWR, errno.EISDIR),
        (file.parent, os.O_CREAT | os.O_RDONLY, errno.EISDIR),
        (file, os.O_DIRECTORY, errno.ENOTDIR),
        (file.with_name("link"), os.O_NOFOLLOW, errno.ELOOP),
        (file.with_name("nothing"), os.O_RDONLY, errno.ENOENT),
        (file.with_name("nothing"), os.O_WRONLY | os.O_TRUNC, errno.ENOENT),
        (file / "x", os.O_RDONLY, errno.ENOTDIR),
    ):
        with fails_with(number):
            os.close(os.open(path, flags))
    descriptor = os.open(file, os.O_WRONLY)
    with fails_with(errno.EBADF):
        os.read(descriptor, 1)
    os.close(descriptor)
    descriptor = os.open(file, os.O_RDONLY)
    with fails_with(errno.EBADF):
        os.write(descriptor, b"x")
    with fails_with(errno.EINVAL):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_NONBLOCK, os.O_NOCTTY])
def test_opens_with_flags(stack: Stack, file: Path, flag: int) -> None:
    descriptor = os.open(file, os.O_RDWR | flag)
    try:
        os.pwrite(descriptor, b"T", 0)
        assert os.pread(descriptor, 100, 0) == CONTENT
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & flag == flag & ~os.O_NOCTTY
    finally:
        os.close(descriptor)


def test_direct_io(stack: Stack, file: Path) -> None:
    page = mmap.mmap(-1, 8192)
    page[:] = bytes(range(256)) * 32
    descriptor = os.open(file, os.O_RDWR | os.O_DIRECT | os.O_TRUNC)
    try:
        assert os.pwrite(descriptor, page, 0) == 8192
        assert os.pwrite(descriptor, page, 8192) == 8192
        page[:] = bytes(8192)
        assert os.preadv(descriptor, [page], 4096) == 8192
        assert page[:] == bytes(range(256)) * 32
        assert os.fstat(descriptor).st_size == 16384
    finally:
        os.close(descriptor)
    assert file.read_bytes() == bytes(range(256)) * 64
    with file.open("r+b") as cached:
        cached.write(b"cached write")
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    assert os.preadv(descriptor, [page], 0) == 8192
    os.close(descriptor)
    assert page[:12] == b"cached write"


def test_shared_map_is_written_to_the_upper(stack: Stack, file: Path) -> None:
    def map_it() -> bytes:
        with file.open("r+b") as opened:
            os.ftruncate(opened.fileno(), 10_000)
            pages = mmap.mmap(opened.fileno(), 10_000)
            pages[4:9] = b"QUICK"
            pages[9_000:9_003] = b"end"
            pages.flush()
            seen = os.pread(opened.fileno(), 9, 0)
            pages.close()
            return seen

    assert in_child(map_it) == b"The QUICK"
    expected = CONTENT.replace(b"quick", b"QUICK") + bytes(9_000 - len(CONTENT)) + b"end" + bytes(997)
    assert file.read_bytes() == expected
    assert (stack.upper / "d" / "file").read_bytes() == expected


def test_writes_show_in_a_shared_map(file: Path) -> None:
    def map_it() -> bytes:
        with file.open("r+b", buffering=0) as opened:
            pages = mmap.mmap(opened.fileno(), len(CONTENT), prot=mmap.PROT_READ)
            before = pages[:9]
            opened.write(b"Any")
            return before + pages[:9]

    assert in_child(map_it) == b"The quickAny quick"


def test_private_map_changes_nothing(file: Path) -> None:
    def map_it() -> bytes:
        with file.open("rb") as opened:
            flags, protection = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
            pages = mmap.mmap(opened.fileno(), len(CONTENT), flags=flags, prot=protection)
            pages[:3] = b"AAA"
            return pages[:9]

    assert in_child(map_it) == b"AAA quick"
    assert file.read_bytes() == CONTENT


def test_map_outlives_its_descriptor_and_its_name(file: Path) -> None:
    def map_it() -> bytes:
        with file.open("r+b") as opened:
            pages = mmap.mmap(opened.fileno(), len(CONTENT))
        file.unlink()
        pages[:3] = b"AAA"
        pages.flush()
        return pages[:]

    assert in_child(map_it) == b"AAA" + CONTENT[3:]
    assert not file.exists()


def test_flock_between_processes(file: Path) -> None:
    with file.open("rb") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        assert in_child(lambda: _try_flock(file, fcntl.LOCK_SH)) is False
        fcntl.flock(mine, fcntl.LOCK_SH)
        assert in_child(lambda: _try_flock(file, fcntl.LOCK_SH)) is True
        assert in_child(lambda: _try_flock(file, fcntl.LOCK_EX)) is False
    assert in_child(lambda: _try_flock(file, fcntl.LOCK_EX)) is True


def _try_flock(path: Path, operation: int) -> bool:
    with path.open("rb") as opened:
        try:
            fcntl.flock(opened, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.parametrize("set_lock", [fcntl.F_SETLK, 37], ids=["process", "open file description"])
def test_record_locks(file: Path, set_lock: int) -> None:
    def lock(opened: int, kind: int, start: int, length: int) -> bool:
        try:
            fcntl.fcntl(opened, set_lock, struct.pack("hhqqixxxx", kind, os.SEEK_SET, start, length, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def from_a_child(kind: int, start: int, length: int) -> bool:
        def locking() -> bool:
            with file.open("r+b") as other:
                return lock(other.fileno(), kind, start, length)

        return in_child(locking)

    with file.open("r+b") as mine:
        assert lock(mine.fileno(), fcntl.F_WRLCK, 0, 10)
        assert from_a_child(fcntl.F_WRLCK, 5, 1) is False
        assert from_a_child(fcntl.F_RDLCK, 9, 20) is False
        assert from_a_child(fcntl.F_WRLCK, 10, 0) is True
        assert lock(mine.fileno(), fcntl.F_UNLCK, 0, 0)
        assert from_a_child(fcntl.F_WRLCK, 0, 0) is True


@pytest.mark.parametrize("options", [(), ("volatile",)], ids=["fsync", "volatile"])
def test_flushing(stack: Stack, mount_overlay: MountFactory, options: tuple[str, ...]) -> None:
    make_file(stack.lower / "d" / "low", "low")
    merged = mount_overlay(*options).path
    with (merged / "d" / "new").open("wb") as new:
        new.write(b"data")
        new.flush()
        os.fsync(new.fileno())
        os.fdatasync(new.fileno())
    for path in ("d", "d/low", "d/new", "."):
        descriptor = os.open(merged / path, os.O_RDONLY)
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        os.close(descriptor)
    assert (stack.upper / "d" / "new").read_bytes() == b"data"
    assert not (stack.upper / "d" / "low").exists(), "flushing copies nothing up"


def test_big_sparse_offsets(stack: Stack, file: Path) -> None:
    far = (5 << 40) + 12345
    with file.open("r+b", buffering=0) as opened:
        os.pwrite(opened.fileno(), b"far away", far)
        assert os.pread(opened.fileno(), 100, far - 3) == bytes(3) + b"far away"
        assert os.pread(opened.fileno(), 9, 0) == b"The quick"
    assert file.stat().st_size == far + 8
    assert file.stat().st_blocks < 100
    os.truncate(file, 10)
    with fails_with(errno.EFBIG, errno.EINVAL):
        os.truncate(file, 1 << 62)


def test_big_writes_and_reads(stack: Stack, file: Path) -> None:
    data = os.urandom(9_000_001)
    with file.open("wb", buffering=0) as opened:
        written = 0
        while written < len(data):
            written += opened.write(data[written:])
    with file.open("rb", buffering=0) as opened:
        assert opened.readall() == data
    assert (stack.upper / "d" / "file").read_bytes() == data


def test_copying_within_the_kernel(file: Path) -> None:
    data = os.urandom(300_000)
    source = make_file(file.with_name("source"), data)
    with source.open("rb") as reading, file.open("wb") as writing:
        copied = 0
        while count := os.copy_file_range(reading.fileno(), writing.fileno(), 1 << 20):
            copied += count
    assert copied == len(data)
    assert file.read_bytes() == data
    with source.open("rb") as reading, file.open("wb") as writing:
        sent = 0
        while count := os.sendfile(writing.fileno(), reading.fileno(), sent, 1 << 20):
            sent += count
    assert file.read_bytes() == data


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_programs_and_scripts_run(stack: Stack, mount_overlay: MountFactory, layer: str) -> None:
    root = stack.lower if layer == "lower" else stack.upper
    make_file(root / "bin" / "echo", Path("/bin/echo").read_bytes(), 0o755)
    make_file(root / "bin" / "script", "#!/bin/sh\necho from a script\n", 0o755)
    merged = mount_overlay().path
    assert subprocess.check_output([merged / "bin" / "echo", "hello"]) == b"hello\n"
    assert subprocess.check_output([merged / "bin" / "script"]) == b"from a script\n"
    (merged / "bin" / "echo").chmod(0o644)
    with fails_with(errno.EACCES):
        subprocess.check_output([merged / "bin" / "echo"])
    (merged / "bin" / "echo").chmod(0o700)
    assert subprocess.check_output([merged / "bin" / "echo", "again"]) == b"again\n"


def test_reading_does_not_move_the_atime_of_a_lower(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", CONTENT)
    make_symlink(stack.lower / "d" / "link", "file")
    for path in ("d/file", "d/link", "d"):
        os.utime(stack.lower / path, ns=(1, 2), follow_symlinks=False)
    merged = mount_overlay(check_lowers=False).path
    assert (merged / "d" / "link").read_bytes() == CONTENT
    assert os.readlink(merged / "d" / "link") == "file"
    assert names(merged / "d") == ["file", "link"]
    for path in ("d/file", "d/link", "d"):
        assert os.lstat(stack.lower / path).st_atime_ns == 1


def test_many_open_files(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "d")
    for number in range(300):
        make_file((stack.lower, stack.upper)[number % 2] / "d" / f"file{number}", str(number))
    merged = mount_overlay().path
    opened = [
        os.open(merged / "d" / f"file{number}", (os.O_RDONLY, os.O_RDWR)[number % 3 == 0])
        for number in range(300)
    ]
    for number, descriptor in enumerate(opened):
        assert os.pread(descriptor, 10, 0) == b"%d" % number
    for descriptor in opened:
        os.close(descriptor)


# --- read later than opened ---------------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["nothing", "unlink", "rename", "change", "change-unlink"])
def test_opened_again_and_read_when_all_has_changed(file: Path, meanwhile: str) -> None:
    """A descriptor stays the file's, though nobody has read from it before its names or data changed."""
    file.read_bytes()
    descriptor = os.open(file, os.O_RDONLY)
    expected = CONTENT
    try:
        if meanwhile.startswith("change"):
            expected = CONTENT.swapcase()
            file.write_bytes(expected)
        if meanwhile == "rename":
            file.rename(file.with_name("renamed"))
        if "unlink" in meanwhile:
            file.unlink()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, 100, 0) == expected
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == len(expected)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
