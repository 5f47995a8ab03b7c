"""How is an object reached in a layer that keeps owners, modes and types in an extended attribute?

`RecordedObject` takes the place of `LayerObject` in such a layer (the file's grammar is `override_stat`):
whoever asks it for a status or an attribute gets what is to be shown, and a change of owner or mode rewrites
the record only.  On disk everything belongs to the daemon.  It does not know how layers stack.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, replace
from typing import Final

from pyoverlay.layers import override_stat
from pyoverlay.layers.layer import Layer, LayerObject
from pyoverlay.layers.marks import is_whiteout_device
from pyoverlay.layers.override_stat import Record, Spelling
from pyoverlay.layers.syscalls import error

_UNBORN_MODE: Final = 0o700
"""Of what has no record yet: nobody but the daemon may use it."""
_OTHERS: Final = 0o055
_CAPABILITY: Final = b"security.capability"
_NO_ATTRIBUTE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP})
_NOT_ALLOWED: Final = frozenset({errno.EPERM, errno.EINVAL})
"""EINVAL: the id has no place in the daemon's user namespace."""
_LONGEST_TARGET: Final = 4096


@dataclass(frozen=True, slots=True)
class Records:
    """How a layer keeps its records.

    ``disk_mode`` is the mode on disk of what is made in it: others may read where they may read its root, as
    other users do whose lower it is, and owner and mode that programs see stay out of their way.
    """

    spelling: Spelling
    disk_mode: int


