"""Which modes and attributes does an entry get, for whoever unpacks it?"""

from __future__ import annotations

import pytest

from pyoverlay.images.storing import Privileges
from pyoverlay.images.tar_entries import Entry, Kind
from pyoverlay.layers import marks

ROOT = Privileges(owners=True, devices=True, dialect=marks.TRUSTED)
NAMESPACE = Privileges(owners=True, devices=False, dialect=marks.USER)
USER = Privileges(owners=False, devices=False, dialect=marks.USER)


@pytest.mark.parametrize(
    ("name", "root", "namespace", "user"),
    [
        (b"user.note", b"user.note", b"user.note", b"user.note"),
        (b"security.capability", b"security.capability", b"security.capability", None),
        (b"security.ima", b"security.ima", None, None),
        (b"security.selinux", None, None, None),
        (b"trusted.note", b"trusted.note", None, None),
        (b"system.posix_acl_access", b"system.posix_acl_access", b"system.posix_acl_access", None),
        (b"trusted.overlay.redirect", b"trusted.overlay.overlay.redirect", None, None),
        (b"user.overlay.redirect", None, b"user.overlay.overlay.redirect", b"user.overlay.overlay.redirect"),
        (b"user.fuseoverlayfs.opaque", None, None, None),
    ],
)
def test_extended_attributes(
    name: bytes, root: bytes | None, namespace: bytes | None, user: bytes | None
) -> None:
    assert [may.xattr(name) for may in (ROOT, NAMESPACE, USER)] == [root, namespace, user]


@pytest.mark.parametrize(
    ("kind", "mode", "of_a_user"),
    [
        ("file", 0o6755, 0o755),
        ("file", 0o000, 0o400),
        ("directory", 0o1777, 0o1777),
        ("directory", 0o2555, 0o755),
    ],
)
def test_modes(kind: Kind, mode: int, of_a_user: int) -> None:
    entry = Entry(b"name", kind, mode, 1, 2, 0)
    assert ROOT.mode(entry) == NAMESPACE.mode(entry) == mode
    assert USER.mode(entry) == of_a_user
