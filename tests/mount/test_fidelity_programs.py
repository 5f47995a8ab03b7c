"""Do the programs' patterns on which other overlays fail come out right, at the size at which they do?

Databases that are rewritten through a copied-up file, package managers' and git's renames, mv of what can't
be renamed, many shells that append to one file, and tar, which tells when a file changed while it read it.
"""

import errno
import mmap
import os
import shutil
import sqlite3
import stat
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, in_child, snapshot
from tests.harness.content import (
    described,
    is_opaque,
    is_whiteout,
    left_in_work,
    make_directory,
    make_file,
    make_symlink,
    names,
)

MIB = 1 << 20
PACKAGES = 23_000
PAGE = 4096
SHELLS = 16
LINES = 40
MANY_FILES = 10_000


def _checksum(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


# --- databases ---------------------------------------------------------------------------------------------


def _make_database(path: Path, rows: int) -> None:
    path.parent.mkdir(parents=True)
    database = sqlite3.connect(path)
    database.execute("pragma synchronous=off")
    with database:
        database.execute("create table packages (name text primary key, content blob)")
        content = os.urandom(3500)
        values = ((f"package{number}", number.to_bytes(4, "big") + content) for number in range(rows))
        database.executemany("insert into packages values (?, ?)", values)
    database.close()


def _rewrite_database(path: Path) -> None:
    """What a package manager does: a log beside the database, maps of it, pages changed all over it."""
    database = sqlite3.connect(path)
    assert database.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    database.execute("pragma mmap_size=268435456")
    for turn in range(4):
        with database:
            database.execute(
                "update packages set content = zeroblob(3600 + ?) where rowid % 16 = ?", (turn, turn)
            )
            database.execute("delete from packages where rowid % 1000 = ?", (turn,))
            database.execute("insert into packages values (?, ?)", (f"new{turn}", b"n" * 50_000))
        database.execute("pragma wal_checkpoint(truncate)").fetchall()
    database.close()


def _database_content(path: Path) -> tuple[int, int, int]:
    database = sqlite3.connect(path)
    try:
        database.execute("pragma mmap_size=268435456")
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        crc = 0
        count = size = 0
        for name, content in database.execute("select name, content from packages order by name"):
            crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
            count, size = count + 1, size + len(content)
        return count, size, crc
    finally:
        database.close()


def test_big_database_with_a_write_ahead_log(stack: Stack, mount_overlay: MountFactory) -> None:
    path = stack.lower / "var" / "lib" / "packages.sqlite"
    _make_database(path, PACKAGES)
    assert path.stat().st_size > 90 * MIB
    beside = stack.base / "beside.sqlite"
    shutil.copy(path, beside)
    _rewrite_database(beside)
    expected = _database_content(beside)
    mount = mount_overlay()
    merged = mount.path / "var" / "lib" / "packages.sqlite"
    in_child(lambda: _rewrite_database(merged))
    for _ in range(2):
        assert in_child(lambda: _database_content(merged)) == expected
        assert names(merged.parent) == ["packages.sqlite"]
        mount.remount()


def _rewrite_pages(path: Path, turns: int) -> None:
    """Old rpm's way: a descriptor and shared maps of a file that grows and shrinks, synced now and then."""
    descriptor = os.open(path, os.O_RDWR)
    os.read(descriptor, PAGE)
    for turn in range(turns):
        size = os.fstat(descriptor).st_size
        with mmap.mmap(descriptor, size) as pages:
            for number in range(turn, size // PAGE, 97):
                pages[number * PAGE : number * PAGE + 8] = b"turn%04d" % turn
            pages.flush()
        for number in range(turn, size // PAGE, 193):
            os.pwrite(descriptor, b"written " * 16, number * PAGE + 2048)
        os.ftruncate(descriptor, size - 3 * PAGE)
        os.pwrite(descriptor, b"\n" * (5 * PAGE), size - 3 * PAGE)
    os.fsync(descriptor)
    os.close(descriptor)


def test_big_file_rewritten_by_map_and_by_write(stack: Stack, mount_overlay: MountFactory) -> None:
    content = os.urandom(MIB) * 90
    path = make_file(stack.lower / "var" / "lib" / "Packages", content)
    beside = make_file(stack.base / "beside", content)
    before = _checksum(path)
    _rewrite_pages(beside, 5)
    expected = _checksum(beside)
    mount = mount_overlay()
    merged = mount.path / "var" / "lib" / "Packages"
    assert _checksum(merged) == before, "its pages are cached from now on"
    in_child(lambda: _rewrite_pages(merged, 5))
    for _ in range(2):
        assert in_child(lambda: _checksum(merged)) == expected
        assert merged.stat().st_size == beside.stat().st_size
        mount.remount()
    assert _checksum(path) == before


@pytest.mark.parametrize("new", [b"short", b"longer than it was before, " * 1000], ids=["shorter", "longer"])
@pytest.mark.parametrize("way", ["truncating open", "cp", "in place", "rename over it"])
def test_file_overwritten_by_another_size(
    stack: Stack, mount_overlay: MountFactory, new: bytes, way: str
) -> None:
    make_file(stack.lower / "d" / "file", b"what the file held at first" * 100)
    make_file(stack.base / "new", new)
    mount = mount_overlay()
    path = mount.path / "d" / "file"
    assert len(path.read_bytes()) == 2700
    with path.open("rb", buffering=0) as early:
        if way == "truncating open":
            path.write_bytes(new)
        elif way == "cp":
            subprocess.run(["cp", stack.base / "new", path], check=True)
        elif way == "in place":
            with path.open("r+b") as file:
                file.write(new)
                file.truncate()
        else:
            path.with_name("new").write_bytes(new)
            path.with_name("new").rename(path)
        replaced = b"what the file held at first" * 100 if way == "rename over it" else new
        assert early.read() == replaced
        assert os.fstat(early.fileno()).st_size == len(replaced)
    for _ in range(2):
        assert path.stat().st_size == len(new)
        assert path.read_bytes() == new
        mount.remount()


# --- package managers and git ------------------------------------------------------------------------------


def _build_package(base: Path, version: int) -> Path:
    root = base / f"package{version}"
    control = f"Package: sample\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    make_file(root / "DEBIAN" / "control", control)
    make_file(root / "DEBIAN" / "conffiles", "/etc/sample.conf\n")
    make_file(root / "etc" / "sample.conf", f"version = {version}\n")
    make_file(root / "usr" / "bin" / "sample", f"program {version}\n" * version, 0o755)
    make_file(root / "usr" / "bin" / "suid", f"suid {version}\n", 0o4755)
    for number in range(40):
        make_file(root / "usr" / "share" / f"sample{version % 2}" / f"file{number}", f"{number} {version}\n")
    make_file(root / "usr" / "share" / "common" / "kept", f"kept {version}\n")
    make_symlink(root / "usr" / "share" / "link", f"sample{version % 2}")
    package = base / f"sample{version}.deb"
    build = ["dpkg-deb", "--root-owner-group", "--build", "-Znone", str(root), str(package)]
    subprocess.run(build, check=True, capture_output=True)
    return package


def _dpkg(root: Path, *words: str | Path) -> None:
    command = ["dpkg", f"--root={root}", "--force-script-chrootless", "--force-confnew", *words]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_dpkg_upgrades_and_removes_what_a_lower_has(stack: Stack, mount_overlay: MountFactory) -> None:
    first, second = (_build_package(stack.base, version) for version in (1, 2))
    for name in ("status", "available"):
        make_file(stack.lower / "var" / "lib" / "dpkg" / name)
    make_directory(stack.lower / "var" / "lib" / "dpkg" / "info")
    make_directory(stack.lower / "var" / "lib" / "dpkg" / "updates")
    _dpkg(stack.lower, "--install", first)
    beside = stack.base / "beside"
    shutil.copytree(stack.lower, beside, symlinks=True)
    mount = mount_overlay()
    for root in (beside, mount.path):
        _dpkg(root, "--install", second)
    _same_files(beside, mount.path)
    mount.remount()
    _same_files(beside, mount.path)
    assert (mount.path / "usr" / "bin" / "suid").stat().st_mode & stat.S_ISUID
    assert not (mount.path / "usr" / "share" / "sample1").exists()
    for root in (beside, mount.path):
        _dpkg(root, "--purge", "sample")
    mount.remount()
    _same_files(beside, mount.path)
    assert not (mount.path / "usr").exists()
    assert left_in_work(stack.work) == []


def _same_files(expected: Path, actual: Path) -> None:
    def seen(root: Path) -> dict[bytes, tuple[object, ...]]:
        # dpkg writes the time of the work into some of its files.
        return {
            path: (entry.kind, entry.mode, entry.target, None if b"dpkg" in path else entry.digest)
            for path, entry in snapshot(root, times=False).items()
            if path != b"." and not path.startswith(b"var/log")
        }

    assert seen(actual) == seen(expected)


def _git(repository: Path, *words: str) -> str:
    identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_CONFIG_NOSYSTEM": "1"}
    identity |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "HOME": "/nonexistent"}
    finished = subprocess.run(
        ["git", "-C", repository, "-c", "safe.directory=*", *words],
        env=os.environ | identity,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_git_works_in_a_repository_of_a_lower(stack: Stack, mount_overlay: MountFactory) -> None:
    """Objects and refs are written beside and renamed, packs replace objects, checkouts replace files."""
    lower = make_directory(stack.lower / "repository")
    _git(lower, "init", "--quiet", "--initial-branch=main")
    for number in range(60):
        make_file(lower / f"d{number % 5}" / f"file{number}", f"line {number}\n" * number)
    _git(lower, "add", ".")
    _git(lower, "commit", "--quiet", "-m", "first")
    _git(lower, "checkout", "--quiet", "-b", "other")
    for number in range(0, 60, 3):
        (lower / f"d{number % 5}" / f"file{number}").write_text("other\n" * 50)
    _git(lower, "mv", "d1", "moved")
    _git(lower, "commit", "--quiet", "-am", "second")
    _git(lower, "checkout", "--quiet", "main")
    mount = mount_overlay()
    path = mount.path / "repository"
    assert _git(path, "status", "--porcelain") == ""
    _git(path, "checkout", "--quiet", "other")
    assert not (path / "d1").exists()
    assert (path / "moved" / "file1").read_text() == "line 1\n"
    make_file(path / "added", "added\n")
    _git(path, "add", ".")
    _git(path, "commit", "--quiet", "-m", "third")
    _git(path, "rebase", "--quiet", "main")
    mount.remount()
    _git(path, "gc", "--quiet", "--prune=now")
    _git(path, "checkout", "--quiet", "main")
    _git(path, "merge", "--quiet", "--no-ff", "--no-edit", "other")
    for _ in range(2):
        assert _git(path, "fsck", "--strict", "--no-dangling") == ""
        assert _git(path, "status", "--porcelain") == ""
        subjects = _git(path, "log", "--format=%s").splitlines()
        assert sorted(subjects) == ["Merge branch 'other'", "first", "second", "third"]
        assert names(path) == [".git", "added", "d0", "d2", "d3", "d4", "moved"]
        mount.remount()


# --- directories that can't be renamed ---------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["lower", "upper", "merged"])
def test_directory_moved_onto_the_name_of_a_removed_one(
    stack: Stack, mount_overlay: MountFactory, origin: str
) -> None:
    """As in ``rm -rf d; mv e d``."""
    for name in ("a", "both", "sub/deep"):
        make_file(stack.lower / "d" / name, f"old {name}")
    for layer, needed in ((stack.lower, origin != "upper"), (stack.upper, origin != "lower")):
        if needed:
            make_file(layer / "e" / "both", "new both")
            make_file(layer / "e" / "sub" / f"of {layer.name}", "new")
    mount = mount_overlay()
    expected = snapshot(mount.path / "e")
    subprocess.run(["rm", "-rf", mount.path / "d"], check=True)
    subprocess.run(["mv", mount.path / "e", mount.path / "d"], check=True)
    for _ in range(2):
        assert names(mount.path) == ["d"]
        assert snapshot(mount.path / "d") == expected
        mount.remount()
    assert is_opaque(stack.upper / "d")


def _sizes_and_modes(directory: Path) -> dict[str, tuple[int, int]]:
    with os.scandir(directory) as entries:
        return {entry.name: (entry.stat().st_size, entry.stat().st_mode) for entry in entries}


def test_huge_directory_is_renamed_by_mv(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(MANY_FILES):
        make_file(stack.lower / "many" / f"file{number:05}", b"" if number % 10 else b"%d" % number, 0o640)
    expected = _sizes_and_modes(stack.lower / "many")
    mount = mount_overlay(check_lowers=False)
    with fails_with(errno.EXDEV):
        os.rename(mount.path / "many", mount.path / "moved")
    assert names(stack.upper) == [], "nothing was copied for a rename that is refused"
    subprocess.run(["mv", mount.path / "many", mount.path / "moved"], check=True)
    assert names(mount.path) == ["moved"]
    assert _sizes_and_modes(mount.path / "moved") == expected
    mount.remount()
    assert names(mount.path) == ["moved"]
    assert is_whiteout(stack.upper / "many")
    os.rename(mount.path / "moved", mount.path / "many")  # it is the upper's alone now
    assert _sizes_and_modes(mount.path / "many") == expected
    for number in range(0, MANY_FILES, 100):
        assert (mount.path / "many" / f"file{number:05}").read_bytes() == b"%d" % number
    assert _sizes_and_modes(stack.lower / "many") == expected


# --- many writers and careful readers ----------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["lower", "upper", "none"])
def test_shells_append_to_one_file(stack: Stack, mount_overlay: MountFactory, layer: str) -> None:
    make_directory(stack.lower / "log")
    if layer != "none":
        make_file((stack.lower if layer == "lower" else stack.upper) / "log" / "file", "first line\n")
    mount = mount_overlay()
    loop = f'for line in $(seq {LINES}); do echo "$0 $line" >> {mount.path}/log/file; done'
    shells = [subprocess.Popen(["sh", "-c", loop, str(number)]) for number in range(SHELLS)]
    assert [shell.wait(timeout=120) for shell in shells] == [0] * SHELLS
    expected = [f"{number} {line}" for number in range(SHELLS) for line in range(1, LINES + 1)]
    expected += ["first line"] if layer != "none" else []
    for _ in range(2):
        assert sorted((mount.path / "log" / "file").read_text().splitlines()) == sorted(expected)
        mount.remount()


@pytest.mark.parametrize("before", ["nothing", "copy-up", "changes"])
def test_tar_sees_no_file_change(stack: Stack, mount_overlay: MountFactory, before: str) -> None:
    """It compares a file's status before and after reading, and says "file changed as we read it"."""
    for number in range(40):
        make_file(stack.lower / "tree" / f"d{number % 4}" / f"file{number}", os.urandom(number * 2000))
    os.link(stack.lower / "tree" / "d1" / "file1", stack.lower / "tree" / "d2" / "linked")
    make_symlink(stack.lower / "tree" / "link", "d1/file1")
    merged = mount_overlay().path
    if before != "nothing":
        for number in range(0, 40, 3):
            path = merged / "tree" / f"d{number % 4}" / f"file{number}"
            os.close(os.open(path, os.O_WRONLY))
            if before == "changes":
                path.write_bytes(b"changed " * number)
                make_file(path.with_name(f"new{number}"), b"new" * number)
    for options in ([], ["--sparse"], ["--acls", "--xattrs", "--hard-dereference"]):
        command = ["tar", *options, "-C", str(merged), "-cf", str(stack.base / "archive.tar"), "tree"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (finished.returncode, finished.stderr) == (0, "")
    make_directory(stack.base / "out")
    subprocess.run(["tar", "-C", stack.base / "out", "-xpf", stack.base / "archive.tar"], check=True)
    shown, unpacked = merged / "tree", stack.base / "out" / "tree"
    assert {path: entry.digest for path, entry in snapshot(unpacked).items()} == {
        path: entry.digest for path, entry in snapshot(shown).items()
    }


def test_copy_up_of_a_tree_keeps_what_tar_compares(stack: Stack, mount_overlay: MountFactory) -> None:
    """`tar --compare` with an archive of the lower is content with a tree that was copied up whole."""
    for number in range(30):
        path = make_file(stack.lower / "tree" / f"d{number % 4}" / f"file{number}", os.urandom(5000), 0o604)
        os.utime(path, ns=(10**18 + number, 10**18 + number))
        os.chown(path, number, number + 1)
    for directory in (stack.lower / "tree").iterdir():
        os.utime(directory, ns=(10**18, 10**18))
    archive = stack.base / "archive.tar"
    subprocess.run(["tar", "--format=posix", "-C", stack.lower, "-cf", archive, "tree"], check=True)
    mount = mount_overlay()
    for path in sorted((mount.path / "tree").rglob("file*")):
        os.close(os.open(path, os.O_RDWR))
    assert len(list(stack.upper.rglob("file*"))) == 30
    for _ in range(2):
        compare = ["tar", "--compare", "-C", str(mount.path), "-f", str(archive)]
        finished = subprocess.run(compare, capture_output=True, text=True, check=False)
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
        mount.remount()
    for name in ("d1", "d2"):
        seen, kept = described(mount.path / "tree" / name), described(stack.lower / "tree" / name)
        assert [seen[key] for key in ("mode", "owner", "mtime")] == [
            kept[key] for key in ("mode", "owner", "mtime")
        ]
