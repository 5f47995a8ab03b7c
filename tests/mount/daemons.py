"""How does a test watch a daemon from outside: is its mount there, has it ended, how far has it copied?

Knows Linux's /proc and nothing of pyoverlay's insides.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LIMIT_SECONDS = 60
"""How long a test waits for what should take a moment."""

_PR_SET_CHILD_SUBREAPER = 36


def wait_until(condition: Callable[[], bool], what: str, seconds: float = LIMIT_SECONDS) -> float:
    """Polls until the condition holds.

    Returns:
        how many seconds that took.

    Raises:
        AssertionError: it didn't hold within `seconds`.
    """
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what} didn't happen within {seconds:.0f} s"
        time.sleep(0.005)
    return time.monotonic() - start


def is_mounted(target: Path) -> bool:
    """Whether something is mounted on `target`; asks the table, not the mount."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split()[4] == str(target) for line in table)


def wait_for_end(pid: int, seconds: float = LIMIT_SECONDS) -> float:
    """Waits until a process that isn't ours has ended; returns how many seconds that took."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0.0
    start = time.monotonic()
    try:
        ended, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    assert ended, f"daemon {pid} still ran {seconds:.0f} s after its end was asked for"
    return time.monotonic() - start


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Makes orphaned descendants this process's children, so that a daemon's exit status can be read."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        assert prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


def children() -> set[int]:
    """The pids of this process's children, adopted ones too."""
    return {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text(encoding="ascii").split()
    }


def exit_status(pid: int) -> int:
    """Waits for the end of a daemon that was adopted; returns its exit status, negative for a signal."""
    ended: list[int] = []

    def has_ended() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended.append(status)
        return bool(ended)

    wait_until(has_ended, f"the end of daemon {pid}")
    return os.waitstatus_to_exitcode(ended[0])


def bytes_in_preparation(pid: int, work: Path) -> int:
    """How much of a copy-up is done: the size of the daemon's largest file that has no name yet.

    That is a file made with O_TMPFILE (no link at all) or one in the work directory.
    """
    sizes = [0]
    with contextlib.suppress(OSError):
        for link in (Path("/proc") / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                found = link.stat()
                if stat.S_ISREG(found.st_mode) and (found.st_nlink == 0 or _lies_in(link, work)):
                    sizes.append(found.st_size)
    return max(sizes)


def _lies_in(link: Path, directory: Path) -> bool:
    return os.readlink(link).startswith(f"{directory}/")
