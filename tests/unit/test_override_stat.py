"""Is override_stat read as containers/storage and fuse-overlayfs write it, and written as they read it?"""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoverlay.layers import override_stat
from pyoverlay.layers.override_stat import CONTAINERS, FUSE_OVERLAYFS, PRIVILEGED, SPELLINGS, Record, Spelling
from tests.harness import fails_with

KINDS = [
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFBLK,
    stat.S_IFCHR,
]
RECORD = b"user.containers.override_stat"


@st.composite
def records(draw: st.DrawFn) -> Record:
    kind = draw(st.sampled_from(KINDS))
    device = 0
    if kind in (stat.S_IFBLK, stat.S_IFCHR):
        device = os.makedev(draw(st.integers(1, 2**12 - 1)), draw(st.integers(0, 2**20 - 1)))
    ids = st.integers(0, 2**32 - 2)
    return Record(draw(ids), draw(ids), kind | draw(st.integers(0, 0o7777)), device)


@given(records())
def test_what_is_written_is_read_again(record: Record) -> None:
    assert override_stat.parse(override_stat.format_record(record)) == record


@pytest.mark.parametrize(
    ("value", "record"),
    [
        # containers/storage's own examples (TestFormatContainersOverrideXattrDevice).
        (b"1000:1011:0644:file", Record(1000, 1011, stat.S_IFREG | 0o644)),
        (b"1001:1012:0755:dir", Record(1001, 1012, stat.S_IFDIR | 0o755)),
        (b"1002:1013:0777:symlink", Record(1002, 1013, stat.S_IFLNK | 0o777)),
        (b"1003:1014:0666:pipe", Record(1003, 1014, stat.S_IFIFO | 0o666)),
        (b"1004:1015:0700:socket", Record(1004, 1015, stat.S_IFSOCK | 0o700)),
        (b"1005:1016:0600:block-8-0", Record(1005, 1016, stat.S_IFBLK | 0o600, os.makedev(8, 0))),
        (b"1006:1017:0600:char-1-3", Record(1006, 1017, stat.S_IFCHR | 0o600, os.makedev(1, 3))),
        (b"1012:1022:4755:file", Record(1012, 1022, stat.S_IFREG | 0o4755)),
    ],
)
def test_containers_storage_writes_the_same(value: bytes, record: Record) -> None:
    assert override_stat.parse(value) == record
    assert override_stat.format_record(record) == value


@pytest.mark.parametrize(
    ("value", "record"),
    [
        (b"0:0:755", Record(0, 0, 0o755)),
        (b"0:0:40755", Record(0, 0, stat.S_IFDIR | 0o755)),
        (b"9:10:100640", Record(9, 10, stat.S_IFREG | 0o640)),
        (b"33:34:10600", Record(33, 34, stat.S_IFIFO | 0o600)),
        (b"0:0:104711", Record(0, 0, stat.S_IFREG | 0o4711)),
        # What follows a device's numbers is for later versions (parseDevice).
        (b"0:0:600:char-1-3-more", Record(0, 0, stat.S_IFCHR | 0o600, os.makedev(1, 3))),
    ],
)
def test_what_fuse_overlayfs_writes_is_read(value: bytes, record: Record) -> None:
    assert override_stat.parse(value) == record


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0:0",
        b"0:0:",
        b"0:0:9",
        b"-1:0:644",
        b" 0:0:644",
        b"0:0:644:",
        b"0:0:644:door",
        b"0:0:644:char",
        b"0:0:644:char-1",
        b"0:0:644:char-0-0",
        b"0:0:644:char-4096-0",
        b"0:0:644:block-1-1048576",
        b"0:0:644:file-1-3",
        b"0:0:20600",
        b"0:0:200644",
        b"0:0:150000",
        b"4294967295:0:644",
        b"0:4294967295:644",
        b"0:0:644:file\n",
    ],
)
def test_what_says_nothing_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"b'"):
        override_stat.parse(value)


def test_a_status_shows_the_record_and_is_else_the_files_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    os.utime(tmp_path / "file", ns=(1_000_000_001, 2_000_000_003))
    on_disk = os.lstat(tmp_path / "file")
    shown = override_stat.shown(on_disk, Record(5, 6, stat.S_IFCHR | 0o4711, os.makedev(1, 3)))
    assert (shown.st_uid, shown.st_gid, shown.st_mode) == (5, 6, stat.S_IFCHR | 0o4711)
    assert shown.st_rdev == os.makedev(1, 3)
    for name in (
        *("st_ino", "st_dev", "st_nlink", "st_size", "st_blocks", "st_blksize"),
        *("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_atime", "st_mtime", "st_ctime"),
    ):
        assert getattr(shown, name) == getattr(on_disk, name), name


def test_without_a_type_it_is_the_files_own(tmp_path: Path) -> None:
    assert override_stat.shown(os.lstat(tmp_path), Record(0, 0, 0o555)).st_mode == stat.S_IFDIR | 0o555


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != stat.S_IFDIR])
def test_a_directory_stays_one(tmp_path: Path, kind: int) -> None:
    with pytest.raises(ValueError, match="directory"):
        override_stat.shown(os.lstat(tmp_path), Record(0, 0, kind | 0o644))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", [other.attribute for other in SPELLINGS])
def test_nobody_reaches_a_record(spelling: Spelling, name: bytes) -> None:
    assert spelling.from_disk(name) is None
    assert spelling.to_disk(name) not in {other.attribute for other in SPELLINGS}
    assert spelling.from_disk(spelling.to_disk(name)) == name


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    "name", [b"user.note", b"trusted.note", b"security.capability", RECORD, b"user.containers.override_x"]
)
def test_other_attributes_come_back(spelling: Spelling, name: bytes) -> None:
    assert spelling.from_disk(spelling.to_disk(name)) == name


def test_security_attributes_are_stored_as_users() -> None:
    stored = b"user.containers.override_security.capability"
    assert CONTAINERS.to_disk(b"security.capability") == stored
    assert CONTAINERS.from_disk(b"security.capability") is None
    for spelling in (PRIVILEGED, FUSE_OVERLAYFS):
        assert spelling.to_disk(b"security.capability") == b"security.capability"


def test_acls_are_hidden() -> None:
    assert CONTAINERS.from_disk(b"system.posix_acl_access") is None


def test_names_too_long_once_escaped() -> None:
    with fails_with(errno.EOPNOTSUPP):
        CONTAINERS.to_disk(b"security." + b"x" * 240)


def test_the_first_spelling_of_a_root_counts() -> None:
    names = [spelling.attribute for spelling in reversed(SPELLINGS)]
    assert override_stat.spelling_among([b"user.x", *names]) is PRIVILEGED
    assert override_stat.spelling_among(names[:2]) is CONTAINERS
    assert override_stat.spelling_among([b"user.x"]) is None


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        (stat.S_IFREG | 0o6755, stat.S_IFREG | 0o755),
        (stat.S_IFREG | 0o6745, stat.S_IFREG | 0o2745),
        (stat.S_IFREG | 0o1644, stat.S_IFREG | 0o1644),
        (stat.S_IFDIR | 0o6755, stat.S_IFDIR | 0o6755),
    ],
)
def test_a_change_of_owner_clears_set_id_bits(mode: int, left: int) -> None:
    assert override_stat.after_change_of_owner(mode) == left
