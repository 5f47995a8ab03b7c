"""Files without a name: open(2) with O_TMPFILE, and linkat(2) through /proc, which gives them one."""

import errno
import os
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, run_as
from tests.harness.content import (
    DEFAULT_ACL,
    is_whiteout,
    left_in_work,
    make_directory,
    make_file,
    names,
    posix_acl,
)
from tests.harness.libc import link_target

NOBODY = 65534


@pytest.fixture(params=["lower", "upper"])
def directory(request: pytest.FixtureRequest, stack: Stack, mount_overlay: MountFactory) -> Path:
    """A directory in the merged tree, from a lower or from the upper."""
    make_directory((stack.lower if request.param == "lower" else stack.upper) / "d")
    make_file(stack.lower / "d" / "low", "of the lower")
    path: Path = mount_overlay().path / "d"
    return path


def _open(directory: Path, flags: int = os.O_RDWR, mode: int = 0o644) -> int:
    return os.open(directory, os.O_TMPFILE | flags, mode)


def _name(descriptor: int, path: Path) -> None:
    link_target(f"/proc/self/fd/{descriptor}", path)


def test_it_is_a_file_like_others_but_for_its_name(directory: Path, stack: Stack) -> None:
    descriptor = _open(directory, mode=0o666)
    try:
        os.write(descriptor, b"content")
        status = os.fstat(descriptor)
        assert (status.st_nlink, status.st_size) == (0, 7)
        assert status.st_mode == stat.S_IFREG | 0o644
        assert names(directory) == ["low"]
        os.fchmod(descriptor, 0o600)
        os.setxattr(descriptor, "user.colour", b"blue")
        os.truncate(descriptor, 3)
        assert os.getxattr(descriptor, "user.colour") == b"blue"
        assert os.fstat(descriptor).st_mode == stat.S_IFREG | 0o600
        with open(f"/proc/self/fd/{descriptor}", "rb") as again:
            assert again.read() == b"con"
    finally:
        os.close(descriptor)
    assert names(directory) == ["low"]
    assert names(stack.upper / "d") == []
    assert left_in_work(stack.work) == []


def test_it_gets_a_name_and_another(directory: Path, stack: Stack) -> None:
    descriptor = _open(directory)
    try:
        os.write(descriptor, b"content")
        _name(descriptor, directory / "named")
        assert os.fstat(descriptor).st_nlink == 1
        assert os.fstat(descriptor).st_ino == (directory / "named").stat().st_ino
        os.write(descriptor, b" and more")
        assert (directory / "named").read_bytes() == b"content and more"
        os.link(directory / "named", directory / "second")
        _name(descriptor, directory.parent / "third")
        assert os.fstat(descriptor).st_nlink == 3
        os.rename(directory / "named", directory / "renamed")
        os.unlink(directory / "second")
        assert (directory / "renamed").read_bytes() == b"content and more"
        assert (directory / "renamed").stat().st_nlink == 2
    finally:
        os.close(descriptor)
    assert names(directory) == ["low", "renamed"]
    assert (stack.upper / "d" / "renamed").read_bytes() == b"content and more"
    assert left_in_work(stack.work) == []


def test_its_name_may_be_that_of_a_deleted_file_but_of_no_other(directory: Path, stack: Stack) -> None:
    descriptor = _open(directory)
    try:
        os.write(descriptor, b"new")
        with fails_with(errno.EEXIST):
            _name(descriptor, directory / "low")
        os.unlink(directory / "low")
        assert is_whiteout(stack.upper / "d" / "low")
        _name(descriptor, directory / "low")
    finally:
        os.close(descriptor)
    assert (directory / "low").read_text() == "new"
    assert (stack.upper / "d" / "low").read_text() == "new"
    assert (stack.lower / "d" / "low").read_text() == "of the lower"


def test_one_that_lost_its_name_gets_no_other(directory: Path) -> None:
    descriptor = _open(directory)
    try:
        _name(descriptor, directory / "named")
        os.unlink(directory / "named")
        with fails_with(errno.ENOENT):
            _name(descriptor, directory / "again")
    finally:
        os.close(descriptor)


def test_one_that_was_meant_to_stay_without_gets_none(directory: Path) -> None:
    descriptor = _open(directory, os.O_WRONLY | os.O_EXCL)
    try:
        with fails_with(errno.ENOENT):
            _name(descriptor, directory / "named")
    finally:
        os.close(descriptor)
    assert names(directory) == ["low"]


def test_refusals(directory: Path) -> None:
    with fails_with(errno.EINVAL):
        _open(directory, os.O_RDONLY)
    with fails_with(errno.ENOTDIR):
        _open(directory / "low")
    with fails_with(errno.EACCES):
        run_as(NOBODY, lambda: _open(directory))


def test_a_read_only_mount(stack: Stack, mount_overlay: MountFactory) -> None:
    with fails_with(errno.EROFS):
        _open(mount_overlay("ro").path)


def test_owner_and_mode_follow_the_directory(stack: Stack, mount_overlay: MountFactory) -> None:
    """umask(2), a directory's group, a default ACL: as with a file that is created under a name."""
    make_directory(stack.lower / "group")
    os.chown(stack.lower / "group", 0, 1234)
    os.chmod(stack.lower / "group", 0o2777)
    make_directory(stack.upper / "acl", 0o777)
    os.setxattr(stack.upper / "acl", DEFAULT_ACL, posix_acl(0o6, 0o4, 0o0, users={1000: 0o6}, mask=0o6))
    merged = mount_overlay().path

    def owner_and_mode(name: str, *, named: bool) -> tuple[int, int, int, bool]:
        flags = os.O_CREAT | os.O_RDWR if named else os.O_TMPFILE | os.O_RDWR
        descriptor = os.open(merged / name / "named" if named else merged / name, flags, 0o6775)
        status = os.fstat(descriptor)
        has_acl = "system.posix_acl_access" in os.listxattr(descriptor)
        os.close(descriptor)
        return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), has_acl

    for name, umask in (("group", 0o027), ("acl", 0o027)):
        unnamed = run_as(NOBODY, partial(owner_and_mode, name, named=False), umask=umask)
        named = run_as(NOBODY, partial(owner_and_mode, name, named=True), umask=umask)
        assert unnamed == named
    assert owner_and_mode("acl", named=False)[3]
