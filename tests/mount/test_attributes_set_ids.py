"""Set-id bits: whose change of a file lets them fall, and whose failed one doesn't."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack, fails_with, libc, make_stack, run_as
from tests.harness.content import make_file
from tests.harness.disk import file_system

USER, GROUP, OTHER_GROUP = 1000, 4000, 4001
SGID_ONLY = 0o2666
"""sgid, and the group may not execute: it falls for those who aren't in the group, and for them alone."""


def _write(path: Path) -> None:
    with open(path, "r+b", buffering=0) as opened:
        opened.write(b"!")


def _open_truncating(path: Path) -> None:
    path.write_bytes(b"")


def _truncate_opened(path: Path) -> None:
    with open(path, "r+b") as opened:
        os.ftruncate(opened.fileno(), 3)


def _allocate(path: Path) -> None:
    with open(path, "r+b") as opened:
        libc.fallocate(opened.fileno(), 0, 0, 10)


def _copy(path: Path) -> None:
    with open(path, "rb") as reading, open(path, "r+b") as writing:
        assert os.copy_file_range(reading.fileno(), writing.fileno(), 3, 0, 10) == 3


CHANGES: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "truncate": lambda path: os.truncate(path, 3),
    "open and truncate": _open_truncating,
    "ftruncate": _truncate_opened,
    "fallocate": _allocate,
    "copy_file_range": _copy,
}
CHOWNS: dict[str, Callable[[Path], None]] = {
    "chown to nobody": lambda path: os.chown(path, -1, -1),
    "chown": lambda path: os.chown(path, -1, USER),
}


@pytest.fixture(params=["lower", "upper"])
def file(request: pytest.FixtureRequest, stack: Stack, mount_overlay: MountFactory) -> Path:
    """A file of GROUP's in the merged tree, from a lower or from the upper."""
    place = make_file((stack.lower if request.param == "lower" else stack.upper) / "file", "content")
    os.chown(place, 0, GROUP)
    os.chmod(place, SGID_ONLY)
    stack.upper.chmod(0o777)
    path: Path = mount_overlay().path / "file"
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_sgid_falls_when_a_stranger_to_the_group_changes_data(
    stack: Stack, file: Path, change: Callable[[Path], None]
) -> None:
    run_as(USER, lambda: change(file), groups=[OTHER_GROUP])
    assert _mode(file) == _mode(stack.upper / "file") == 0o666


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("how", ["group", "supplementary group"])
def test_sgid_stays_when_a_member_of_the_group_changes_data(
    file: Path, change: Callable[[Path], None], how: str
) -> None:
    if how == "group":
        run_as(USER, lambda: change(file), gid=GROUP)
    else:
        run_as(USER, lambda: change(file), groups=[OTHER_GROUP, GROUP])
    assert _mode(file) == SGID_ONLY


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_sgid_falls_when_root_of_a_namespace_without_the_group_changes_data(
    file: Path, change: Callable[[Path], None]
) -> None:
    """Who makes a user namespace has every capability in it, and none over a file whose ids it lacks."""

    def from_a_namespace() -> None:
        libc.unshare(libc.CLONE_NEWUSER)
        change(file)

    os.chmod(file, SGID_ONLY | stat.S_ISUID)
    run_as(USER, from_a_namespace)
    assert _mode(file) == 0o666


@pytest.mark.parametrize("change", CHOWNS.values(), ids=CHOWNS)
def test_sgid_falls_when_an_owner_outside_of_the_group_changes_the_owner(
    file: Path, change: Callable[[Path], None]
) -> None:
    os.chown(file, USER, GROUP)
    assert _mode(file) == SGID_ONLY, "it stays for root"
    run_as(USER, lambda: change(file), groups=[GROUP])
    assert _mode(file) == SGID_ONLY
    os.chown(file, USER, GROUP)
    run_as(USER, lambda: change(file))
    assert _mode(file) == 0o666


def test_a_chown_to_nobody_is_allowed_to_those_for_whom_nothing_falls(file: Path) -> None:
    run_as(USER, lambda: os.chown(file, -1, -1), gid=GROUP)
    assert _mode(file) == SGID_ONLY
    with fails_with(errno.EPERM):
        run_as(USER, lambda: os.chown(file, -1, -1))
    assert _mode(file) == SGID_ONLY


@pytest.mark.parametrize("change", ["truncate", "write"])
def test_a_change_that_failed_takes_no_set_id_bits_later(kind: Kind, change: str) -> None:
    with file_system("tmpfs") as place:
        stack = make_stack(place)
        original = make_file(stack.lower / "file", bytes(1 << 20))
        original.chmod(0o6777)
        with Mount(kind, stack) as mount:
            path = mount.path / "file"
            _fill(stack.upper / "filler")
            with fails_with(errno.ENOSPC):
                run_as(USER, lambda: os.truncate(path, 999_999) if change == "truncate" else _write(path))
            (stack.upper / "filler").unlink()
            os.truncate(path, 10)
            assert _mode(path) == _mode(stack.upper / "file") == 0o6777
            run_as(USER, lambda: os.truncate(path, 5))
            assert _mode(path) == 0o777


def _fill(path: Path) -> None:
    """Leave no room on a file system."""
    with open(path, "wb", buffering=0) as filler:
        for size in (1 << 20, 4096):
            with fails_with(errno.ENOSPC):
                while filler.write(bytes(size)):
                    pass
