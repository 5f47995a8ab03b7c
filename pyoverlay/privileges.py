"""What may a process do? Asked before anything heavy is imported."""

from __future__ import annotations

import os
from typing import Final

_FULL_UID_MAP: Final = ["0", "0", "4294967295"]
_CAP_FOWNER: Final = 3
_CAP_FSETID: Final = 4
_CAP_SYS_ADMIN: Final = 21


def is_administrator() -> bool:
    """Tell whether this process has CAP_SYS_ADMIN in the initial user namespace: capabilities(7)."""
    with open("/proc/self/uid_map", encoding="ascii") as uid_map:
        if uid_map.read().split() != _FULL_UID_MAP:
            return False
    return has_administration("self")


def default_options() -> tuple[bool, list[str]]:
    """Tell what holds of a mount before any option is read.

    Returns:
        Whether trusted.overlay.* marks and mount(2) are ours (CAP_SYS_ADMIN in the initial user namespace),
        and words that go before the user's.  Root of a user namespace can't have the former, but serves
        other users as root does, and its suid bits and devices hold within the namespace only.
    """
    if is_administrator():
        return True, []
    return False, ["allow_other,suid,dev"] if os.geteuid() == 0 else []


def has_administration(process: int | str) -> bool:
    """Tell whether a process or thread has CAP_SYS_ADMIN in its own user namespace.

    Raises OSError when there is no such process.
    """
    return _has_capability(process, _CAP_SYS_ADMIN)


def acts_as_owner(process: int) -> bool:
    """Tell whether a thread may do what a file's owner may: CAP_FOWNER, capabilities(7).

    Raises OSError when there is no such process.
    """
    return _has_capability(process, _CAP_FOWNER)


def keeps_set_id_bits(process: int) -> bool:
    """Tell whether suid and sgid stay when a thread changes a file's data: CAP_FSETID, capabilities(7).

    A process that can't be asked has no such right.
    """
    try:
        return _has_capability(process, _CAP_FSETID)
    except OSError:
        return False


def _has_capability(process: int | str, capability: int) -> bool:
    with open(f"/proc/{process}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False
