"""How does another user reach /dev/fuse, the interpreter and pyoverlay, with nothing changed for others?

In a mount namespace: there /dev/fuse is open to everybody, and a directory that only root may pass (/root,
say) is replaced by one that shows what is needed of it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.harness.launcher import REPOSITORY


def shell_commands(room: Path) -> list[str]:
    """Lines for `sh -e` that make a mount namespace of its own such a one; `room` is an empty directory."""
    lines = [
        f"mount -t tmpfs -o mode=755 tmpfs {room}",
        f"mknod -m 666 {room}/fuse c 10 229",
        f"mount --bind {room}/fuse /dev/fuse",
    ]
    for number, (closed, needed) in enumerate(_closed_directories().items()):
        kept = [(f"{room}/{number}-{index}", path) for index, path in enumerate(needed)]
        for place, path in kept:
            lines += [f"mkdir {place}", f"mount --rbind {shlex.quote(str(path))} {place}"]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}")
        for place, path in kept:
            lines += [f"mkdir -p {shlex.quote(str(path))}", f"mount --rbind {place} {shlex.quote(str(path))}"]
    return lines


def _closed_directories() -> dict[Path, list[Path]]:
    """Directories on the way to the interpreter, its packages and pyoverlay that only root may pass."""
    closed: dict[Path, list[Path]] = {}
    for path in {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), REPOSITORY}:
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & 0o001:
                closed.setdefault(parent, []).append(path)
                break
    return closed
