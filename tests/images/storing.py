"""How do these tests use a store without the command line?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from pyoverlay.images import applying, loading
from pyoverlay.images.digests import Digest
from pyoverlay.images.limits import Limits
from pyoverlay.images.loading import Loaded
from pyoverlay.images.store import Store


class Watched:
    """What a load told."""

    def __init__(self) -> None:
        self.existed: dict[str, bool] = {}
        self.warnings: list[str] = []

    def begin(self, layers: Sequence[tuple[Digest, int]]) -> None:
        pass

    def advance(self, layer: Digest, consumed: int) -> None:
        pass

    def finish(self, layer: Digest, *, existed: bool) -> None:
        self.existed[layer] = existed

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def load(store: Store, source: Path, limits: Limits | None = None) -> tuple[list[Loaded], Watched]:
    watched = Watched()
    return loading.load(store, str(source), watched, limits or Limits()), watched


def apply(layer: bytes, directory: Path, limits: Limits | None = None) -> list[str]:
    return applying.apply(io.BytesIO(layer), "layer.tar", str(directory), limits or Limits())
