"""Who may change what, and who owns what is made? umask, default ACLs, setgid and sticky directories."""

import errno
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, run_as
from tests.harness.content import (
    ACCESS_ACL,
    DEFAULT_ACL,
    attribute,
    is_whiteout,
    make_directory,
    make_file,
    make_symlink,
    make_whiteout,
    names,
    posix_acl,
)

USER, GROUP, OTHER_USER = 1000, 1001, 2000


def _open_with(mode: int) -> Callable[[Path], None]:
    return lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode))


MAKERS: dict[str, Callable[[Path], None]] = {
    "file": _open_with(0o666),
    "executable": _open_with(0o6777),
    "directory": lambda path: path.mkdir(0o777),
    "fifo": lambda path: os.mkfifo(path, 0o666),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o777),
}
WANTED = {"file": 0o666, "executable": 0o6777, "directory": 0o777, "fifo": 0o666, "socket": 0o777}


@pytest.fixture(params=["new name", "whiteout"])
def place(request: pytest.FixtureRequest, stack: Stack) -> str:
    """A name `it` in a directory that everybody may write: free, or under a whiteout."""
    make_directory(stack.lower / "open", 0o777)
    if request.param == "whiteout":
        make_file(stack.lower / "open" / "it", "old")
        make_directory(stack.upper / "open", 0o777)
        make_whiteout(stack.upper / "open" / "it")
    return "open/it"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000, 0o137])
@pytest.mark.parametrize("maker", MAKERS)
def test_umask_and_owner_of_the_caller(
    stack: Stack, mount_overlay: MountFactory, place: str, maker: str, umask: int
) -> None:
    made = mount_overlay().path / place
    run_as(USER, lambda: MAKERS[maker](made), gid=GROUP, umask=umask)
    for status in (made.lstat(), (stack.upper / place).lstat()):
        assert oct(stat.S_IMODE(status.st_mode)) == oct(WANTED[maker] & ~umask)
        assert (status.st_uid, status.st_gid) == (USER, GROUP)


def test_symlink_belongs_to_the_caller(stack: Stack, mount_overlay: MountFactory, place: str) -> None:
    made = mount_overlay().path / place
    run_as(USER, lambda: made.symlink_to("somewhere"), gid=GROUP, umask=0o077)
    status = made.lstat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (USER, GROUP, 0o777)


def test_directory_of_root_in_a_setgid_directory_is_setgid(
    stack: Stack, mount_overlay: MountFactory, place: str
) -> None:
    (stack.lower / "open").chmod(0o2777)
    made = mount_overlay().path / place
    made.parent.chmod(0o2777)
    made.mkdir(0o755)
    assert stat.S_IMODE(made.stat().st_mode) == 0o2755


@pytest.mark.parametrize("maker", MAKERS)
def test_setgid_directory_hands_on_its_group(
    stack: Stack, mount_overlay: MountFactory, place: str, maker: str
) -> None:
    for layer in (stack.lower, stack.upper):
        if (layer / "open").exists():
            os.chown(layer / "open", 0, 777)
            os.chmod(layer / "open", 0o2777)
    made = mount_overlay().path / place
    run_as(USER, lambda: MAKERS[maker](made), gid=GROUP, umask=0o022)
    for status in (made.lstat(), (stack.upper / place).lstat()):
        assert (status.st_uid, status.st_gid) == (USER, 777)
        if maker == "directory":
            assert stat.S_IMODE(status.st_mode) == 0o2755
        elif maker == "executable":
            # sgid for a group that the caller is not in would be a gift.
            assert stat.S_IMODE(status.st_mode) == 0o4755
        else:
            assert stat.S_IMODE(status.st_mode) == WANTED[maker] & ~0o022


