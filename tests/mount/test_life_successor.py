"""Does a daemon that ends late leave alone what was mounted in its place meanwhile?"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pyoverlay.fuse import control
from tests.harness import Kind, Mount, make_stack
from tests.harness.content import make_file
from tests.harness.libc import MNT_DETACH, umount
from tests.mount.command import pyoverlay, succeed
from tests.mount.daemons import is_mounted, wait_for_end


def test_a_new_mount_on_the_same_path_stays(base: Path) -> None:
    old, new = make_stack(base / "old"), make_stack(base / "new")
    make_file(new.lower / "file", "new")
    target = old.merged
    succeed(pyoverlay("mount", "--lower", old.lower, target))
    first = int(control.inspect(str(target))["pid"])
    os.kill(first, signal.SIGSTOP)
    try:
        umount(target, MNT_DETACH)
        new.merged = target
        with Mount(Kind.PYOVERLAY, new) as mount:
            os.kill(first, signal.SIGCONT)
            wait_for_end(first)
            assert is_mounted(target)
            assert (target / "file").read_text() == "new"
            assert mount.inspect()["pid"] == mount.pid
    finally:
        if Path(f"/proc/{first}").exists():
            os.kill(first, signal.SIGKILL)
