"""What can be done to what is held open? Descriptors and maps that live from one operation to the next.

A slot is a number that the script gives. That its name is removed, copied up or replaced meanwhile makes no
difference to it on the kernel's overlay, and mustn't on pyoverlay.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import stat

from tests.differential import operations
from tests.differential.maps import read_without_signal, touchable, write_without_signal
from tests.differential.operation import Held, Map, Value
from tests.differential.operation import action as _action
from tests.differential.operations import inode_flags
from tests.harness.libc import DirectoryEntry, fallocate, getdents, link_target

# Opening a fifo must not wait for a peer, and a device must not become a terminal.
_NEVER_WAIT = os.O_NONBLOCK | os.O_NOCTTY


def shown(found: os.stat_result) -> Value:
    """What two twins share, but a directory's size, which is another when it was removed on the way."""
    return operations.shown(found, of_directories=False)


def _proc(held: Held, slot: int) -> bytes:
    return b"/proc/self/fd/%d" % held.descriptor(slot)


def _hold(held: Held, slot: int, descriptor: int) -> Value:
    held.put(slot, descriptor)
    return shown(os.fstat(descriptor))


# --- opening -----------------------------------------------------------------------------------------------


@_action
def hold(held: Held, slot: int, path: bytes, flags: int, mode: int = 0o666) -> Value:
    """open(2): the descriptor takes the slot's place."""
    return _hold(held, slot, os.open(path, flags | _NEVER_WAIT, mode))


@_action
def hold_below(held: Held, slot: int, directory: int, name: bytes, flags: int, mode: int = 0o666) -> Value:
    """openat(2) below a directory that is held."""
    opened = os.open(name, flags | _NEVER_WAIT, mode, dir_fd=held.descriptor(directory))
    return _hold(held, slot, opened)


@_action
def hold_again(held: Held, slot: int, other: int, flags: int) -> Value:
    """Opens what another slot holds once more, through /proc."""
    return _hold(held, slot, os.open(_proc(held, other), flags | _NEVER_WAIT))


@_action
def let_go(held: Held, slot: int) -> Value:
    """close(2)."""
    os.close(held.descriptor(slot))
    del held.descriptors[slot]
    return None


# --- contents ----------------------------------------------------------------------------------------------


def _digest(data: bytes) -> Value:
    return len(data), hashlib.sha256(data).hexdigest()[:16]


@_action
def read_at(held: Held, slot: int, offset: int, size: int) -> Value:
    """pread(2)."""
    return _digest(os.pread(held.descriptor(slot), size, offset))


@_action
def read_on(held: Held, slot: int, size: int) -> Value:
    """read(2) from where the last one ended."""
    return _digest(os.read(held.descriptor(slot), size))


@_action
def write_at(held: Held, slot: int, offset: int, content: bytes) -> Value:
    """pwrite(2)."""
    descriptor = held.descriptor(slot)
    return os.pwrite(descriptor, content, offset), os.fstat(descriptor).st_size


@_action
def write_on(held: Held, slot: int, content: bytes) -> Value:
    """write(2): at the descriptor's place, or at the end of a file opened with O_APPEND."""
    descriptor = held.descriptor(slot)
    return os.write(descriptor, content), os.fstat(descriptor).st_size


@_action
def seek(held: Held, slot: int, offset: int, whence: int) -> Value:
    """lseek(2), but in a directory, whose offsets mean nothing to others."""
    descriptor = held.descriptor(slot)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return None
    return os.lseek(descriptor, offset, whence)


@_action
def seek_data(held: Held, slot: int, offset: int, whence: int) -> Value:
    """lseek(2) to the next data or hole, but in a directory; the descriptor stays where it is."""
    descriptor = held.descriptor(slot)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return None
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        return os.lseek(descriptor, offset, whence)
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


@_action
def allocate(held: Held, slot: int, mode: int, offset: int, size: int) -> Value:
    """fallocate(2)."""
    descriptor = held.descriptor(slot)
    fallocate(descriptor, mode, offset, size)
    return shown(os.fstat(descriptor))


@_action
def resize(held: Held, slot: int, size: int) -> Value:
    """ftruncate(2)."""
    descriptor = held.descriptor(slot)
    os.ftruncate(descriptor, size)
    return shown(os.fstat(descriptor))


