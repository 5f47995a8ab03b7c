"""Fixtures of the core's unit tests: an overlay without a mount."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness import Stack as LayerDirectories
from tests.unit.vfs import Vfs


@pytest.fixture
def open_overlay(stack: LayerDirectories) -> Iterator[Callable[..., Vfs]]:
    """A factory of overlays over the directories of `stack`, called with fields of MountOptions."""
    opened: list[Vfs] = []

    def open_it(**options: Any) -> Vfs:  # noqa: ANN401 - fields of MountOptions
        opened.append(Vfs(stack, **options))
        return opened[-1]

    yield open_it
    for vfs in opened:
        vfs.close()


@pytest.fixture
def overlay(open_overlay: Callable[..., Vfs]) -> Vfs:
    """An overlay over the directories of `stack`; what a test puts there before its first lookup shows."""
    return open_overlay()
