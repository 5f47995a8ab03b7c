"""How does an operation wait for a copy-up, while everything else goes on?

Copying runs in a worker thread; two operations that need the same file wait for one copy.  A caller that is
killed stops waiting, and when nobody waits any more the copy is given up.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

import trio

from pyoverlay.layers.syscalls import error
from pyoverlay.overlay.copy_up import CopyUp, CopyUpCancelled, CopyUpNeeded
from pyoverlay.overlay.filesystem import Node, OverlayFilesystem

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS: Final = 0.05
_SIGKILL_PENDING: Final = 1 << (9 - 1)


class _Running:
    """A copy-up that is under way, and who waits for it."""

    def __init__(self, job: CopyUp, *, with_data: bool) -> None:
        self.job = job
        self.with_data = with_data
        self.done = trio.Event()
        self.failure: OSError | None = None
        self.waiting = 0
        self.truncating = 0
        """Of those who wait: who doesn't need the data."""

    def leave(self, need: CopyUpNeeded) -> None:
        self.waiting -= 1
        self.truncating -= not need.with_data

    @property
    def is_unwanted(self) -> bool:
        """Whether nobody wants this copy: an empty one is for those who truncate, and for nobody else."""
        return self.waiting == 0 or (not self.with_data and self.truncating == 0)


class CopyUpQueue:
    """The copy-ups that are under way, one a file."""

    def __init__(self, filesystem: OverlayFilesystem, nursery: trio.Nursery) -> None:
        """Copy up for ``filesystem``; the copies run in ``nursery``."""
        self._filesystem = filesystem
        self._nursery = nursery
        self._running: dict[Node, _Running] = {}
        self._callers: dict[int, trio.CancelScope] = {}

    async def perform(self, need: CopyUpNeeded, pid: int) -> None:
        """Wait until the file that an operation needs is in the upper, or try again is worth it.

        ``pid`` is the caller's thread id, 0 when it isn't known.  Raises OSError; EINTR when the caller was
        killed.
        """
        running = self._running.get(need.node)
        if running is None:
            running = _Running(self._filesystem.begin_copy_up(need), with_data=need.with_data)
            self._running[need.node] = running
            self._nursery.start_soon(self._run, running)
        running.waiting += 1
        running.truncating += not need.with_data
        with trio.CancelScope() as scope:
            if pid:
                self._callers[pid] = scope
            try:
                await running.done.wait()
            finally:
                self._callers.pop(pid, None)
                running.leave(need)
        if scope.cancelled_caught:
            if running.is_unwanted:
                running.job.cancelled = True
            raise error(errno.EINTR)
        if running.failure is not None:
            raise running.failure

    async def _run(self, running: _Running) -> None:
        job = running.job
        try:
            await trio.to_thread.run_sync(job.copy)
            job.publish()
        except CopyUpCancelled:
            log.info("the copy-up of %r was given up: its callers were killed", job.node.name)
        except OSError as failure:
            running.failure = failure
        except Exception:
            log.exception("the copy-up of %r failed", job.node.name)
            running.failure = error(errno.EIO)
        finally:
            job.close()
            del self._running[job.node]
            running.done.set()

    def give_up(self) -> None:
        """Give up all copies that are under way: the daemon ends."""
        for running in self._running.values():
            running.job.cancelled = True

    def interrupt(self, pid: int) -> None:
        """Take note that a caller got a signal: from now on look whether it is one that kills.

        The kernel says so once a request, whatever the signal; a copy-up is killable, not interruptible.
        """
        scope = self._callers.get(pid)
        if scope is not None:
            self._nursery.start_soon(self._watch, pid, scope)

    async def _watch(self, pid: int, scope: trio.CancelScope) -> None:
        while self._callers.get(pid) is scope:
            if _is_being_killed(pid):
                scope.cancel()
                return
            await trio.sleep(_SECONDS_BETWEEN_LOOKS)


def _is_being_killed(pid: int) -> bool:
    """Tell whether SIGKILL is pending for a thread: the kernel turns every fatal signal into it."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) & _SIGKILL_PENDING:
                    return True
    except OSError:
        return True
    return False