@_action
def reserve(held: Held, slot: int, offset: int, size: int) -> Value:
    """posix_fallocate(3), which writes zeros where there is no fallocate(2)."""
    descriptor = held.descriptor(slot)
    os.posix_fallocate(descriptor, offset, size)
    return shown(os.fstat(descriptor))


@_action
def copy_range(held: Held, source: int, target: int, size: int, from_: int, to: int) -> Value:
    """copy_file_range(2) between two slots."""
    descriptor = held.descriptor(target)
    copied = os.copy_file_range(held.descriptor(source), descriptor, size, from_, to)
    return copied, os.fstat(descriptor).st_size


@_action
def synchronise(held: Held, slot: int) -> Value:
    """fsync(2)."""
    os.fsync(held.descriptor(slot))
    return None


@_action
def lock(held: Held, slot: int, how: int) -> Value:
    """flock(2)."""
    fcntl.flock(held.descriptor(slot), how | fcntl.LOCK_NB)
    return None


@_action
def lock_record(held: Held, slot: int, how: int, offset: int, size: int) -> Value:
    """fcntl(F_SETLK)."""
    waits = 0 if how == fcntl.LOCK_UN else fcntl.LOCK_NB
    fcntl.lockf(held.descriptor(slot), how | waits, size, offset)
    return None


# --- attributes --------------------------------------------------------------------------------------------


@_action
def status_of(held: Held, slot: int) -> Value:
    """fstat(2)."""
    return shown(os.fstat(held.descriptor(slot)))


@_action
def chmod_of(held: Held, slot: int, mode: int) -> Value:
    """fchmod(2)."""
    os.fchmod(held.descriptor(slot), mode)
    return shown(os.fstat(held.descriptor(slot)))


@_action
def chown_of(held: Held, slot: int, uid: int, gid: int) -> Value:
    """fchown(2)."""
    os.fchown(held.descriptor(slot), uid, gid)
    return shown(os.fstat(held.descriptor(slot)))


@_action
def utimens_of(held: Held, slot: int, atime_ns: int, mtime_ns: int) -> Value:
    """futimens(3), in nanoseconds."""
    os.utime(held.descriptor(slot), ns=(atime_ns, mtime_ns))
    return shown(os.fstat(held.descriptor(slot)))


@_action
def copy_up_of(held: Held, slot: int) -> Value:
    """Changes nothing that is shown but times, as its owner or as one who may write, and has it copied up."""
    descriptor = held.descriptor(slot)
    found = os.fstat(descriptor)
    try:
        os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))
    except PermissionError:
        if found.st_mode & stat.S_ISVTX and stat.S_ISDIR(found.st_mode):
            # Nobody but its owner may set an attribute: xattr(7).
            os.mkdir(b"copied", dir_fd=descriptor)
            os.rmdir(b"copied", dir_fd=descriptor)
        else:
            os.setxattr(descriptor, b"user.copied", b"")
            os.removexattr(descriptor, b"user.copied")
    return None


@_action
def setxattr_of(held: Held, slot: int, name: bytes, value: bytes, flags: int = 0) -> Value:
    """fsetxattr(2)."""
    descriptor = held.descriptor(slot)
    os.setxattr(descriptor, name, value, flags)
    return os.getxattr(descriptor, name), os.fstat(descriptor).st_mode


@_action
def removexattr_of(held: Held, slot: int, name: bytes) -> Value:
    """fremovexattr(2)."""
    os.removexattr(held.descriptor(slot), name)
    return sorted(os.listxattr(held.descriptor(slot)))


@_action
def xattrs_of(held: Held, slot: int) -> Value:
    """flistxattr(2) and fgetxattr(2)."""
    descriptor = held.descriptor(slot)
    return sorted((name, os.getxattr(descriptor, name)) for name in os.listxattr(descriptor))


# --- names -------------------------------------------------------------------------------------------------


@_action
def link_of(held: Held, slot: int, path: bytes) -> Value:
    """linkat(2) of a descriptor, through /proc."""
    link_target(_proc(held, slot), path)
    found = os.lstat(path)
    return os.fstat(held.descriptor(slot)).st_ino == found.st_ino, found.st_nlink


@_action
def listing_of(held: Held, slot: int) -> Value:
    """The names in a directory that is held, from its beginning."""
    return sorted(os.listdir(held.descriptor(slot)))


