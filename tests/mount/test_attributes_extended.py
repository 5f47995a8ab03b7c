"""Extended attributes of every namespace, and POSIX ACLs that bind other users."""

import errno
import functools
import os
import stat
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, run_as
from tests.harness.content import (
    ACCESS_ACL,
    CAPABILITY,
    DEFAULT_ACL,
    NET_RAW,
    attribute,
    make_directory,
    make_file,
    make_symlink,
    posix_acl,
)

USER, OTHER_USER = 1000, 2000


@pytest.fixture(params=["lower", "upper"])
def file(request: pytest.FixtureRequest, stack: Stack, mount_overlay: MountFactory) -> Path:
    """A file in the merged tree, from a lower or from the upper, with one attribute."""
    original = make_file((stack.lower if request.param == "lower" else stack.upper) / "d" / "file", "content")
    os.setxattr(original, "user.first", b"from the layer")
    path: Path = mount_overlay().path / "d" / "file"
    return path


@pytest.mark.parametrize("name", ["user.x", "trusted.x", "security.x", "user." + "n" * 250])
@pytest.mark.parametrize("value", [b"", b"text", bytes(range(256)), b"v" * 3000])
def test_values_come_back_as_they_were(stack: Stack, file: Path, name: str, value: bytes) -> None:
    os.setxattr(file, name, value)
    assert os.getxattr(file, name) == value
    assert os.getxattr(stack.upper / "d" / "file", name) == value
    assert sorted(os.listxattr(file)) == sorted([name, "user.first"])
    os.setxattr(file, name, b"other")
    assert os.getxattr(file, name) == b"other"
    os.removexattr(file, name)
    assert os.listxattr(file) == ["user.first"]
    with fails_with(errno.ENODATA):
        os.getxattr(file, name)
    with fails_with(errno.ENODATA):
        os.removexattr(file, name)


