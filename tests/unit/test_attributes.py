"""What is remembered of extended attributes: does it ever hide one that is there?"""

from __future__ import annotations

import errno
import os
import stat

import pytest

from pyoverlay.layers.layer import LayerObject
from pyoverlay.overlay.filesystem import Caller
from tests.harness import Stack as LayerDirectories
from tests.harness import fails_with
from tests.harness.content import make_directory, make_file
from tests.unit.vfs import Vfs

NAME = b"user.name"
CAPABILITY = b"security.capability"
CAPABILITIES = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service, permitted and effective: struct vfs_cap_data."""


def get(overlay: Vfs, path: bytes, name: bytes = NAME) -> bytes:
    """Ask for an attribute as getxattr(2) does."""
    return overlay.fs.extended_attribute(overlay.node(path).nodeid, name)


def know_that_there_is_none(overlay: Vfs, path: bytes, name: bytes = NAME) -> None:
    """Ask until the answer comes from memory."""
    for _ in range(3):
        with fails_with(errno.ENODATA):
            get(overlay, path, name)


@pytest.fixture(params=["lower", "upper"])
def path(request: pytest.FixtureRequest, stack: LayerDirectories) -> bytes:
    """A file in a layer."""
    make_file((stack.lower if request.param == "lower" else stack.upper) / "file", "content")
    return b"file"


def test_one_that_is_set_is_there(overlay: Vfs, path: bytes) -> None:
    know_that_there_is_none(overlay, path)
    nodeid = overlay.node(path).nodeid
    overlay.run(lambda: overlay.fs.set_extended_attribute(nodeid, NAME, b"value"))
    assert get(overlay, path) == b"value"
    overlay.run(lambda: overlay.fs.remove_extended_attribute(nodeid, NAME))
    know_that_there_is_none(overlay, path)


def test_others_are_there(stack: LayerDirectories, overlay: Vfs, path: bytes) -> None:
    """What one file lacks another may have, before and after its copy-up."""
    os.setxattr(make_file(stack.lower / "other", "content"), NAME, b"value")
    know_that_there_is_none(overlay, path)
    assert get(overlay, b"other") == b"value"
    overlay.change(b"other", mode=0o600)
    assert get(overlay, b"other") == b"value"


def test_a_directory_that_is_copied_up(stack: LayerDirectories, overlay: Vfs) -> None:
    os.setxattr(make_directory(stack.lower / "d"), NAME, b"value")
    know_that_there_is_none(overlay, b"d", b"user.other")
    overlay.create(b"d/new", b"")
    assert get(overlay, b"d") == b"value"


def test_absence_is_asked_of_the_layer_until_it_has_said_so(
    overlay: Vfs, path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that can't have an attribute doesn't become one that merely hasn't got it."""

    def refuse(_self: LayerObject, _name: bytes) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(LayerObject, "attribute", refuse)
    for _ in range(3):
        with fails_with(errno.EOPNOTSUPP):
            get(overlay, path)


@pytest.mark.parametrize("name", [b"system.invented", b"btrfs.invented"])
def test_what_a_file_system_makes_up_is_always_asked_for(
    overlay: Vfs, path: bytes, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """It needn't be in the list of a file's attributes."""
    answers: list[bytes] = []

    def answer(_self: LayerObject, _name: bytes) -> bytes:
        if not answers:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return answers[0]

    monkeypatch.setattr(LayerObject, "attribute", answer)
    know_that_there_is_none(overlay, path, name)
    answers.append(b"now")
    assert get(overlay, path, name) == b"now"


def test_capabilities_that_a_new_file_gets_are_there(overlay: Vfs) -> None:
    """That a new file has none is known without a look; not any longer when it may have some."""
    overlay.create(b"new", b"")
    know_that_there_is_none(overlay, b"new", CAPABILITY)
    overlay.set_attribute(b"new", CAPABILITY, CAPABILITIES)
    assert get(overlay, b"new", CAPABILITY) == CAPABILITIES
    overlay.change(b"new", mode=0o600)
    assert get(overlay, b"new", CAPABILITY) == CAPABILITIES
    overlay.fs.kill_privileges(overlay.node(b"new").nodeid, Caller(1000, 1000, 0))
    know_that_there_is_none(overlay, b"new", CAPABILITY)


def test_set_id_bits_that_a_new_file_gets_fall_again(overlay: Vfs) -> None:
    overlay.create(b"new", b"")
    nodeid = overlay.node(b"new").nodeid
    for _ in range(2):
        overlay.change(b"new", mode=0o6777)
        overlay.fs.kill_privileges(nodeid, Caller(1000, 1000, 0))
        assert stat.S_IMODE(overlay.fs.attributes(overlay.fs.node(nodeid)).mode) == 0o777
