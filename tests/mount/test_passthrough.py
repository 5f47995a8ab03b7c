"""Do files that the kernel reads and writes by itself behave as others do? And is it not asked of us then?"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import subprocess
from collections.abc import Iterator

import pytest

from tests.harness import Mount, MountFactory, Stack, pyoverlay_only

SIZE = 1 << 20
NOBODY = 65534


@contextlib.contextmanager
def no_data_requests(mount: Mount, allowed: int = 0) -> Iterator[None]:
    """Expect that the daemon is asked to read and write at most `allowed` times during the block."""
    before = mount.requests()
    yield
    after = mount.requests()
    asked = {name: after.get(name, 0) - before.get(name, 0) for name in ("READ", "WRITE")}
    assert sum(asked.values()) <= allowed, asked


# --- the kernel does it ------------------------------------------------------------------------------------


@pyoverlay_only
def test_a_new_file_is_written_and_read_without_us(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    with no_data_requests(mount), open(mount.path / "new", "w+b") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        file.seek(0)
        data = file.read()
    assert len(data) == SIZE
    with no_data_requests(mount):
        assert (mount.path / "new").read_bytes() == data
    assert (mount.stack.upper / "new").read_bytes() == data


@pyoverlay_only
def test_a_copied_up_file_is_read_without_us_once_it_is_opened_anew(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    (stack.lower / "file").write_bytes(b"lower")
    mount = mount_overlay()
    with open(mount.path / "file", "ab") as file:
        file.write(b" and upper")

    with no_data_requests(mount):
        assert (mount.path / "file").read_bytes() == b"lower and upper"


@pyoverlay_only
def test_lower_files_of_a_read_only_mount_are_read_without_us(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    (stack.lower / "file").write_bytes(bytes(SIZE))
    mount = mount_overlay(read_only=True)

    with no_data_requests(mount):
        assert (mount.path / "file").read_bytes() == bytes(SIZE)


@pyoverlay_only
def test_lower_files_of_a_writable_mount_are_not_passed_through(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    """A descriptor from before the copy-up must show the copy afterwards, which passthrough couldn't."""
    (stack.lower / "file").write_bytes(b"lower")
    mount = mount_overlay()
    reader = os.open(mount.path / "file", os.O_RDONLY)
    assert os.read(reader, 5) == b"lower"

    with open(mount.path / "file", "r+b") as file:
        file.write(b"UPPER")

    assert os.pread(reader, 5, 0) == b"UPPER"
    os.close(reader)
    assert (stack.lower / "file").read_bytes() == b"lower"


@pyoverlay_only
def test_passthrough_can_be_switched_off(mount_overlay: MountFactory) -> None:
    mount = mount_overlay("passthrough=off")
    before = mount.requests()

    (mount.path / "new").write_bytes(b"content")

    assert mount.requests()["WRITE"] == before.get("WRITE", 0) + 1


# --- and it is as the kernel's overlay does it -------------------------------------------------------------


