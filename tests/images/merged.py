"""How does a test see layers stacked?  By the kernel's overlay, read-only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def merged(lowers: Sequence[Path], target: Path) -> Iterator[Path]:
    """Show the layers, topmost first, at `target`."""
    target.mkdir(exist_ok=True)
    directories = [str(path) for path in lowers]
    if len(directories) == 1:
        # The kernel wants two lowers without an upper.
        (target.parent / "empty").mkdir(exist_ok=True)
        directories.append(str(target.parent / "empty"))
    options = f"lowerdir={':'.join(directories)}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)
