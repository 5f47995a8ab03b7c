"""Names of any bytes, of any length, at any depth; and names that look like something of ours."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, snapshot
from tests.harness.content import is_whiteout, make_file, names

STRANGE = [
    b"new\nline",
    b"\nleading and trailing\n",
    b"not utf-8 \xff\xfe\x80",
    b"\xc3\xa4 composed",
    b"a\xcc\x88 decomposed",
    b"tab\tand\x01control\x7f",
    b" spaces around ",
    b"-rf",
    b"*?[a]'\"$`\\",
    b"...",
    b"..a",
    b".hidden",
    b"#1",
    b"work",
    b"index",
    b"trusted.overlay.opaque",
    b"UPPER",
    b"upper",
    b"n" * 255,
    b"\xff" * 255,
    bytes(sorted(set(range(1, 256)) - {ord("/")}))[:254],
]


def _inside(directory: Path, *name: bytes) -> bytes:
    return b"/".join([os.fsencode(directory), *name])


def _write(path: bytes, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.write(descriptor, content)
    os.close(descriptor)


def _read(path: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1000)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("layer", ["lower", "upper", "merged"])
def test_strange_names_are_listed_and_found(stack: Stack, mount_overlay: MountFactory, layer: str) -> None:
    mount = mount_overlay() if layer == "merged" else None
    root = {"lower": stack.lower, "upper": stack.upper, "merged": stack.merged}[layer]
    for name in STRANGE:
        os.mkdir(_inside(root, name))
        _write(_inside(root, name, name), name[:20])
    mount = mount or mount_overlay()
    for _ in range(2):
        assert sorted(os.listdir(os.fsencode(mount.path))) == sorted(STRANGE)
        for name in STRANGE:
            assert os.listdir(_inside(mount.path, name)) == [name]
            assert _read(_inside(mount.path, name, name)) == name[:20]
        mount.remount()


@pytest.mark.parametrize("name", STRANGE, ids=lambda name: repr(name)[2:20])
def test_strange_names_live_through_every_change(
    stack: Stack, mount_overlay: MountFactory, name: bytes
) -> None:
    os.mkdir(_inside(stack.lower, b"d"))
    _write(_inside(stack.lower, b"d", name), b"lower")
    mount = mount_overlay()
    path = _inside(mount.path, b"d", name)
    _write(path, b"changed")
    assert _read(_inside(stack.upper, b"d", name)) == b"changed"
    os.rename(path, _inside(mount.path, b"plain"))
    with fails_with(errno.ENOENT):
        os.stat(path)
    assert is_whiteout(Path(os.fsdecode(_inside(stack.upper, b"d", name))))
    os.rename(_inside(mount.path, b"plain"), path)
    os.link(path, _inside(mount.path, name))
    os.unlink(path)
    os.mkdir(path)
    os.symlink(name, _inside(mount.path, b"link"))
    for _ in range(2):
        assert os.listdir(_inside(mount.path, b"d")) == [name]
        assert os.listdir(path) == []
        assert sorted(os.listdir(os.fsencode(mount.path))) == sorted([b"d", b"link", name])
        assert os.readlink(_inside(mount.path, b"link")) == name
        assert _read(_inside(mount.path, b"link")) == b"changed"
        mount.remount()


def test_names_that_are_too_long(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "f")
    merged = mount_overlay().path
    assert os.statvfs(merged).f_namemax == 255
    for name in ("n" * 256, "n" * 300, "n" * 1000):
        for attempt in (
            lambda path: path.stat(),
            lambda path: path.touch(),
            lambda path: path.mkdir(),
            lambda path: path.unlink(),
            lambda path: path.symlink_to("f"),
            lambda path: os.rename(merged / "f", path),
            lambda path: os.link(merged / "f", path),
            os.listxattr,
        ):
            with fails_with(errno.ENAMETOOLONG):
                attempt(merged / name)
    assert names(merged) == ["f"]


def test_symlink_targets_of_any_bytes_and_length(stack: Stack, mount_overlay: MountFactory) -> None:
    targets = [b"x", b"not utf-8 \xff\n", b"/absolute", b"..", b"t" * 4095, b"/".join([b"d" * 200] * 20)]
    for number, target in enumerate(targets):
        os.symlink(target, _inside(stack.lower, b"low%d" % number))
    mount = mount_overlay()
    for number, target in enumerate(targets):
        os.symlink(target, _inside(mount.path, b"new%d" % number))
    with fails_with(errno.ENAMETOOLONG):
        os.symlink(b"t" * 4096, _inside(mount.path, b"too_long"))
    with fails_with(errno.ENOENT):
        os.symlink(b"", _inside(mount.path, b"empty"))
    for _ in range(2):
        for number, target in enumerate(targets):
            for prefix in (b"low", b"new"):
                link = _inside(mount.path, prefix + b"%d" % number)
                assert os.readlink(link) == target
                assert os.lstat(link).st_size == len(target)
        mount.remount()


DEEP_NAME = "d" * 200
DEPTH = 30  # times 201 bytes: well beyond PATH_MAX


@contextlib.contextmanager
def _deep(root: Path, make: bool = False) -> Iterator[int]:
    """A descriptor of the directory at the bottom, reached step by step; made on the way if asked for."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(DEPTH):
            if make:
                os.mkdir(DEEP_NAME, dir_fd=descriptor)
            inner = os.open(DEEP_NAME, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _write_at(directory: int, name: str, content: bytes) -> None:
    descriptor = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644, dir_fd=directory)
    os.write(descriptor, content)
    os.close(descriptor)


