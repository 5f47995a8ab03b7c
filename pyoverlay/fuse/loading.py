"""How does an operation wait until a large directory has been read, while everything else goes on?

Reading runs in a worker thread; operations that need the same directory wait for one reading.
"""

from __future__ import annotations

from typing import Final

import trio

from pyoverlay.overlay.filesystem import LoadNeeded
from pyoverlay.overlay.node import Directory

_MOST_READINGS: Final = 3
"""A directory that changes all the time is read in the file system's own thread in the end."""


class DirectoryLoads:
    """The readings that are under way, one a directory."""

    def __init__(self) -> None:
        """Begin with none."""
        self._running: dict[Directory, trio.Event] = {}

    async def perform(self, need: LoadNeeded) -> None:
        """Wait until the directory that an operation needs is known, or try again is worth it.

        Raises OSError.
        """
        load = need.load
        running = self._running.get(load.directory)
        if running is not None:
            load.close()
            await running.wait()
            return
        done = self._running[load.directory] = trio.Event()
        try:
            for _ in range(_MOST_READINGS):
                await trio.to_thread.run_sync(load.run)
                if not load.is_outdated:
                    break
                load.begin_anew()
            load.publish()
        finally:
            load.close()
            del self._running[load.directory]
            done.set()
