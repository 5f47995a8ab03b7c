"""Are owners, modes and types that are kept in attributes those that programs gave?

xattr_permissions=, and layers that containers/storage or fuse-overlayfs wrote so. The kernel has nothing of
the kind: what stat shows is compared with its overlay over plain layers, after the same operations.
"""

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import (
    Entry,
    Kind,
    MountFactory,
    MountRefusedError,
    Stack,
    fails_with,
    make_stack,
    pyoverlay_only,
    run_as,
    snapshot,
)
from tests.harness.content import (
    ACCESS_ACL,
    CAPABILITY,
    NET_RAW,
    attribute,
    is_whiteout,
    make_directory,
    make_file,
    make_symlink,
    names,
    posix_acl,
)
from tests.mount.command import fail, pyoverlay, succeed

pytestmark = pyoverlay_only

USER, GROUP = 1000, 1001
PRIVILEGED = "security.fuseoverlayfs.override_stat"
CONTAINERS = "user.containers.override_stat"
FUSE_OVERLAYFS = "user.fuseoverlayfs.override_stat"
# Root that may mount and read, but can't chown, mknod, set capabilities, or write what isn't its own.
WITHOUT_RIGHTS = "-chown,-fowner,-fsetid,-mknod,-dac_override"

Operation = Callable[[Path], None]


def own(path: Path, user: int, group: int) -> Path:
    """Set user and group, of a symlink itself."""
    os.chown(path, user, group, follow_symlinks=False)
    return path


def looks(path: Path) -> tuple[str, int, int, int]:
    """Type and mode as ls shows them, user, group and device number."""
    status = path.lstat()
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_rdev


def record(path: Path, value: str, name: str = CONTAINERS) -> Path:
    """Write a record into a layer."""
    os.setxattr(path, name, value.encode())
    return path


