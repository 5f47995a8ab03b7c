"""In a user namespace: lowers on mounts that were inherited, and a daemon that may force no buffer.

Each script runs as the namespace's root, in a mount namespace of its own; the kernel's overlay is beside it
where it can do the same.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.harness import Kind, Stack
from tests.harness.content import make_file
from tests.mount.command import PYOVERLAY, environment

LIMIT_SECONDS = 60
# In a pid namespace, so that a daemon that hangs ends with the script.
_NAMESPACES = "unshare --user --map-root-user --mount --pid --fork --kill-child --mount-proc".split()
OLD = 10**9


def _mount(kind: Kind, stack: Stack, target: Path) -> str:
    options = f"lowerdir={stack.lower},upperdir={stack.upper},workdir={stack.work}"
    if kind is Kind.KERNEL:
        return shlex.join(["mount", "-t", "overlay", "-o", f"userxattr,{options}", "overlay", str(target)])
    if kind is Kind.SLOW_PATH:
        options += ",fast_path=off"
    return shlex.join([*PYOVERLAY, "mount", "-o", options, str(target)])


def _run(mount: str, target: Path, script: str) -> str:
    """Mount, run a script in the merged view, unmount; return what the script printed."""
    lines = f"set -e\n{mount}\ncd {target}\n{script}\ncd /\numount {target}\n"
    finished = subprocess.run(
        [*_NAMESPACES, "sh", "-c", lines],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_reading_moves_no_atime_of_a_lower(stack: Stack, kind: Kind) -> None:
    make_file(stack.lower / "d" / "file", "lower")
    (stack.lower / "d" / "link").symlink_to("file")
    paths = [stack.lower / "d" / "file", stack.lower / "d" / "link", stack.lower / "d"]
    for path in paths:
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    script = "cat d/file; readlink d/link; ls d"
    assert _run(_mount(kind, stack, stack.merged), stack.merged, script) == "lowerfile\nfile\nlink\n"
    assert [path.lstat().st_atime_ns for path in paths] == [OLD] * 3


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_a_lower_may_contain_the_mount_point(stack: Stack, kind: Kind) -> None:
    target = stack.lower / "d" / "mnt"
    target.mkdir(parents=True)
    make_file(stack.lower / "d" / "file", "lower")
    script = "ls d; cat d/file; ls -A d/mnt; stat -c %F d/mnt"
    assert _run(_mount(kind, stack, target), target, script) == "file\nmnt\nlowerdirectory\n"


def test_big_transfers_fit_the_default_buffer(stack: Stack) -> None:
    """Without the right to a bigger buffer, requests and replies of the largest size pass all the same."""
    make_file(stack.lower / "big", os.urandom(3 * 1024 * 1024))
    script = (
        "cp big copy; dd if=big of=direct bs=1M oflag=direct status=none; cmp big copy; cmp big direct; ls"
    )
    assert _run(_mount(Kind.PYOVERLAY, stack, stack.merged), stack.merged, script) == "big\ncopy\ndirect\n"
    for name in ("copy", "direct"):
        assert (stack.upper / name).read_bytes() == (stack.lower / "big").read_bytes()


def test_the_log_says_once_what_is_missing(stack: Stack, tmp_path: Path) -> None:
    make_file(stack.lower / "file", "lower")
    log = tmp_path / "log"
    mount = _mount(Kind.PYOVERLAY, stack, stack.merged)
    assert " -o " in mount
    _run(mount.replace(" -o ", f" --log {log} -o ", 1), stack.merged, "cat file; echo new > file; cat file")
    assert log.read_text().count("done without: passthrough") == 1
