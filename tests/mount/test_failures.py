"""What is left when things go wrong: a full disk, a daemon or a waiting caller killed at any moment.

Nothing half-made shows in the upper, what a call answers is true, the lower stays visible, and the next mount
works.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.differential.upper import leftovers
from tests.harness import Kind, Mount, MountFactory, Stack, fails_with, make_stack, snapshot
from tests.harness.content import left_in_work, make_file
from tests.harness.libc import umount
from tests.mount.daemons import bytes_in_preparation, wait_for_end, wait_until

MIB = 1 << 20
_PATTERN = bytes(range(256)) * 4096


def _write_pattern(path: Path, size: int) -> None:
    """A file of `size` bytes (whole MiB) without a hole, each MiB different."""
    with open(path, "wb") as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "little") + _PATTERN[8:])


# --- a full disk -------------------------------------------------------------------------------------------


@pytest.fixture
def small(base: Path) -> Iterator[Path]:
    """A file system of 16 MiB and 64 inodes on a loop device."""
    image, place = base / "image", base / "small"
    with open(image, "wb") as file:
        file.truncate(16 * MIB)
    place.mkdir()
    options = ["-q", "-F", "-b", "1024", "-m", "0", "-N", "64", "-O", "^has_journal"]
    subprocess.run(["mkfs.ext4", *options, str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        umount(place)
        image.unlink()


@pytest.fixture
def stack(base: Path, small: Path) -> Stack:
    """An upper on the small file system, and a lower that holds more than fits there."""
    made = make_stack(base)
    made.upper, made.work = small / "u", small / "w"
    for directory in (made.upper, made.work):
        directory.mkdir()
    (made.lower / "deep/er").mkdir(parents=True)
    _write_pattern(made.lower / "deep/er/huge", 32 * MIB)
    (made.lower / "little").write_text("little\n")
    os.setxattr(made.lower / "little", "user.note", b"kept")
    (made.lower / "link").symlink_to("little")
    return made


def _objects(upper: Path) -> set[bytes]:
    """What isn't a directory in the upper: directories may have been copied up on the way to a failure."""
    return {path for path, entry in snapshot(upper).items() if entry.size is not None}


COPY_UPS: dict[str, Callable[[Path], object]] = {
    "open": lambda path: os.open(path, os.O_RDWR),
    "chmod": lambda path: path.chmod(0o600),
    "truncate": lambda path: os.truncate(path, 31 * MIB),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"y"),
    "link": lambda path: os.link(path, path.with_name("second")),
    "rename": lambda path: path.rename(path.with_name("second")),
}


@pytest.mark.parametrize("call", COPY_UPS)
def test_copy_up_without_room(stack: Stack, mount_overlay: MountFactory, call: str) -> None:
    """A copy-up that doesn't fit gives ENOSPC, leaves no trace but its directories, and takes no room."""
    mount = mount_overlay()
    huge = mount.path / "deep/er/huge"
    before = snapshot(mount.path)
    with fails_with(errno.ENOSPC):
        COPY_UPS[call](huge)
    assert _objects(stack.upper) == set()
    assert leftovers(stack.work) == []
    assert snapshot(mount.path) == before
    (mount.path / "little").write_text("still works\n")
    _write_pattern(mount.path / "deep/er/fits", 8 * MIB)
    mount.remount()
    assert filecmp.cmp(huge, stack.lower / "deep/er/huge", shallow=False)
    assert (mount.path / "little").read_text() == "still works\n"


