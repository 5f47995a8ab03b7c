"""Programs of a lower, which the kernel reads by itself: can they be run, replaced and written as always?

With `passthrough=all` every file of a lower is such, and these are the ways to see it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack, fails_with, pyoverlay_only

PROGRAM = shutil.which("sleep") or ""
LIBRARY = Path(PROGRAM)
"""As good as a shared library: an ELF file of type DYN that somebody reads and maps, and nobody executes."""
BEGINNING = b"\x7fELF"
FS_IOC_GETFLAGS = 0x80086601


@pytest.fixture
def mount(stack: Stack, mount_overlay: MountFactory) -> Mount:
    """A writable mount over a lower with programs."""
    for name in ("program", "library"):
        shutil.copy(PROGRAM, stack.lower / name)
    return mount_overlay()


@contextlib.contextmanager
def running(program: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that executes ``program``, which is a copy of sleep, during the block."""
    process = subprocess.Popen([program, "infinity"])
    try:
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor during the block."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def reads(mount: Mount) -> int:
    """How many READ requests the daemon has had."""
    return mount.requests().get("READ", 0)


# --- who reads it ------------------------------------------------------------------------------------------


@pyoverlay_only
def test_a_program_is_executed_without_us(mount: Mount) -> None:
    with running(mount.path / "program"):
        assert reads(mount) == 0


@pyoverlay_only
def test_a_library_is_read_and_mapped_without_us(mount: Mount) -> None:
    with opened(mount.path / "library") as file, mmap.mmap(file, 0, prot=mmap.PROT_READ) as area:
        assert area[:] == os.pread(file, len(area), 0) == LIBRARY.read_bytes()
    assert reads(mount) == 0


@pyoverlay_only
def test_a_static_library_is_read_without_us(stack: Stack, mount_overlay: MountFactory) -> None:
    """Every compiler reads some, in each container of an image."""
    content = b"!<arch>\n" + bytes(1 << 20)
    (stack.lower / "libraries.a").write_bytes(content)
    mount = mount_overlay()
    assert (mount.path / "libraries.a").read_bytes() == content
    assert reads(mount) == 0


@pyoverlay_only
@pytest.mark.parametrize(("option", "asked"), [("auto", True), ("all", False), ("off", True)])
def test_other_files_are_read_without_us_if_all_are(
    stack: Stack, mount_overlay: MountFactory, option: str, asked: bool
) -> None:
    (stack.lower / "data").write_bytes(bytes(1 << 20))
    mount = mount_overlay(f"passthrough={option}")
    assert (mount.path / "data").read_bytes() == bytes(1 << 20)
    assert (reads(mount) > 0) == asked


@pyoverlay_only
def test_small_files_are_read_by_us(stack: Stack, mount_overlay: MountFactory) -> None:
    """Naming one to the kernel costs more than to read it."""
    (stack.lower / "small").write_bytes(b"small")
    mount = mount_overlay("passthrough=all")
    assert (mount.path / "small").read_bytes() == b"small"
    descriptor = os.open(mount.path / "small", os.O_RDONLY | os.O_DIRECT)
    # What was given to the kernel's page cache at the open isn't looked for there.
    assert os.read(descriptor, 4096) == b"small"
    os.close(descriptor)
    assert reads(mount) >= 1


# --- running it and writing it -----------------------------------------------------------------------------


