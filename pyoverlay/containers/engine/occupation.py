"""Is a container running, and whose is it at the moment?

Two locks on a file in its directory, both gone with the processes that hold them, however those end:

- *flock(2)*'s, held exclusively by who runs or removes it, shared by who reads its files. Forked processes
  have it, too: a container that was killed is free once process 1 and the daemon of its mount have ended.
- *fcntl(2)*'s, held by the process that runs it, and by none of those that it forks: whoever asks learns
  which process that is, without taking anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyoverlay.containers.engine.record import ContainerError

_POLL_SECONDS: Final = 0.02
_LIMIT_SECONDS: Final = 60
"""How long what is ending, and what only reads, is waited for."""
# struct flock: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = struct.Struct("hhqqi")


def runner(lock: Path) -> int | None:
    """Return the process that runs the container (0: one that isn't seen from here); None: it doesn't run."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _runner(descriptor)
    finally:
        os.close(descriptor)


def _runner(descriptor: int) -> int | None:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def begin_running(descriptor: int) -> None:
    """Let others see this process as the one that runs the container; `hold` gave the descriptor."""
    fcntl.fcntl(descriptor, fcntl.F_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


@contextlib.contextmanager
def hold(lock: Path, *, shared: bool = False, kill: bool = False) -> Iterator[int]:
    """Have a container that doesn't run; wait for what is just ending, or reads it.

    Args:
        lock: the file; it is made by whoever makes the container.
        shared: whether others may read it meanwhile.
        kill: end the process that runs it, by SIGKILL, instead of giving up.

    Raises:
        RunningError: it runs.
        ContainerError: it is gone, or somebody has it for too long.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ContainerError(f"container {lock.parent.name} was removed just now") from None
    try:
        _acquire(descriptor, lock, shared=shared, kill=kill)
        if not lock.exists() or not os.path.samestat(os.fstat(descriptor), lock.stat()):
            raise ContainerError(f"container {lock.parent.name} was removed just now")
        yield descriptor
    finally:
        os.close(descriptor)


class RunningError(ContainerError):
    """A container runs, and it mustn't."""


def _acquire(descriptor: int, lock: Path, *, shared: bool, kill: bool) -> None:
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    end = time.monotonic() + _LIMIT_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            return
        pid = _runner(descriptor)
        if pid is not None and not kill:
            raise RunningError(f"container {lock.parent.name} is running")
        if pid:
            _kill(pid, descriptor)
        if time.monotonic() > end:
            raise ContainerError(
                f"container {lock.parent.name} is still in use after {_LIMIT_SECONDS} seconds"
            )
        time.sleep(_POLL_SECONDS)


def _kill(pid: int, descriptor: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            # The number may be another process's by now, which then doesn't hold the lock.
            if _runner(descriptor) == pid:
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
