"""Are ids shown and stored shifted as the kernel's overlayfs shows and stores those of idmapped layers?

uidmapping=, gidmapping= beside kernel overlayfs over layers that are idmapped alike; squash_to_*, which the
kernel hasn't got.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack, fails_with, in_child, pyoverlay_only, run_as
from tests.harness.content import (
    ACCESS_ACL,
    DEFAULT_ACL,
    attribute,
    make_directory,
    make_file,
    make_symlink,
    make_whiteout,
    posix_acl,
)
from tests.harness.idmapped import creating_as, idmapped

SHIFT = 100_000
COUNT = 65_536
UNMAPPED = 65_534
USER, GROUP = 1000, 1001
CAPABILITY = "security.capability"
NET_RAW = struct.pack("<I16s", 0x02000001, struct.pack("<IIII", 1 << 13, 0, 0, 0))

MountMapped = Callable[[], Mount]


@pytest.fixture
def shifted_layers(kind: Kind, stack: Stack) -> Iterator[Path | None]:
    """The layers, their ids shifted by an idmapped mount (for the kernel)."""
    with contextlib.ExitStack() as open_mounts:
        directory = None
        if kind is Kind.KERNEL:
            target = make_directory(stack.base / "i")
            ids = f"0 {SHIFT} {COUNT}"
            directory = open_mounts.enter_context(idmapped(stack.base, target, ids, ids))
        yield directory


@pytest.fixture
def mount_mapped(shifted_layers: Path | None, mount_overlay: MountFactory, stack: Stack) -> MountMapped:
    """Mount the stack with the ids 0 to 65535 on disk shown from 100000 on."""

    def mount() -> Mount:
        if shifted_layers is None:
            options = [f"{name}=0:{SHIFT}:{COUNT}" for name in ("uidmapping", "gidmapping")]
        else:
            layers = {"lowerdir": stack.lower, "upperdir": stack.upper, "workdir": stack.work}
            options = [f"{name}={shifted_layers / path.name}" for name, path in layers.items()]
        with creating_as(0 if shifted_layers is None else SHIFT):
            mounted: Mount = mount_overlay(*options)
        return mounted

    return mount


def owner(path: Path) -> tuple[int, int]:
    """User and group, of a symlink itself."""
    status = path.lstat()
    return status.st_uid, status.st_gid


def own(path: Path, user: int, group: int) -> Path:
    """Set user and group, of a symlink itself."""
    os.chown(path, user, group, follow_symlinks=False)
    return path


def test_owners_are_shown_shifted(stack: Stack, mount_mapped: MountMapped) -> None:
    own(make_file(stack.lower / "d" / "low"), USER, GROUP)
    own(make_symlink(stack.lower / "d" / "link", "low"), 7, 8)
    own(make_file(stack.upper / "d" / "up"), 0, 65_535)
    own(make_file(stack.lower / "d" / "stranger"), 70_000, 5)
    merged = mount_mapped().path
    wanted = {
        "low": (SHIFT + USER, SHIFT + GROUP),
        "link": (SHIFT + 7, SHIFT + 8),
        "up": (SHIFT, SHIFT + 65_535),
        "stranger": (UNMAPPED, SHIFT + 5),
    }
    assert {entry.name: owner(Path(entry)) for entry in os.scandir(merged / "d")} == wanted
    assert owner(merged) == (SHIFT, SHIFT)
    with open(merged / "d" / "low", "rb") as file:
        assert os.fstat(file.fileno()).st_uid == SHIFT + USER


@pyoverlay_only
def test_a_lower_on_an_idmapped_mount_is_shifted_once(stack: Stack, mount_overlay: MountFactory) -> None:
    """Podman asks for both: its lowers lie on mounts that shift ids, and uidmapping says the same shift."""
    acl = posix_acl(6, 4, 4, {SHIFT + USER: 4})
    own(make_file(stack.lower / "file"), USER, GROUP)
    own(make_file(stack.lower / "d" / "stranger"), 70_000, 5)
    os.setxattr(stack.lower / "file", CAPABILITY, NET_RAW)
    os.setxattr(stack.lower / "file", ACCESS_ACL, posix_acl(6, 4, 4, {USER: 4}))
    own(make_file(stack.upper / "d" / "up"), 7, 8)
    ids = f"0 {SHIFT} {COUNT}"
    target = make_directory(stack.base / "i")
    with idmapped(stack.lower, target, ids, ids), creating_as(0):
        options = [f"{name}=0:{SHIFT}:{COUNT}" for name in ("uidmapping", "gidmapping")]
        merged = mount_overlay(f"lowerdir={target}", *options).path
    assert owner(merged / "file") == (SHIFT + USER, SHIFT + GROUP)
    assert owner(merged / "d" / "up") == (SHIFT + 7, SHIFT + 8)
    assert owner(merged / "d" / "stranger")[1] == SHIFT + 5
    assert os.getxattr(merged / "file", ACCESS_ACL) == acl
    with open(merged / "file", "ab") as file:
        file.write(b"more")
    assert owner(merged / "file") == (SHIFT + USER, SHIFT + GROUP)
    assert owner(stack.upper / "file") == (USER, GROUP)
    assert os.getxattr(stack.upper / "file", ACCESS_ACL) == posix_acl(6, 4, 4, {USER: 4})
    assert os.getxattr(merged / "file", ACCESS_ACL) == acl


def _make_socket(path: Path) -> None:
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


MAKERS: dict[str, Callable[[Path], None]] = {
    "file": lambda path: path.touch(),
    "directory": lambda path: path.mkdir(),
    "symlink": lambda path: path.symlink_to("x"),
    "fifo": os.mkfifo,
    "socket": _make_socket,
}


@pytest.mark.parametrize("under", ["new name", "whiteout"])
@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_made_is_stored_shifted_back(
    stack: Stack, mount_mapped: MountMapped, maker: str, under: str
) -> None:
    make_directory(stack.lower / "open", 0o777)
    if under == "whiteout":
        make_file(stack.lower / "open" / "it")
        make_whiteout(make_directory(stack.upper / "open", 0o777) / "it")
    made = mount_mapped().path / "open" / "it"
    run_as(SHIFT + USER, lambda: MAKERS[maker](made), gid=SHIFT + GROUP)
    assert owner(made) == (SHIFT + USER, SHIFT + GROUP)
    assert owner(stack.upper / "open" / "it") == (USER, GROUP)


def test_set_group_id_directories_hand_on_their_group(stack: Stack, mount_mapped: MountMapped) -> None:
    directory = own(make_directory(stack.lower / "d"), 0, 50)
    directory.chmod(0o2777)
    merged = mount_mapped().path
    run_as(SHIFT + USER, (merged / "d" / "it").touch)
    assert owner(merged / "d" / "it") == (SHIFT + USER, SHIFT + 50)
    assert owner(stack.upper / "d" / "it") == (USER, 50)


@pytest.mark.parametrize("kind_of_object", ["file", "directory", "symlink"])
def test_chown_stores_shifted_back(stack: Stack, mount_mapped: MountMapped, kind_of_object: str) -> None:
    MAKERS[kind_of_object](stack.lower / "it")
    own(stack.lower / "it", 1, 2)
    merged = mount_mapped().path
    own(merged / "it", SHIFT + 3, -1)
    assert owner(merged / "it") == (SHIFT + 3, SHIFT + 2)
    own(merged / "it", -1, SHIFT + 4)
    assert owner(merged / "it") == (SHIFT + 3, SHIFT + 4)
    assert owner(stack.upper / "it") == (3, 4)
    assert owner(stack.lower / "it") == (1, 2)


@pytest.mark.parametrize("ids", [(5, -1), (-1, 5), (SHIFT + COUNT, SHIFT)])
def test_chown_to_an_id_outside_of_the_map(
    stack: Stack, mount_mapped: MountMapped, ids: tuple[int, int]
) -> None:
    make_file(stack.upper / "it")
    merged = mount_mapped().path
    with fails_with(errno.EOVERFLOW):
        own(merged / "it", *ids)
    assert owner(stack.upper / "it") == (0, 0)


@pytest.mark.parametrize("kind_of_object", ["file", "directory", "symlink", "fifo"])
def test_copy_up_keeps_the_ids_on_disk(stack: Stack, mount_mapped: MountMapped, kind_of_object: str) -> None:
    MAKERS[kind_of_object](stack.lower / "it")
    own(stack.lower / "it", USER, GROUP)
    merged = mount_mapped().path
    os.utime(merged / "it", (1, 1), follow_symlinks=False)
    assert owner(stack.upper / "it") == (USER, GROUP)
    assert owner(merged / "it") == (SHIFT + USER, SHIFT + GROUP)


def test_permission_is_that_of_the_shown_owner(stack: Stack, mount_mapped: MountMapped) -> None:
    own(make_file(stack.lower / "it", "secret", 0o600), USER, GROUP)
    merged = mount_mapped().path
    assert run_as(SHIFT + USER, (merged / "it").read_text) == "secret"
    with fails_with(errno.EACCES):
        run_as(USER, (merged / "it").read_text)


def test_acls_name_shifted_ids(stack: Stack, mount_mapped: MountMapped) -> None:
    on_disk = posix_acl(6, 4, 0, users={USER: 4}, groups={GROUP: 6})
    shown = posix_acl(6, 4, 0, users={SHIFT + USER: 4}, groups={SHIFT + GROUP: 6})
    os.setxattr(make_file(stack.lower / "it"), ACCESS_ACL, on_disk)
    merged = mount_mapped().path
    assert attribute(merged / "it", ACCESS_ACL) == shown
    (merged / "it").chmod(0o600)
    os.setxattr(merged / "it", ACCESS_ACL, shown)
    assert attribute(stack.upper / "it", ACCESS_ACL) == on_disk
    assert run_as(SHIFT + USER, (merged / "it").read_text) == ""


def test_acls_for_ids_outside_of_the_map(stack: Stack, mount_mapped: MountMapped) -> None:
    make_file(stack.upper / "it")
    merged = mount_mapped().path
    with fails_with(errno.EINVAL):
        os.setxattr(merged / "it", ACCESS_ACL, posix_acl(6, 4, 0, users={USER: 4}))
    assert attribute(stack.upper / "it", ACCESS_ACL) is None


@pytest.mark.parametrize("user", [UNMAPPED, COUNT + USER])
def test_acls_that_name_nobody_who_is_shown_grant_nothing(
    stack: Stack, mount_mapped: MountMapped, user: int
) -> None:
    """Whoever runs as the overflow id isn't everybody who has no id."""
    acl = posix_acl(6, 0, 0, users={COUNT + USER: 6}, groups={COUNT + GROUP: 6})
    os.setxattr(make_file(stack.lower / "it", "secret", 0o600), ACCESS_ACL, acl)
    merged = mount_mapped().path
    with fails_with(errno.EACCES):
        run_as(user, (merged / "it").read_text)
    assert run_as(SHIFT, (merged / "it").read_text) == "secret"