@_action
def names_again(held: Held, slot: int, size: int) -> Value:
    """getdents64(2) with a small buffer, then from a place in the middle again, then from the beginning.

    Gives the names, and whether the second and third time showed what the first did.
    """
    descriptor = held.descriptor(slot)
    first = _entries_from(descriptor, 0, size)
    middle = len(first) // 2
    again = _entries_from(descriptor, first[middle - 1].offset if middle else 0, size)
    rewound = _entries_from(descriptor, 0, size)
    os.lseek(descriptor, 0, os.SEEK_SET)  # the end is another position on each
    return sorted(entry.name for entry in first), again == first[middle:], rewound == first


def _entries_from(directory: int, position: int, size: int) -> list[DirectoryEntry]:
    os.lseek(directory, position, os.SEEK_SET)
    entries: list[DirectoryEntry] = []
    while part := getdents(directory, size):
        entries += part
    return entries


@_action
def flags_of(held: Held, slot: int) -> Value:
    """FS_IOC_GETFLAGS, what lsattr asks for."""
    return inode_flags(held.descriptor(slot))


@_action
def room_of(held: Held, slot: int) -> Value:
    """fstatvfs(3)."""
    found = os.fstatvfs(held.descriptor(slot))
    return found.f_bsize, found.f_frsize, found.f_blocks, found.f_files, found.f_namemax


@_action
def status_below(held: Held, slot: int, name: bytes) -> Value:
    """fstatat(2)."""
    return shown(os.stat(name, dir_fd=held.descriptor(slot), follow_symlinks=False))


@_action
def mkdir_below(held: Held, slot: int, name: bytes, mode: int) -> Value:
    """mkdirat(2)."""
    os.mkdir(name, mode, dir_fd=held.descriptor(slot))
    return shown(os.stat(name, dir_fd=held.descriptor(slot)))


@_action
def remove_below(held: Held, slot: int, name: bytes) -> Value:
    """unlinkat(2), with AT_REMOVEDIR for a directory."""
    descriptor = held.descriptor(slot)
    if stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
        os.rmdir(name, dir_fd=descriptor)
    else:
        os.unlink(name, dir_fd=descriptor)
    return None


@_action
def rename_below(held: Held, slot: int, name: bytes, other: int, target: bytes) -> Value:
    """renameat(2) between two directories that are held."""
    os.rename(name, target, src_dir_fd=held.descriptor(slot), dst_dir_fd=held.descriptor(other))
    return None


# --- maps --------------------------------------------------------------------------------------------------


@_action
def map_file(held: Held, number: int, slot: int, writable: bool, private: bool) -> Value:
    """mmap(2) of a whole file, in place of the map that had the number."""
    descriptor = held.descriptor(slot)
    status = os.fstat(descriptor)
    size = status.st_size
    if stat.S_ISDIR(status.st_mode):
        size = mmap.PAGESIZE  # of one that was removed, the size is the file system's
    if size == 0:
        return "nothing to map"
    memory = mmap.mmap(
        descriptor,
        size,
        flags=mmap.MAP_PRIVATE if private else mmap.MAP_SHARED,
        prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0),
    )
    before = held.maps.pop(number, None)
    if before is not None:
        before.close()
    held.maps[number] = Map(memory, os.dup(descriptor))
    return _shown_by(held.maps[number])


def _shown_by(mapped: Map) -> Value:
    """Whether a map shows what is read through its descriptor; what it shows; what is read."""
    reads = os.pread(mapped.descriptor, touchable(mapped), 0)
    reads += bytes(touchable(mapped) - len(reads))
    shows = read_without_signal(mapped.memory, len(reads))
    return shows == reads, _digest(shows), _digest(reads)


def _map(held: Held, number: int) -> Map:
    if number not in held.maps:
        held.descriptor(-1)
    return held.maps[number]


@_action
def map_read(held: Held, number: int) -> Value:
    """Reads a whole map."""
    return _shown_by(_map(held, number))


@_action
def map_write(held: Held, number: int, offset: int, content: bytes) -> Value:
    """Writes into a writable map, as far as the file goes, and msync(2)s it."""
    mapped = _map(held, number)
    end = min(touchable(mapped), offset + len(content))
    if end <= offset:
        return 0
    try:
        copied = write_without_signal(mapped.memory, offset, content[: end - offset])
    except BufferError:
        return "not writable"
    mapped.memory.flush()
    return copied


@_action
def unmap(held: Held, number: int) -> Value:
    """munmap(2)."""
    mapped = _map(held, number)
    del held.maps[number]
    mapped.close()
    return None
