"""Is an upper file with several names one node, and reached by a name that it has?"""

from __future__ import annotations

import os

import pytest

from pyoverlay.overlay.node import ROOT_NODEID
from tests.harness import Stack as LayerDirectories
from tests.unit.vfs import Vfs


@pytest.fixture
def linked(stack: LayerDirectories) -> LayerDirectories:
    (stack.upper / "directory").mkdir()
    (stack.upper / "directory" / "inside").write_bytes(b"data")
    os.link(stack.upper / "directory" / "inside", stack.upper / "outside")
    return stack


def test_a_name_seen_in_a_forgotten_directory_is_not_relied_on(
    linked: LayerDirectories, overlay: Vfs
) -> None:
    directory = overlay.node(b"directory")
    with pytest.raises(OSError, match="not empty"):
        overlay.run(lambda: overlay.fs.remove_directory(ROOT_NODEID, b"directory"))
    overlay.forget(directory.nodeid)
    outside = overlay.node(b"outside")
    overlay.run(lambda: overlay.fs.rename(ROOT_NODEID, b"directory", ROOT_NODEID, b"moved", 0))
    overlay.mkdir(b"directory")
    overlay.create(b"directory/inside", b"another file")
    overlay.stack.cache.close()
    assert outside.real.status().st_ino == (linked.upper / "outside").stat().st_ino


def test_both_names_are_one_node_however_they_are_met(linked: LayerDirectories, overlay: Vfs) -> None:
    first = overlay.node(b"outside")
    assert overlay.node(b"directory/inside") is first
    overlay.forget_everything()
    second = overlay.node(b"directory/inside")
    assert overlay.node(b"outside") is second


def test_the_last_name_left_is_still_the_node_of_an_open_file(linked: LayerDirectories, overlay: Vfs) -> None:
    opened = overlay.node(b"outside")
    overlay.run(lambda: overlay.fs.unlink(ROOT_NODEID, b"outside"))
    assert opened.unlinked
    assert overlay.node(b"directory/inside") is opened
    assert not opened.unlinked
