"""How is a tree of the store's own removed, however deep it is?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pyoverlay.layers.layer import DescriptorCache, Layer

_OPEN_DIRECTORIES: Final = 256


def remove_tree(tree: Path) -> None:
    """Remove a directory and all in it, without following symlinks; nothing when it isn't there.

    Raises OSError when something can't be removed.
    """
    cache = DescriptorCache(_OPEN_DIRECTORIES)
    try:
        descriptor = os.open(tree.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    parent = Layer(str(tree.parent), descriptor, cache, writable=True)
    try:
        parent.root.remove_tree(os.fsencode(tree.name))
    except FileNotFoundError:
        # Not there, or taken away by somebody else: gone in either case.
        if tree.exists():
            raise
    finally:
        cache.close()
        parent.close()