class RecordedObject(LayerObject):
    """An object of a layer that keeps records: `LayerObject`, as programs are to see it."""

    __slots__ = ()
    clears_capabilities = False

    @property
    def _spelling(self) -> Spelling:
        return _records(self.layer).spelling

    # Reading

    def status(self, descriptor: int | None = None) -> os.stat_result:
        """Return the status that the record says; raises OSError EINVAL for a record that says nothing."""
        on_disk = self.status_on_disk(descriptor)
        if not override_stat.may_bear_record(on_disk.st_mode):
            return on_disk
        try:
            if descriptor is None:
                value = super().attribute(self._spelling.attribute)
            else:
                value = os.getxattr(descriptor, self._spelling.attribute)
        except OSError as failure:
            if failure.errno in _NO_ATTRIBUTE:
                return on_disk
            raise
        try:
            return override_stat.shown(on_disk, override_stat.parse(value))
        except ValueError:
            raise error(errno.EINVAL) from None

    def status_of(self, name: bytes) -> os.stat_result:
        """Return the status that the record of what has a name in this directory tells."""
        return self.child(name).status()

    def read_link(self) -> bytes:
        """Return a symlink's target; one that the record made of a regular file has it as its data."""
        if stat.S_ISLNK(self.status_on_disk().st_mode):
            return super().read_link()
        descriptor = self.open(os.O_RDONLY)
        try:
            return os.read(descriptor, _LONGEST_TARGET)
        finally:
            os.close(descriptor)

    def list_attributes(self) -> list[bytes]:
        """Return the names of the extended attributes, as users call them."""
        named = (self._spelling.from_disk(name) for name in super().list_attributes())
        return [name for name in named if name is not None]

    def attribute(self, name: bytes) -> bytes:
        """Return the value of an extended attribute by a user's name, or raise OSError ENODATA."""
        if override_stat.is_acl(name):
            raise error(errno.ENODATA)
        return super().attribute(self._spelling.to_disk(name))

    # Changing

    def set_attribute(self, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute by a user's name; raises OSError EOPNOTSUPP for an ACL."""
        if override_stat.is_acl(name):
            raise error(errno.EOPNOTSUPP)
        super().set_attribute(self._spelling.to_disk(name), value, flags)

    def remove_attribute(self, name: bytes) -> None:
        """Remove an extended attribute by a user's name, or raise OSError ENODATA."""
        super().remove_attribute(self._spelling.to_disk(name))

    def set_mode(self, mode: int) -> None:
        """Set the permission bits that are shown."""
        record = self._record()
        if record is None:
            super().set_mode(mode)
        else:
            self._write(replace(record, mode=stat.S_IFMT(record.mode) | stat.S_IMODE(mode)))

    def set_owner(self, user: int, group: int) -> None:
        """Set owner and group that are shown; -1 leaves one as it is.

        Set-id bits and capabilities fall, as chown(2) lets them.  Symlinks can't have a record: theirs is set
        on disk if the daemon may, and else stays the daemon's.
        """
        record = self._record()
        if record is None:
            self._set_owner_on_disk(user, group)
            return
        self._write(
            Record(
                record.user if user == -1 else user,
                record.group if group == -1 else group,
                override_stat.after_change_of_owner(record.mode),
                record.device,
            )
        )
        if stat.S_ISREG(record.mode):
            with contextlib.suppress(OSError):
                self.remove_attribute(_CAPABILITY)

    def _set_owner_on_disk(self, user: int, group: int) -> None:
        try:
            super().set_owner(user, group)
        except OSError as failure:
            if failure.errno not in _NOT_ALLOWED or not stat.S_ISLNK(self.status_on_disk().st_mode):
                raise

    def _record(self) -> Record | None:
        """Return the record, made of what is shown where there is none; None for what can't have one."""
        if not override_stat.may_bear_record(self.status_on_disk().st_mode):
            return None
        status = self.status()
        return Record(status.st_uid, status.st_gid, status.st_mode, status.st_rdev)

    def _write(self, record: Record) -> None:
        super().set_attribute(self._spelling.attribute, override_stat.format_record(record))

    # Names in this directory

    def create_file(self, name: bytes, flags: int, mode: int) -> int:
        """Create a regular file with O_EXCL and return its descriptor."""
        return self._create(name, flags, stat.S_IFREG | mode)

    def _create(self, name: bytes, flags: int, mode: int, device: int = 0) -> int:
        descriptor = super().create_file(name, flags, _UNBORN_MODE)
        try:
            self._born(descriptor, mode, device)
        except BaseException:
            os.close(descriptor)
            self.remove_file(name)
            raise
        return descriptor

    def _born(self, descriptor: int, mode: int, device: int = 0) -> None:
        """Give a new object the record that says what it would be if the daemon had made it outright."""
        record = Record(os.geteuid(), os.getegid(), mode, device)
        os.setxattr(descriptor, self._spelling.attribute, override_stat.format_record(record))
        os.fchmod(descriptor, _records(self.layer).disk_mode)

    def create_unnamed_file(self, flags: int = os.O_RDWR, mode: int = 0o600) -> int:
        """Create a regular file without a name and return its descriptor."""
        descriptor = super().create_unnamed_file(flags, _UNBORN_MODE)
        try:
            self._born(descriptor, stat.S_IFREG | mode)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def make_directory(self, name: bytes, mode: int) -> None:
        """Create a directory."""
        super().make_directory(name, _UNBORN_MODE)
        try:
            descriptor = self.child(name).open(os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._born(descriptor, stat.S_IFDIR | mode)
            finally:
                os.close(descriptor)
        except BaseException:
            self.remove_directory(name)
            raise

    def make_special(self, name: bytes, mode: int, device: int) -> None:
        """Create a fifo, socket or device: a regular file whose record says so, as containers/storage does.

        A whiteout is itself.
        """
        if is_whiteout_device(mode, device):
            super().make_special(name, mode, device)
        else:
            os.close(self._create(name, os.O_WRONLY, mode, device))


def _records(layer: Layer) -> Records:
    assert layer.records is not None
    return layer.records


def spelling_of(layer: Layer) -> Spelling | None:
    """Return the spelling of a layer's records, which its root tells; None: it keeps none."""
    return override_stat.spelling_among(LayerObject.list_attributes(layer.root))


def keep_records(layer: Layer, spelling: Spelling, disk_mode: int | None = None) -> None:
    """Let all objects of a layer be what their records of this spelling say.  It has no other objects yet.

    ``disk_mode`` is that of what is made in the layer; None takes it from the layer's root.
    """
    if disk_mode is None:
        disk_mode = _UNBORN_MODE | (layer.root.status_on_disk().st_mode & _OTHERS)
    layer.records = Records(spelling, disk_mode)
    descriptor = layer.root.fd
    layer.root = RecordedObject(layer, None, b"")
    layer.root.hold(descriptor)


def begin_records(layer: Layer, like: LayerObject | None) -> None:
    """Give the root of a layer its record, if it has none: it makes the layer one that keeps records.

    ``like`` is the root of a lower whose owner and mode it is to have; None keeps its own.  Raises OSError.
    """
    spelling = _records(layer).spelling
    if spelling_of(layer) == spelling:
        return
    status = (like or layer.root).status()
    record = Record(status.st_uid, status.st_gid, status.st_mode)
    path = layer.root.reopening_path()
    os.setxattr(path, spelling.attribute, override_stat.format_record(record))
