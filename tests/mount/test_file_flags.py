"""The flags that lsattr(1) shows and chattr(1) sets; what is immutable or append-only, and over copy-up."""

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack, fails_with, make_stack, run_as
from tests.harness.content import attribute, make_directory, make_file
from tests.harness.disk import file_system
from tests.harness.libc import ZERO_RANGE, fallocate

NOBODY = 65534
PROTATTR = "trusted.overlay.protattr"
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
TERMINAL_ATTRIBUTES = 0x5401
XFLAG_NOATIME, XFLAG_IMMUTABLE = 0x40, 0x08


def flags(path: Path) -> str:
    """The letters of lsattr(1), but for `e` (extents), which says how ext4 stores a file."""
    listed = subprocess.run(["lsattr", "-d", path], capture_output=True, text=True, check=True).stdout
    return listed.split()[0].replace("-", "").replace("e", "")


def change(change: str, path: Path) -> None:
    subprocess.run(["chattr", change, path], capture_output=True, check=True)


@pytest.fixture(autouse=True)
def unprotected(base: Path) -> Iterator[None]:
    """Let the layers be removed, whatever a test has protected."""
    yield
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", base], check=False)


@pytest.fixture(params=["lower", "upper"])
def layer(request: pytest.FixtureRequest, stack: Stack) -> Path:
    """The layer that the files are in."""
    layer = stack.lower if request.param == "lower" else stack.upper
    make_file(layer / "file", "content")
    make_file(layer / "other", "other")
    make_file(layer / "d" / "inside", "inside")
    return layer


@pytest.fixture
def merged(layer: Path, mount_overlay: MountFactory) -> Path:
    path: Path = mount_overlay().path
    return path


@pytest.mark.parametrize("name", ["file", "d"])
def test_flags_are_shown_and_set(stack: Stack, merged: Path, name: str) -> None:
    assert flags(merged / name) == ""
    before = (merged / name).stat()
    for letter in "dAS":
        change(f"+{letter}", merged / name)
    assert flags(merged / name) == flags(stack.upper / name) == "SdA"
    change("-A", merged / name)
    assert flags(merged / name) == flags(stack.upper / name) == "Sd"
    after = (merged / name).stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_mode,
    )
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (merged / "file").read_text() == "content"


def test_flags_of_a_lower_copy_nothing_up(stack: Stack, mount_overlay: MountFactory) -> None:
    change("+d", make_file(stack.lower / "file"))
    assert flags(mount_overlay().path / "file") == "d"
    assert os.listdir(stack.upper) == []


@pytest.mark.parametrize("name", ["file", "d"])
def test_flags_that_the_vfs_knows_are_kept_over_copy_up(
    stack: Stack, mount_overlay: MountFactory, name: str
) -> None:
    make_file(stack.lower / "file", "content")
    make_directory(stack.lower / "d")
    for letter in "dAS":
        change(f"+{letter}", stack.lower / name)
    merged = mount_overlay().path
    os.chmod(merged / name, 0o700)
    assert flags(merged / name) == flags(stack.upper / name) == "SA"


def test_the_extended_form(stack: Stack, merged: Path) -> None:
    def get() -> list[int]:
        with open(merged / "file", "rb") as file:
            return list(struct.unpack("=5I8x", fcntl.ioctl(file, FS_IOC_FSGETXATTR, bytes(28))))

    assert get() == [0, 0, 0, 0, 0]
    with open(merged / "file", "rb") as file:
        fcntl.ioctl(file, FS_IOC_FSSETXATTR, struct.pack("=5I8x", XFLAG_NOATIME, 0, 0, 0, 0))
    assert get()[0] == XFLAG_NOATIME
    assert flags(merged / "file") == flags(stack.upper / "file") == "A"
    change("+i", merged / "file")
    assert get()[0] == XFLAG_NOATIME | XFLAG_IMMUTABLE


