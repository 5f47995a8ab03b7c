"""Does a daemon that ends late leave alone what was mounted in its place meanwhile?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from pyoverlay.fuse import control
from tests.harness import Kind, Mount, make_stack
from tests.harness.content import make_file
from tests.harness.libc import MNT_DETACH, umount
from tests.mount.command import LIMIT_SECONDS, fail, pyoverlay, start, succeed, wait_for
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


def test_a_new_mount_of_the_same_upper_waits_for_the_daemon_that_is_about_to_end(base: Path) -> None:
    stack = make_stack(base / "stack")
    first = Mount(Kind.PYOVERLAY, stack)
    first.mount()
    daemon = first.pid
    assert daemon is not None
    os.kill(daemon, signal.SIGSTOP)
    try:
        umount(stack.merged, MNT_DETACH)
        words = ["mount", f"--lower={stack.lower}", f"--upper={stack.upper}", f"--work={stack.work}"]
        second = start(*words, stack.merged, stderr=subprocess.PIPE)
        # It has come so far when it has a descriptor of the upper; it must not give up then.
        wait_for(lambda: _is_opened(stack.upper, than=daemon) or second.poll() is not None)
        os.kill(daemon, signal.SIGCONT)
        _, said = second.communicate(timeout=LIMIT_SECONDS)
        assert (second.returncode, said) == (0, b"")
        make_file(stack.merged / "file", "new")
        assert (stack.upper / "file").read_text() == "new"
        succeed(pyoverlay("unmount", stack.merged))
    finally:
        first.remove()


def _is_opened(directory: Path, *, than: int) -> bool:
    """Whether another process than one has a directory open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) == str(directory) and int(descriptor.parts[2]) != than:
                return True
    return False


def test_a_new_mount_of_the_same_upper_waits_while_another_namespace_has_the_old_one(base: Path) -> None:
    stack = make_stack(base / "stack")
    first = Mount(Kind.PYOVERLAY, stack)
    first.mount()
    daemon = first.pid
    assert daemon is not None
    words = ["unshare", "--mount", "--propagation=private", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            umount(stack.merged, 0)
            layers = [f"--lower={stack.lower}", f"--upper={stack.upper}", f"--work={stack.work}"]
            second = start("mount", *layers, stack.merged, stderr=subprocess.PIPE)
            wait_for(lambda: _is_opened(stack.upper, than=daemon) or second.poll() is not None)
            assert Path(f"/proc/{daemon}").exists()
            holder.kill()
            _, said = second.communicate(timeout=LIMIT_SECONDS)
            assert (second.returncode, said) == (0, b"")
            succeed(pyoverlay("unmount", stack.merged))
        finally:
            holder.kill()
            first.remove()


def test_an_upper_in_use_is_refused_at_once(base: Path) -> None:
    stack = make_stack(base / "stack")
    with Mount(Kind.PYOVERLAY, stack):
        words = ["mount", f"--lower={stack.lower}", f"--upper={stack.upper}", f"--work={stack.work}"]
        (base / "other").mkdir()
        begin = time.monotonic()
        line = fail(pyoverlay(*words, base / "other"))
        assert "in use by another pyoverlay mount" in line
        # Not before it had waited for an end that doesn't come.
        assert time.monotonic() - begin < 10
