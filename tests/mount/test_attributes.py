"""stat, chmod, chown, utimensat, statfs, and the suid bits and capabilities that others' changes clear."""

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, run_as, snapshot
from tests.harness.content import CAPABILITY, NET_RAW, attribute, make_directory, make_file, make_symlink
from tests.harness.libc import MNT_DETACH, umount, utimensat
from tests.harness.libc import mount as mount_file_system

USER = 1000


@pytest.fixture(params=["lower", "upper"])
def file(request: pytest.FixtureRequest, stack: Stack, mount_overlay: MountFactory) -> Path:
    """A file in the merged tree, from a lower or from the upper."""
    make_file((stack.lower if request.param == "lower" else stack.upper) / "d" / "file", "content")
    path: Path = mount_overlay().path / "d" / "file"
    return path


def test_chmod(stack: Stack, file: Path) -> None:
    for mode in (0o600, 0o4755, 0o2755, 0o1644, 0o7777, 0o000):
        before = file.stat().st_ctime_ns
        file.chmod(mode)
        status = file.stat()
        assert stat.S_IMODE(status.st_mode) == mode
        assert stat.S_IMODE((stack.upper / "d" / "file").stat().st_mode) == mode
        assert status.st_ctime_ns >= before
        assert stat.S_ISREG(status.st_mode)
    with file.open("rb") as opened:
        os.fchmod(opened.fileno(), 0o640)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_chmod_of_directories(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "low")
    mount = mount_overlay()
    (mount.path / "new").mkdir()
    for name in ("low", "new", "."):
        (mount.path / name).chmod(0o3711)
    mount.remount()
    for name in ("low", "new", "."):
        assert stat.S_IMODE((mount.path / name).stat().st_mode) == 0o3711


def test_chown_sets_either_or_both(stack: Stack, file: Path) -> None:
    for uid, gid, expected in ((5, 6, (5, 6)), (-1, 7, (5, 7)), (8, -1, (8, 7)), (-1, -1, (8, 7))):
        os.chown(file, uid, gid)
        status = file.stat()
        assert (status.st_uid, status.st_gid) == expected
    on_disk = (stack.upper / "d" / "file").stat()
    assert (on_disk.st_uid, on_disk.st_gid) == (8, 7)
    os.chown(file, 4_000_000_000, 3_000_000_000)
    assert (file.stat().st_uid, file.stat().st_gid) == (4_000_000_000, 3_000_000_000)


def test_chown_clears_suid_and_sgid(file: Path) -> None:
    file.chmod(0o6755)
    os.chown(file, 5, 6)
    assert stat.S_IMODE(file.stat().st_mode) == 0o755
    file.chmod(0o2644)  # sgid without group execution is a mandatory lock's mark, and stays for root
    os.chown(file, 7, 8)
    assert stat.S_IMODE(file.stat().st_mode) == 0o2644
    file.parent.chmod(0o2755)
    os.chown(file.parent, 5, 6)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o2755, "directories keep it"


def test_chown_and_write_drop_capabilities(file: Path) -> None:
    os.setxattr(file, CAPABILITY, NET_RAW)
    assert os.getxattr(file, CAPABILITY) == NET_RAW
    os.chown(file, 5, 6)
    assert attribute(file, CAPABILITY) is None
    os.setxattr(file, CAPABILITY, NET_RAW)
    with file.open("ab") as opened:
        opened.write(b"!")
    assert attribute(file, CAPABILITY) is None
    os.setxattr(file, CAPABILITY, NET_RAW)
    os.truncate(file, 1)
    assert attribute(file, CAPABILITY) is None
    os.setxattr(file, CAPABILITY, NET_RAW)
    file.chmod(0o700)
    os.utime(file)
    assert attribute(file, CAPABILITY) == NET_RAW, "other changes leave them"