def test_writing_until_full(stack: Stack, mount_overlay: MountFactory) -> None:
    """A file that grows until ENOSPC holds what was acknowledged; with room again, it grows again."""
    mount = mount_overlay()
    written = 0
    descriptor = os.open(mount.path / "growing", os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        with fails_with(errno.ENOSPC):
            while written < 64 * MIB:
                written += os.write(descriptor, b"x" * 65536)
        assert 8 * MIB < written < 16 * MIB
        assert os.fstat(descriptor).st_size == written
        os.ftruncate(descriptor, MIB)
        os.lseek(descriptor, MIB, os.SEEK_SET)
        assert os.write(descriptor, b"y" * MIB) == MIB
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    mount.remount()
    assert (mount.path / "growing").read_bytes() == b"x" * MIB + b"y" * MIB


NEED_AN_INODE: dict[str, Callable[[Path], object]] = {
    "create": lambda root: (root / "new").touch(),
    "mkdir": lambda root: (root / "new").mkdir(),
    "symlink": lambda root: (root / "new").symlink_to("x" * 100),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "copy-up by chmod": lambda root: (root / "little").chmod(0o600),
    "copy-up by open": lambda root: (root / "little").open("r+b").close(),
    "copy-up of a symlink": lambda root: os.chown(root / "link", 1, 1, follow_symlinks=False),
    "copy-up of directories": lambda root: (root / "deep/er").chmod(0o700),
    "create below a lower directory": lambda root: (root / "deep/er/new").touch(),
}


def test_no_inode_left(stack: Stack, mount_overlay: MountFactory) -> None:
    """Without a free inode nothing can be made: ENOSPC for every kind, and nothing appears."""
    mount = mount_overlay()
    (mount.path / "mine").write_text("mine\n")
    with fails_with(errno.ENOSPC):
        for number in range(1000):
            (mount.path / f"filler{number}").touch()
    before, on_disk = snapshot(mount.path, times=False), _objects(stack.upper)
    for name, call in NEED_AN_INODE.items():
        with fails_with(errno.ENOSPC):
            call(mount.path)
            pytest.fail(f"{name} succeeded")
    assert snapshot(mount.path, times=False) == before
    assert _objects(stack.upper) == on_disk
    assert leftovers(stack.work) == [] or mount.kind is Kind.KERNEL
    os.link(mount.path / "mine", mount.path / "second")
    for number in range(5):
        (mount.path / f"filler{number}").unlink()
    (mount.path / "little").chmod(0o600)
    mount.remount()
    assert (mount.path / "little").read_text() == "little\n"
    assert os.getxattr(mount.path / "little", "user.note") == b"kept"
    assert (mount.path / "second").read_text() == "mine\n"


def test_removal_without_an_inode(stack: Stack, mount_overlay: MountFactory) -> None:
    """Whether a whiteout can still be made or not: the answer is true, and a remount agrees with it."""
    mount = mount_overlay()
    with fails_with(errno.ENOSPC):
        for number in range(1000):
            (mount.path / f"filler{number}").touch()
    removed = _removed_or_full(mount.path / "little")
    assert (mount.path / "little").exists() != removed
    for number in range(5):
        (mount.path / f"filler{number}").unlink()
    mount.remount()
    assert (mount.path / "little").exists() != removed
    if not removed:
        (mount.path / "little").unlink()
    assert "little" not in os.listdir(mount.path)


def _removed_or_full(path: Path) -> bool:
    try:
        path.unlink()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


# --- a killed daemon ---------------------------------------------------------------------------------------

HUGE = 512 * MIB
POINTS = 20


@pytest.fixture
def roomy(base: Path) -> Iterator[Stack]:
    """A lower with a file of 512 MiB, and an upper in memory: no reflink, so that every byte is copied."""
    made = make_stack(base)
    memory = base / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(memory)], check=True)
    made.upper, made.work = memory / "u", memory / "w"
    for directory in (made.upper, made.work):
        directory.mkdir()
    (made.lower / "sub").mkdir()
    _write_pattern(made.lower / "sub/huge", HUGE)
    try:
        yield made
    finally:
        umount(memory)


def _start_caller(path: Path) -> subprocess.Popen[bytes]:
    """A process that opens a file for writing, and thereby has it copied up."""
    program = "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))"
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, str(path)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _stop_at(pid: int, work: Path, threshold: int, caller: subprocess.Popen[bytes]) -> int:
    """Stops the daemon when it has copied `threshold` bytes; returns how many it has by then."""
    wait_until(
        lambda: bytes_in_preparation(pid, work) >= threshold or caller.poll() is not None,
        f"a copy-up of {threshold} bytes",
    )
    os.kill(pid, signal.SIGSTOP)
    return bytes_in_preparation(pid, work)


