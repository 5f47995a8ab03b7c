"""Are created, removed, renamed and replaced names seen at once, whatever the kernel holds in its caches?

The fixture `merged` has filled them: dentries, negative ones, attributes, pages, listings, symlinks, xattrs.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import fails_with, in_child, snapshot
from tests.harness.content import make_file, make_symlink, names
from tests.harness.libc import RENAME_EXCHANGE, renameat2

CREATIONS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("made"),
    "directory": Path.mkdir,
    "symlink": lambda path: path.symlink_to("low"),
    "fifo": os.mkfifo,
    "link": lambda path: os.link(path.parent.parent / "d" / "low", path),
    "rename": lambda path: (path.parent.parent / "d" / "low").rename(path),
    "rename of a directory": lambda path: (path.parent.parent / "made").rename(path),
}


@pytest.mark.parametrize("directory", ["d", "e"])
@pytest.mark.parametrize("creation", CREATIONS)
def test_negative_entry_gives_way_to_a_creation(merged: Path, creation: str, directory: str) -> None:
    (merged / "made").mkdir()
    new = merged / directory / "new"
    for _ in range(3):
        with fails_with(errno.ENOENT):
            new.lstat()
    CREATIONS[creation](new)
    assert new.lstat().st_ino
    assert in_child(lambda: os.path.lexists(new))
    assert "new" in names(new.parent)


def test_removed_names_are_gone_at_once(merged: Path) -> None:
    for name in ("low", "both", "up", "link"):
        (merged / "d" / name).unlink()
        with fails_with(errno.ENOENT):
            (merged / "d" / name).lstat()
        with fails_with(errno.ENOENT):
            in_child((merged / "d" / name).read_bytes)
        assert name not in names(merged / "d")
    (merged / "d" / "sub" / "deep").unlink()
    (merged / "d" / "sub").rmdir()
    assert names(merged / "d") == []
    with fails_with(errno.ENOENT):
        (merged / "d" / "sub" / "deep").stat()


@pytest.mark.parametrize("name", ["low", "both", "up"])
def test_name_that_changes_its_type_again_and_again(merged: Path, name: str) -> None:
    path = merged / "d" / name
    for number in range(3):
        path.unlink()
        path.mkdir()
        assert names(path) == []
        (path / "inner").write_text("inner")
        (path / "inner").unlink()
        path.rmdir()
        path.symlink_to(f"target{number}")
        assert os.readlink(path) == f"target{number}"
        path.unlink()
        path.write_text(f"round {number}")
        assert path.read_text() == f"round {number}"
        assert stat.S_ISREG(path.lstat().st_mode)


def test_symlink_that_is_replaced(merged: Path) -> None:
    link = merged / "d" / "link"
    assert link.read_text() == "low of the lower"
    for target in ("up", "both", "sub/deep", "low"):
        make_symlink(merged / "d" / "link.new", target)
        os.replace(merged / "d" / "link.new", link)
        assert os.readlink(link) == target
        assert link.read_text() == (merged / "d" / target).read_text()


def test_listing_shows_every_change_at_once(merged: Path) -> None:
    directory = merged / "d"
    expected = {"low", "both", "up", "link", "sub"}
    assert set(names(directory)) == expected
    for number in range(10):
        (directory / f"new{number}").touch()
        expected.add(f"new{number}")
        assert set(names(directory)) == expected
    (directory / "low").unlink()
    (directory / "up").rename(directory / "up2")
    (directory / "new3").rename(merged / "e" / "new3")
    expected = expected - {"low", "up", "new3"} | {"up2"}
    assert set(names(directory)) == expected
    assert names(merged / "e") == ["new3"]
    assert set(in_child(lambda: os.listdir(directory))) == expected
    renameat2(merged / "e" / "new3", directory / "sub" / "deep", RENAME_EXCHANGE)
    assert names(merged / "e") == ["new3"]
    assert (merged / "e" / "new3").read_text() == "deep"


def test_types_in_listings_follow(merged: Path) -> None:
    path = merged / "d" / "low"
    steps: list[tuple[Callable[[], None], str]] = [
        (path.mkdir, "is_dir"),
        (lambda: path.symlink_to("x"), "is_symlink"),
        (path.touch, "is_file"),
    ]
    for make, check in steps:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        make()
        with os.scandir(merged / "d") as entries:
            (entry,) = [entry for entry in entries if entry.name == "low"]
        assert getattr(entry, check)()
        assert entry.inode() == path.lstat().st_ino


def test_renamed_directory_takes_its_content_along(merged: Path) -> None:
    make_file(merged / "made" / "a" / "b" / "file", "content")
    snapshot(merged / "made")
    with (merged / "made" / "a" / "b" / "file").open("r+b", buffering=0) as opened:
        (merged / "made").rename(merged / "e" / "moved")
        with fails_with(errno.ENOENT):
            (merged / "made" / "a" / "b" / "file").stat()
        inner = merged / "e" / "moved" / "a" / "b" / "file"
        assert inner.stat().st_ino == os.fstat(opened.fileno()).st_ino
        opened.write(b"CONTENT")
        assert inner.read_text() == "CONTENT"
    (merged / "made").mkdir()
    assert names(merged / "made") == []
    inner.unlink()
    assert names(inner.parent) == []


def test_exchanged_names(merged: Path) -> None:
    low, up = merged / "d" / "low", merged / "d" / "up"
    with low.open("rb", buffering=0) as opened:
        for turn in range(3):
            renameat2(low, up, RENAME_EXCHANGE)
            there = (low, up)[turn % 2 == 0]
            assert there.read_text() == "low of the lower"
            assert there.stat().st_ino == os.fstat(opened.fileno()).st_ino
