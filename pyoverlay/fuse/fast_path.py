"""Which requests are answered at once, without pyfuse3?

Those that need no waiting: they are read, run and answered in the thread that reads the device, with two
system calls besides the work.  What turns out to wait (a copy-up, a big directory, data that isn't in the
page cache) and what is rare is left to pyfuse3: the request is passed on untouched, since an operation that
asks for more has changed nothing yet.  Translation only, as in `operations`; both ask the same
`OverlayFilesystem`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from pyoverlay.fuse import messages, wire
from pyoverlay.fuse.answers import Answers, caller_of, change_of
from pyoverlay.fuse.device import max_transfer
from pyoverlay.fuse.passthrough import FOPEN_KEEP_CACHE
from pyoverlay.fuse.reading import QuickReads
from pyoverlay.fuse.wire import Buffer, Opcode
from pyoverlay.layers.syscalls import FLAG_COMMANDS, error
from pyoverlay.overlay.files import MOST_GIVEN
from pyoverlay.overlay.filesystem import (
    Change,
    CopyUpNeeded,
    LoadNeeded,
    NameOnly,
    Node,
    OverlayFilesystem,
)
from pyoverlay.overlay.node import OPENED

log = logging.getLogger(__name__)

Handler = Callable[[int, memoryview], Buffer]

_SHORT: Final = 1024
_NO_CHANGE: Final = Change()
_MOST_COPIED: Final = 128 * 1024
"""Bytes that are copied in about the time that it takes to have another thread do it."""
# As plain numbers: they are compared once a request.
_FORGET: Final = int(Opcode.FORGET)
_BATCH_FORGET: Final = int(Opcode.BATCH_FORGET)


class Transport(Protocol):
    """What the fast path needs of the way to the kernel."""

    def invalidate_attributes(self, nodeid: int) -> None:
        """Make the kernel ask again for a node's attributes."""

    def answer_after_invalidation(self, nodeids: Sequence[int], unique: int, pieces: list[Buffer]) -> None:
        """Make the kernel ask again for directories' names, then write a reply, if there are ``pieces``."""

    def opened(self, handle: int) -> tuple[int, int]:
        """Decide how an opened file is read and written: FOPEN flags, and a backing file's number."""

    def store_data(self, nodeid: int, data: Buffer) -> None:
        """Put the data of a file, which nobody has open, in the kernel's page cache."""

    def splice(self, unique: int, descriptor: int, size: int, offset: int) -> bool:
        """Answer the request ``unique`` with data from the page cache, if that can be done without a copy."""

    def read_later(self, unique: int, descriptor: int, size: int, offset: int) -> None:
        """Have data read that must be waited for, and the request ``unique`` answered."""

    def write_later(self, unique: int, write: Callable[[], int]) -> None:
        """Have data written that must be waited for, and the request ``unique`` answered."""


class _Waits(Exception):  # noqa: N818 - it says whose the request is, nothing failed
    """The request is pyfuse3's."""


class _AnsweredOtherwise(Exception):  # noqa: N818 - nothing failed
    """The request was answered already, or somebody else will answer it."""


