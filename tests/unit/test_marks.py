"""Is the grammar of marks the kernel's? The values of the kernel's own marks are from Linux 6.18."""

from __future__ import annotations

import errno
import os
import stat
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoverlay.layers import marks
from pyoverlay.layers.marks import TRUSTED, USER, Dialect, Origin, Redirect

# Byte 3 are the flags, whose first bit is the byte order of the machine that wrote it.
KERNEL_ORIGIN = bytes.fromhex(
    f"00fb1d0{int(sys.byteorder == 'big')}010000000000000000000000000000000052c8200031302517"
)
dialects = pytest.mark.parametrize("dialect", [TRUSTED, USER], ids=["trusted", "user"])


def test_attribute_names() -> None:
    assert TRUSTED.attribute("opaque") == b"trusted.overlay.opaque"
    assert USER.attribute("redirect") == b"user.overlay.redirect"


@pytest.mark.parametrize(
    ("mode", "rdev", "expected"),
    [
        (stat.S_IFCHR, 0, True),
        (stat.S_IFCHR | 0o644, 0, True),
        (stat.S_IFCHR | 0o644, os.makedev(1, 3), False),
        (stat.S_IFCHR, os.makedev(0, 1), False),
        (stat.S_IFBLK, 0, False),
        (stat.S_IFREG | 0o644, 0, False),
    ],
)
def test_whiteout_devices(mode: int, rdev: int, expected: bool) -> None:
    assert marks.is_whiteout_device(mode, rdev) is expected


@pytest.mark.parametrize(
    ("name", "mark", "hidden"),
    [
        (b".wh.file", True, b"file"),
        (b".wh..hidden", True, b".hidden"),
        (b".wh.\xff\n", True, b"\xff\n"),
        (b".wh..wh..opq", True, None),
        (b".wh..wh.plnk", True, None),
        (b".wh.", True, None),
        (b".wh", False, None),
        (b"wh.file", False, None),
        (b"file.wh.", False, None),
    ],
)
def test_aufs_names(name: bytes, mark: bool, hidden: bytes | None) -> None:
    assert marks.is_aufs_mark(name) is mark
    assert marks.aufs_hidden_name(name) == hidden


def test_an_aufs_whiteout_hides_its_name() -> None:
    assert marks.aufs_whiteout(b"file") == b".wh.file"
    assert marks.aufs_hidden_name(marks.aufs_whiteout(b"file")) == b"file"
    assert marks.is_aufs_mark(marks.AUFS_OPAQUE)


@pytest.mark.parametrize("attribute", [b"trusted.overlay.opaque", b"user.overlay.opaque"])
@pytest.mark.parametrize(
    ("value", "opaque", "whiteouts"),
    [
        (b"y", True, False),
        (b"x", False, True),
        *((v, False, False) for v in (b"", b"yes", b"Y", b"n", b"xy")),
    ],
)
def test_opaque_values_of_the_kernel(attribute: bytes, value: bytes, opaque: bool, whiteouts: bool) -> None:
    assert attribute in marks.OPAQUE_ATTRIBUTES
    assert marks.is_opaque(attribute, value) is opaque
    assert marks.holds_xattr_whiteouts(attribute, value) is whiteouts


@pytest.mark.parametrize(("value", "opaque"), [(b"y", True), (b"yes", True), (b"x", False), (b"", False)])
def test_opaque_values_of_fuse_overlayfs(value: bytes, opaque: bool) -> None:
    assert b"user.fuseoverlayfs.opaque" in marks.OPAQUE_ATTRIBUTES
    assert marks.is_opaque(b"user.fuseoverlayfs.opaque", value) is opaque
    assert not marks.holds_xattr_whiteouts(b"user.fuseoverlayfs.opaque", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"name", Redirect((b"name",), absolute=False)),
        (b"/name", Redirect((b"name",), absolute=True)),
        (b"/a/b/c", Redirect((b"a", b"b", b"c"), absolute=True)),
        (b"name\0", Redirect((b"name",), absolute=False)),
        (b"name\0x/y", Redirect((b"name",), absolute=False)),
        (b"/name\0/", Redirect((b"name",), absolute=True)),
        (b"..name", Redirect((b"..name",), absolute=False)),
        (b"\xff\n", Redirect((b"\xff\n",), absolute=False)),
    ],
)
def test_redirects(value: bytes, expected: Redirect) -> None:
    assert marks.parse_redirect(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"/", b"//a", b"/a/", b"/a//b", b"a/b", b"a/", b"/a/\0", b"\0", b"\0a"),
        *(b".", b"..", b"/.", b"/..", b"/a/../b"),
    ],
)
def test_malformed_redirects(value: bytes) -> None:
    with pytest.raises(ValueError, match="malformed redirect"):
        marks.parse_redirect(value)


def test_an_origin_that_the_kernel_wrote() -> None:
    origin = Origin(handle_type=1, handle=bytes.fromhex("52c8200031302517"), uuid=bytes(16), upper=False)
    assert marks.decode_origin(KERNEL_ORIGIN) == origin
    assert marks.encode_origin(origin.handle_type, origin.handle, origin.uuid) == KERNEL_ORIGIN


