"""How does an image come into the store: which layers are missing, and who unpacks them?

Layers are unpacked side by side, each once: those that are there already, or that another process is just
unpacking, aren't unpacked again. The image itself appears when all its layers are there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final, Protocol

from pyoverlay.images import archives, checking, implied
from pyoverlay.images.archives import FoundImage, FoundLayer
from pyoverlay.images.digests import Digest
from pyoverlay.images.errors import CancelledError, ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.store import Store

_MOST_AT_ONCE: Final = 4


class Watcher(Protocol):
    """Who wants to know how a load gets on; called from several threads."""

    def begin(self, layers: Sequence[tuple[Digest, int]]) -> None:
        """These layers, with their stored sizes in bytes, are an image's; the lowest first."""
        ...

    def advance(self, layer: Digest, consumed: int) -> None:
        """So many stored bytes of a layer were read."""
        ...

    def finish(self, layer: Digest, *, existed: bool) -> None:
        """A layer is there."""
        ...

    def warn(self, text: str) -> None:
        """Something was left out."""
        ...


@dataclass
class Loaded:
    """An image that is in the store now."""

    image_id: Digest
    names: list[str]


@dataclass
class _Load:
    store: Store
    limits: Limits
    watcher: Watcher
    cancelled: threading.Event = field(default_factory=threading.Event)

    def image(self, image: FoundImage) -> None:
        layers = {layer.diff_id: layer for layer in image.layers}
        self.watcher.begin([(layer.diff_id, layer.size) for layer in layers.values()])
        with ThreadPoolExecutor(min(_MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
            # The biggest first, so that none of them is still at it when all others are done.
            largest_first = sorted(layers.values(), key=lambda layer: -layer.size)
            futures = [pool.submit(self._layer, layer) for layer in largest_first]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() and future.exception() is None for future in futures):
                    self.cancelled.set()
        errors = [error for future in futures if (error := future.exception()) is not None]
        errors.sort(key=lambda error: isinstance(error, CancelledError))
        if errors:
            raise errors[0]

    def _layer(self, layer: FoundLayer) -> None:
        self._stop_if_cancelled()
        with self.store.lock_layer(layer.diff_id, self._wait):
            existed = checking.is_sound(self.store, layer.diff_id)
            if not existed:
                self._unpack(layer)
        self.watcher.finish(layer.diff_id, existed=existed)

    def _unpack(self, layer: FoundLayer) -> None:
        def advanced(consumed: int) -> None:
            self._stop_if_cancelled()
            self.watcher.advance(layer.diff_id, consumed)

        blob = layer.open()
        try:
            _, warnings = self.store.add_layer(layer.diff_id, blob, self.limits, advanced)
        finally:
            blob.close()
        for warning in warnings:
            self.watcher.warn(f"layer {layer.diff_id}: {warning}")

    def _wait(self, seconds: float) -> None:
        if self.cancelled.wait(seconds):
            raise CancelledError("called off")

    def _stop_if_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise CancelledError("called off")


def load(
    store: Store, source: str, watcher: Watcher, limits: Limits, names: Sequence[str] = ()
) -> list[Loaded]:
    """Add every image in a file or directory to the store.

    Args:
        store: where to.
        source: a path, or ``-`` for standard input.
        watcher: is told how it gets on.
        limits: what is refused.
        names: full names to give the image instead of its own; then there may be only one.

    Returns:
        What was added.

    Raises:
        ImageError: see `archives.open_images` and `Store.add_layer`; what isn't whole isn't there.
    """
    with store.adding(), archives.open_images(source, store.root / "unfinished", limits) as images:
        return add_images(store, images, watcher, limits, names)


def add_images(
    store: Store, images: Sequence[FoundImage], watcher: Watcher, limits: Limits, names: Sequence[str] = ()
) -> list[Loaded]:
    """Add images that were found; `store.adding` is held."""
    if names and len(images) > 1:
        raise ImageError(
            f"it holds {len(images)} images, so that a name for one can't be given; tag them afterwards"
        )
    loaded = []
    for image in images:
        _Load(store, limits, watcher).image(image)
        layers = [layer.diff_id for layer in image.layers]
        implied.adjust(store, layers)
        given = list(names) if names else image.names
        store.add_image(image.image_id, image.config, layers, given)
        loaded.append(Loaded(image.image_id, given))
    return loaded
