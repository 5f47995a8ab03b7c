"""A file that lost its name while it is open: everything on its descriptor goes on."""

import mmap
import os
import stat
from pathlib import Path

import pytest

from tests.harness import Kind, MountFactory, Stack, in_child
from tests.harness.content import is_whiteout, left_in_work, make_file, names

CONTENT = b"content of a file that goes"


@pytest.fixture(params=["upper", "lower", "copied up", "created"])
def origin(request: pytest.FixtureRequest) -> str:
    """Where the file comes from."""
    return str(request.param)


@pytest.fixture
def file(origin: str, stack: Stack, mount_overlay: MountFactory) -> Path:
    """The file, still there."""
    if origin != "created":
        make_file((stack.upper if origin == "upper" else stack.lower) / "d" / "file", CONTENT)
    make_file(stack.lower / "d" / "other", "other")
    path: Path = mount_overlay().path / "d" / "file"
    if origin == "created":
        make_file(path, CONTENT)
    if origin == "copied up":
        os.chmod(path, 0o640)
    return path


def test_reading_and_fstat_go_on(stack: Stack, origin: str, file: Path, kind: Kind) -> None:
    with file.open("rb", buffering=0) as opened:
        before = os.fstat(opened.fileno())
        file.unlink()
        assert is_whiteout(stack.upper / "d" / "file") == (origin in ("lower", "copied up"))
        after = os.fstat(opened.fileno())
        # The kernel counts the links of the lower's own inode, which isn't touched.
        assert after.st_nlink == (1 if origin == "lower" and kind is Kind.KERNEL else 0)
        assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
        assert opened.read() == CONTENT
        assert names(file.parent) == ["other"]


def test_writing_and_ftruncate_go_on(file: Path) -> None:
    with file.open("r+b", buffering=0) as opened:
        file.unlink()
        opened.write(b"CONTENT")
        opened.seek(0, os.SEEK_END)
        opened.write(b" for good")
        assert os.pread(opened.fileno(), 100, 0) == b"CONTENT of a file that goes for good"
        opened.truncate(7)
        status = os.fstat(opened.fileno())
        assert (status.st_size, status.st_nlink) == (7, 0)
        opened.truncate(20)
        assert os.pread(opened.fileno(), 100, 0) == b"CONTENT" + bytes(13)
        os.fsync(opened.fileno())
    assert names(file.parent) == ["other"]


def test_changing_attributes_goes_on(file: Path) -> None:
    with file.open("r+b", buffering=0) as opened:
        file.unlink()
        number = opened.fileno()
        os.fchmod(number, 0o604)
        os.fchown(number, 5, 6)
        os.utime(number, ns=(7, 8))
        os.setxattr(number, "user.late", b"value")
        status = os.fstat(number)
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o604, 5, 6)
        assert status.st_mtime_ns == 8
        assert os.getxattr(number, "user.late") == b"value"
        assert os.listxattr(number) == ["user.late"]
        os.removexattr(number, "user.late")
        assert os.listxattr(number) == []
    assert names(file.parent) == ["other"]


def test_reopening_through_proc(file: Path) -> None:
    with file.open("r+b", buffering=0) as opened:
        file.unlink()
        magic = Path(f"/proc/self/fd/{opened.fileno()}")
        with magic.open("rb", buffering=0) as again:
            assert again.read() == CONTENT
            opened.write(b"CONTENT")
            assert os.pread(again.fileno(), 7, 0) == b"CONTENT"
        with magic.open("r+b", buffering=0) as writer:
            writer.write(b"through the new descriptor, longer than before")
        assert os.pread(opened.fileno(), 100, 0) == b"through the new descriptor, longer than before"
        assert magic.stat().st_size == 46
        assert magic.stat().st_nlink == 0
        with magic.open("wb"):
            pass
        assert os.fstat(opened.fileno()).st_size == 0


def test_reopening_a_file_that_was_only_read(origin: str, file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        file.unlink()
        with open(f"/proc/self/fd/{opened.fileno()}", "rb", buffering=0) as again:
            assert again.read() == CONTENT
        assert os.stat(f"/proc/self/fd/{opened.fileno()}").st_size == len(CONTENT)


def test_mapping_goes_on(file: Path) -> None:
    def map_it() -> bytes:
        with file.open("r+b") as opened:
            file.unlink()
            pages = mmap.mmap(opened.fileno(), len(CONTENT))
            pages[:7] = b"CONTENT"
            return os.pread(opened.fileno(), 100, 0)

    assert in_child(map_it) == CONTENT.replace(b"content", b"CONTENT", 1)


def test_new_file_of_the_same_name_is_another(file: Path) -> None:
    with file.open("r+b", buffering=0) as old:
        file.unlink()
        file.write_bytes(b"new")
        assert old.read() == CONTENT
        old.write(b"!")
        assert file.read_bytes() == b"new"
        assert os.fstat(old.fileno()).st_size == len(CONTENT) + 1
        file.unlink()
        file.mkdir()
        assert os.pread(old.fileno(), 100, 0) == CONTENT + b"!"
    assert names(file) == []


def test_replaced_by_a_rename(file: Path) -> None:
    with file.open("r+b", buffering=0) as old:
        make_file(file.with_name("next"), "next")
        os.replace(file.with_name("next"), file)
        assert old.read() == CONTENT
        old.write(b"!")
        assert os.fstat(old.fileno()).st_nlink == 0
        assert file.read_bytes() == b"next"
    assert names(file.parent) == ["file", "other"]


def test_its_directory_goes_as_well(stack: Stack, file: Path) -> None:
    with file.open("r+b", buffering=0) as opened:
        file.unlink()
        file.with_name("other").unlink()
        file.parent.rmdir()
        opened.write(b"CONTENT")
        assert os.fstat(opened.fileno()).st_nlink == 0
        assert os.pread(opened.fileno(), 7, 0) == b"CONTENT"
    assert not file.parent.exists()


def test_many_unlinked_files_at_once(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(50):
        make_file((stack.lower, stack.upper)[number % 2] / f"file{number}", str(number))
    mount = mount_overlay()
    opened = [(mount.path / f"file{number}").open("r+b", buffering=0) for number in range(50)]
    for number in range(50):
        (mount.path / f"file{number}").unlink()
    for number, file in enumerate(opened):
        assert file.read() == b"%d" % number
        file.write(b"!")
        assert os.fstat(file.fileno()).st_nlink == 0
        file.close()
    assert names(mount.path) == []
    mount.unmount()
    assert left_in_work(stack.work) == []


@pytest.mark.parametrize("where", ["lower", "upper", "both"])
def test_a_removed_directory_that_is_held_has_the_links_of_its_kind(
    stack: Stack, mount_overlay: MountFactory, where: str
) -> None:
    """A merged one has one link, removed or not; others have their real directory's."""
    for layer in {"lower": [stack.lower], "upper": [stack.upper], "both": [stack.lower, stack.upper]}[where]:
        (layer / "directory").mkdir()
    mount = mount_overlay()
    held = os.open(mount.path / "directory", os.O_RDONLY | os.O_DIRECTORY)
    (mount.path / "directory").rmdir()
    assert os.fstat(held).st_nlink == {"lower": 2, "upper": 0, "both": 1}[where]
    if where == "both":
        os.fchown(held, 1, 1)
        assert os.fstat(held).st_nlink == 1
    os.close(held)
