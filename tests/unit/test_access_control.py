"""Does `inherit` give new objects what the kernel gives them? The kernel itself is asked, in a directory."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyoverlay.overlay.access_control import Inherited, inherit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF
Entries = list[tuple[int, int, int]]


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def minimal(owner: int, group: int, other: int) -> bytes:
    return acl((USER_OBJ, owner, NOBODY), (GROUP_OBJ, group, NOBODY), (OTHER, other, NOBODY))


permissions = st.integers(0, 7)
identities = st.lists(st.integers(1, 70_000), max_size=4, unique=True).map(sorted)


@st.composite
def acls(draw: st.DrawFn) -> bytes:
    entries: Entries = [(USER_OBJ, draw(permissions), NOBODY)]
    users, groups = draw(identities), draw(identities)
    entries += [(USER, draw(permissions), user) for user in users]
    entries += [(GROUP_OBJ, draw(permissions), NOBODY)]
    entries += [(GROUP, draw(permissions), group) for group in groups]
    masked: bool = draw(st.booleans())
    if masked or users or groups:
        entries += [(MASK, draw(permissions), NOBODY)]
    entries += [(OTHER, draw(permissions), NOBODY)]
    return acl(*entries)


@contextlib.contextmanager
def _default_acl(directory: Path, default: bytes) -> Iterator[None]:
    os.setxattr(directory, "system.posix_acl_default", default)
    try:
        yield
    finally:
        for entry in directory.iterdir():
            entry.rmdir() if entry.is_dir() else entry.unlink()


def _attribute(path: Path, name: str) -> bytes | None:
    return os.getxattr(path, name) if name in os.listxattr(path) else None


def _as_the_kernel_did(path: Path) -> Inherited:
    # S_IFMT isn't part of the question.
    mode = path.lstat().st_mode & 0o7777
    return Inherited(
        mode, _attribute(path, "system.posix_acl_access"), _attribute(path, "system.posix_acl_default")
    )


@given(default=acls(), mode=st.integers(0, 0o777))
@example(default=minimal(7, 5, 5), mode=0o666)
@example(default=minimal(0, 0, 0), mode=0o777)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_new_objects_get_what_the_kernel_gives(tmp_path: Path, default: bytes, mode: int) -> None:
    with _default_acl(tmp_path, default):
        file, directory = tmp_path / "file", tmp_path / "directory"
        os.close(os.open(file, os.O_CREAT | os.O_EXCL, mode))
        directory.mkdir(mode)
        assert inherit(default, mode, directory=False) == _as_the_kernel_did(file)
        assert inherit(default, mode, directory=True) == _as_the_kernel_did(directory)


def test_bits_beyond_permissions_stay() -> None:
    assert inherit(minimal(5, 0, 0), 0o106777, directory=False).mode == 0o106500


@pytest.mark.parametrize(
    ("bits", "expected"), [(0o666, 0o640), (0o600, 0o600), (0o777, 0o750), (0o000, 0o000), (0o027, 0o000)]
)
def test_a_minimal_acl_limits_the_mode_and_leaves_no_acl(bits: int, expected: int) -> None:
    assert inherit(minimal(7, 5, 0), bits, directory=False) == Inherited(expected, None, None)


def test_a_mask_takes_the_groups_bits_of_the_mode() -> None:
    default = acl(
        (USER_OBJ, 7, NOBODY), (USER, 7, 1000), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 4, NOBODY)
    )
    inherited = inherit(default, 0o640, directory=False)
    assert inherited.mode == 0o640
    assert inherited.access == acl(
        (USER_OBJ, 6, NOBODY), (USER, 7, 1000), (GROUP_OBJ, 5, NOBODY), (MASK, 4, NOBODY), (OTHER, 0, NOBODY)
    )
    assert inherited.default is None


def test_a_directory_hands_the_default_on_unchanged() -> None:
    default = acl((USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY))
    assert inherit(default, 0o700, directory=True).default == default


_OWNER, _GROUP, _OTHER = (USER_OBJ, 7, NOBODY), (GROUP_OBJ, 7, NOBODY), (OTHER, 7, NOBODY)


@pytest.mark.parametrize(
    "malformed",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(acl(), id="no entries"),
        pytest.param(acl(_OWNER, _GROUP, _OTHER)[:-1], id="cut short"),
        pytest.param(acl(_OWNER, _GROUP, _OTHER) + b"\0", id="too long"),
        pytest.param(acl(_OWNER, _GROUP, _OTHER, version=1), id="version 1"),
        pytest.param(acl(_OWNER, _GROUP, (0x40, 7, NOBODY)), id="unknown tag"),
        pytest.param(acl(_OWNER, _GROUP, (OTHER, 8, NOBODY)), id="unknown permission"),
        pytest.param(acl(_OWNER, (USER, 7, 1), _GROUP, _OTHER), id="no mask"),
        pytest.param(acl(_OWNER, _GROUP, (MASK, 7, NOBODY), (MASK, 7, NOBODY), _OTHER), id="two masks"),
        pytest.param(acl(_OWNER, _OWNER, _GROUP, _OTHER), id="two owners"),
        pytest.param(acl(_GROUP, _OTHER), id="no owner"),
        pytest.param(acl(_OWNER, _OTHER), id="no group"),
        pytest.param(acl(_OWNER, _GROUP), id="no others"),
        pytest.param(acl(_GROUP, _OWNER, _OTHER), id="out of order"),
    ],
)
def test_malformed_acls_are_refused(malformed: bytes) -> None:
    with pytest.raises(ValueError, match=r"ACL"):
        inherit(malformed, 0o777, directory=False)
