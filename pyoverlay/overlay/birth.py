"""Which owner, mode and ACLs does a new object begin with, and how does it get them?

POSIX's rules for creation (umask or default ACL, setgid directories), applied by us because the daemon
creates on the caller's behalf.  It knows nothing of layers beyond the object that is being made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple, Protocol

from pyoverlay.layers.layer import LayerObject
from pyoverlay.layers.syscalls import error
from pyoverlay.overlay import access_control

_ACCESS_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"
_NO_ACL = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


class Caller(NamedTuple):
    """Who asks: ids as numbers, ``umask`` as bits, ``pid`` of the calling thread."""

    user: int
    group: int
    umask: int
    pid: int = 0


class Owners(Protocol):
    """How an owner is given: `pyoverlay.overlay.ownership.Ownership`."""

    def set_owner(self, place: LayerObject, user: int, group: int) -> None:
        """Set the owner, by ids as they are on disk."""


class Inheritance(NamedTuple):
    """What a directory hands on to what is created in it: ``group`` where it is setgid, and an ACL."""

    group: int | None
    default_acl: bytes | None


class Birth:
    """What a new object gets.

    ``owned`` says that the daemon's own creation gives the right owner, ``plain`` that it gives the right
    mode and ACL as well: that creating it with ``mode`` is all there is to do.  ``first_mode`` is the mode to
    create with: nobody may use an object that isn't its owner's yet.
    """

    __slots__ = ("first_mode", "group", "inherited", "mode", "owned", "owners", "plain", "user")

    def __init__(
        self,
        mode: int,
        owner: tuple[int, int],
        owners: Owners,
        inherited: access_control.Inherited | None = None,
    ) -> None:
        """Plan an object of ``mode`` that belongs to the user and group ``owner``.

        ``inherited`` is what a default ACL gives.  mkdir(2) takes no setgid: the bit comes from the
        directory, and the work directory has none.
        """
        self.mode = mode
        self.user, self.group = owner
        self.owners = owners
        self.inherited = inherited
        self.owned = owner == (os.geteuid(), os.getegid())
        takes_group = bool(mode & stat.S_ISGID) and stat.S_ISDIR(mode)
        self.plain = self.owned and inherited is None and not takes_group
        self.first_mode = stat.S_IMODE(mode) if self.plain else 0

    def finish(self, created: LayerObject) -> None:
        """Give a new object (no symlink) its owner, ACLs and mode, suid and sgid last."""
        if self.plain:
            return
        self.finish_owner(created)
        if self.inherited is not None:
            _set_or_remove(created, _ACCESS_ACL, self.inherited.access)
            if stat.S_ISDIR(self.mode):
                _set_or_remove(created, _DEFAULT_ACL, self.inherited.default)
        created.set_mode(stat.S_IMODE(self.mode))

    def finish_owner(self, created: LayerObject) -> None:
        """Give a new object its owner only: all that a symlink has."""
        if not self.owned:
            self.owners.set_owner(created, self.user, self.group)


def read_inheritance(directory: LayerObject) -> Inheritance:
    """Ask a directory what it hands on.  Raises OSError."""
    status = directory.status()
    group = status.st_gid if status.st_mode & stat.S_ISGID else None
    return Inheritance(group, _default_acl(directory))


def plan_birth(parent: Inheritance, mode: int, caller: Caller, owners: Owners) -> Birth:
    """Work out what an object of ``mode`` (with its type) begins with, created by ``caller``.

    ``parent`` is what its directory hands on.  All ids are those on disk; ``owners`` gives them.

    Sources: fs/posix_acl.c: posix_acl_create; fs/inode.c: inode_init_owner.
    """
    group = caller.group
    is_directory = stat.S_ISDIR(mode)
    if parent.group is not None:
        group = parent.group
        if is_directory:
            mode |= stat.S_ISGID
    default = parent.default_acl if not stat.S_ISLNK(mode) else None
    if default is None:
        return Birth(mode & ~caller.umask, (caller.user, group), owners)
    try:
        inherited = access_control.inherit(default, mode, directory=is_directory)
    except ValueError:
        raise error(errno.EIO) from None
    return Birth(inherited.mode, (caller.user, group), owners, inherited)


def _default_acl(parent: LayerObject) -> bytes | None:
    try:
        return parent.attribute(_DEFAULT_ACL)
    except OSError as failure:
        if failure.errno in _NO_ACL:
            return None
        raise


def _set_or_remove(created: LayerObject, name: bytes, value: bytes | None) -> None:
    if value is not None:
        created.set_attribute(name, value)
        return
    with contextlib.suppress(OSError):
        created.remove_attribute(name)
