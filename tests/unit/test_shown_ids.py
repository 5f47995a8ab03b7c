"""Are ids mapped as idmapped mounts map them, in owners, ACLs and capabilities, and back again?"""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyoverlay.options import IdRange
from pyoverlay.overlay.shown_ids import OVERFLOW_ID, IdMap, ShownIds
from tests.harness import fails_with
from tests.harness.content import posix_acl

SHIFTED = IdMap(((0, 100_000, 65_536),))
NONE = IdMap()
V2 = struct.pack("<I16s", 0x02000001, b"\1" * 16)


def v3(root: int) -> bytes:
    """Capabilities of a file that count where `root` is root."""
    return struct.pack("<I16sI", 0x03000001, b"\1" * 16, root)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[IdRange, ...]:
    """Ranges that overlap on neither side."""
    counts = draw(st.lists(st.integers(1, 50), max_size=4))
    shown_first = draw(st.permutations(range(len(counts))))
    return tuple((place * 60, shown_first[place] * 60 + 7, count) for place, count in enumerate(counts))


@given(ranges(), st.integers(0, 400))
def test_what_is_stored_is_shown_again(drawn: tuple[IdRange, ...], identity: int) -> None:
    mapping = IdMap(drawn)
    stored = mapping.stored_or_none(identity)
    if stored is not None:
        assert mapping.shown(stored) == identity
        assert mapping.creator(identity) == stored
    else:
        assert mapping.creator(identity) == OVERFLOW_ID
    shown = mapping.shown_or_none(identity)
    if shown is not None:
        assert mapping.stored(shown) == identity


def test_a_map_has_ends() -> None:
    assert (SHIFTED.shown(0), SHIFTED.shown(65_535), SHIFTED.shown(65_536)) == (100_000, 165_535, 65_534)
    assert SHIFTED.stored(100_000) == 0
    for outside in (0, 99_999, 165_536):
        with fails_with(errno.EOVERFLOW):
            SHIFTED.stored(outside)


def test_without_ranges_ids_are_themselves() -> None:
    assert (NONE.shown(7), NONE.stored(7), NONE.creator(7)) == (7, 7, 7)


def test_squashing_is_about_owners_only() -> None:
    ids = ShownIds(SHIFTED, NONE, 5, None)
    assert ids.squashes
    assert ids.owner(1000, 7) == (5, 7)
    assert ids.users.stored(101_000) == 1000
    assert not ShownIds(SHIFTED, NONE).squashes


def test_acls_name_who_is_mapped() -> None:
    ids = ShownIds(SHIFTED, IdMap(((5, 50, 1),)))
    on_disk = posix_acl(7, 5, 0, users={1000: 6}, groups={5: 4}, mask=7)
    shown = posix_acl(7, 5, 0, users={101_000: 6}, groups={50: 4}, mask=7)
    assert ids.shown_acl(on_disk) == shown
    assert ids.stored_acl(shown) == on_disk
    with fails_with(errno.EINVAL):
        ids.stored_acl(on_disk)


def test_acls_show_an_id_that_nobody_has_for_who_isnt_mapped() -> None:
    on_disk = posix_acl(7, 5, 0, users={70_000: 6}, groups={70_000: 6})
    nobody = 2**32 - 2
    assert ShownIds(SHIFTED, SHIFTED).shown_acl(on_disk) == posix_acl(
        7, 5, 0, users={nobody: 6}, groups={nobody: 6}
    )


@pytest.mark.parametrize("malformed", [b"", b"\2\0\0\0x", b"\2\0\0"])
def test_malformed_acls_are_left_to_the_file_system(malformed: bytes) -> None:
    assert ShownIds(SHIFTED, NONE).stored_acl(malformed) == malformed


def test_capabilities_count_where_the_shown_root_is_root() -> None:
    ids = ShownIds(SHIFTED, NONE)
    assert ids.shown_capability(V2) == v3(100_000)
    assert ids.stored_capability(v3(100_000)) == V2
    assert ids.shown_capability(v3(1000)) == v3(101_000)
    assert ids.stored_capability(v3(101_000)) == v3(1000)
    with fails_with(errno.EINVAL):
        ids.stored_capability(V2)
    with fails_with(errno.ENODATA):
        ids.shown_capability(v3(70_000))


@pytest.mark.parametrize("value", [b"", b"x" * 20, b"x" * 24, V2 + b"x"])
def test_what_are_no_capabilities_is_left_alone(value: bytes) -> None:
    ids = ShownIds(SHIFTED, NONE)
    assert ids.shown_capability(value) == value
    assert ids.stored_capability(value) == value