class FastPath:
    """Answers what needs no waiting."""

    def __init__(self, filesystem: OverlayFilesystem, transport: Transport) -> None:
        """Answer from ``filesystem``."""
        self._filesystem = filesystem
        self._transport = transport
        self._answers = Answers(filesystem, transport.opened)
        self._entry = self._answers.entry
        self._reads = QuickReads()
        self._read_buffer = memoryview(bytearray(max_transfer(filesystem.stack.options)))
        self._copying_thread = 0
        """Who copied from a file by its range last: such a program doesn't read what it opens."""
        self._handlers: dict[int, Handler] = {
            int(Opcode.LOOKUP): self._lookup,
            int(Opcode.GETATTR): self._get_attributes,
            int(Opcode.SETATTR): self._set_attributes,
            int(Opcode.READLINK): self._read_link,
            int(Opcode.SYMLINK): self._make_symlink,
            int(Opcode.MKNOD): self._make_special,
            int(Opcode.MKDIR): self._make_directory,
            int(Opcode.UNLINK): self._unlink,
            int(Opcode.RMDIR): self._remove_directory,
            int(Opcode.RENAME): self._rename,
            int(Opcode.RENAME2): self._rename_with_flags,
            int(Opcode.LINK): self._link,
            int(Opcode.OPEN): self._open,
            int(Opcode.CREATE): self._create,
            int(Opcode.READ): self._read,
            int(Opcode.WRITE): self._write,
            int(Opcode.FLUSH): self._flush,
            int(Opcode.RELEASE): self._release,
            int(Opcode.GETXATTR): self._get_extended_attribute,
            int(Opcode.LISTXATTR): self._list_extended_attributes,
            int(Opcode.SETXATTR): self._set_extended_attribute,
            int(Opcode.REMOVEXATTR): self._remove_extended_attribute,
            int(Opcode.READDIRPLUS): self._read_directory,
            int(Opcode.STATFS): self._file_system,
            int(Opcode.IOCTL): self._control,
            int(Opcode.COPY_FILE_RANGE): self._copy_range,
            int(Opcode.COPY_FILE_RANGE_64): self._copy_long_range,
        }

    def answer(self, opcode: int, unique: int, nodeid: int, message: memoryview) -> list[Buffer] | None:
        """Return the pieces of the answer, none for a request without one; None when it is pyfuse3's."""
        pieces = self._answer(opcode, unique, nodeid, message)
        listed = self._filesystem.take_changed_listings()
        if not listed:
            return pieces
        self._transport.answer_after_invalidation(listed, unique, pieces or [])
        return [] if pieces else pieces

    def _answer(self, opcode: int, unique: int, nodeid: int, message: memoryview) -> list[Buffer] | None:
        handler = self._handlers.get(opcode)
        if handler is None:
            return self._take_back(opcode, nodeid, message)
        try:
            body = handler(nodeid, message)
        except LoadNeeded as need:
            # pyfuse3's side begins a load of its own.
            need.load.close()
            return None
        except (_Waits, CopyUpNeeded):
            return None
        except _AnsweredOtherwise:
            return []
        except OSError as failure:
            return [wire.error_reply(unique, failure.errno or errno.EIO)]
        except Exception:
            log.exception("%s failed", wire.opcode_name(opcode))
            return [wire.error_reply(unique, errno.EIO)]
        finally:
            for moved in self._filesystem.take_copied_up():
                self._transport.invalidate_attributes(moved)
        header = wire.answer_header(unique, len(body))
        # One piece is written faster than two, unless it must be copied for that.
        return [header + body] if len(body) < _SHORT else [header, body]

    def _take_back(self, opcode: int, nodeid: int, message: memoryview) -> list[Buffer] | None:
        if opcode == _FORGET:
            self._filesystem.forget(nodeid, messages.NUMBER.unpack_from(message, messages.BODY)[0])
        elif opcode == _BATCH_FORGET:
            first = messages.BODY + messages.COUNT.size
            for forgotten, lookups in messages.FORGET_ONE.iter_unpack(message[first:]):
                self._filesystem.forget(forgotten, lookups)
        else:
            return None
        return []

    # Names

    def _lookup(self, nodeid: int, message: memoryview) -> Buffer:
        try:
            node = self._filesystem.lookup(nodeid, messages.name_at(message, messages.BODY))
        except FileNotFoundError:
            return self._answers.validity.absent
        return self._entry(node)

    def _make_special(self, nodeid: int, message: memoryview) -> Buffer:
        mode, device, umask, _ = messages.MKNOD.unpack_from(message, messages.BODY)
        name = messages.name_at(message, messages.BODY + messages.MKNOD.size)
        caller = caller_of(message, umask)
        return self._entry(self._filesystem.make_special(nodeid, name, mode, device, caller))

    def _make_directory(self, nodeid: int, message: memoryview) -> Buffer:
        mode, umask = messages.MKDIR.unpack_from(message, messages.BODY)
        name = messages.name_at(message, messages.BODY + messages.MKDIR.size)
        caller = caller_of(message, umask)
        return self._entry(self._filesystem.make_directory(nodeid, name, mode | stat.S_IFDIR, caller))

    def _make_symlink(self, nodeid: int, message: memoryview) -> Buffer:
        name, target = messages.two_names_at(message, messages.BODY)
        return self._entry(self._filesystem.make_symlink(nodeid, name, target, caller_of(message, 0)))

    def _link(self, nodeid: int, message: memoryview) -> Buffer:
        linked = messages.NUMBER.unpack_from(message, messages.BODY)[0]
        name = messages.name_at(message, messages.BODY + messages.NUMBER.size)
        return self._entry(self._filesystem.link(linked, nodeid, name))

    def _unlink(self, nodeid: int, message: memoryview) -> Buffer:
        self._filesystem.unlink(nodeid, messages.name_at(message, messages.BODY))
        return b""

    def _remove_directory(self, nodeid: int, message: memoryview) -> Buffer:
        self._filesystem.remove_directory(nodeid, messages.name_at(message, messages.BODY))
        return b""

    def _rename(self, nodeid: int, message: memoryview) -> Buffer:
        target = messages.NUMBER.unpack_from(message, messages.BODY)[0]
        old, new = messages.two_names_at(message, messages.BODY + messages.NUMBER.size)
        self._filesystem.rename(nodeid, old, target, new, 0)
        return b""

    def _rename_with_flags(self, nodeid: int, message: memoryview) -> Buffer:
        target, flags, _ = messages.RENAME2.unpack_from(message, messages.BODY)
        old, new = messages.two_names_at(message, messages.BODY + messages.RENAME2.size)
        self._filesystem.rename(nodeid, old, target, new, flags)
        return b""

    # Attributes

    def _get_attributes(self, nodeid: int, _message: memoryview) -> Buffer:
        return self._answers.attributes(self._filesystem.node(nodeid))

    def _set_attributes(self, nodeid: int, message: memoryview) -> Buffer:
        change, opened = change_of(message)
        if change == _NO_CHANGE:
            # A chown(2) to nobody: whether it is allowed isn't a thing to find out in passing.
            raise _Waits
        return self._answers.attributes(self._filesystem.change_attributes(nodeid, change, opened))

    def _read_link(self, nodeid: int, _message: memoryview) -> Buffer:
        return self._filesystem.read_link(nodeid)

    def _get_extended_attribute(self, nodeid: int, message: memoryview) -> Buffer:
        name = messages.name_at(message, messages.BODY + messages.COUNT.size)
        return _sized(message, self._filesystem.extended_attribute(nodeid, name))

    def _list_extended_attributes(self, nodeid: int, message: memoryview) -> Buffer:
        names = self._filesystem.extended_attributes(nodeid, trusted=True)
        if any(name.startswith(b"trusted.") for name in names):
            raise _Waits  # who may see them is asked there
        return _sized(message, b"".join(name + b"\0" for name in names))

    def _set_extended_attribute(self, nodeid: int, message: memoryview) -> Buffer:
        size, flags = messages.COUNT.unpack_from(message, messages.BODY)
        if flags and self._filesystem.node(nodeid).upper is None:
            raise _Waits  # whether it is there is asked before it is copied up
        names = bytes(message[messages.BODY + messages.COUNT.size :])
        name, _, value = names.partition(b"\0")
        self._filesystem.set_extended_attribute(nodeid, name, value[:size], flags)
        return b""

    def _remove_extended_attribute(self, nodeid: int, message: memoryview) -> Buffer:
        self._filesystem.remove_extended_attribute(nodeid, messages.name_at(message, messages.BODY))
        return b""

    def _file_system(self, _nodeid: int, _message: memoryview) -> Buffer:
        return messages.file_system_answer(self._filesystem.status_of_file_system())

    # Files

    def _open(self, nodeid: int, message: memoryview) -> Buffer:
        flags, _ = messages.FLAGS.unpack_from(message, messages.BODY)
        thread = messages.CALLER.unpack_from(message)[2]
        node = self._filesystem.node(nodeid)
        reads_first = not node.unseen & OPENED and thread != self._copying_thread
        handle = self._filesystem.open(nodeid, flags, thread)
        how, backing = self._transport.opened(handle)
        if reads_first and how == FOPEN_KEEP_CACHE and node.upper is None and not flags & os.O_DIRECT:
            self._give_data(node, handle)
        return messages.opened_answer(handle, how, backing)

    def _give_data(self, node: Node, handle: int) -> None:
        """Give the kernel all data of a small file of a lower before it asks for that.

        Only at the first open: while a read goes on, the kernel would wait for its answer first.  The file
        is open, whatever fails here: whoever reads it is told.
        """
        with contextlib.suppress(OSError):
            size = self._filesystem.attributes(node).size
            if 0 < size <= MOST_GIVEN:
                descriptor = self._filesystem.descriptor_for_reading(handle)
                data = self._reads.read(descriptor, self._read_buffer[:size], 0)
                if data is not None and len(data) == size:
                    self._transport.store_data(node.nodeid, data)

    def _create(self, nodeid: int, message: memoryview) -> Buffer:
        flags, mode, umask, _ = messages.CREATE.unpack_from(message, messages.BODY)
        name = messages.name_at(message, messages.BODY + messages.CREATE.size)
        caller = caller_of(message, umask)
        node, handle = self._filesystem.create(nodeid, name, mode | stat.S_IFREG, flags, caller)
        return self._answers.created(node, handle)

    def _read(self, _nodeid: int, message: memoryview) -> Buffer:
        """Read what is in the page cache, or will be in no time.  For the rest others wait."""
        handle, offset, size = messages.READ.unpack_from(message, messages.BODY)
        descriptor = self._filesystem.descriptor_for_reading(handle)
        unique = messages.unique_of(message)
        if self._transport.splice(unique, descriptor, size, offset):
            raise _AnsweredOtherwise
        data = self._reads.read(descriptor, self._read_buffer[:size], offset)
        if data is None:
            self._transport.read_later(unique, descriptor, size, offset)
            raise _AnsweredOtherwise
        return data

    def _write(self, _nodeid: int, message: memoryview) -> Buffer:
        handle, offset, size = messages.WRITE.unpack_from(message, messages.BODY)
        first = messages.BODY + messages.READ_SIZE
        data = message[first : first + size]
        if self._filesystem.file(handle).synchronous:
            # It may be more than fits the pair to pyfuse3.
            write = functools.partial(self._filesystem.write_through, handle, offset, bytes(data))
            self._transport.write_later(messages.unique_of(message), write)
            raise _AnsweredOtherwise
        return messages.size_answer(self._filesystem.write(handle, offset, data))

    def _copy_range(self, _nodeid: int, message: memoryview) -> Buffer:
        return messages.size_answer(self._copy(message))

    def _copy_long_range(self, _nodeid: int, message: memoryview) -> Buffer:
        return messages.position_answer(self._copy(message))

    def _copy(self, message: memoryview) -> int:
        """Copy a small file, or the end of one, that is in the page cache, or will be in no time.

        For the rest a thread waits, which costs more than such a copy.
        """
        self._copying_thread = messages.CALLER.unpack_from(message)[2]
        source, target, positions, length = messages.ranges_to_copy(message)
        filesystem = self._filesystem
        if length > _MOST_COPIED or filesystem.file(target).synchronous:
            raise _Waits  # the kernel asks for no more than there is
        descriptor = filesystem.descriptor_for_reading(source)
        if self._reads.read(descriptor, self._read_buffer[:length], positions[0]) is None:
            raise _Waits
        work = filesystem.copy_of_range(source, target, positions, length, caller_of(message, 0))
        try:
            work.run()
        finally:
            work.settle()
        return work.copied

    def _flush(self, _nodeid: int, _message: memoryview) -> Buffer:
        """Have no more FLUSH: nothing is held back until a close."""
        raise error(errno.ENOSYS)

    def _release(self, _nodeid: int, message: memoryview) -> Buffer:
        self._filesystem.release(messages.NUMBER.unpack_from(message, messages.BODY)[0])
        return b""

    def _control(self, _nodeid: int, message: memoryview) -> Buffer:
        """Know no ioctl(2) here, as is said of the many that only ask whether a file is a terminal."""
        command, _, _ = messages.CONTROL.unpack_from(message, messages.BODY)
        if command in FLAG_COMMANDS:
            raise _Waits
        raise error(errno.ENOTTY)

    # Directories

    def _read_directory(self, nodeid: int, message: memoryview) -> Buffer:
        _, offset, room = messages.READ.unpack_from(message, messages.BODY)
        pieces: list[bytes] = []
        for name, listed, next_offset in self._filesystem.read_directory(nodeid, offset):
            room -= messages.directory_entry_size(name)
            if room < 0:
                break
            try:
                pieces.append(self._listed(name, listed, next_offset))
            except OSError:
                if not pieces:
                    raise
                break  # the entries before it count as looked up: they must be told
        return b"".join(pieces)

    def _listed(self, name: bytes, listed: Node | NameOnly, next_offset: int) -> bytes:
        if isinstance(listed, NameOnly):
            inode, mode = listed
        elif name in (b".", b".."):
            inode, mode = listed.inode, listed.file_type
        else:
            entry = self._entry(listed)
            return messages.directory_entry(entry, listed.inode, listed.file_type, name, next_offset)
        return messages.directory_entry(messages.NAME_ONLY_ENTRY, inode, mode, name, next_offset)


def _sized(message: memoryview, value: bytes) -> Buffer:
    """Answer GETXATTR or LISTXATTR: the value, or its size for those who ask with no room at all."""
    room, _ = messages.COUNT.unpack_from(message, messages.BODY)
    if room == 0:
        return messages.size_answer(len(value))
    if len(value) > room:
        raise error(errno.ERANGE)
    return value