def test_what_the_file_system_does_not_know_is_refused(merged: Path) -> None:
    assert subprocess.run(["chattr", "+C", merged / "file"], capture_output=True, check=False).returncode
    assert flags(merged / "file") == ""
    with open(merged / "file", "rb") as file, fails_with(errno.ENOTTY):
        fcntl.ioctl(file, TERMINAL_ATTRIBUTES, bytes(64))


def test_who_may_set_them(merged: Path) -> None:
    os.chown(merged / "file", NOBODY, NOBODY)

    def tried(letter: str, name: str) -> int:
        return subprocess.run(["chattr", letter, merged / name], capture_output=True, check=False).returncode

    assert run_as(NOBODY, lambda: tried("+d", "file")) == 0
    assert flags(merged / "file") == "d"
    assert run_as(NOBODY, lambda: tried("+i", "file")) != 0
    assert run_as(NOBODY, lambda: tried("+d", "other")) != 0
    assert (flags(merged / "file"), flags(merged / "other")) == ("d", "")


@pytest.mark.parametrize("kind_of_system", ["xfs", "btrfs", "tmpfs"])
def test_file_systems(kind: Kind, kind_of_system: str) -> None:
    """All have `A`; what is protected is kept in an attribute on each of them."""
    with file_system(kind_of_system) as place:
        stack = make_stack(place)
        make_file(stack.lower / "file")
        with Mount(kind, stack) as mount:
            change("+A", mount.path / "file")
            change("+i", mount.path / "file")
            assert flags(mount.path / "file") == "iA"
            assert attribute(stack.upper / "file", PROTATTR) == b"i"
            with fails_with(errno.EPERM):
                os.unlink(mount.path / "file")
            mount.remount()
            assert flags(mount.path / "file") == "iA"
            change("-i", mount.path / "file")
            os.unlink(mount.path / "file")


# --- immutable and append-only -----------------------------------------------------------------------------


def _open(path: Path, how: int) -> None:
    os.close(os.open(path, how))


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "write": lambda path, _: _open(path, os.O_WRONLY),
    "truncate by open": lambda path, _: _open(path, os.O_RDWR | os.O_TRUNC | os.O_APPEND),
    "truncate": lambda path, _: os.truncate(path, 1),
    "chmod": lambda path, _: os.chmod(path, 0o600),
    "chown": lambda path, _: os.chown(path, 1, 1),
    "times": lambda path, _: os.utime(path, (1, 1)),
    "setxattr": lambda path, _: os.setxattr(path, "user.colour", b"blue"),
    "link": lambda path, other: os.link(path, other.with_name("link")),
    "rename": lambda path, other: os.rename(path, other.with_name("renamed")),
    "replace": lambda path, other: os.rename(other, path),
    "unlink": lambda path, _: os.unlink(path),
}


@pytest.mark.parametrize("letter", "ia")
@pytest.mark.parametrize("flagged", ["before", "after"])
def test_a_protected_file(
    stack: Stack, layer: Path, mount_overlay: MountFactory, letter: str, flagged: str
) -> None:
    if flagged == "before" and layer == stack.lower:
        change(f"+{letter}", layer / "file")
    merged = mount_overlay().path
    if flags(merged / "file") == "":
        change(f"+{letter}", merged / "file")
    assert flags(merged / "file") == letter
    for name, act in CHANGES.items():
        with fails_with(errno.EPERM):
            act(merged / "file", merged / "other")
            raise AssertionError(name)
    assert (merged / "file").read_text() == "content"
    if letter == "a":
        os.utime(merged / "file")
        with open(merged / "file", "a") as file:
            file.write(" and more")
        assert (merged / "file").read_text() == "content and more"
        assert attribute(stack.upper / "file", PROTATTR) == b"a"
    else:
        with fails_with(errno.EPERM):
            os.utime(merged / "file")
    change(f"-{letter}", merged / "file")
    assert flags(merged / "file") == ""
    assert attribute(stack.upper / "file", PROTATTR) is None
    for act in CHANGES.values():
        if act is not CHANGES["rename"]:
            act(merged / "file", merged / "other")


