"""Files of the upper with several names before the mount: is each name the same file, however it is met?"""

from __future__ import annotations

import os
from pathlib import Path

from tests.harness import MountFactory, Stack
from tests.harness.content import make_file


def _linked(stack: Stack, *names: str) -> None:
    first = stack.upper / names[0]
    make_file(first, "four")
    for name in names[1:]:
        os.link(first, stack.upper / name)


def test_a_name_that_is_met_after_the_first_was_removed(stack: Stack, mount_overlay: MountFactory) -> None:
    _linked(stack, "a", "b")
    merged = mount_overlay().path
    descriptor = os.open(merged / "a", os.O_RDWR)
    try:
        os.unlink(merged / "a")
        assert (merged / "b").read_text() == "four"
        os.pwrite(descriptor, b"much longer", 0)
        assert (merged / "b").read_text() == "much longer"
        assert os.fstat(descriptor).st_nlink == (merged / "b").stat().st_nlink == 1
        with open(merged / "b", "a", encoding="utf-8") as file:
            file.write(" still")
        assert os.pread(descriptor, 99, 0) == b"much longer still"
    finally:
        os.close(descriptor)


def test_a_file_without_known_names_gets_one_again(stack: Stack, mount_overlay: MountFactory) -> None:
    _linked(stack, "x", "y", "z")
    mount = mount_overlay()
    merged = mount.path
    descriptor = os.open(merged / "x", os.O_RDONLY)
    try:
        os.unlink(merged / "x")
        assert (merged / "y").stat().st_nlink == 2
        os.link(merged / "y", merged / "w")
        os.rename(merged / "y", merged / "v")
        os.truncate(merged / "w", 2)
        assert os.pread(descriptor, 9, 0) == b"fo"
    finally:
        os.close(descriptor)
    for _ in range(2):
        assert {name: (merged / name).read_text() for name in os.listdir(merged)} == {
            "v": "fo",
            "w": "fo",
            "z": "fo",
        }
        mount.remount()


def test_names_in_a_directory_that_is_renamed_and_replaced(stack: Stack, mount_overlay: MountFactory) -> None:
    make_file(stack.upper / "p" / "h", "data")
    os.link(stack.upper / "p" / "h", stack.upper / "g")
    merged = mount_overlay().path
    try:
        os.rmdir(merged / "p")
    except OSError:
        pass
    else:
        raise AssertionError("a directory with a file was removed")
    Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")
    assert (merged / "g").read_text() == "data"
    os.rename(merged / "p", merged / "q")
    make_file(merged / "p" / "h", "other")
    with open(merged / "g", "a", encoding="utf-8") as file:
        file.write("!")
    assert [(merged / name).read_text() for name in ("g", "q/h", "p/h")] == ["data!", "data!", "other"]