@given(
    handle_type=st.integers(1, 254),
    handle=st.binary(min_size=1, max_size=128),
    uuid=st.binary(min_size=16, max_size=16),
)
def test_origins_are_read_as_they_were_written(handle_type: int, handle: bytes, uuid: bytes) -> None:
    value = marks.encode_origin(handle_type, handle, uuid)
    assert marks.decode_origin(value) == Origin(handle_type, handle, uuid, upper=False)


@given(st.binary(max_size=160))
def test_any_bytes_are_an_origin_or_none(value: bytes) -> None:
    origin = marks.decode_origin(value)
    assert origin is None or origin.handle in value


def _with_byte(position: int, byte: int) -> bytes:
    return KERNEL_ORIGIN[:position] + bytes([byte]) + KERNEL_ORIGIN[position + 1 :]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="origin unknown"),
        pytest.param(KERNEL_ORIGIN[:21], id="no handle"),
        pytest.param(KERNEL_ORIGIN[:-1], id="cut short"),
        pytest.param(_with_byte(0, 1), id="newer version"),
        pytest.param(_with_byte(1, 0xFA), id="other magic"),
        pytest.param(_with_byte(2, 0x1E), id="length beyond the end"),
        pytest.param(_with_byte(2, 20), id="length below the header"),
        pytest.param(_with_byte(3, 8), id="unknown flag"),
        pytest.param(_with_byte(3, 1 if sys.byteorder == "little" else 0), id="other byte order"),
    ],
)
def test_origins_that_say_nothing(value: bytes) -> None:
    assert marks.decode_origin(value) is None


def test_origin_flags() -> None:
    any_endian, any_endian_upper = (
        marks.decode_origin(_with_byte(3, 3)),
        marks.decode_origin(_with_byte(3, 6)),
    )
    assert any_endian is not None
    assert not any_endian.upper
    assert any_endian_upper is not None
    assert any_endian_upper.upper


@pytest.mark.parametrize(
    ("handle_type", "handle", "uuid"),
    [
        (0, b"1234", bytes(16)),
        (255, b"1234", bytes(16)),
        (1, b"", bytes(16)),
        (1, bytes(129), bytes(16)),
        (1, b"1234", bytes(15)),
    ],
)
def test_origins_that_cannot_be_written(handle_type: int, handle: bytes, uuid: bytes) -> None:
    with pytest.raises(ValueError, match=r"file handle|UUID"):
        marks.encode_origin(handle_type, handle, uuid)


@dialects
def test_own_attributes_are_hidden_and_escaped_ones_are_not(dialect: Dialect) -> None:
    own, escaped = dialect.attribute("opaque"), dialect.prefix + b"overlay.opaque"
    assert marks.is_own_attribute(dialect, own)
    assert marks.from_disk(dialect, own) is None
    assert not marks.is_own_attribute(dialect, escaped)
    assert marks.from_disk(dialect, escaped) == own
    assert marks.to_disk(dialect, own) == escaped


@dialects
@pytest.mark.parametrize(
    "name",
    [b"user.name", b"security.capability", b"trusted.overlay", b"user.overlays", b"trusted.other.overlay."],
)
def test_other_attributes_are_left_alone(dialect: Dialect, name: bytes) -> None:
    assert not marks.is_own_attribute(dialect, name)
    assert marks.to_disk(dialect, name) == name
    assert marks.from_disk(dialect, name) == name


def test_each_dialect_shows_the_others_marks() -> None:
    assert marks.from_disk(TRUSTED, b"user.overlay.opaque") == b"user.overlay.opaque"
    assert marks.to_disk(USER, b"trusted.overlay.opaque") == b"trusted.overlay.opaque"


@given(
    dialect=st.sampled_from([TRUSTED, USER]),
    prefix=st.sampled_from(
        [b"trusted.overlay.", b"user.overlay.", b"trusted.overlay.overlay.", b"user.", b""]
    ),
    rest=st.binary(min_size=1, max_size=200),
)
def test_users_names_survive_the_disk(dialect: Dialect, prefix: bytes, rest: bytes) -> None:
    on_disk = marks.to_disk(dialect, prefix + rest)
    assert marks.from_disk(dialect, on_disk) == prefix + rest
    assert not marks.is_own_attribute(dialect, on_disk)


@dialects
def test_names_that_the_escape_makes_too_long(dialect: Dialect) -> None:
    longest = 255 - len(dialect.prefix) - len(b"overlay.")
    assert len(marks.to_disk(dialect, dialect.prefix + b"n" * longest)) == 255
    with pytest.raises(OSError, match="not supported") as caught:
        marks.to_disk(dialect, dialect.prefix + b"n" * (longest + 1))
    assert caught.value.errno == errno.EOPNOTSUPP


@dialects
def test_a_bare_prefix_names_nothing(dialect: Dialect) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        marks.to_disk(dialect, dialect.prefix)
    assert caught.value.errno == errno.EINVAL
