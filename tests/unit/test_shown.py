"""Do packed attributes tell what stat told?"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from pyoverlay.overlay import shown


@pytest.mark.parametrize("modification_ns", [0, 1_700_000_000_123_456_789, -1, -1_500_000_000])
def test_what_is_packed_is_told(tmp_path: Path, modification_ns: int) -> None:
    """Times before the epoch, too: their nanoseconds count up from the second before."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(3_000_000_007, modification_ns))
    status = path.stat()
    attributes = shown.pack(status, 1 << 63, 2, 3, 0xFFFFFFFF)
    assert (attributes.inode, attributes.links, attributes.user, attributes.group) == (
        1 << 63,
        2,
        3,
        0xFFFFFFFF,
    )
    assert (attributes.mode, attributes.size) == (status.st_mode, 7)
    assert (attributes.blocks, attributes.block_size) == (status.st_blocks, status.st_blksize)
    assert attributes.access_ns == 3_000_000_007
    assert attributes.modification_ns == status.st_mtime_ns == modification_ns
    assert attributes.change_ns == status.st_ctime_ns


def test_device_numbers_are_told_whole(tmp_path: Path) -> None:
    """Also those that need all bits which the kernel has for them."""
    for index, device in enumerate((os.makedev(4095, 0xFFFFF), os.makedev(259, 300))):
        path = tmp_path / str(index)
        os.mknod(path, stat.S_IFBLK | 0o600, device)
        assert shown.pack(path.stat(), 1, 1, 0, 0).device == device


def test_the_layout_is_what_fuse_tells(tmp_path: Path) -> None:
    """As struct fuse_attr: inode first, mode and link count at 60 and 64, and 88 bytes in all."""
    attributes = shown.pack(tmp_path.stat(), 77, 5, 0, 0)
    assert len(attributes) == 88
    assert struct.unpack_from("=Q52xII", attributes) == (77, tmp_path.stat().st_mode, 5)