def test_daemon_killed_while_copying_up(roomy: Stack) -> None:
    """SIGKILL at 20 points of a copy-up: the upper has the whole file or no trace; the next mount works."""
    interrupted = 0
    mount = Mount(Kind.PYOVERLAY, roomy)
    for point in range(POINTS):
        mount.mount()
        pid = mount.pid
        assert pid is not None
        try:
            with _start_caller(mount.path / "sub/huge") as caller:
                copied = _stop_at(pid, roomy.work, max(1, HUGE * point // POINTS), caller)
                os.kill(pid, signal.SIGKILL)
                wait_for_end(pid)
                _, said = caller.communicate(timeout=60)
        finally:
            mount.remove()
        interrupted += _check_after_kill(roomy, copied, said)
    # Each run may have been too late for its point, but if most were, this test would prove nothing.
    assert interrupted > POINTS // 2
    with mount:
        with open(mount.path / "sub/huge", "r+b") as file:
            file.seek(HUGE)
            file.write(b"end")
        assert leftovers(roomy.work) == []
    assert (roomy.upper / "sub/huge").stat().st_size == HUGE + 3


def _check_after_kill(stack: Stack, copied: int, said: bytes) -> bool:
    """Asserts that the upper is whole; returns whether the copy-up was interrupted."""
    published = stack.upper / "sub/huge"
    if published.exists():
        assert filecmp.cmp(published, stack.lower / "sub/huge", shallow=False), f"half-made at {copied} bytes"
        published.unlink()
        return False
    assert b"Transport endpoint is not connected" in said or b"connection abort" in said, said
    assert _objects(stack.upper) == set()
    return copied < HUGE


def test_dead_mount_answers_and_can_be_replaced(roomy: Stack) -> None:
    """After SIGKILL, callers get ENOTCONN at once, umount works, and the upper isn't locked any more."""
    with Mount(Kind.PYOVERLAY, roomy) as mount:
        (mount.path / "written").write_text("before the end\n")
        assert mount.pid is not None
        os.kill(mount.pid, signal.SIGKILL)
        wait_for_end(mount.pid)
        with fails_with(errno.ENOTCONN, errno.ECONNABORTED):
            os.listdir(mount.path)
        subprocess.run(["umount", str(mount.path)], check=True, timeout=60)
        with Mount(Kind.PYOVERLAY, roomy) as again:
            assert (again.path / "written").read_text() == "before the end\n"
            assert sorted(os.listdir(again.path)) == ["sub", "written"]


def test_daemon_killed_with_whiteouts_to_remove(stack: Stack) -> None:
    """What a removed directory leaves in the work directory is cleaned up by the kernel's next mount, too."""
    for number in range(3000):
        make_file(stack.lower / "d" / f"file{number}")
    with Mount(Kind.PYOVERLAY, stack) as mount:
        assert mount.pid is not None
        for path in (mount.path / "d").iterdir():
            path.unlink()
        (mount.path / "d").rmdir()
        os.kill(mount.pid, signal.SIGKILL)
        wait_for_end(mount.pid)
    with Mount(Kind.KERNEL, stack) as mount:
        assert "d" not in os.listdir(mount.path)
        (mount.path / "d").mkdir()
        assert os.listdir(mount.path / "d") == []
    assert left_in_work(stack.work) == []


# --- a killed caller ---------------------------------------------------------------------------------------


def test_killed_caller_ends_the_copy_up(roomy: Stack) -> None:
    """Nobody waits for the file any more: the copy is given up, its room is free, the mount works on."""
    with Mount(Kind.PYOVERLAY, roomy) as mount:
        pid = mount.pid
        assert pid is not None
        with _start_caller(mount.path / "sub/huge") as caller:
            try:
                copied = _stop_at(pid, roomy.work, 1, caller)
                assert 0 < copied < HUGE, "the copy-up was over before it could be stopped"
                caller.kill()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert caller.wait(60) == -signal.SIGKILL
        wait_until(lambda: bytes_in_preparation(pid, roomy.work) == 0, "the end of the copy-up")
        assert _objects(roomy.upper) == set()
        assert leftovers(roomy.work) == []
        assert (mount.path / "sub/huge").stat().st_size == HUGE
        with open(mount.path / "sub/huge", "r+b") as file:
            file.write(b"changed")
        assert (roomy.upper / "sub/huge").stat().st_size == HUGE


def test_another_caller_still_gets_the_file(roomy: Stack) -> None:
    """Two wait for one copy-up and one is killed: the copy goes on, and is made once."""
    with Mount(Kind.PYOVERLAY, roomy) as mount:
        pid = mount.pid
        assert pid is not None
        opens_before = mount.requests().get("OPEN", 0)
        huge = mount.path / "sub/huge"
        with contextlib.ExitStack() as callers:
            first = callers.enter_context(_start_caller(huge))
            try:
                copied = _stop_at(pid, roomy.work, 1, first)
                assert 0 < copied < HUGE, "the copy-up was over before it could be stopped"
                second = callers.enter_context(_start_caller(huge))
                wait_until(lambda: _waits_in_fuse(second.pid), "the second open")
                first.kill()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert first.wait(60) == -signal.SIGKILL
            _, said = second.communicate(timeout=60)
            assert (second.returncode, said) == (0, b"")
        assert mount.requests()["OPEN"] == opens_before + 2
    assert filecmp.cmp(roomy.upper / "sub/huge", roomy.lower / "sub/huge", shallow=False)


def _waits_in_fuse(pid: int) -> bool:
    return b"request_wait_answer" in Path(f"/proc/{pid}/stack").read_bytes()
