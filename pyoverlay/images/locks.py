"""How do several processes keep out of each other's way in one store?

flock(2) on files of the store: a lock ends with its process, however that ends, so none is ever left over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_POLL: Final = 0.05
"""Seconds between two tries: flock can't wait for a lock and for being called off."""

Wait = Callable[[float], object]
"""Called while another process has the lock, with seconds to wait; may raise to give up."""


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, wait: Wait | None = None) -> Iterator[None]:
    """Hold the lock of a file, made if it isn't there.

    Args:
        path: the file.
        shared: whether others may hold it, too, shared as well.
        wait: what to do while others hold it; None waits without end.
    """
    descriptor = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait)
    try:
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Take a lock for oneself alone; return the descriptor to close, None when somebody has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _acquire(path: Path, operation: int, wait: Wait | None) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while wait is not None:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                wait(_POLL)
            else:
                return descriptor
        fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
