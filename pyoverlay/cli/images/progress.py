"""How is a load watched: one bar a layer, or one line a layer where nobody looks at a terminal?"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from pyoverlay.images.digests import Digest, short


class Bars:
    """Draws what `pyoverlay.images.loading` tells; a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Draw on standard error's terminal, or print lines; nothing but warnings when ``quiet``."""
        self._quiet: Final = quiet
        self._console: Final = Console(stderr=True, highlight=False)
        self._lock: Final = threading.Lock()
        self._tasks: dict[Digest, TaskID] = {}
        self._order: list[Digest] = []
        self._states: dict[Digest, str] = {}
        self._progress: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                TextColumn("{task.fields[state]:<14}"),
                BarColumn(),
                DownloadColumn(),
                console=self._console,
            )

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def begin(self, layers: Sequence[tuple[Digest, int]]) -> None:
        """Show an image's layers, the lowest first."""
        self._order = [layer for layer, _ in layers]
        self._states.clear()
        for layer, size in layers:
            if self._progress is not None and layer not in self._tasks:
                self._tasks[layer] = self._progress.add_task(short(layer), total=size, state="Waiting")

    def advance(self, layer: Digest, consumed: int) -> None:
        """Move a layer's bar to so many bytes."""
        if self._progress is not None:
            self._progress.update(self._tasks[layer], completed=consumed, state="Unpacking")

    def finish(self, layer: Digest, *, existed: bool) -> None:
        """Say what became of a layer."""
        state = "Already exists" if existed else "Unpacked"
        if self._progress is not None:
            task = self._tasks[layer]
            total = self._progress.tasks[task].total
            self._progress.update(task, completed=total, state=state)
            return
        with self._lock:
            self._states[layer] = state
            # In their order, whichever is done first.
            while self._order and self._order[0] in self._states:
                done = self._order.pop(0)
                if not self._quiet:
                    print(f"{short(done)}: {self._states[done]}", flush=True)

    def warn(self, text: str) -> None:
        """Tell what was left out."""
        with self._lock:
            self._console.print(f"pyoverlay: {text}", markup=False, soft_wrap=True)
