"""What may a process do? Asked before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_FULL_UID_MAP: Final = ["0", "0", "4294967295"]
_CAP_SYS_ADMIN: Final = 21


def is_administrator() -> bool:
    """Tell whether this process has CAP_SYS_ADMIN in the initial user namespace: capabilities(7)."""
    if Path("/proc/self/uid_map").read_text(encoding="ascii").split() != _FULL_UID_MAP:
        return False
    return has_administration("self")


def has_administration(process: int | str) -> bool:
    """Tell whether a process or thread has CAP_SYS_ADMIN in its own user namespace.

    Raises OSError when there is no such process.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False