def test_size_and_times_follow_every_way_of_writing(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    file = os.open(mount.path / "new", os.O_RDWR | os.O_CREAT)
    os.utime(file, (0, 0))
    os.pwrite(file, b"x" * 5000, 0)
    assert os.stat(mount.path / "new").st_size == os.fstat(file).st_size == 5000
    assert os.stat(mount.path / "new").st_mtime > 0

    os.utime(file, (0, 0))
    with mmap.mmap(file, 5000) as area:
        os.close(file)
        area[0] = 65
        area.flush()
        assert os.stat(mount.path / "new").st_mtime > 0
    assert (mount.path / "new").read_bytes()[:2] == b"Ax"
    os.utime(mount.path / "new", (0, 0))
    assert os.stat(mount.path / "new").st_mtime == 0


def test_times_follow_a_map_of_a_file_that_was_looked_up_before(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    (mount.path / "file").write_bytes(bytes(5000))
    os.utime(mount.path / "file", (0, 0))
    mount.remount()
    assert (mount.path / "file").stat().st_mtime == 0
    file = os.open(mount.path / "file", os.O_RDWR)
    with mmap.mmap(file, 5000) as area:
        area[0] = 65
        area.flush()
        assert (mount.path / "file").stat().st_mtime > 0
    os.close(file)


def test_times_follow_a_map_of_a_file_that_is_never_written(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    file = os.open(mount.path / "new", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 5000)
    with mmap.mmap(file, 5000) as area:
        os.utime(file, (0, 0))
        assert (mount.path / "new").stat().st_mtime == 0
        area[0] = 65
        area.flush()
        assert (mount.path / "new").stat().st_mtime > 0
    os.close(file)


@pyoverlay_only
def test_a_written_files_attributes_are_kept_again_when_nobody_writes(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    file = mount.path / "new"
    file.write_bytes(b"content")
    file.stat()
    before = mount.requests()["GETATTR"]

    for _ in range(100):
        assert file.stat().st_size == 7

    assert mount.requests()["GETATTR"] - before <= 1


def test_access_times_are_read_from_the_layer(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    file = mount.path / "new"
    file.write_bytes(b"content")
    os.utime(file, (0, 10**9))
    assert file.stat().st_atime == 0

    file.read_bytes()

    assert file.stat().st_atime > 0


@pytest.mark.parametrize("bits", [stat.S_ISUID, stat.S_ISGID])
def test_anothers_write_takes_set_id_bits(mount_overlay: MountFactory, bits: int) -> None:
    mount = mount_overlay()
    file = mount.path / "program"
    file.write_bytes(b"first")
    file.chmod(0o777 | bits)

    script = f"printf second >> {file}"
    subprocess.run(["setpriv", f"--reuid={NOBODY}", "--clear-groups", "sh", "-c", script], check=True)

    assert stat.S_IMODE(file.stat().st_mode) == 0o777
    assert file.read_bytes() == b"firstsecond"


def test_set_id_files_and_others_take_turns_on_one_file(mount_overlay: MountFactory) -> None:
    """Through the page cache, in passthrough, and again: each sees what the other wrote."""
    mount = mount_overlay()
    file = mount.path / "file"
    file.write_bytes(b"-" * 10000)
    for turn, mode in enumerate([0o644, 0o4755, 0o644, 0o2755, 0o644]):
        file.chmod(mode)
        with open(file, "r+b") as opened:
            opened.seek(turn * 2000)
            opened.write(b"%d" % turn)
        data = file.read_bytes()
        assert [data[before * 2000] for before in range(turn + 1)] == list(b"01234"[: turn + 1])


def test_a_file_made_set_id_while_it_is_open_can_be_opened_and_written(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    first = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT, 0o755)
    os.write(first, b"first")
    os.fchmod(first, 0o4755)

    second = os.open(mount.path / "file", os.O_RDWR)
    os.pwrite(second, b"S", 0)

    assert os.pread(first, 5, 0) == os.pread(second, 5, 0) == b"Sirst"
    os.close(first)
    os.close(second)
    assert (mount.path / "file").read_bytes() == b"Sirst"


def test_readers_of_the_lower_and_writers_of_the_upper_share_a_file(
    stack: Stack, mount_overlay: MountFactory
) -> None:
    (stack.lower / "file").write_bytes(b"0123456789")
    mount = mount_overlay()
    reader = os.open(mount.path / "file", os.O_RDONLY)
    writer = os.open(mount.path / "file", os.O_RDWR)
    os.pwrite(writer, b"A", 0)
    late = os.open(mount.path / "file", os.O_RDWR)
    os.pwrite(late, b"B", 1)
    assert os.pread(reader, 3, 0) == os.pread(writer, 3, 0) == os.pread(late, 3, 0) == b"AB2"
    for descriptor in (reader, writer, late):
        os.close(descriptor)

    with open(mount.path / "file", "r+b") as again:
        again.write(b"C")
    assert (mount.path / "file").read_bytes() == b"CB23456789"


def test_an_unlinked_file_goes_on(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    file = os.open(mount.path / "file", os.O_RDWR | os.O_CREAT)
    os.unlink(mount.path / "file")
    os.pwrite(file, b"content", 0)
    os.ftruncate(file, 4)

    assert os.fstat(file).st_size == 4
    again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    assert os.read(again, 10) == b"cont"
    os.close(file)
    os.close(again)


def test_appending_and_truncating_open_files(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    first = os.open(mount.path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    second = os.open(mount.path / "log", os.O_WRONLY | os.O_APPEND)
    for turn in range(100):
        os.write(first if turn % 2 else second, b"%02d" % turn)
    assert (mount.path / "log").read_bytes() == b"".join(b"%02d" % turn for turn in range(100))

    truncated = os.open(mount.path / "log", os.O_WRONLY | os.O_TRUNC)
    os.write(first, b"new")
    assert (mount.path / "log").read_bytes() == b"new"
    for descriptor in (first, second, truncated):
        os.close(descriptor)


@pyoverlay_only
def test_nothing_is_left_of_many_files(mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    assert mount.pid is not None
    before = len(os.listdir(f"/proc/{mount.pid}/fd"))
    for number in range(300):
        (mount.path / f"file{number}").write_bytes(b"content")
        assert (mount.path / f"file{number}").read_bytes() == b"content"

    assert len(os.listdir(f"/proc/{mount.pid}/fd")) <= before + 10
