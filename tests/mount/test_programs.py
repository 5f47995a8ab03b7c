"""Do programs live in the tree? What databases, package managers and the usual tools do, over lower files."""

import errno
import os
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest

from tests.harness import MountFactory, Stack, fails_with, in_child, run_as, snapshot
from tests.harness.content import make_directory, make_file, make_symlink, names

USER = 1000


@pytest.mark.parametrize("journal", ["delete", "wal", "truncate"])
def test_database_in_a_lower_is_rewritten_without_a_scratch(
    stack: Stack, mount_overlay: MountFactory, journal: str
) -> None:
    """Another overlay corrupted a package manager's SQLite database that was rewritten after its copy-up."""
    path = stack.lower / "var" / "db.sqlite"
    path.parent.mkdir()
    database = sqlite3.connect(path)
    with database:
        database.execute("create table packages (name text primary key, content blob)")
        rows = [(f"package{number}", bytes([number % 256]) * 2000) for number in range(1500)]
        database.executemany("insert into packages values (?, ?)", rows)
    database.close()
    beside = stack.base / "beside.sqlite"
    shutil.copy(path, beside)
    _rewrite(beside, journal)
    mount = mount_overlay()
    in_child(lambda: _rewrite(mount.path / "var" / "db.sqlite", journal))
    for _ in range(2):
        assert _content(mount.path / "var" / "db.sqlite") == _content(beside)
        mount.remount()


def _rewrite(path: Path, journal: str) -> None:
    database = sqlite3.connect(path)
    database.execute(f"pragma journal_mode={journal}")
    database.execute("pragma mmap_size=10000000")
    for turn in range(8):
        with database:
            database.execute(
                "update packages set content = zeroblob(?) where rowid % 8 = ?", (3000 + turn, turn)
            )
            database.execute("insert into packages values (?, ?)", (f"new{turn}", b"n" * 5000))
    database.execute("vacuum")
    database.close()


def _content(path: Path) -> list[tuple[object, ...]]:
    database = sqlite3.connect(path)
    try:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        return database.execute("select name, content from packages order by name").fetchall()
    finally:
        database.close()


def test_package_managers_way_of_replacing_files(stack: Stack, mount_overlay: MountFactory) -> None:
    for number in range(20):
        make_file(stack.lower / "usr" / "bin" / f"tool{number}", f"old {number}", 0o755)
    mount = mount_overlay()
    for number in range(20):
        path = mount.path / "usr" / "bin" / f"tool{number}"
        new, backup = path.with_name(f"{path.name}.dpkg-new"), path.with_name(f"{path.name}.dpkg-tmp")
        with new.open("w") as file:
            file.write(f"new {number}")
            file.flush()
            os.fchown(file.fileno(), 0, 0)
            os.fchmod(file.fileno(), 0o4755 if number == 3 else 0o755)
            os.fsync(file.fileno())
        os.utime(new, ns=(10**18, 10**18))
        os.link(path, backup)
        os.rename(new, path)
        backup.unlink()
    for _ in range(2):
        assert names(mount.path / "usr" / "bin") == sorted(f"tool{number}" for number in range(20))
        for number in range(20):
            path = mount.path / "usr" / "bin" / f"tool{number}"
            assert path.read_text() == f"new {number}"
            assert stat.S_IMODE(path.stat().st_mode) == (0o4755 if number == 3 else 0o755)
            assert path.stat().st_nlink == 1
        mount.remount()


def _plant(root: Path) -> None:
    for number in range(30):
        make_file(root / "tree" / f"d{number % 4}" / f"file{number}", str(number) * number, 0o600 + number)
    make_symlink(root / "tree" / "link", "d1/file1")
    os.mkfifo(root / "tree" / "fifo")
    os.link(root / "tree" / "d1" / "file1", root / "tree" / "d2" / "linked")
    os.setxattr(root / "tree" / "d3", "user.comment", b"kept")


def test_mv_of_a_lower_directory_copies_it(stack: Stack, mount_overlay: MountFactory) -> None:
    _plant(stack.lower)
    mount = mount_overlay()
    before = snapshot(mount.path / "tree", nlink=False)
    subprocess.run(["mv", mount.path / "tree", mount.path / "moved"], check=True)
    for _ in range(2):
        assert names(mount.path) == ["moved"]
        assert snapshot(mount.path / "moved", nlink=False) == before
        mount.remount()


def test_tar_and_cp_carry_a_tree_over(stack: Stack, mount_overlay: MountFactory) -> None:
    _plant(stack.lower)
    merged = mount_overlay().path
    original = snapshot(merged / "tree")
    subprocess.run(["cp", "-a", merged / "tree", merged / "copied"], check=True)
    assert snapshot(merged / "copied") == original
    make_directory(merged / "unpacked")
    archive = stack.base / "archive.tar"
    subprocess.run(["tar", "-C", merged / "tree", "--xattrs", "-cf", archive, "."], check=True)
    subprocess.run(["tar", "-C", merged / "unpacked", "--xattrs", "-xpf", archive], check=True)
    unpacked = snapshot(merged / "unpacked", times=False)
    assert unpacked == snapshot(merged / "tree", times=False)