def _read_at(directory: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(descriptor, 1000)
    finally:
        os.close(descriptor)


def test_lower_tree_beyond_path_max(stack: Stack, mount_overlay: MountFactory) -> None:
    with _deep(stack.lower, make=True) as bottom:
        for name in ("file", "gone", "moved"):
            _write_at(bottom, name, b"lower")
    mount = mount_overlay()
    with _deep(mount.path) as bottom:
        assert sorted(os.listdir(bottom)) == ["file", "gone", "moved"]
        _write_at(bottom, "file", b"changed")
        os.unlink("gone", dir_fd=bottom)
        os.rename("moved", "renamed", src_dir_fd=bottom, dst_dir_fd=bottom)
        os.mkdir("new", dir_fd=bottom)
        os.symlink("file", "link", dir_fd=bottom)
        os.chmod(bottom, 0o700)
    for _ in range(2):
        with _deep(mount.path) as bottom:
            assert sorted(os.listdir(bottom)) == ["file", "link", "new", "renamed"]
            assert _read_at(bottom, "file") == b"changed"
            assert _read_at(bottom, "link") == b"changed"
            assert _read_at(bottom, "renamed") == b"lower"
            assert os.fstat(bottom).st_mode & 0o777 == 0o700
        mount.remount()
    with _deep(stack.upper) as bottom:
        assert sorted(os.listdir(bottom)) == ["file", "gone", "link", "moved", "new", "renamed"]


def test_new_tree_beyond_path_max(stack: Stack, mount_overlay: MountFactory) -> None:
    mount = mount_overlay()
    with _deep(mount.path, make=True) as bottom:
        _write_at(bottom, "file", b"new")
        os.rename("file", mount.path / "out", src_dir_fd=bottom)
        os.rename(mount.path / "out", "back", dst_dir_fd=bottom)
    os.rename(mount.path / DEEP_NAME, mount.path / "short")
    mount.remount()
    os.rename(mount.path / "short", mount.path / DEEP_NAME)
    with _deep(mount.path) as bottom:
        assert os.listdir(bottom) == ["back"]
        assert _read_at(bottom, "back") == b"new"
    assert len(snapshot(mount.path)) == DEPTH + 2
    _remove_deep(mount.path)
    assert names(mount.path) == [] == names(stack.upper)


def _remove_deep(root: Path) -> None:
    for level in range(DEPTH, 0, -1):
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(level - 1):
            inner = os.open(DEEP_NAME, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        if level == DEPTH:
            os.unlink(f"{DEEP_NAME}/back", dir_fd=descriptor)
        os.rmdir(DEEP_NAME, dir_fd=descriptor)
        os.close(descriptor)


def test_dots(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "a" / "b" / "file")
    merged = mount_overlay().path
    assert (merged / "a" / "b" / ".." / ".." / "a" / "." / "b" / "file").exists()
    assert os.stat(f"{merged}/a/b/..").st_ino == (merged / "a").stat().st_ino
    assert os.stat(f"{merged}/a/..").st_ino == merged.stat().st_ino
    for name in (".", ".."):
        with fails_with(errno.EEXIST):
            os.mkdir(f"{merged}/a/{name}")
        with fails_with(errno.EINVAL, errno.ENOTEMPTY):
            os.rmdir(f"{merged}/a/b/{name}")
        with fails_with(errno.EBUSY):
            os.rename(f"{merged}/a/{name}", merged / "c")
    descriptor = os.open(merged / "a" / "b", os.O_RDONLY | os.O_DIRECTORY)
    (merged / "new").mkdir()
    assert os.stat("../../new", dir_fd=descriptor).st_ino == (merged / "new").stat().st_ino
    os.close(descriptor)