def test_default_acl_replaces_the_umask(stack: Stack, mount_overlay: MountFactory, place: str) -> None:
    default = posix_acl(7, 5, 1, {OTHER_USER: 6}, mask=7)
    for layer in (stack.lower, stack.upper):
        if (layer / "open").exists():
            os.setxattr(layer / "open", DEFAULT_ACL, default)
    merged = mount_overlay().path
    expected = {
        "file": (0o660, posix_acl(6, 5, 0, {OTHER_USER: 6}, mask=6)),
        "executable": (0o6771, posix_acl(7, 5, 1, {OTHER_USER: 6}, mask=7)),
        "directory": (0o771, posix_acl(7, 5, 1, {OTHER_USER: 6}, mask=7)),
        "fifo": (0o660, posix_acl(6, 5, 0, {OTHER_USER: 6}, mask=6)),
    }
    for maker, (mode, access) in expected.items():
        made = merged / place
        run_as(USER, functools.partial(MAKERS[maker], made), gid=GROUP, umask=0o077)
        assert oct(stat.S_IMODE(made.lstat().st_mode)) == oct(mode), maker
        for path in (made, stack.upper / place):
            assert attribute(path, ACCESS_ACL) == access, maker
            assert attribute(path, DEFAULT_ACL) == (default if maker == "directory" else None), maker
        made.rmdir() if maker == "directory" else made.unlink()


def test_default_acl_that_only_names_the_three_classes(
    stack: Stack, mount_overlay: MountFactory, place: str
) -> None:
    for layer in (stack.lower, stack.upper):
        if (layer / "open").exists():
            os.setxattr(layer / "open", DEFAULT_ACL, posix_acl(7, 4, 0))
    made = mount_overlay().path / place
    run_as(USER, lambda: MAKERS["file"](made), umask=0o077)
    assert stat.S_IMODE(made.stat().st_mode) == 0o640
    assert attribute(made, ACCESS_ACL) is None


def test_default_acl_reaches_down_a_tree(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.lower / "open", 0o777)
    os.setxattr(stack.lower / "open", DEFAULT_ACL, posix_acl(7, 0, 0, {OTHER_USER: 7}))
    mount = mount_overlay()
    inner = mount.path / "open" / "a" / "b"
    run_as(USER, lambda: inner.mkdir(parents=True), umask=0o022)
    run_as(USER, lambda: make_file(inner / "file", "secret", 0o660), umask=0o022)
    mount.remount()
    assert run_as(OTHER_USER, (inner / "file").read_text) == "secret"
    run_as(OTHER_USER, lambda: make_file(inner / "theirs"))
    with fails_with(errno.EACCES):
        run_as(3000, (inner / "file").read_text)


