"""Does find_changes, from raw layers, say what docker diff's comparison of two whole trees says?"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.layers.changes import find_changes
from tests.harness import Kind, MountFactory, Stack

pytestmark = pytest.mark.lowers(3)

Tree = dict[str, os.stat_result]


def fill(stack: Stack) -> None:
    """Three lowers that overlap, with a whiteout and an opaque directory among them."""
    top, middle, bottom = stack.lowers
    for layer in (middle, bottom):
        for directory in ("a", "a/b", "c", "gone", "hidden", "mixed"):
            (layer / directory).mkdir()
            for number in range(3):
                (layer / directory / f"{layer.name}-{number}").write_text(f"{layer.name} {directory}")
                (layer / directory / f"both-{number}").write_text(layer.name)
    (top / "a").mkdir()
    (top / "a/top").symlink_to("b")
    os.mknod(top / "gone", stat.S_IFCHR, 0)
    (top / "hidden").mkdir()
    os.setxattr(top / "hidden", "trusted.overlay.opaque", b"y")
    (top / "mixed").write_text("a file over directories")
    (top / "fifo").touch()
    os.link(top / "fifo", top / "hard")


def tree(root: Path) -> Tree:
    """Every path below `root`, without following symlinks."""
    found: Tree = {}
    for parent, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(parent, name)
            found[f"/{path.relative_to(root)}"] = path.lstat()
    return found


def is_changed(now: os.stat_result, before: os.stat_result) -> bool:
    """Docker's statDifferent (daemon/archive/changes_unix.go)."""
    if (now.st_mode, now.st_uid, now.st_gid, now.st_rdev) != (
        before.st_mode,
        before.st_uid,
        before.st_gid,
        before.st_rdev,
    ):
        return True
    return not stat.S_ISDIR(now.st_mode) and (now.st_mtime_ns, now.st_size) != (
        before.st_mtime_ns,
        before.st_size,
    )


def naive_changes(now: Tree, before: Tree) -> list[str]:
    """Docker's FileInfo.Changes: of what is deleted only the uppermost is named, and so of replaced trees."""

    def is_directory(found: Tree, path: str) -> bool:
        return path in found and stat.S_ISDIR(found[path].st_mode)

    kinds: dict[str, str] = {}
    for path, status in now.items():
        if path not in before:
            kinds[path] = "A"
        elif is_changed(status, before[path]):
            kinds[path] = "C"
    for path in before.keys() - now.keys():
        parent = os.path.dirname(path)
        if parent == "/" or (is_directory(now, parent) and is_directory(before, parent)):
            kinds[path] = "D"
    for path in list(kinds):
        for parent in map(str, Path(path).parents):
            if parent != "/":
                kinds.setdefault(parent, "C")
    return [f"{kinds[path]} {path}" for path in sorted(kinds, key=os.fsencode)]


def change_much(root: Path) -> None:
    """Every kind of change once."""
    (root / "a/middle").write_text("new")
    (root / "a/b/both-0").write_text("changed")
    (root / "a/b/l2-0").unlink()
    (root / "a/b/l3-0").rename(root / "a/b/renamed")
    (root / "a/b/l3-1").rename(root / "a/b/both-1")
    shutil.rmtree(root / "c")
    (root / "c").mkdir()
    (root / "c/both-0").write_text("created anew")
    (root / "c/sub").mkdir()
    (root / "gone").mkdir()
    (root / "gone/again").touch()
    (root / "hidden/new").symlink_to("nowhere")
    (root / "mixed").unlink()
    (root / "mixed").mkdir()
    (root / "mixed/both-0").touch()
    (root / "fifo").unlink()
    os.mkfifo(root / "fifo")
    (root / "hard").write_text("written")
    os.link(root / "hard", root / "harder")
    (root / "a/top").unlink()
    (root / "a/top").mkdir()
    (root / "new/deep/er").mkdir(parents=True)