@pytest.mark.parametrize("how", ["write", "append", "truncate", "open and truncate", "ftruncate"])
def test_writes_of_others_clear_suid_and_sgid(stack: Stack, file: Path, how: str) -> None:
    os.chown(file, 5, 6)
    file.chmod(0o6777)

    def change() -> None:
        if how == "truncate":
            os.truncate(file, 3)
            return
        flags = {
            "write": os.O_RDWR,
            "append": os.O_WRONLY | os.O_APPEND,
            "open and truncate": os.O_WRONLY | os.O_TRUNC,
            "ftruncate": os.O_WRONLY,
        }[how]
        descriptor = os.open(file, flags)
        if how in ("write", "append"):
            os.write(descriptor, b"!")
        elif how == "ftruncate":
            os.ftruncate(descriptor, 3)
        os.close(descriptor)

    run_as(USER, change)
    for path in (file, stack.upper / "d" / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_writes_of_root_keep_suid_and_sgid(file: Path) -> None:
    os.chown(file, 5, 6)
    file.chmod(0o6777)
    with file.open("r+b") as opened:
        opened.write(b"!")
    assert stat.S_IMODE(file.stat().st_mode) == 0o6777


def test_setting_times(stack: Stack, file: Path) -> None:
    os.utime(file, ns=(1_500_000_000_111_111_111, 1_600_000_000_222_222_222))
    for path in (file, stack.upper / "d" / "file"):
        status = path.stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (
            1_500_000_000_111_111_111,
            1_600_000_000_222_222_222,
        )
    before = time.time_ns()
    os.utime(file)
    status = file.stat()
    assert abs(status.st_mtime_ns - before) < 5 * 10**9
    assert abs(status.st_atime_ns - before) < 5 * 10**9
    assert status.st_mtime_ns == status.st_atime_ns


@pytest.mark.parametrize(
    ("atime", "mtime"), [("now", "omit"), ("omit", "now"), (5, "omit"), ("omit", 5), (5, "now")]
)
def test_now_and_omit(file: Path, atime: str | int, mtime: str | int) -> None:
    os.utime(file, ns=(1000, 2000))
    before = time.time_ns() - 10**9
    utimensat(file, atime, mtime)
    status = file.stat()
    for wanted, old, seen in ((atime, 1000, status.st_atime_ns), (mtime, 2000, status.st_mtime_ns)):
        if wanted == "now":
            assert seen > before
        else:
            assert seen == (old if wanted == "omit" else wanted)


def test_times_before_the_epoch_and_far_ahead(file: Path) -> None:
    for seconds in (-1, -1_000_000_000, 2**32 + 5):
        os.utime(file, ns=(seconds * 10**9, seconds * 10**9 + 1))
        assert file.stat().st_atime_ns == seconds * 10**9
        assert file.stat().st_mtime_ns == seconds * 10**9 + 1


def test_symlinks_have_times_and_owners_of_their_own(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "target")
    make_symlink(stack.lower / "link", "target")
    merged = mount_overlay().path
    target = (merged / "target").stat()
    os.utime(merged / "link", ns=(1, 2), follow_symlinks=False)
    os.chown(merged / "link", 5, 6, follow_symlinks=False)
    status = (merged / "link").lstat()
    assert (status.st_mtime_ns, status.st_uid, status.st_gid) == (2, 5, 6)
    assert status.st_size == len("target")
    after = (merged / "target").stat()
    assert (after.st_mtime_ns, after.st_uid) == (target.st_mtime_ns, target.st_uid)
    os.chown(merged / "link", 7, 8)
    assert ((merged / "target").stat().st_uid, (merged / "link").lstat().st_uid) == (7, 5)


def test_what_only_an_owner_may_change(file: Path) -> None:
    os.chown(file, 5, 6)
    file.chmod(0o666)
    for attempt in (
        lambda: file.chmod(0o777),
        lambda: os.chown(file, USER, USER),
        lambda: os.chown(file, -1, USER),
        lambda: os.utime(file, ns=(1, 2)),
        lambda: os.setxattr(file, "trusted.x", b""),
    ):
        with fails_with(errno.EPERM):
            run_as(USER, attempt)
    run_as(USER, lambda: os.utime(file))  # who may write may set the times to now
    file.chmod(0o644)
    with fails_with(errno.EACCES):
        run_as(USER, lambda: os.utime(file))
    os.chown(file, USER, USER)
    run_as(USER, lambda: os.chown(file, USER, 4000), groups=[4000])
    with fails_with(errno.EPERM):
        run_as(USER, lambda: os.chown(file, USER, 4001), groups=[4000])
    with fails_with(errno.EPERM):
        run_as(USER, lambda: os.chown(file, 5, -1))
    assert (file.stat().st_uid, file.stat().st_gid) == (USER, 4000)


def test_sgid_for_a_group_that_one_is_not_in(file: Path) -> None:
    os.chown(file, USER, 4000)
    run_as(USER, lambda: file.chmod(0o2755), groups=[4000])
    assert stat.S_IMODE(file.stat().st_mode) == 0o2755
    run_as(USER, lambda: file.chmod(0o2750))
    assert stat.S_IMODE(file.stat().st_mode) == 0o750


def test_access_asks_about_the_caller(file: Path) -> None:
    os.chown(file, USER, USER)
    file.chmod(0o640)
    assert run_as(USER, lambda: os.access(file, os.R_OK | os.W_OK))
    assert not run_as(USER, lambda: os.access(file, os.X_OK))
    assert run_as(2000, lambda: os.access(file, os.R_OK), gid=USER)
    assert not run_as(2000, lambda: os.access(file, os.W_OK), gid=USER)
    assert not run_as(2000, lambda: os.access(file, os.R_OK))
    assert run_as(2000, lambda: os.access(file, os.F_OK))


def test_statfs_is_the_uppers(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file")
    merged = mount_overlay().path
    of_upper = os.statvfs(stack.upper)
    for path in (merged, merged / "d", merged / "d" / "file"):
        seen = os.statvfs(path)
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
            assert getattr(seen, field) == getattr(of_upper, field), field
        # Others write to this file system meanwhile.
        assert abs(seen.f_bavail - of_upper.f_bavail) < of_upper.f_blocks // 20
        assert abs(seen.f_ffree - of_upper.f_ffree) < of_upper.f_files // 20


@pytest.mark.lowers(2)
def test_statfs_without_an_upper_is_the_topmost_lowers(stack: Stack, mount_overlay: MountFactory) -> None:
    mount_file_system("tmpfs", stack.lowers[0], "tmpfs", data="size=8M,mode=755")
    try:
        make_file(stack.lowers[0] / "file")
        mount = mount_overlay(read_only=True, check_lowers=False)
        for path in (mount.path, mount.path / "file"):
            assert os.statvfs(path).f_blocks == os.statvfs(stack.lowers[0]).f_blocks
            assert os.statvfs(path).f_flag & os.ST_RDONLY
        mount.remove()
    finally:
        umount(stack.lowers[0], MNT_DETACH)


def test_reading_moves_the_atime_of_an_upper_file(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.upper / "file", "content")
    os.utime(stack.upper / "file", ns=(1, 2))
    merged = mount_overlay().path
    assert (merged / "file").stat().st_atime_ns == 1
    assert (merged / "file").read_text() == "content"
    assert (merged / "file").stat().st_atime_ns > 10**18
    assert (merged / "file").stat().st_mtime_ns == 2


def test_everything_about_a_lower_tree_shows(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", b"x" * 100_000, 0o6751)
    os.truncate(stack.lower / "d" / "file", 10_000_000)
    make_symlink(stack.lower / "d" / "link", "file")
    make_directory(stack.lower / "d" / "sub", 0o3700)
    os.setxattr(stack.lower / "d" / "sub", "user.comment", b"x")
    expected = snapshot(stack.lower)
    merged = mount_overlay().path
    seen = snapshot(merged)
    del expected[b"."], seen[b"."]
    assert seen == expected
    for path in ("d", "d/file", "d/link", "d/sub"):
        left, right = os.lstat(stack.lower / path), os.lstat(merged / path)
        for field in ("st_ino", "st_blocks", "st_size", "st_atime_ns", "st_ctime_ns"):
            assert getattr(left, field) == getattr(right, field), (path, field)