def test_default_acls_are_handed_on(stack: Stack, mount_mapped: MountMapped) -> None:
    make_directory(stack.lower / "d")
    merged = mount_mapped().path
    shown = posix_acl(7, 5, 0, users={SHIFT + USER: 6})
    os.setxattr(merged / "d", DEFAULT_ACL, shown)
    in_child(lambda: _mkdir_as_shifted_root(merged / "d" / "sub"))
    assert attribute(merged / "d" / "sub", DEFAULT_ACL) == shown
    assert attribute(stack.upper / "d" / "sub", DEFAULT_ACL) == posix_acl(7, 5, 0, users={USER: 6})


def _mkdir_as_shifted_root(path: Path) -> None:
    os.setresgid(SHIFT, SHIFT, SHIFT)
    os.setresuid(SHIFT, SHIFT, SHIFT)
    path.mkdir()


def _of_root(capability: bytes, root: int) -> bytes:
    return struct.pack("<I", 0x03000001) + capability[4:] + struct.pack("<I", root)


def test_capabilities_count_for_the_shown_root(stack: Stack, mount_mapped: MountMapped) -> None:
    os.setxattr(make_file(stack.lower / "it"), CAPABILITY, NET_RAW)
    merged = mount_mapped().path
    assert attribute(merged / "it", CAPABILITY) == _of_root(NET_RAW, SHIFT)
    os.setxattr(merged / "it", CAPABILITY, _of_root(NET_RAW, SHIFT))
    # The kernel stores the longer form, with root 0: the same.
    assert attribute(stack.upper / "it", CAPABILITY) in (NET_RAW, _of_root(NET_RAW, 0))
    with fails_with(errno.EINVAL):
        os.setxattr(merged / "it", CAPABILITY, NET_RAW)


