"""How does pyfuse3 get its next request without a round through trio's event loop?

pyfuse3's workers wait with ``trio.lowlevel.wait_readable`` under a ``trio.Lock``: each request costs two or
three rounds of epoll, a task switch, and often a new task, several times what an answer costs.  pyfuse3 looks
``trio`` up in its own module whenever it needs it (so that ``pyfuse3.asyncio`` can put something else
there), and so do we: `Polling` stands there instead and is trio but for those two.

- To wait is to let the forwarder hand over the next request, in the same task.
- The lock doesn't hand itself on.  Whoever waits for it is made runnable when it is free, but runs only when
  the worker that is at work lets go of the thread: when its handler really waits (a copy-up, a cold read, a
  sync), or nothing is there to do.  So handlers that don't wait follow each other without a task switch,
  and those that wait keep nobody from being served.

What it relies on in pyfuse3 3.x: the name ``trio`` in the extension module; that a worker takes the lock,
waits for the session's descriptor, and reads one message; that another worker is started when none waits.
If that isn't so, nobody asks here for requests, and the forwarder goes on by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, Final

import pyfuse3
import trio


class Polling:
    """Stands for trio in pyfuse3."""

    def __init__(self, next_request: Callable[[], Awaitable[None]], pass_on: Callable[[], None]) -> None:
        """Serve one pyfuse3 session.

        ``next_request`` returns when a request is there for pyfuse3 to read; ``pass_on`` takes the replies
        that a worker has written since it last waited.
        """
        self._next_request = next_request
        self._pass_on = pass_on
        self.open_nursery: Final = trio.open_nursery
        self.ClosedResourceError: Final = trio.ClosedResourceError
        self.lowlevel: Final = SimpleNamespace(
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
            notify_closing=trio.lowlevel.notify_closing,
            wait_readable=self._wait_readable,
        )

    def Lock(self) -> _Turn:  # noqa: N802 - pyfuse3 knows it by trio's name
        """Make the lock under which workers wait."""
        return _Turn(self._pass_on)

    async def _wait_readable(self, _descriptor: int) -> None:
        await self._next_request()

    def install(self) -> None:
        """Take trio's place, where pyfuse3 has one for it."""
        if getattr(pyfuse3, "trio", None) is not None:
            module: Any = pyfuse3
            module.trio = self

    @staticmethod
    def remove() -> None:
        """Give the place back to trio."""
        module: Any = pyfuse3
        if isinstance(getattr(module, "trio", None), Polling):
            module.trio = trio


class _Turn:
    """Whose turn it is to wait for a request."""

    __slots__ = ("_pass_on", "_taken", "_waiting")

    def __init__(self, pass_on: Callable[[], None]) -> None:
        self._pass_on = pass_on
        self._taken = False
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        self._pass_on()
        while self._taken:
            await self._wait()
        self._taken = True

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, *_failure: object) -> None:
        self._taken = False
        if self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft())
