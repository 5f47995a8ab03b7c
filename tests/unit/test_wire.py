"""Are FUSE messages read and written as include/uapi/linux/fuse.h has them?

The messages here are put together field by field, apart from the code under test.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoverlay.fuse import wire
from pyoverlay.fuse.wire import Opcode

# As Linux 6.18 sent it, captured on a little-endian machine.
KERNEL_INIT = bytes.fromhex(
    "680000001a0000000200000000000000000000000000000000000000000000000000000000000000"
    "070000002d00000000000200fbffff73fd050000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
)

ATTRIBUTES_SIZE = 88
ENTRY_SIZE = 40 + ATTRIBUTES_SIZE


def request(opcode: int, body: bytes, nodeid: int = 5, unique: int = 42, pid: int = 99) -> bytes:
    """Make a struct fuse_in_header, and what follows."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, nodeid, 1000, 1001, pid, 0, 0) + body


def reply(body: bytes, error: int = 0, unique: int = 42) -> bytes:
    """Make a struct fuse_out_header, and what follows."""
    return struct.pack("=IiQ", 16 + len(body), error, unique) + body


def entry(nodeid: int, inode: int) -> bytes:
    """Make a struct fuse_entry_out: nodeid, generation, timeouts; then struct fuse_attr from its ino on."""
    return struct.pack("=QQQQIIQ", nodeid, 0, 1, 1, 0, 0, inode) + bytes(range(ATTRIBUTES_SIZE - 8))


def listed(nodeid: int, inode: int, offset: int, name: bytes) -> bytes:
    """Make a struct fuse_direntplus, padded to 8 bytes."""
    whole = entry(nodeid, inode) + struct.pack("=QQII", inode, offset, len(name), 8) + name
    return whole + bytes(-len(whole) % 8)


# Headers


def test_a_request_header() -> None:
    header = wire.request_header(request(Opcode.LOOKUP, b"name\0"))
    assert header == (45, 1, 42, 5, 1000, 1001, 99)
    assert wire.request_header(memoryview(bytearray(request(1, b"")))).length == wire.IN_HEADER_SIZE


def test_a_reply_header() -> None:
    assert wire.reply_header(reply(b"12345678", unique=7)) == (24, 0, 7)
    assert wire.reply_header(reply(b"", error=-errno.ENOENT)).error == -errno.ENOENT


def test_an_error_reply() -> None:
    assert wire.error_reply(42, errno.EIO) == reply(b"", error=-errno.EIO)


def test_names_of_opcodes() -> None:
    assert wire.opcode_name(44) == "READDIRPLUS"
    assert wire.opcode_name(4096) == "4096"


# INIT


def test_the_kernels_init() -> None:
    assert wire.request_header(KERNEL_INIT).opcode == Opcode.INIT
    assert wire.init_request(KERNEL_INIT) == (7, 45, 0x20000, 0x5FD_73FFFFFB)


def test_offering_less_changes_nothing_else() -> None:
    message = bytearray(KERNEL_INIT)
    wire.set_init_flags(memoryview(message), 0x1234, 4096)
    assert wire.init_request(message) == (7, 45, 4096, 0x1234)
    assert len(message) == len(KERNEL_INIT)
    assert message[:48] == KERNEL_INIT[:48] and message[56:] == KERNEL_INIT[56:]


def test_the_reply_to_init() -> None:
    message = wire.init_reply(2, 38, flags=0xABC, max_readahead=65536, max_write=131072, max_background=64)
    assert len(message) == 16 + 64
    assert wire.reply_header(message) == (80, 0, 2)
    fields = struct.unpack_from("=IIIIHHIIHHII", message, 16)
    major, minor, readahead, flags, background, threshold, max_write, granularity, pages = fields[:9]
    assert (major, minor, readahead, flags) == (7, 38, 65536, 0xABC)
    assert background == 64 and 0 < threshold <= background
    assert (max_write, granularity, pages) == (131072, 1, 32)
    assert wire.init_reply_minor(message) == 38


# Flags that pyfuse3 doesn't show


