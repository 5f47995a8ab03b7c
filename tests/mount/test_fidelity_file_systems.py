"""Do layers on ext4, XFS, btrfs, tmpfs and overlays make one tree with one set of inode numbers?"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import Entry, Kind, Mount, MountFactory, Stack, make_stack, snapshot
from tests.harness.content import NET_RAW, make_directory, make_file, make_symlink, names, posix_acl
from tests.harness.libc import mount, umount

MIB = 1 << 20
MAKERS = {
    "ext4": ["mkfs.ext4", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
UPPERS = [*MAKERS, "tmpfs"]
LOWERS = [*UPPERS, "overlay"]


@pytest.fixture
def places(base: Path) -> Iterator[dict[str, Path]]:
    """A directory on a file system of its own for each of `LOWERS`."""
    made: dict[str, Path] = {}
    with ExitStack() as mounts:
        for name in LOWERS:
            place = made[name] = make_directory(base / name)
            if name in MAKERS:
                image = base / f"{name}.image"
                with image.open("wb") as file:
                    file.truncate(320 * MIB)
                subprocess.run([*MAKERS[name], image], check=True)
                subprocess.run(["mount", "-o", "loop", image, place], check=True)
                mounts.callback(umount, place)
            elif name == "tmpfs":
                mount("tmpfs", place, "tmpfs", data="mode=755")
                mounts.callback(umount, place)
            else:
                inner = make_stack(base / "inner")
                inner.merged = place
                overlay = mounts.enter_context(Mount(Kind.KERNEL, inner))
                make_file(overlay.path / "made in the inner overlay")
        yield made


@pytest.fixture(params=UPPERS)
def mixed(request: pytest.FixtureRequest, places: dict[str, Path], base: Path) -> Stack:
    """A stack with a lower on each file system, and upper and work directory on one of them."""
    lowers = [make_directory(place / "layer") for place in places.values()]
    place = places[request.param]
    upper, work = (make_directory(place / name) for name in ("u", "w"))
    stack = Stack(base, lowers, upper, work, make_directory(base / "merged"))
    for number, lower in enumerate(lowers):
        own = lower / "d" / LOWERS[number]
        make_file(own / "file", f"in {LOWERS[number]}", 0o640)
        make_file(own / "big", bytes([number + 1]) * MIB)
        with (own / "sparse").open("wb") as file:
            file.truncate(8 * MIB)
            os.pwrite(file.fileno(), b"data", 4 * MIB)
        make_symlink(own / "link", "file")
        os.mkfifo(own / "fifo")
        os.link(own / "file", own / "second name")
        os.setxattr(own / "big", "trusted.note", b"value")
        os.setxattr(own / "big", "security.capability", NET_RAW)
        os.setxattr(own / "big", "system.posix_acl_access", posix_acl(6, 4, 0, {1000: 7}))
        make_file(lower / "d" / "of all", f"of {LOWERS[number]}")
        make_file(lower / "d" / "common" / LOWERS[number], "x")
    for number in range(400):  # tmpfs counts from 1: its numbers meet those of XFS and btrfs
        make_file(lowers[LOWERS.index("tmpfs")] / "d" / "many" / str(number))
    return stack


def _numbers(root: Path) -> dict[Path, int]:
    """The inode numbers, all with one device, and the same in listings."""
    numbers: dict[Path, int] = {}
    devices = {root.stat().st_dev}
    for directory, _, _ in os.walk(root):
        for entry in os.scandir(directory):
            status = os.lstat(entry.path)
            assert entry.inode() == status.st_ino
            numbers[Path(entry.path).relative_to(root)] = status.st_ino
            devices.add(status.st_dev)
    assert len(devices) == 1
    return numbers


def _change(root: Path) -> None:
    """Copy up something of each file system whose files can be found by handle, of each type."""
    for name in UPPERS:
        own = root / "d" / name
        with (own / "big").open("r+b") as file:
            file.write(b"changed")
        (own / "sparse").chmod(0o604)
        os.chown(own / "link", 5, 6, follow_symlinks=False)
        os.chown(own / "fifo", 5, 6)
        own.chmod(0o711)
    (root / "d" / "of all").rename(root / "d" / "renamed")


# With `auto` the kernel does it for file systems whose numbers it knows to leave bits free.
@pytest.mark.parametrize("option", ["xino=on", "xino=auto"])
def test_inode_numbers(mixed: Stack, mount_overlay: MountFactory, kind: Kind, option: str) -> None:
    """They are unique and stay over copy-up and remount (but for an overlay's, which have no handles)."""
    live = mount_overlay(option, stack=mixed)
    if kind is Kind.KERNEL and option == "xino=auto" and not _has_one_device(live.path):
        live.unmount()
        live = mount_overlay("xino=on", stack=mixed)
    before = _numbers(live.path)
    linked = {Path("d") / name / "second name" for name in LOWERS}
    single = [number for path, number in before.items() if path not in linked]
    assert len(set(single)) == len(single)
    for path in linked:
        assert before[path] == before[path.with_name("file")]
    _change(live.path)
    before[Path("d/renamed")] = before.pop(Path("d/of all"))
    for _ in range(2):
        assert _numbers(live.path) == before
        live.remount()


def _has_one_device(root: Path) -> bool:
    return len({path.lstat().st_dev for path in (root, *root.rglob("*"))}) == 1


def _shown(root: Path) -> dict[bytes, Entry]:
    """A snapshot without XFS's own view of its ACLs, which it lists as attributes besides."""
    return {
        path: replace(entry, xattrs=tuple(pair for pair in entry.xattrs if b"SGI_ACL" not in pair[0]))
        for path, entry in snapshot(root, nlink=False).items()
    }


def test_everything_is_kept_from_one_to_another(mixed: Stack, mount_overlay: MountFactory) -> None:
    """What is copied to an upper on another file system keeps data, holes, owners, times and attributes."""
    live = mount_overlay("xino=on", stack=mixed)
    expected = _shown(live.path)
    for path in sorted(live.path.rglob("*")):
        os.utime(path, ns=(5, path.lstat().st_mtime_ns), follow_symlinks=False)
    assert snapshot(mixed.upper, nlink=False, xattrs=False).keys() == expected.keys()
    for _ in range(2):
        assert _shown(live.path) == expected
        live.remount()
    for name in LOWERS:
        copied = mixed.upper / "d" / name / "sparse"
        assert copied.stat().st_blocks * 512 < 4 * MIB, "XFS gives more than was written, but not all"
        assert copied.read_bytes().strip(b"\0") == b"data"
    assert names(live.path / "d" / "common") == sorted(LOWERS)


def test_files_of_one_number_in_two_subvolumes(
    places: dict[str, Path], base: Path, mount_overlay: MountFactory
) -> None:
    """A subvolume within a layer repeats inode numbers: files of one number are two files all the same."""
    stack = make_stack(places["btrfs"] / "stack")
    stack.merged = make_directory(base / "merged")
    contents: dict[Path, str] = {}
    met: dict[int, int] = {}
    for layer in (stack.upper, stack.lower):
        inner = make_directory(layer / "d") / f"of {layer.name}"
        subprocess.run(["btrfs", "-q", "subvolume", "create", inner], check=True)
        for directory in (layer / "d", inner):
            for number in range(150):
                path = make_file(directory / f"{layer.name}{number}", f"{directory.name} {number}")
                os.link(path, directory / f"{layer.name}{number} again")
                for place in (path, directory / f"{layer.name}{number} again"):
                    contents[place.relative_to(layer)] = f"{directory.name} {number}"
                if layer is stack.upper:
                    met[path.stat().st_ino] = met.get(path.stat().st_ino, 0) + 1
    assert max(met.values()) == 2
    live = mount_overlay(stack=stack)
    for _ in range(2):
        for name, content in contents.items():
            assert (live.path / name).read_text() == content
        live.remount()


@pytest.mark.parametrize("upper", UPPERS)
@pytest.mark.parametrize("call", ["truncate", "ftruncate"])
def test_truncating_to_the_same_size_moves_the_time_as_the_upper_says(
    places: dict[str, Path], base: Path, mount_overlay: MountFactory, upper: str, call: str
) -> None:
    """XFS and btrfs leave the time alone in truncate(2), not in ftruncate(2); ext4 and tmpfs never do."""
    stack = make_stack(places[upper] / "stack")
    stack.merged = make_directory(base / "merged")
    beside = make_file(places[upper] / "beside", "content")
    make_file(stack.lower / "file", "content")
    merged = mount_overlay(stack=stack).path
    moved = []
    for path in (beside, merged / "file"):
        os.utime(path, ns=(5, 5))
        if call == "truncate":
            os.truncate(path, 7)
        else:
            with path.open("r+b") as file:
                file.truncate(7)
        moved.append(path.stat().st_mtime_ns != 5)
    assert moved[0] == moved[1]


@pytest.mark.parametrize("upper", UPPERS)
def test_emptying_a_lower_file_moves_its_time(
    places: dict[str, Path], base: Path, mount_overlay: MountFactory, upper: str
) -> None:
    stack = make_stack(places[upper] / "stack")
    stack.merged = make_directory(base / "merged")
    os.utime(make_file(stack.lower / "file", "content"), ns=(5, 5))
    path = mount_overlay(stack=stack).path / "file"
    os.truncate(path, 0)
    assert path.stat().st_mtime_ns != 5
