"""What is known of a directory that changes while it is read?"""

from __future__ import annotations

import stat

from pyoverlay.overlay.filesystem import Change
from pyoverlay.overlay.merging import DirectoryLoad
from pyoverlay.overlay.node import Directory
from tests.harness import Stack as LayerDirectories
from tests.harness.content import make_file
from tests.unit.vfs import Vfs


def _change_while_it_is_read(overlay: Vfs, name: bytes, change: Change, *, forget: bool = False) -> Directory:
    """Change an entry of ``d`` after its names were read, and before they are published."""
    directory = overlay.directory(b"d")
    node = overlay.node(b"d/" + name)
    load = DirectoryLoad(overlay.fs._lookup, directory)
    load.run()
    overlay.run(lambda: overlay.fs.change_attributes(node.nodeid, change))
    if forget:
        overlay.forget(node.nodeid)
    load.publish()
    return directory


def _is_whiteout(stack: LayerDirectories, name: str) -> bool:
    return stat.S_ISCHR((stack.upper / name).lstat().st_mode)


def test_a_file_copied_up_meanwhile_leaves_a_whiteout_when_it_is_removed(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    make_file(stack.lower / "d" / "file", b"lower")
    directory = _change_while_it_is_read(overlay, b"file", Change(mode=0o600))
    overlay.run(lambda: overlay.fs.unlink(directory.nodeid, b"file"))
    assert _is_whiteout(stack, "d/file")


def test_a_directory_copied_up_meanwhile_leaves_a_whiteout_when_it_is_removed(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    (stack.lower / "d" / "sub").mkdir(parents=True)
    directory = _change_while_it_is_read(overlay, b"sub", Change(mode=0o700))
    overlay.run(lambda: overlay.fs.remove_directory(directory.nodeid, b"sub"))
    assert _is_whiteout(stack, "d/sub")


def test_what_was_copied_up_and_forgotten_meanwhile_is_the_copy(
    stack: LayerDirectories, overlay: Vfs
) -> None:
    make_file(stack.lower / "d" / "file", b"lower")
    _change_while_it_is_read(overlay, b"file", Change(size=0), forget=True)
    assert overlay.fs.attributes(overlay.node(b"d/file")).size == 0