def fill(lower: Path) -> None:
    """One of each kind, of several owners."""
    own(make_file(lower / "file", "lower", 0o640), 5, 6)
    own(make_directory(lower / "directory", 0o711), 7, 8)
    make_file(lower / "directory" / "inner", "inner")
    make_file(lower / "program", "program").chmod(0o6755)
    make_symlink(lower / "link", "file")
    os.mkfifo(lower / "fifo", 0o600)
    os.mknod(lower / "device", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    own(lower / "fifo", 3, 4)
    os.chown(make_file(lower / "capable", "capable", 0o755), 0, 0)
    os.setxattr(lower / "capable", CAPABILITY, NET_RAW)
    own(make_directory(lower / "group's"), 0, 50).chmod(0o2777)
    make_directory(lower / "open", 0o777)
    os.link(make_file(lower / "one", "linked"), lower / "other")


def bind_socket(path: Path) -> None:
    """Make a socket."""
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            listening.bind(path.name)
        finally:
            os.chdir(here)


def write(path: Path) -> None:
    """Change a file's data."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, b"CHANGED")
    finally:
        os.close(descriptor)


def chown_set_id(top: Path) -> None:
    """Change the owner of files with set-id bits, and name none."""
    for number, mode in enumerate((0o6755, 0o6745, 0o2777)):
        path = make_file(top / f"set-id {number}")
        path.chmod(mode)
        own(path, USER, -1)
    path = make_file(top / "set-id named none")
    path.chmod(0o4711)
    own(path, -1, -1)
    own(top / "program", -1, GROUP)


def set_capabilities(top: Path) -> None:
    """Give capabilities to files, of which some lose them again."""
    for name in ("kept", "written", "truncated", "opened to truncate", "owned", "held", "allocated"):
        os.setxattr(make_file(top / f"capable {name}", "content", 0o755), CAPABILITY, NET_RAW)
    write(top / "capable written")
    os.truncate(top / "capable truncated", 3)
    os.close(os.open(top / "capable opened to truncate", os.O_WRONLY | os.O_TRUNC))
    with (top / "capable allocated").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 100)
    own(top / "capable owned", USER, GROUP)
    (top / "capable held").chmod(0o700)
    write(top / "capable")


def write_as_another(top: Path) -> None:
    """A stranger's writing clears set-id bits."""
    for number, mode in enumerate((0o6777, 0o2777)):
        path = make_file(top / f"stranger {number}", "content")
        path.chmod(mode)
        run_as(USER, lambda path=path: write(path))  # type: ignore[misc]


def create_as_another(top: Path) -> None:
    """What another user makes, also where the group is handed on."""
    for directory in ("open", "group's"):
        for name, maker in MAKERS.items():
            path = top / directory / f"user's {name}"
            run_as(USER, lambda path=path, maker=maker: maker(path), gid=GROUP, umask=0o027)  # type: ignore[misc]


MAKERS: dict[str, Operation] = {
    "file": lambda path: path.touch(),
    "directory": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "socket": bind_socket,
}


def create(top: Path) -> None:
    """What root makes."""
    for name, maker in MAKERS.items():
        maker(top / f"new {name}")
    make_symlink(top / "new link", "target")
    os.mknod(top / "new device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "new block device", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    os.mknod(top / "new by mknod", stat.S_IFREG | 0o604)
    (top / "new mode").mkdir(mode=0o1770)
    os.close(os.open(top / "new by open", os.O_CREAT | os.O_WRONLY, 0o4711))
    link_nameless(top)


def link_nameless(top: Path) -> None:
    """Make a file without a name, and give it one."""
    directory = os.open(top, os.O_RDONLY)
    nameless = os.open(top, os.O_TMPFILE | os.O_WRONLY, 0o2604)
    try:
        os.fchown(nameless, USER, -1)
        os.link(f"/proc/self/fd/{nameless}", "new by linking", dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(nameless)
        os.close(directory)


def own_all(top: Path) -> None:
    """Change every owner, and every mode after it."""
    for number, name in enumerate(sorted(names(top))):
        if not (top / name).is_symlink():
            own(top / name, 100 + number, 200 + number)
            if number % 2:
                (top / name).chmod(0o640 + number % 8)


def move(top: Path) -> None:
    """Rename, link, remove and make again."""
    own(top / "file", 1, 2)
    os.link(top / "file", top / "file's second name")
    (top / "file's second name").chmod(0o604)
    (top / "fifo").rename(top / "directory" / "moved fifo")
    (top / "device").rename(top / "device elsewhere")
    (top / "directory" / "inner").unlink()
    make_directory(top / "away", 0o700)
    own(top / "away", 9, 9)
    (top / "away").rename(top / "back")
    (top / "capable").unlink()
    (top / "capable").mkdir(mode=0o705)
    os.utime(top / "link", (5, 5), follow_symlinks=False)
    os.utime(top / "one", (5, 5))


OPERATIONS = {
    function.__name__: function
    for function in (
        create,
        create_as_another,
        own_all,
        chown_set_id,
        set_capabilities,
        write_as_another,
        move,
    )
}


def picture(merged: Path) -> dict[bytes, Entry]:
    """All that stat shows but times, with the attributes."""
    return snapshot(merged, times=False)


@contextlib.contextmanager
def without_rights(stack: Stack, kind: Kind, *options: str) -> Iterator[Path]:
    """The stack, mounted by a daemon that may not chown."""
    words = [f"lowerdir={stack.lower}", f"upperdir={stack.upper}", f"workdir={stack.work}", *options]
    if kind is Kind.SLOW_PATH:
        words.append("fast_path=off")
    # Capabilities of files aren't kept as the daemon's own attributes where records are security.*, too.
    dropped = WITHOUT_RIGHTS + ("" if "xattr_permissions=1" in options else ",-setfcap")
    before = ("setpriv", f"--bounding-set={dropped}")
    succeed(pyoverlay("mount", "-o", ",".join(words), stack.merged, before=before))
    try:
        yield stack.merged
    finally:
        succeed(pyoverlay("unmount", stack.merged))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("level", [1, 2])
def test_programs_see_what_the_kernels_overlay_shows(
    stack: Stack, kind: Kind, mount_overlay: MountFactory, operation: str, level: int
) -> None:
    fill(stack.lower)
    theirs = make_stack(stack.base / "kernel")
    shutil.rmtree(theirs.lower)
    theirs.lowers = stack.lowers
    expected = mount_overlay(stack=theirs, kind=Kind.KERNEL).path
    with without_rights(stack, kind, f"xattr_permissions={level}") as merged:
        for top in (expected, merged):
            OPERATIONS[operation](top)
        seen = picture(merged)
        assert seen == picture(expected)
    with without_rights(stack, kind, f"xattr_permissions={level}") as merged:
        assert picture(merged) == seen


def test_on_disk_all_is_the_daemons(stack: Stack, kind: Kind) -> None:
    fill(stack.lower)
    with without_rights(stack, kind, "xattr_permissions=2") as merged:
        create(merged)
        create_as_another(merged)
        move(merged)
    for name, entry in snapshot(stack.upper).items():
        assert (entry.uid, entry.gid) == (0, 0), name
        if is_whiteout(stack.upper / os.fsdecode(name)) or entry.kind == stat.S_IFLNK:
            continue
        assert entry.kind in (stat.S_IFREG, stat.S_IFDIR), name
        assert entry.mode == 0o755, name
    assert attribute(stack.upper / "file", CONTAINERS) == b"1:2:0604:file"
    assert attribute(stack.upper / "new block device", CONTAINERS) == b"0:0:0600:block-7-300"
    assert attribute(stack.upper / "open" / "user's directory", CONTAINERS) == b"1000:1001:0750:dir"
    assert names(stack.work / "work") == []


@pytest.mark.parametrize(("mode", "on_disk"), [(0o700, 0o700), (0o750, 0o750), (0o2777, 0o755)])
def test_what_is_made_is_as_open_on_disk_as_the_uppers_root(
    stack: Stack, mount_overlay: MountFactory, mode: int, on_disk: int
) -> None:
    stack.upper.chmod(mode)
    merged = mount_overlay("xattr_permissions=2").path
    make_file(merged / "secret", "secret", 0o600)
    make_directory(merged / "directory", 0o777)
    assert {stat.S_IMODE((stack.upper / name).stat().st_mode) for name in names(stack.upper)} == {on_disk}


@pytest.mark.parametrize(("level", "name"), [(1, PRIVILEGED), (2, CONTAINERS)])
def test_the_uppers_root_tells_that_it_keeps_records(
    stack: Stack, mount_overlay: MountFactory, level: int, name: str
) -> None:
    own(stack.upper, USER, GROUP).chmod(0o1750)
    merged = mount_overlay(f"xattr_permissions={level}").path
    assert attribute(stack.upper, name) == b"1000:1001:1750:dir"
    assert looks(merged) == ("drwxr-x--T", USER, GROUP, 0)
    own(merged, 1, 2).chmod(0o711)
    assert looks(merged) == ("drwx--x--x", 1, 2, 0)
    assert looks(stack.upper) == ("drwxr-x--T", USER, GROUP, 0)


def test_a_fresh_upper_shows_the_root_that_a_lower_records(stack: Stack, mount_overlay: MountFactory) -> None:
    record(stack.lower, "3:4:0555:dir")
    stack.upper.chmod(0o700)
    assert looks(mount_overlay("xattr_permissions=2").path) == ("dr-xr-xr-x", 3, 4, 0)


def test_an_upper_that_was_begun_so_is_continued(stack: Stack, mount_overlay: MountFactory) -> None:
    """Without the option: a record from before would hide what was changed since."""
    record(stack.upper, "0:0:0755:dir")
    record(make_file(stack.upper / "file"), "5:6:0600:file")
    merged = mount_overlay().path
    own(merged / "file", 7, 8)
    make_file(merged / "new")
    assert looks(merged / "file") == ("-rw-------", 7, 8, 0)
    assert attribute(stack.upper / "file", CONTAINERS) == b"7:8:0600:file"
    assert attribute(stack.upper / "new", CONTAINERS) == b"0:0:0644:file"
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(merged / "file", ACCESS_ACL, posix_acl(6, 4, 0, users={USER: 4}))


def test_the_spelling_of_the_upper_is_kept(stack: Stack, mount_overlay: MountFactory) -> None:
    record(stack.upper, "0:0:40755", FUSE_OVERLAYFS)
    own(make_file(mount_overlay("xattr_permissions=2").path / "new"), 1, 2)
    assert attribute(stack.upper / "new", FUSE_OVERLAYFS) == b"1:2:0644:file"
    assert attribute(stack.upper / "new", CONTAINERS) is None


@pytest.mark.parametrize(("level", "name"), [(1, CONTAINERS), (1, FUSE_OVERLAYFS), (2, PRIVILEGED)])
def test_another_spelling_is_refused(
    stack: Stack, mount_overlay: MountFactory, level: int, name: str
) -> None:
    record(stack.upper, "0:0:0755:dir", name)
    with pytest.raises(MountRefusedError, match=f"keeps owners and modes in {name}"):
        mount_overlay(f"xattr_permissions={level}")
    assert names(stack.work) == []


@pytest.mark.parametrize("name", [PRIVILEGED, CONTAINERS, FUSE_OVERLAYFS])
def test_lowers_show_what_their_records_say(stack: Stack, mount_overlay: MountFactory, name: str) -> None:
    record(stack.lower, "0:0:0755:dir", name)
    for kind in ("file", "pipe", "socket", "block-8-1", "char-1-3"):
        record(make_file(stack.lower / "d" / kind, mode=0o700), f"5:6:4751:{kind}", name)
    record(make_file(stack.lower / "d" / "symlink", "file"), "5:6:0777:symlink", name)
    record(stack.lower / "d", "7:8:1777:dir", name)
    make_file(stack.lower / "d" / "plain", mode=0o604)
    expected = {
        "file": ("-rwsr-x--x", 5, 6, 0),
        "pipe": ("prwsr-x--x", 5, 6, 0),
        "socket": ("srwsr-x--x", 5, 6, 0),
        "block-8-1": ("brwsr-x--x", 5, 6, os.makedev(8, 1)),
        "char-1-3": ("crwsr-x--x", 5, 6, os.makedev(1, 3)),
        "symlink": ("lrwxrwxrwx", 5, 6, 0),
        "plain": ("-rw----r--", 0, 0, 0),
    }
    merged = mount_overlay().path
    assert {found: looks(merged / "d" / found) for found in names(merged / "d")} == expected
    listed = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(merged / "d")}
    assert listed == {found: (merged / "d" / found).lstat().st_mode for found in expected}
    assert looks(merged / "d") == ("drwxrwxrwt", 7, 8, 0)
    assert os.readlink(merged / "d" / "symlink") == "file"
    assert os.listxattr(merged / "d" / "file") == []
    # Copied up to an upper that keeps no records, they are what they show.
    for found in expected:
        os.utime(merged / "d" / found, (1, 1), follow_symlinks=False)
    assert {found: looks(stack.upper / "d" / found) for found in expected} == expected
    assert looks(stack.upper / "d") == ("drwxrwxrwt", 7, 8, 0)
    assert os.readlink(stack.upper / "d" / "symlink") == "file"


def test_a_lower_whose_root_has_no_record_keeps_none(stack: Stack, mount_overlay: MountFactory) -> None:
    record(make_file(stack.lower / "file"), "5:6:4755:char-1-3")
    merged = mount_overlay("xattr_permissions=2").path
    assert looks(merged / "file") == ("-rw-r--r--", 0, 0, 0)
    write(merged / "file")
    assert looks(merged / "file") == ("-rw-r--r--", 0, 0, 0)


@pytest.mark.lowers(2)
def test_each_layer_is_read_in_its_own_way(stack: Stack, mount_overlay: MountFactory) -> None:
    upper, lower = stack.lowers
    record(lower, "0:0:0755:dir", FUSE_OVERLAYFS)
    record(make_file(lower / "old"), "1:2:104711", FUSE_OVERLAYFS)
    record(record(make_file(lower / "both"), "1:2:100600", FUSE_OVERLAYFS), "0:0:4777:file")
    record(upper, "0:0:0755:dir")
    record(make_file(upper / "new"), "3:4:0600:file")
    os.setxattr(upper / "new", f"user.containers.override_{CAPABILITY}", NET_RAW)
    merged = mount_overlay("xattr_permissions=2").path
    for name in ("old", "both", "new"):
        before = looks(merged / name), os.listxattr(merged / name)
        os.utime(merged / name, (1, 1))
        assert (looks(merged / name), os.listxattr(merged / name)) == before
    assert looks(merged / "old") == ("-rws--x--x", 1, 2, 0)
    assert looks(merged / "both") == ("-rw-------", 1, 2, 0)
    assert attribute(merged / "new", CAPABILITY) == NET_RAW
    assert attribute(stack.upper / "old", CONTAINERS) == b"1:2:4711:file"
    assert attribute(stack.upper / "old", FUSE_OVERLAYFS) is None


@pytest.mark.parametrize("name", [PRIVILEGED, CONTAINERS, FUSE_OVERLAYFS])
def test_users_can_write_no_record(stack: Stack, mount_overlay: MountFactory, name: str) -> None:
    overlay = mount_overlay("xattr_permissions=2")
    merged = overlay.path
    forged = own(make_file(merged / "forged"), USER, USER)
    call = run_as if name != PRIVILEGED else lambda _user, call: call()
    call(USER, lambda: os.setxattr(forged, name, b"0:0:4755:file"))
    assert looks(forged) == ("-rw-r--r--", USER, USER, 0)
    assert os.getxattr(forged, name) == b"0:0:4755:file"
    assert os.listxattr(forged) == [name]
    overlay.remount()
    assert looks(forged) == ("-rw-r--r--", USER, USER, 0)
    os.removexattr(forged, name)
    assert os.listxattr(forged) == []
    assert looks(forged) == ("-rw-r--r--", USER, USER, 0)


@pytest.mark.parametrize("value", ["nonsense", "0:0:0644:dir", "0:0:0644:char-0-0"])
def test_a_record_that_says_nothing_is_no_record_to_ignore(
    stack: Stack, mount_overlay: MountFactory, value: str
) -> None:
    record(stack.lower, "0:0:0755:dir")
    record(make_file(stack.lower / "bad"), value)
    make_file(stack.lower / "good")
    merged = mount_overlay().path
    assert names(merged) == ["bad", "good"]
    with fails_with(errno.EINVAL):
        (merged / "bad").lstat()


def test_a_root_whose_record_says_nothing_is_not_mounted(stack: Stack, mount_overlay: MountFactory) -> None:
    record(stack.lower, "nonsense")
    with pytest.raises(MountRefusedError, match="it should be USER:GROUP:MODE:TYPE"):
        mount_overlay()


def test_permissions_are_those_shown(stack: Stack, mount_overlay: MountFactory) -> None:
    merged = mount_overlay("xattr_permissions=2").path
    own(make_file(merged / "secret", "secret", 0o600), USER, USER)
    assert run_as(USER, (merged / "secret").read_text) == "secret"
    with fails_with(errno.EACCES):
        run_as(USER + 1, (merged / "secret").read_text)
    with fails_with(errno.EPERM):
        run_as(USER + 1, lambda: (merged / "secret").chmod(0o777))


def test_records_name_ids_that_are_shifted(stack: Stack, mount_overlay: MountFactory) -> None:
    record(stack.lower, "0:0:0755:dir")
    record(make_file(stack.lower / "it"), "5:6:0644:file")
    merged = mount_overlay(
        "xattr_permissions=2", "uidmapping=0:100000:65536", "gidmapping=0:200000:65536"
    ).path
    assert looks(merged / "it")[1:3] == (100_005, 200_006)
    own(merged / "it", 100_007, -1)
    assert looks(merged / "it")[1:3] == (100_007, 200_006)
    assert attribute(stack.upper / "it", CONTAINERS) == b"7:6:0644:file"


def test_changes_are_those_of_what_is_shown(stack: Stack, mount_overlay: MountFactory) -> None:
    record(stack.lower, "0:0:0755:dir")
    for name in ("same", "other"):
        record(make_directory(stack.lower / name), "5:6:0755:dir")
    merged = mount_overlay("xattr_permissions=2").path
    before = (merged / "same").stat()
    (merged / "same").chmod(0o755)
    os.utime(merged / "same", ns=(before.st_atime_ns, before.st_mtime_ns))
    own(merged / "other", 7, 8)
    assert succeed(pyoverlay("changes", stack.upper, "--lower", stack.lower)) == b"C /other\n"


def test_an_upper_that_cant_have_the_attribute_is_refused(stack: Stack, kind: Kind) -> None:
    options = f"lowerdir={stack.lower},upperdir={stack.upper},workdir={stack.work},xattr_permissions=1"
    if kind is Kind.SLOW_PATH:
        options += ",fast_path=off"
    in_a_namespace = ("unshare", "--user", "--map-root-user", "--mount")
    said = fail(pyoverlay("mount", "-o", options, stack.merged, before=in_a_namespace))
    assert f"can't have the attribute {PRIVILEGED}" in said
    assert names(stack.upper) == []


# fuse-overlayfs


@contextlib.contextmanager
def fuse_overlayfs(target: Path, options: str) -> Iterator[Path]:
    """A mount of Debian's fuse-overlayfs."""
    subprocess.run(["fuse-overlayfs", "-o", options, target], check=True, capture_output=True, timeout=60)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True, timeout=60)


def test_what_fuse_overlayfs_wrote_shows_the_same(stack: Stack, mount_overlay: MountFactory) -> None:
    own(make_file(stack.lower / "file", "lower", 0o640), 5, 6)
    own(make_directory(stack.lower / "directory", 0o711), 7, 8)
    options = f"lowerdir={stack.lower},upperdir={stack.upper},workdir={stack.work},xattr_permissions=2"
    with fuse_overlayfs(stack.merged, options) as merged:
        own(merged / "file", 9, 10)
        for name in ("new", "directory/new"):
            own(make_file(merged / name, "new"), USER, GROUP).chmod(0o4711)
        own(make_directory(merged / "made"), USER, GROUP).chmod(0o2750)
    expected = {
        "file": ("-rw-r-----", 9, 10, 0),
        "directory/new": ("-rws--x--x", 0, 0, 0),
        "new": ("-rws--x--x", 0, 0, 0),
        "made": ("drwxr-s---", 0, 0, 0),
    }
    found = fuse_overlayfs(stack.merged, f"lowerdir={stack.upper}:{stack.lower}")
    with found as merged:
        # chmod makes root the owner again in fuse-overlayfs 1.10.
        assert {name: looks(merged / name) for name in expected} == expected
    merged = mount_overlay("xattr_permissions=2").path
    assert {name: looks(merged / name) for name in expected} == expected


def test_fuse_overlayfs_shows_what_we_wrote(stack: Stack, mount_overlay: MountFactory) -> None:
    overlay = mount_overlay("xattr_permissions=2")
    own(make_file(overlay.path / "file", "content"), USER, GROUP).chmod(0o4711)
    own(make_directory(overlay.path / "directory"), USER, GROUP).chmod(0o2750)
    own(make_file(overlay.path / "directory" / "inner", mode=0o600), 1, 2)
    shown = {name: looks(overlay.path / name) for name in ("file", "directory", "directory/inner")}
    overlay.unmount()
    with fuse_overlayfs(stack.merged, f"lowerdir={stack.upper}:{stack.lower}") as merged:
        assert {name: looks(merged / name) for name in shown} == shown
        assert (merged / "file").read_text() == "content"
