"""Does an entry mean what its headers say, in each format that there is?"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from pyoverlay.images.digests import digest_of
from pyoverlay.images.tar_entries import Entry, format_time, parse_time
from pyoverlay.images.tar_reader import TarReader
from tests.images.making import LayerTar, pax_header, pax_record


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    reader = TarReader(io.BytesIO(data))
    found = [(entry, b"".join(map(bytes, reader.content()))) for entry in reader]
    assert reader.digest() == digest_of(data)
    return found


LONG = "d/" * 60 + "n" * 120


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_format(form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        name = "d/" * 60 + "n" * 30 if form == tarfile.USTAR_FORMAT else LONG
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uid, info.gid, info.mtime = 3, 0o4755, 1000, 2000, 1_600_000_000
        archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type = tarfile.SYMTYPE
        link.linkname = "x" * 90 if form == tarfile.USTAR_FORMAT else "x" * 300
        archive.addfile(link)
    (file, content), (symlink, _) = read(buffer.getvalue())
    assert content == b"abc"
    assert (file.path, file.kind, file.mode, file.uid, file.gid) == (
        name.encode(),
        "file",
        0o4755,
        1000,
        2000,
    )
    assert file.mtime == 1_600_000_000 * 10**9
    assert symlink.target == link.linkname.encode()


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes(form: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(b"content")
    (tmp_path / "d/s").symlink_to("file")
    words = ["tar", "-C", str(tmp_path), f"--format={form}", "-c", "-f", "-", "d"]
    data = subprocess.run(words, check=True, capture_output=True).stdout
    found = {entry.path: (entry.kind, content) for entry, content in read(data)}
    assert found == {b"d": ("directory", b""), b"d/file": ("file", b"content"), b"d/s": ("symlink", b"")}


@pytest.mark.parametrize("version", [None, "0.0", "0.1", "1.0"])
def test_sparse_files(version: str | None, tmp_path: Path) -> None:
    """In GNU tar's four formats; the first has no version."""
    with (tmp_path / "sparse").open("wb") as file:
        for position in range(0, 60 << 20, 1 << 20):
            file.seek(position)
            file.write(b"%d" % position)
        file.truncate(100 << 20)
    how = ["--format=gnu"] if version is None else ["--format=posix", f"--sparse-version={version}"]
    words = ["tar", "-C", str(tmp_path), *how, "--sparse", "--hole-detection=seek", "-c", "-f", "-", "sparse"]
    data = subprocess.run(words, check=True, capture_output=True).stdout
    assert len(data) < 1 << 20
    ((entry, content),) = read(data)
    assert (entry.path, entry.size, entry.payload) == (b"sparse", 100 << 20, len(content))
    whole = bytearray(entry.size)
    position = 0
    for offset, length in entry.fragments or ():
        whole[offset : offset + length] = content[position : position + length]
        position += length
    assert whole == (tmp_path / "sparse").read_bytes()


def test_extended_attributes_and_times_are_exact() -> None:
    value = bytes(range(256))
    records = [
        pax_record(b"SCHILY.xattr.user.a", value),
        pax_record(b"mtime", b"1600000000.123456789"),
        pax_record(b"path", b"\xff\xfe name"),
    ]
    ((entry, _),) = read(LayerTar().raw(pax_header(b"".join(records))).add("short").bytes())
    assert entry.path == b"\xff\xfe name"
    assert entry.xattrs == {b"user.a": value}
    assert entry.mtime == 1_600_000_000_123_456_789


def test_a_global_header_says_nothing_about_entries() -> None:
    header = bytearray(pax_header(pax_record(b"path", b"other")))
    header[156:157] = b"g"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    ((entry, _),) = read(LayerTar().raw(bytes(header)).add("name").bytes())
    assert entry.path == b"name"


@pytest.mark.parametrize(
    ("text", "nanoseconds", "written"),
    [
        (b"0", 0, "0"),
        (b"1", 10**9, "1"),
        (b"1.5", 1_500_000_000, "1.5"),
        (b"-1.25", -1_250_000_000, "-1.25"),
        (b"1.0000000019", 10**9 + 1, "1.000000001"),
        (b"7.", 7 * 10**9, "7"),
    ],
)
def test_times(text: bytes, nanoseconds: int, written: str) -> None:
    assert parse_time(text, b"file") == nanoseconds
    assert format_time(nanoseconds) == written


def test_what_is_no_content_is_handed_on_as_it_passes() -> None:
    data = (
        LayerTar().add("a", b"content of a").directory("d").add("b", b"x" * 1000).bytes() + b"after the end"
    )
    literal: list[bytes] = []
    reader = TarReader(io.BytesIO(data), literal=literal.append)
    for _ in reader:
        literal += map(bytes, reader.content())
    assert b"".join(literal) == data
    assert reader.ended
    assert reader.size == len(data)
