"""Fixtures of the tests of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyoverlay.images.store import Store


@pytest.fixture
def store(base: Path) -> Store:
    return Store(base / "store")