@pytest.mark.parametrize("kills", [False, True])
def test_who_may_not_keep_suid(kills: bool) -> None:
    write = struct.pack("=QQIIQII", 1, 0, 4, 4 if kills else 3, 0, 0o1, 0) + b"data"
    setattr_ = struct.pack("=II", (1 << 11) if kills else 0x77F, 0) + bytes(80)
    open_ = struct.pack("=II", 0o1001, int(kills))
    assert wire.kills_privileges(Opcode.WRITE, request(Opcode.WRITE, write)) is kills
    assert wire.kills_privileges(Opcode.SETATTR, request(Opcode.SETATTR, setattr_)) is kills
    assert wire.kills_privileges(Opcode.OPEN, request(Opcode.OPEN, open_)) is kills
    assert not wire.kills_privileges(Opcode.LOOKUP, request(Opcode.LOOKUP, bytes([255]) * 40))


def test_an_interrupt() -> None:
    assert wire.interrupted_unique(request(Opcode.INTERRUPT, struct.pack("=Q", 2**63 + 1))) == 2**63 + 1


# Inode numbers


def test_the_inode_number_of_an_entry() -> None:
    message = bytearray(reply(entry(7, 7) + b"behind it"))
    assert wire.entry_nodeid(message) == 7
    wire.set_entry_inode(memoryview(message), 2**60 + 3)
    assert message == reply(entry(7, 2**60 + 3) + b"behind it")


def test_the_inode_numbers_of_a_listing() -> None:
    names = [b"a", b"1234567", b"12345678", b"123456789", b"n" * 255]
    entries = [listed(number + 10, number + 10, number + 1, name) for number, name in enumerate(names)]
    message = bytearray(reply(b"".join(entries)))
    offsets = list(wire.directory_entries(message))
    assert [wire.entry_nodeid(message, offset) for offset in offsets] == [10, 11, 12, 13, 14]
    for offset in offsets:
        wire.set_directory_entry_inode(memoryview(message), wire.entry_nodeid(message, offset) + 1000, offset)
    wire.leave_name_only(message, offsets[2])
    expected = [
        listed(0 if number == 2 else number + 10, number + 1010, number + 1, name)
        for number, name in enumerate(names)
    ]
    assert message == reply(b"".join(expected))


def test_an_empty_listing() -> None:
    assert list(wire.directory_entries(reply(b""))) == []


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=20), st.integers(0, 200))
def test_a_listing_that_is_cut_off_stays_within_itself(names: list[bytes], cut: int) -> None:
    whole = reply(b"".join(listed(1, 1, 1, name) for name in names))
    message = bytearray(whole[: max(len(whole) - cut, 16)])
    length = len(message)
    for offset in wire.directory_entries(message):
        wire.set_directory_entry_inode(message, 77, offset)
    assert len(message) == length


# Unasked


def test_an_invalidation_keeps_the_pages() -> None:
    assert wire.invalidate_attributes(5) == struct.pack("=IiQQqq", 40, 2, 0, 5, -1, 0)


def test_an_invalidation_of_a_listing_drops_all_pages() -> None:
    assert wire.invalidate_listing(5) == struct.pack("=IiQQqq", 40, 2, 0, 5, 0, 0)


# Truncated messages

READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "request-header": (wire.request_header, request(1, b"")),
    "reply-header": (wire.reply_header, reply(b"")),
    "init": (wire.init_request, KERNEL_INIT[:56]),
    "init-reply": (wire.init_reply_minor, reply(struct.pack("=II", 7, 38))),
    "interrupt": (wire.interrupted_unique, request(Opcode.INTERRUPT, bytes(8))),
    "write": (lambda message: wire.kills_privileges(Opcode.WRITE, message), request(Opcode.WRITE, bytes(24))),
    "open": (lambda message: wire.kills_privileges(Opcode.OPEN, message), request(Opcode.OPEN, bytes(8))),
    "setattr": (
        lambda message: wire.kills_privileges(Opcode.SETATTR, message),
        request(Opcode.SETATTR, bytes(4)),
    ),
    "entry": (wire.entry_nodeid, reply(bytes(8))),
}


@pytest.mark.parametrize(("read", "whole"), READERS.values(), ids=READERS.keys())
def test_a_truncated_message_is_a_value_error(read: Callable[[bytes], object], whole: bytes) -> None:
    read(whole)
    for length in (0, 1, len(whole) - 1):
        with pytest.raises(ValueError, match="FUSE"):
            read(whole[:length])


def test_setting_the_inode_of_a_truncated_entry_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="FUSE"):
        wire.set_entry_inode(bytearray(reply(entry(1, 1))[:40]), 5)