def test_removing_and_copying_a_tree_back(stack: Stack, mount_overlay: MountFactory) -> None:
    _plant(stack.lower)
    mount = mount_overlay()
    original = snapshot(mount.path / "tree", nlink=False)
    saved = stack.base / "saved"
    subprocess.run(["cp", "-a", mount.path / "tree", saved], check=True)
    shutil.rmtree(mount.path / "tree")
    assert names(mount.path) == []
    subprocess.run(["cp", "-a", saved, mount.path / "tree"], check=True)
    for _ in range(2):
        assert snapshot(mount.path / "tree", nlink=False) == original
        mount.remount()


def test_editing_in_place(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(
        stack.lower / "etc" / "config", "".join(f"key{number} = value\n" for number in range(500)), 0o640
    )
    mount = mount_overlay()
    subprocess.run(
        ["sed", "-i", "s/key250 = value/key250 = other/", mount.path / "etc" / "config"], check=True
    )
    subprocess.run(["sh", "-c", f"echo last >> {mount.path}/etc/config"], check=True)
    mount.remount()
    lines = (mount.path / "etc" / "config").read_text().splitlines()
    assert (lines[250], lines[-1], len(lines)) == ("key250 = other", "last", 501)
    assert stat.S_IMODE((mount.path / "etc" / "config").stat().st_mode) == 0o640
    assert names(mount.path / "etc") == ["config"]


def _run_id(program: Path) -> int:
    return int(subprocess.check_output([program, "-u"]))


@pytest.mark.parametrize("layer", ["lower", "upper", "copied up"])
def test_suid_programs_run_as_their_owner_unless_nosuid(
    stack: Stack, mount_overlay: MountFactory, layer: str
) -> None:
    root = stack.upper if layer == "upper" else stack.lower
    make_file(root / "id", Path("/usr/bin/id").read_bytes(), 0o4755)
    overlay = mount_overlay()
    if layer == "copied up":
        os.utime(overlay.path / "id")
    assert run_as(USER, lambda: _run_id(overlay.path / "id")) == 0
    overlay.remove()
    overlay = mount_overlay("nosuid")
    assert run_as(USER, lambda: _run_id(overlay.path / "id")) == USER


def test_noexec_and_nodev(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "id", Path("/usr/bin/id").read_bytes(), 0o755)
    os.mknod(stack.lower / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    overlay = mount_overlay("noexec", "nodev")
    with fails_with(errno.EACCES):
        subprocess.check_output([overlay.path / "id"])
    with fails_with(errno.EACCES):
        os.open(overlay.path / "null", os.O_RDONLY)


def test_current_directory_in_the_tree(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "low" / "sub" / "file", "content")
    merged = mount_overlay().path

    def live() -> list[object]:
        os.chdir(merged / "low" / "sub")
        seen: list[object] = [Path("file").read_text(), os.getcwd() == f"{merged}/low/sub"]
        Path("file").write_text("changed")
        os.mkdir("../made")
        os.chdir("../made")
        os.rename("../made", "../renamed")
        seen.append(os.getcwd() == f"{merged}/low/renamed")
        Path("inner").touch()
        os.unlink("inner")
        os.rmdir("../renamed")
        try:
            os.getcwd()
        except FileNotFoundError:
            seen.append("gone")
        return seen

    assert in_child(live) == ["content", True, True, "gone"]
    assert names(merged / "low") == ["sub"]


def test_directory_that_may_be_passed_but_not_listed(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "through" / "file", "content")
    os.chmod(stack.lower / "through", 0o711)
    merged = mount_overlay().path
    assert run_as(USER, (merged / "through" / "file").read_text) == "content"
    with fails_with(errno.EACCES):
        run_as(USER, lambda: os.listdir(merged / "through"))
    with fails_with(errno.ENOENT):
        run_as(USER, (merged / "through" / "nothing").read_text)


def test_space_is_reserved(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.lower / "file", "content")
    merged = mount_overlay().path
    with (merged / "file").open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, 300_000)
        assert os.fstat(opened.fileno()).st_size == 300_000
        assert opened.read(10) == b"content" + bytes(3)


@pytest.mark.parametrize("options", [("userxattr",), ("volatile",), ("xino=off",), ("noatime",)])
def test_everyday_changes_under_other_options(
    stack: Stack, mount_overlay: MountFactory, options: tuple[str, ...]
) -> None:
    _plant(stack.lower)
    mount = mount_overlay(*options)
    tree = mount.path / "tree"
    shutil.rmtree(tree / "d0")
    (tree / "d0").mkdir()
    (tree / "d1" / "file5").rename(tree / "d0" / "file5")
    (tree / "d2" / "linked").write_text("parted")
    (tree / "d3").chmod(0o700)
    make_file(tree / "new" / "file", "new")
    inode = (tree / "d0" / "file5").stat().st_ino
    seen = snapshot(mount.path)
    mount.unmount()
    if options == ("volatile",):
        shutil.rmtree(stack.work / "work" / "incompat")
    mount.mount()
    assert snapshot(mount.path) == seen
    assert (tree / "d0" / "file5").stat().st_ino == inode