def change_attributes(root: Path) -> None:
    """What changes an object, but no content."""
    (root / "a/b").chmod(0o700)
    os.chown(root / "c/both-1", 5, 6)
    os.utime(root / "mixed", ns=(1, 1))
    os.chown(root / "hidden", 7, -1)


def change_nothing_at_last(root: Path) -> None:
    """What leaves the merged view as it was, but for times."""
    (root / "new").mkdir()
    (root / "new").rmdir()


@pytest.mark.parametrize("change", [change_much, change_attributes])
@pytest.mark.parametrize("options", [(), ("userxattr",)])
def test_changes_made_through_a_mount(
    mount_overlay: MountFactory, stack: Stack, change: Callable[[Path], None], options: tuple[str, ...]
) -> None:
    if options:
        # An opaque mark of the other dialect means nothing to the kernel.
        fill(stack)
        os.setxattr(stack.lower / "hidden", "user.overlay.opaque", b"y")
    else:
        fill(stack)
    mount = mount_overlay(*options)
    before = tree(mount.path)
    change(mount.path)
    now = tree(mount.path)
    mount.unmount()
    found = find_changes(str(stack.upper), [str(lower) for lower in stack.lowers])
    assert [str(each) for each in found] == naive_changes(now, before)


@pytest.mark.parametrize("seed", range(5))
def test_random_creations_and_removals(mount_overlay: MountFactory, stack: Stack, seed: int) -> None:
    fill(stack)
    mount = mount_overlay()
    before = tree(mount.path)
    dice = random.Random(seed)
    for number in range(60):
        paths = sorted(tree(mount.path))
        path = Path(f"{mount.path}{dice.choice(paths)}")
        action = dice.choice(["remove", "write", "directory", "move"])
        if action == "remove":
            if not path.is_dir() or path.is_symlink():
                path.unlink()
            elif len(list(path.iterdir())) < 4:
                shutil.rmtree(path)
        elif action == "write" and path.is_file():
            path.write_text(f"content {number}")
        elif path.is_dir() and not path.is_symlink():
            if action == "directory":
                (path / dice.choice(["a", "c", "sub", f"n{number}"])).mkdir(exist_ok=True)
            else:
                (path / f"new{number}").touch()
        elif action == "move":
            path.rename(path.parent / dice.choice(["both-0", "l2-1", f"m{number}"]))
    now = tree(mount.path)
    mount.unmount()
    found = {str(each) for each in find_changes(str(stack.upper), [str(lower) for lower in stack.lowers])}
    expected = set(naive_changes(now, before))
    assert expected <= found
    # What was written and brought back, or only touched by what is gone again, may show as changed.
    assert {each[0] for each in found - expected} <= {"C"}


def test_a_file_that_was_only_copied_up_counts_as_changed(mount_overlay: MountFactory, stack: Stack) -> None:
    fill(stack)
    mount = mount_overlay()
    (mount.path / "a/b/both-0").open("r+").close()
    mount.unmount()
    found = find_changes(str(stack.upper), [str(lower) for lower in stack.lowers])
    assert [str(each) for each in found] == ["C /a", "C /a/b", "C /a/b/both-0"]


def test_an_empty_directory_in_place_of_one(mount_overlay: MountFactory, stack: Stack) -> None:
    fill(stack)
    mount = mount_overlay()
    change_nothing_at_last(mount.path)
    mount.unmount()
    assert find_changes(str(stack.upper), [str(lower) for lower in stack.lowers]) == []


def test_a_directory_that_the_kernel_renamed(mount_overlay: MountFactory, stack: Stack) -> None:
    fill(stack)
    mount = mount_overlay("redirect_dir=on", kind=Kind.KERNEL)
    before = tree(mount.path)
    (mount.path / "a/b/both-0").unlink()
    (mount.path / "a/b").rename(mount.path / "c/moved")
    (mount.path / "a").rename(mount.path / "z")
    (mount.path / "z/more").touch()
    now = tree(mount.path)
    mount.unmount()
    found = find_changes(str(stack.upper), [str(lower) for lower in stack.lowers])
    assert [str(each) for each in found] == naive_changes(now, before)
