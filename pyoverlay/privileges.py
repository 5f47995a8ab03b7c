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

    A process that can't be asked has no such right, nor has root of another user namespace.
    """
    try:
        return _has_capability(process, _CAP_FSETID) and _shares_our_namespace(process)
    except OSError:
        return False


def keeps_set_group_id(process: int, user: int, group: int) -> bool:
    """Tell whether a thread may leave sgid on a file of ``user`` and ``group``, ids as we see them.

    It is in the group by its supplementary groups, or has CAP_FSETID over the file: fs/inode.c:
    in_group_or_capable.  A process that can't be asked may not.
    """
    try:
        if str(group) in _status_field(process, "Groups:").split():
            return True
        return _has_capability(process, _CAP_FSETID) and (
            _shares_our_namespace(process)
            or (_has_id(process, "uid_map", user) and _has_id(process, "gid_map", group))
        )
    except OSError:
        return False


def _shares_our_namespace(process: int) -> bool:
    return os.readlink(f"/proc/{process}/ns/user") == os.readlink("/proc/self/ns/user")


def _has_id(process: int, name: str, number: int) -> bool:
    """Tell whether an id of ours has a place in the user namespace of a process, which isn't ours."""
    with open(f"/proc/{process}/{name}", encoding="ascii") as id_map:
        for line in id_map:
            _inside, first, count = map(int, line.split())
            if first <= number < first + count:
                return True
    return False


def _has_capability(process: int | str, capability: int) -> bool:
    return bool(int(_status_field(process, "CapEff:") or "0", 16) >> capability & 1)


def _status_field(process: int | str, name: str) -> str:
    with open(f"/proc/{process}/status", encoding="utf-8", errors="replace") as status:
        return next((line.removeprefix(name).strip() for line in status if line.startswith(name)), "")