TRUNCATIONS: dict[str, Callable[[Path], object]] = {
    "truncate": lambda path: os.truncate(path, 1),
    "open": lambda path: _open(path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
}


@pytest.mark.parametrize("letter", "ia")
@pytest.mark.parametrize("truncation", TRUNCATIONS.values(), ids=TRUNCATIONS)
def test_a_refused_truncation_leaves_set_id_bits(
    stack: Stack, layer: Path, mount_overlay: MountFactory, letter: str, truncation: Callable[[Path], object]
) -> None:
    os.chmod(layer / "file", 0o6777)
    path = mount_overlay().path / "file"
    change(f"+{letter}", path)
    with fails_with(errno.EPERM):
        run_as(NOBODY, lambda: truncation(path))
    assert path.stat().st_mode & 0o7777 == (stack.upper / "file").stat().st_mode & 0o7777 == 0o6777
    change(f"-{letter}", path)
    run_as(NOBODY, lambda: truncation(path))
    assert path.stat().st_mode & 0o7777 == 0o777


INSIDE: dict[str, Callable[[Path, Path], object]] = {
    "create": lambda d, _: _open(d / "new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda d, _: os.mkdir(d / "directory"),
    "symlink": lambda d, _: os.symlink("nowhere", d / "link"),
    "link": lambda d, other: os.link(other, d / "other"),
    "unnamed": lambda d, _: _open(d, os.O_TMPFILE | os.O_WRONLY),
}
REMOVING: dict[str, Callable[[Path, Path], object]] = {
    "unlink": lambda d, _: os.unlink(d / "inside"),
    "rename": lambda d, _: os.rename(d / "inside", d / "renamed"),
    "replace": lambda d, other: os.rename(other, d / "inside"),
    "of itself": lambda d, _: os.chmod(d, 0o700),
}


@pytest.mark.parametrize("letter", "ia")
def test_a_protected_directory(stack: Stack, layer: Path, mount_overlay: MountFactory, letter: str) -> None:
    if layer == stack.lower:
        change(f"+{letter}", layer / "d")
    merged = mount_overlay().path
    if layer == stack.upper:
        change(f"+{letter}", merged / "d")
    for name, act in REMOVING.items():
        with fails_with(errno.EPERM):
            act(merged / "d", merged / "other")
            raise AssertionError(name)
    for name, act in INSIDE.items():
        if letter == "a":
            act(merged / "d", merged / "other")
            continue
        with fails_with(errno.EPERM):
            act(merged / "d", merged / "other")
            raise AssertionError(name)
    with fails_with(errno.EPERM):
        os.rename(merged / "d", merged / "e")
    (merged / "d" / "inside").write_text("changed: it isn't protected itself")
    assert flags(merged / "d") == letter
    assert attribute(stack.upper / "d", PROTATTR) == letter.encode()
    assert flags(stack.upper / "d") == ""
    change(f"-{letter}", merged / "d")
    os.unlink(merged / "d" / "inside")


def test_descriptors_from_before(merged: Path) -> None:
    with open(merged / "file", "r+b", buffering=0) as file:
        change("+i", merged / "file")
        file.write(b"C")
        os.ftruncate(file.fileno(), 4)
        with fails_with(errno.EPERM):
            os.fchmod(file.fileno(), 0o600)
        with fails_with(errno.EPERM):
            fallocate(file.fileno(), 0, 0, 100)
        change("-i", merged / "file")
        change("+a", merged / "file")
        with fails_with(errno.EPERM):
            os.ftruncate(file.fileno(), 2)
        with fails_with(errno.EPERM):
            fallocate(file.fileno(), ZERO_RANGE, 0, 2)
        fallocate(file.fileno(), 0, 0, 6)
    assert (merged / "file").read_bytes() == b"Cont\0\0"