def test_create_and_replace(file: Path) -> None:
    with fails_with(errno.EEXIST):
        os.setxattr(file, "user.first", b"x", os.XATTR_CREATE)
    with fails_with(errno.ENODATA):
        os.setxattr(file, "user.second", b"x", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.first") == b"from the layer"
    os.setxattr(file, "user.first", b"replaced", os.XATTR_REPLACE)
    os.setxattr(file, "user.second", b"created", os.XATTR_CREATE)
    assert os.getxattr(file, "user.first") == b"replaced"
    assert os.getxattr(file, "user.second") == b"created"


def test_through_a_descriptor(file: Path) -> None:
    with file.open("rb") as opened:
        os.setxattr(opened.fileno(), "user.x", b"1")
        assert sorted(os.listxattr(opened.fileno())) == ["user.first", "user.x"]
        assert os.getxattr(opened.fileno(), "user.first") == b"from the layer"
        os.removexattr(opened.fileno(), "user.first")
    assert os.listxattr(file) == ["user.x"]


def test_many_attributes(file: Path) -> None:
    wanted = {f"user.name{number}": b"%d" % number * 20 for number in range(40)}
    for name, value in wanted.items():
        os.setxattr(file, name, value)
    assert set(os.listxattr(file)) == {*wanted, "user.first"}
    for name, value in wanted.items():
        assert os.getxattr(file, name) == value


def test_refusals(file: Path) -> None:
    make_symlink(file.with_name("link"), "file")
    os.mkfifo(file.with_name("fifo"))
    for name, number in (
        ("nonsense.x", errno.EOPNOTSUPP),
        ("noprefix", errno.EOPNOTSUPP),
        ("user.", errno.EINVAL),
        ("", errno.ERANGE),
        ("user." + "n" * 251, errno.ERANGE),
    ):
        with fails_with(number):
            os.setxattr(file, name, b"x")
    with fails_with(errno.E2BIG):
        os.setxattr(file, "user.big", b"x" * 70_000)
    with fails_with(errno.ENODATA, errno.EOPNOTSUPP):
        os.getxattr(file, "nonsense.x")
    with fails_with(errno.EPERM):
        os.setxattr(file.with_name("link"), "user.x", b"", follow_symlinks=False)
    with fails_with(errno.EPERM):
        os.setxattr(file.with_name("fifo"), "user.x", b"")
    assert os.listxattr(file) == ["user.first"]


def test_value_that_the_file_system_has_no_room_for(file: Path) -> None:
    with fails_with(errno.ENOSPC, errno.E2BIG):
        os.setxattr(file, "user.big", b"x" * 65_536)
    assert os.listxattr(file) == ["user.first"]


def test_attributes_of_a_user(file: Path) -> None:
    os.setxattr(file, "trusted.secret", b"x")
    os.setxattr(file, "security.label", b"x")
    os.chown(file, USER, USER)
    file.chmod(0o644)
    run_as(USER, lambda: os.setxattr(file, "user.mine", b"1"))
    assert sorted(run_as(USER, lambda: os.listxattr(file))) == ["security.label", "user.first", "user.mine"]
    assert run_as(OTHER_USER, lambda: os.getxattr(file, "user.mine")) == b"1"
    with fails_with(errno.ENODATA):
        run_as(USER, lambda: os.getxattr(file, "trusted.secret"))
    for name in ("trusted.x", "security.x"):
        with fails_with(errno.EPERM):
            run_as(USER, functools.partial(os.setxattr, file, name, b"1"))
    with fails_with(errno.EACCES):
        run_as(OTHER_USER, lambda: os.setxattr(file, "user.theirs", b"1"))
    file.chmod(0o600)
    with fails_with(errno.EACCES):
        run_as(OTHER_USER, lambda: os.getxattr(file, "user.mine"))


def test_attributes_of_directories_and_symlinks(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "d")
    make_symlink(stack.lower / "link", "d")
    mount = mount_overlay()
    os.setxattr(mount.path / "d", "user.x", b"1")
    os.setxattr(mount.path / "link", "trusted.x", b"2", follow_symlinks=False)
    for _ in range(2):
        assert os.getxattr(mount.path / "d", "user.x") == b"1"
        assert os.listxattr(mount.path / "link", follow_symlinks=False) == ["trusted.x"]
        assert os.getxattr(mount.path / "link", "trusted.x", follow_symlinks=False) == b"2"
        mount.remount()


def test_file_capabilities(stack: Stack, file: Path) -> None:
    os.setxattr(file, CAPABILITY, NET_RAW)
    assert os.getxattr(file, CAPABILITY) == NET_RAW
    assert os.getxattr(stack.upper / "d" / "file", CAPABILITY) == NET_RAW
    os.removexattr(file, CAPABILITY)
    assert attribute(file, CAPABILITY) is None
    with fails_with(errno.EINVAL):
        os.setxattr(file, CAPABILITY, b"nonsense")
    with fails_with(errno.EPERM):
        run_as(USER, lambda: os.setxattr(file, CAPABILITY, NET_RAW))


def test_access_acl_lets_a_user_in_and_its_mask_shuts_out(stack: Stack, file: Path) -> None:
    file.chmod(0o600)
    with fails_with(errno.EACCES):
        run_as(USER, file.read_text)
    os.setxattr(file, ACCESS_ACL, posix_acl(6, 0, 0, {USER: 6}))
    assert run_as(USER, file.read_text) == "content"
    run_as(USER, lambda: file.write_text("by the user"))
    with fails_with(errno.EACCES):
        run_as(OTHER_USER, file.read_text)
    assert stat.S_IMODE(file.stat().st_mode) == 0o670, "the group bits are the mask"
    os.setxattr(file, ACCESS_ACL, posix_acl(6, 0, 0, {USER: 6}, mask=4))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert run_as(USER, file.read_text) == "by the user"
    with fails_with(errno.EACCES):
        run_as(USER, lambda: file.write_text("x"))
    file.chmod(0o600)
    assert os.getxattr(file, ACCESS_ACL) == posix_acl(6, 0, 0, {USER: 6}, mask=0)
    with fails_with(errno.EACCES):
        run_as(USER, file.read_text)
    os.removexattr(file, ACCESS_ACL)
    assert attribute(file, ACCESS_ACL) is None
    assert attribute(stack.upper / "d" / "file", ACCESS_ACL) is None


def test_acl_may_deny_one_user_what_others_may(file: Path) -> None:
    os.setxattr(file, ACCESS_ACL, posix_acl(6, 4, 4, {USER: 0}))
    assert run_as(OTHER_USER, file.read_text) == "content"
    with fails_with(errno.EACCES):
        run_as(USER, file.read_text)


def test_acl_that_says_no_more_than_a_mode_becomes_the_mode(stack: Stack, file: Path) -> None:
    os.setxattr(file, ACCESS_ACL, posix_acl(7, 5, 1))
    assert stat.S_IMODE(file.stat().st_mode) == 0o751
    assert attribute(file, ACCESS_ACL) is None
    assert stat.S_IMODE((stack.upper / "d" / "file").stat().st_mode) == 0o751


@pytest.mark.parametrize("where", ["lower", "remounted"])
def test_acls_on_disk_bind_as_well(stack: Stack, mount_overlay: MountFactory, where: str) -> None:
    make_file(stack.lower / "d" / "file", "content", 0o600)
    os.setxattr(stack.lower / "d" / "file", ACCESS_ACL, posix_acl(6, 0, 0, {USER: 4}))
    make_file(stack.lower / "closed" / "file", "content")
    os.chmod(stack.lower / "closed", 0o700)
    os.setxattr(stack.lower / "closed", ACCESS_ACL, posix_acl(7, 0, 0, {USER: 5}))
    mount = mount_overlay()
    if where == "remounted":
        os.utime(mount.path / "d" / "file")
        os.utime(mount.path / "closed")
        mount.remount()
    for path in ("d/file", "closed/file"):
        assert run_as(USER, (mount.path / path).read_text) == "content"
        with fails_with(errno.EACCES):
            run_as(OTHER_USER, (mount.path / path).read_text)
        with fails_with(errno.EACCES):
            run_as(USER, functools.partial((mount.path / path).write_text, "x"))
    with fails_with(errno.EACCES):
        run_as(USER, (mount.path / "closed" / "new").touch)


def test_acl_refusals(file: Path) -> None:
    for blob in (b"", b"\x02\0\0\0short", posix_acl(6, 4, 4)[:-8], b"\x03\0\0\0" + posix_acl(6, 4, 4)[4:]):
        if blob:  # an empty value removes an ACL
            with fails_with(errno.EINVAL, errno.EOPNOTSUPP):
                os.setxattr(file, ACCESS_ACL, blob)
    with fails_with(errno.EACCES):
        os.setxattr(file, DEFAULT_ACL, posix_acl(7, 5, 5))
    with fails_with(errno.EPERM):
        run_as(USER, lambda: os.setxattr(file, ACCESS_ACL, posix_acl(7, 7, 7, {USER: 7})))
    assert attribute(file, ACCESS_ACL) is None


def test_default_acl_of_a_directory(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "d")
    mount = mount_overlay()
    default = posix_acl(7, 0, 0, {USER: 7})
    os.setxattr(mount.path / "d", DEFAULT_ACL, default)
    mount.remount()
    assert os.getxattr(mount.path / "d", DEFAULT_ACL) == default
    assert stat.S_IMODE((mount.path / "d").stat().st_mode) == 0o755
    os.removexattr(mount.path / "d", DEFAULT_ACL)
    assert os.listxattr(mount.path / "d") == []


def test_removing_an_acl_that_is_not_there(stack: Stack, mount_overlay: MountFactory) -> None:
    """ENODATA for what is in a lower, and nothing is copied up; the upper's file system knows no error."""
    make_file(stack.lower / "file")
    make_directory(stack.lower / "directory")
    mount = mount_overlay()
    for name, acl in (("file", ACCESS_ACL), ("directory", ACCESS_ACL), ("directory", DEFAULT_ACL)):
        with fails_with(errno.ENODATA):
            os.removexattr(mount.path / name, acl)
    os.removexattr(mount.path / "file", DEFAULT_ACL)
    assert os.listdir(stack.upper) == []
    for name in ("file", "directory"):
        (mount.path / name).chmod(0o700)
        os.removexattr(mount.path / name, ACCESS_ACL)
        os.removexattr(mount.path / name, DEFAULT_ACL)
