"""Whom does a text like ``redis``, ``1000`` or ``redis:adm`` name, as passwd(5) and group(5) of an image say?

docker's rules (runc, libcontainer/user: GetExecUser). Pure: it is given the files' lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pyoverlay.sandbox.command import SandboxError

MAXIMUM_ID: Final = 2**31 - 1
"""What docker takes at most."""
_DIGITS: Final = len(str(MAXIMUM_ID))


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a process runs as.

    Attributes:
        user: the user id.
        group: the group id.
        groups: the supplementary groups' ids.
    """

    user: int
    group: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    user: int
    group: int


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    group: int
    members: tuple[str, ...]


def find_account(text: str, passwd: Iterable[str], group: Iterable[str]) -> Account:
    """Find whom ``USER[:GROUP]`` means, each a name or a number; an empty USER is root.

    A number is always an id, whatever it may name, and need not be in the files. The user's further groups
    count when no GROUP is given.

    Args:
        text: what to look up.
        passwd: the lines of /etc/passwd.
        group: the lines of /etc/group.

    Raises:
        SandboxError: there is no such user or group.
    """
    user_text, _, group_text = text.partition(":")
    user_text = user_text or "0"
    wanted = _number(user_text)
    users = (
        user for user in _users(passwd) if wanted == user.user or (wanted is None and user.name == user_text)
    )
    found = next(users, None)
    if found is None and wanted is None:
        raise SandboxError(
            f"there is no user {user_text!r} in the image's /etc/passwd: name one of those, or give a number"
        )
    user = found.user if found else wanted or 0
    primary = found.group if found else 0
    if not group_text:
        members = [entry.group for entry in _groups(group) if found and found.name in entry.members]
        return Account(user, primary, _distinct([primary, *members]))
    primary = _find_group(group_text, group)
    return Account(user, primary, (primary,))


def _find_group(text: str, lines: Iterable[str]) -> int:
    wanted = _number(text)
    if wanted is not None:
        return wanted
    for entry in _groups(lines):
        if entry.name == text:
            return entry.group
    raise SandboxError(
        f"there is no group {text!r} in the image's /etc/group: name one of those, or give a number"
    )


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = _id(text)
    if number is None:
        raise SandboxError(f"{text[:100]} is no user or group: ids go up to {MAXIMUM_ID}")
    return number


def _distinct(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _users(lines: Iterable[str]) -> Iterator[_User]:
    for fields in _fields(lines, 4):
        user, group = _id(fields[2]), _id(fields[3])
        if user is not None and group is not None:
            yield _User(fields[0], user, group)


def _groups(lines: Iterable[str]) -> Iterator[_Group]:
    for fields in _fields(lines, 4):
        group = _id(fields[2])
        if group is not None:
            yield _Group(fields[0], group, tuple(filter(None, fields[3].split(","))))


def _fields(lines: Iterable[str], least: int) -> Iterator[list[str]]:
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) >= least and not line.startswith("#"):
            yield fields


def _id(text: str) -> int | None:
    """Read an id; None when it is none, as in a file's damaged line, which counts for nothing."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS and int(digits) <= MAXIMUM_ID else None