@pyoverlay_only
def test_several_ranges(stack: Stack, mount_overlay: MountFactory) -> None:
    for user in (0, 999, 1000, 1001):
        own(make_file(stack.lower / str(user)), user, user)
    merged = mount_overlay("uidmapping=0:1:1000:1000:0:1:1001:1001:64536").path
    assert {int(file.name): owner(file) for file in merged.iterdir()} == {
        0: (1, 0),
        999: (1000, 999),
        1000: (0, 1000),
        1001: (1001, 1001),
    }
    own(merged / "999", 0, 5)
    assert owner(stack.upper / "999") == (1000, 5)


@pyoverlay_only
def test_callers_outside_of_the_map_own_nothing_they_make(stack: Stack, mount_mapped: MountMapped) -> None:
    merged = mount_mapped().path
    (merged / "it").touch()
    (merged / "d").mkdir()
    assert {owner(merged / name) for name in ("it", "d")} == {(SHIFT + UNMAPPED, SHIFT + UNMAPPED)}
    assert owner(stack.upper / "it") == (UNMAPPED, UNMAPPED)
    own(merged / "d", SHIFT, SHIFT)
    assert owner(stack.upper / "d") == (0, 0)


@pyoverlay_only
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("squash_to_root",), (0, 0)),
        (("squash_to_uid=5",), (5, GROUP)),
        (("squash_to_gid=6",), (USER, 6)),
        (("squash_to_root", "squash_to_gid=6"), (0, 6)),
        (("squash_to_uid=5", f"gidmapping=0:{SHIFT}:{COUNT}"), (5, SHIFT + GROUP)),
    ],
)
def test_squashing(
    stack: Stack, mount_overlay: MountFactory, options: tuple[str, ...], shown: tuple[int, int]
) -> None:
    own(make_file(stack.lower / "d" / "it"), USER, GROUP)
    own(stack.lower / "d", USER, GROUP)
    merged = mount_overlay(*options).path
    assert owner(merged / "d") == owner(merged / "d" / "it") == shown
    (merged / "d" / "it").write_text("copied up")
    assert owner(stack.upper / "d" / "it") == (USER, GROUP)
    assert owner(merged / "d" / "it") == shown


@pyoverlay_only
def test_squashing_changes_nothing_that_is_stored(stack: Stack, mount_overlay: MountFactory) -> None:
    make_directory(stack.upper / "open", 0o777)
    merged = mount_overlay("squash_to_root").path
    run_as(USER, (merged / "open" / "it").touch, gid=GROUP)
    assert owner(merged / "open" / "it") == (0, 0)
    assert owner(stack.upper / "open" / "it") == (USER, GROUP)
    own(merged / "open" / "it", 3, 4)
    assert owner(merged / "open" / "it") == (0, 0)
    assert owner(stack.upper / "open" / "it") == (3, 4)
    assert stat.S_IMODE((merged / "open" / "it").stat().st_mode) == 0o644