def test_sticky_directory_protects_others_names(stack: Stack, mount_overlay: MountFactory) -> None:
    for layer in (stack.lower, stack.upper):
        make_directory(layer / "tmp", 0o1777)
        make_file(layer / "tmp" / layer.name, "content", 0o666)
        os.chown(layer / "tmp" / layer.name, USER, USER)
    merged = mount_overlay().path
    for name in ("l1", "u"):
        theirs = merged / "tmp" / name
        for attempt in (
            theirs.unlink,
            lambda theirs=theirs: theirs.rename(merged / "tmp" / "mine"),
            lambda theirs=theirs: os.rename(merged / "tmp" / "own", theirs),
        ):
            run_as(OTHER_USER, (merged / "tmp" / "own").touch)
            with fails_with(errno.EPERM):
                run_as(OTHER_USER, attempt)
        run_as(USER, theirs.unlink)
        assert not theirs.exists()
    assert is_whiteout(stack.upper / "tmp" / "l1")
    run_as(OTHER_USER, (merged / "tmp" / "own").unlink)


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_directory_that_one_may_not_write(stack: Stack, mount_overlay: MountFactory, layer: str) -> None:
    root = stack.lower if layer == "lower" else stack.upper
    make_file(root / "d" / "file", "content", 0o666)
    make_directory(root / "d" / "sub", 0o777)
    merged = mount_overlay().path
    file, new = merged / "d" / "file", merged / "d" / "new"
    attempts: list[Callable[[], object]] = [
        file.unlink,
        (merged / "d" / "sub").rmdir,
        lambda: file.rename(new),
        lambda: file.rename(merged / "d" / "sub" / "x"),
        lambda: os.link(file, new),
        lambda: new.symlink_to("x"),
        *(lambda maker=maker: maker(new) for maker in MAKERS.values()),
    ]
    for attempt in attempts:
        with fails_with(errno.EACCES):
            run_as(USER, attempt)
    assert names(merged / "d") == ["file", "sub"]
    run_as(USER, lambda: file.write_text("but the file may be written"))
    assert file.read_text() == "but the file may be written"


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_private_directory_stays_private(stack: Stack, mount_overlay: MountFactory, layer: str) -> None:
    root = stack.lower if layer == "lower" else stack.upper
    make_file(root / "private" / "file", "secret", 0o666)
    os.chmod(root / "private", 0o700)
    merged = mount_overlay().path
    for _ in range(2):
        for attempt in (
            (merged / "private" / "file").read_text,
            (merged / "private" / "file").stat,
            lambda: os.listdir(merged / "private"),
            lambda: (merged / "private" / "file").write_text("x"),
        ):
            with fails_with(errno.EACCES):
                run_as(USER, attempt)
        (merged / "private" / "file").write_text("copied up")
    assert stat.S_IMODE((stack.upper / "private").stat().st_mode) == 0o700


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_users_change_their_own_files(stack: Stack, mount_overlay: MountFactory, layer: str) -> None:
    root = stack.lower if layer == "lower" else stack.upper
    make_file(root / "home" / "file", "content", 0o600)
    make_symlink(root / "home" / "link", "file")
    os.chown(root / "home" / "file", USER, USER)
    os.chown(root / "home" / "link", USER, USER, follow_symlinks=False)
    os.chown(root / "home", USER, USER)
    os.chmod(root / "home", 0o700)
    merged = mount_overlay().path
    home = merged / "home"

    def live() -> list[str]:
        with (home / "file").open("a") as file:
            file.write("!")
        (home / "file").chmod(0o640)
        os.setxattr(home / "file", "user.mine", b"yes")
        os.utime(home / "file", ns=(1, 2))
        (home / "file").rename(home / "renamed")
        (home / "link").unlink()
        (home / "new").mkdir()
        (home / "new" / "inner").write_text("inner")
        return sorted(os.listdir(home))

    assert run_as(USER, live, umask=0o077) == ["new", "renamed"]
    status = (home / "renamed").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (USER, USER, 0o640)
    assert stat.S_IMODE((home / "new").stat().st_mode) == 0o700
    assert ((stack.upper / "home").stat().st_uid, (stack.upper / "home" / "new").stat().st_uid) == (
        USER,
        USER,
    )


def test_supplementary_groups_count(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "d" / "file", "content", 0o660)
    os.chown(stack.lower / "d" / "file", 0, 5000)
    os.chown(stack.lower / "d", 0, 5000)
    os.chmod(stack.lower / "d", 0o770)
    merged = mount_overlay().path
    with fails_with(errno.EACCES):
        run_as(USER, lambda: (merged / "d" / "file").write_text("x"))
    run_as(USER, lambda: (merged / "d" / "file").write_text("by a member"), groups=[4000, 5000])
    run_as(USER, (merged / "d" / "new").touch, groups=[5000])
    assert (merged / "d" / "file").read_text() == "by a member"
    assert (merged / "d" / "new").stat().st_uid == USER


@pytest.mark.parametrize("mode", [0o6755, 0o4644, 0o2755, 0o755], ids=oct)
def test_chown_to_nobody_by_a_stranger(stack: Stack, mount_overlay: MountFactory, mode: int) -> None:
    """chown(-1, -1) needs no right, but where it would clear set-id bits: that is a chmod."""
    make_file(stack.lower / "file", "program", mode)
    merged = mount_overlay().path / "file"

    def change() -> None:
        os.chown(merged, -1, -1)

    if mode == 0o755:
        run_as(USER, change)
    else:
        with fails_with(errno.EPERM):
            run_as(USER, change)
        assert not (stack.upper / "file").exists()
    assert stat.S_IMODE(merged.stat().st_mode) == mode