def test_a_running_program_cannot_be_written(mount: Mount) -> None:
    program = mount.path / "program"
    with running(program):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC | os.O_CREAT):
            with fails_with(errno.ETXTBSY):
                os.open(program, flags)
        with fails_with(errno.ETXTBSY):
            os.truncate(program, 10)
        program.chmod(0o700)  # which copies it up
        with fails_with(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
    with open(program, "r+b") as file:
        file.write(b"#")
    assert program.read_bytes()[1:] == Path(PROGRAM).read_bytes()[1:]


@pytest.mark.parametrize(
    "command",
    [
        "cp --remove-destination new program",
        "install -m 755 new program",
        "mv new program",
        "ln -f new program",
        "sed -i s/a/b/ program && cat new > n && chmod +x n && mv n program",
        "tar cf t new && rm -f new && tar xf t --transform s/new/program/",
    ],
)
def test_a_running_program_is_replaced(mount: Mount, command: str) -> None:
    """As package managers, linkers and builders do it; the new one runs, and so does the old."""
    shutil.copy("/bin/true", mount.path / "new")
    with running(mount.path / "program") as process:
        subprocess.run(["sh", "-ec", command], cwd=mount.path, check=True)
        assert subprocess.run([mount.path / "program"], check=False).returncode == 0
        assert (mount.path / "program").read_bytes() == Path("/bin/true").read_bytes()
        with opened(f"/proc/{process.pid}/exe") as old:
            assert os.pread(old, 1 << 20, 0) == Path(PROGRAM).read_bytes()
    mount.remount()
    assert (mount.path / "program").read_bytes() == Path("/bin/true").read_bytes()


def test_a_program_is_written_and_run_again_and_again(mount: Mount) -> None:
    program = mount.path / "program"
    for source in ("/bin/true", "/bin/false", PROGRAM, "/bin/false"):
        shutil.copyfile(source, program)
        for _ in range(2):
            status = subprocess.run([program, "0"], check=False).returncode
            assert status == (1 if source.endswith("false") else 0)
        assert program.read_bytes() == Path(source).read_bytes()


# --- writing what is open ----------------------------------------------------------------------------------


def test_a_library_in_use_is_written(mount: Mount) -> None:
    """Who opens it from then on sees the new data, and it is the same file; the map stays as it was."""
    library = mount.path / "library"
    with opened(library) as old, mmap.mmap(old, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as area:
        assert area[:4] == BEGINNING
        inode = os.fstat(old).st_ino
        with opened(library, os.O_RDWR) as writer:
            assert os.pwrite(writer, b"NEW!", 0) == 4
            assert os.pread(writer, 4, 0) == b"NEW!"
            with opened(library) as reader, opened(f"/proc/self/fd/{old}") as again:
                assert os.pread(reader, 4, 0) == os.pread(again, 4, 0) == b"NEW!"
                assert os.pwrite(writer, b"new.", 0) == 4
                assert os.pread(reader, 4, 0) == os.pread(again, 4, 0) == b"new."
        assert {os.fstat(old).st_ino, library.stat().st_ino} == {inode}
        assert library.read_bytes() == b"new." + LIBRARY.read_bytes()[4:]
    assert library.read_bytes()[:4] == b"new."


@pyoverlay_only
def test_who_has_had_it_open_goes_on_with_the_old_data(mount: Mount) -> None:
    """The documented difference: such a descriptor can't be turned to another file."""
    library = mount.path / "library"
    with opened(library) as old, mmap.mmap(old, 0, mmap.MAP_SHARED, mmap.PROT_READ) as area:
        shutil.copyfile("/bin/true", library)
        assert os.pread(old, 1 << 20, 0) == area[:] == LIBRARY.read_bytes()
        assert library.read_bytes() == Path("/bin/true").read_bytes()
        with fails_with(errno.ETXTBSY):
            os.open(f"/proc/self/fd/{old}", os.O_WRONLY)


def test_truncating_by_name_what_is_open(mount: Mount) -> None:
    library = mount.path / "library"
    with opened(library) as old:
        os.truncate(library, 3)
        assert library.read_bytes() == BEGINNING[:3]
        assert os.fstat(old).st_size == library.stat().st_size == 3
        with opened(f"/proc/self/fd/{old}") as again:
            assert os.pread(again, 10, 0) == BEGINNING[:3]
        with open(library, "ab") as file:
            file.write(b"!")
        assert library.read_bytes() == BEGINNING[:3] + b"!"
        assert os.fstat(old).st_size == library.stat().st_size == 4


def test_attributes_are_one_files_by_whatever_it_is_reached(mount: Mount) -> None:
    """What is changed through an old descriptor shows by the name, and the other way round."""
    library = mount.path / "library"
    with opened(library) as old:
        library.chmod(0o711)
        assert os.fstat(old).st_mode & 0o7777 == 0o711
        with open(library, "r+b") as file:
            os.fchmod(old, 0o755)
            assert library.stat().st_mode & 0o7777 == os.fstat(file.fileno()).st_mode & 0o7777 == 0o755
            os.fchmod(file.fileno(), 0o700)
            os.fchown(old, 12, 34)
            os.utime(old, (5, 6))
            os.setxattr(old, "user.one", b"1")
            os.setxattr(library, "user.two", b"2")
            for status in (os.fstat(old), library.stat(), os.fstat(file.fileno())):
                assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o700, 12, 34)
                assert status.st_mtime == 6
            assert os.getxattr(library, "user.one") == b"1"
            assert os.getxattr(old, "user.two") == b"2"
            os.removexattr(old, "user.two")
            assert "user.two" not in os.listxattr(library)


@pytest.mark.parametrize(
    "change",
    [lambda path: os.truncate(path, 3), lambda path: path.write_bytes(b"")],
    ids=["truncated", "written"],
)
def test_flags_are_told_by_what_was_open_before(mount: Mount, change: Callable[[Path], object]) -> None:
    """The kernel opens the file again for lsattr(1), and has no name for it."""
    library = mount.path / "library"
    with opened(library) as old:
        before = fcntl.ioctl(old, FS_IOC_GETFLAGS, bytes(8))
        change(library)
        assert fcntl.ioctl(old, FS_IOC_GETFLAGS, bytes(8)) == before


def test_names_of_what_is_open(mount: Mount) -> None:
    """Renamed, linked and unlinked, before and after it is written."""
    library = mount.path / "library"
    with opened(library) as old:
        library.rename(mount.path / "moved")
        with open(mount.path / "moved", "r+b") as file:
            file.write(b"NEW!")
        os.link(mount.path / "moved", mount.path / "linked")
        assert (mount.path / "linked").read_bytes()[:4] == b"NEW!"
        assert (mount.path / "linked").stat().st_nlink == os.fstat(old).st_nlink == 2
        (mount.path / "moved").unlink()
        with open(mount.path / "linked", "r+b") as file:
            file.write(b"newer")
        assert (mount.path / "linked").read_bytes()[:5] == b"newer"
        (mount.path / "linked").unlink()
        assert os.fstat(old).st_nlink == 0
        assert os.pread(old, 1 << 20, 4) == LIBRARY.read_bytes()[4:] or mount.kind is Kind.KERNEL
    assert os.listdir(mount.path) == ["program"]


def test_a_file_of_which_only_the_file_is_mounted(mount: Mount, base: Path) -> None:
    """There is no name to look up again: it is read as it is now."""
    (base / "place").touch()
    subprocess.run(["mount", "--bind", mount.path / "library", base / "place"], check=True)
    try:
        with opened(base / "place") as old:
            os.truncate(mount.path / "library", 3)
            assert (base / "place").read_bytes() == BEGINNING[:3]
            assert os.fstat(old).st_size == 3
    finally:
        subprocess.run(["umount", base / "place"], check=True)


@pyoverlay_only
def test_the_old_number_is_forgotten(mount: Mount) -> None:
    """When nobody uses the old file any more, the attributes of the new one are kept again."""
    library = mount.path / "library"
    with opened(library), open(library, "r+b") as file:
        file.write(b"NEW!")
    library.stat()
    deadline = select.poll()
    for _ in range(100):
        before = mount.requests()["GETATTR"]
        library.stat()
        if mount.requests()["GETATTR"] == before:
            return
        deadline.poll(50)
    pytest.fail("each stat asks the daemon")
