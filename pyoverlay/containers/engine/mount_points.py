"""Where are a container's /proc, /dev and /sys mounted when its image has no such directories?

In a thin layer of the container's own, between its upper and the image's layers, as docker has one: then the
upper has only what the container changed, also while it runs, and when it was killed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyoverlay.images.implied import Attributes
from pyoverlay.layers import marks

NAMES: Final = ("dev", "proc", "sys")
_MODE: Final = 0o755


def make(layer: Path, lowers: Sequence[Path], root: Attributes) -> None:
    """Make the layer, if there is need of it.

    Args:
        layer: where; its parent is there.
        lowers: the layers beneath it, topmost first.
        root: the attributes of the topmost one's root, which is merged with this layer's.
    """
    missing = [name for name in NAMES if not _is_shown(lowers, name)]
    if not missing:
        return
    layer.mkdir()
    for name in missing:
        (layer / name).mkdir()
        (layer / name).chmod(_MODE)
    root.apply(os.fsencode(layer))


def _is_shown(lowers: Sequence[Path], name: str) -> bool:
    for lower in lowers:
        try:
            status = os.lstat(lower / name)
        except FileNotFoundError:
            continue
        return not marks.is_whiteout_device(status.st_mode, status.st_rdev) and not stat.S_ISREG(
            status.st_mode
        )
    return False
