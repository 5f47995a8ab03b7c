"""What is known of a directory that changes while it is read?"""

from __future__ import annotations

import stat

from pyoverlay.overlay.filesystem import Change
from pyoverlay.overlay.merging import DirectoryLoad
from pyoverlay.overlay.node import Directory
from tests.harness import Stack as LayerDirectories
from tests.unit.vfs import Vfs


def _begin(overlay: Vfs, directory: Directory) -> DirectoryLoad:
    load = DirectoryLoad(overlay.fs._lookup, directory)
    load.run()
    return load


def _is_whiteout(stack: LayerDirectories, name: str) -> bool:
    return stat.S_ISCHR((stack.upper / name).lstat().st_mode)


def test_a_file_copied_up_meanwhile_leaves_a_whiteout_when_it_is_removed(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    (stack.lower / "d").mkdir()
    (stack.lower / "d" / "file").write_bytes(b"lower")
    directory = overlay.directory(b"d")
    file = overlay.node(b"d/file")
    load = _begin(overlay, directory)
    overlay.run(lambda: overlay.fs.change_attributes(file.nodeid, Change(mode=0o600)))
    load.publish()
    overlay.run(lambda: overlay.fs.unlink(directory.nodeid, b"file"))
    assert _is_whiteout(stack, "d/file")


def test_a_directory_copied_up_meanwhile_leaves_a_whiteout_when_it_is_removed(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    (stack.lower / "d" / "sub").mkdir(parents=True)
    directory = overlay.directory(b"d")
    sub = overlay.node(b"d/sub")
    load = _begin(overlay, directory)
    overlay.run(lambda: overlay.fs.change_attributes(sub.nodeid, Change(mode=0o700)))
    load.publish()
    overlay.run(lambda: overlay.fs.remove_directory(directory.nodeid, b"sub"))
    assert _is_whiteout(stack, "d/sub")


def test_what_was_copied_up_and_forgotten_meanwhile_is_the_copy(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    (stack.lower / "d").mkdir()
    (stack.lower / "d" / "file").write_bytes(b"lower")
    directory = overlay.directory(b"d")
    file = overlay.node(b"d/file")
    load = _begin(overlay, directory)
    overlay.run(lambda: overlay.fs.change_attributes(file.nodeid, Change(size=0)))
    overlay.forget(file.nodeid)
    load.publish()
    assert overlay.fs.attributes(overlay.node(b"d/file")).size == 0
