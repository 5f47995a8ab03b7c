"""What can be done to a tree by its paths? Every operation is a call or two of POSIX, and its answer.

Knows nothing of overlays. Symlinks are followed exactly where the call follows them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import sys
from collections.abc import Iterator

from tests.differential.layers import RECENT_SECONDS
from tests.differential.operation import Value
from tests.differential.operation import path_action as _action
from tests.harness import libc
from tests.harness.libc import getdents, renameat2, utimensat

# Opening a fifo must not wait for a peer, and a device must not become a terminal.
_NEVER_WAIT = os.O_NONBLOCK | os.O_NOCTTY
_FS_IOC_GETFLAGS = 0x80086601


@contextlib.contextmanager
def _opened(path: bytes, flags: int, mode: int = 0o666) -> Iterator[int]:
    descriptor = os.open(path, flags | _NEVER_WAIT, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _shape(descriptor_or_path: int | bytes) -> tuple[int, int, int]:
    found = os.stat(descriptor_or_path)
    return found.st_mode, found.st_uid, found.st_gid


# --- creating ----------------------------------------------------------------------------------------------


@_action
def create(path: bytes, content: bytes, mode: int = 0o666) -> Value:
    """Makes a new file; EEXIST when the name is taken."""
    with _opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode) as descriptor:
        os.write(descriptor, content)
        return _shape(descriptor)


@_action
def overwrite(path: bytes, content: bytes, mode: int = 0o666) -> Value:
    """What a shell's `>` does: makes the file or empties it, then writes."""
    with _opened(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode) as descriptor:
        os.write(descriptor, content)
        return _shape(descriptor)


@_action
def mkdir(path: bytes, mode: int = 0o777) -> Value:
    os.mkdir(path, mode)
    return _shape(path)


@_action
def mknod(path: bytes, mode: int, device: int = 0) -> Value:
    """Makes a fifo, a socket, a device or an empty file, as the type bits of `mode` say."""
    os.mknod(path, mode, device)
    return _shape(path)


@_action
def symlink(target: bytes, path: bytes) -> Value:
    os.symlink(target, path)
    return os.readlink(path)


@_action
def link(source: bytes, path: bytes) -> Value:
    os.link(source, path, follow_symlinks=False)
    same = os.lstat(source).st_ino == os.lstat(path).st_ino
    return same, os.lstat(path).st_nlink


@_action
def link_target(source: bytes, path: bytes) -> Value:
    """linkat(2) with AT_SYMLINK_FOLLOW."""
    libc.link_target(source, path)
    found = os.lstat(path)
    return os.stat(source).st_ino == found.st_ino, found.st_nlink


@_action
def unnamed_file(directory: bytes, content: bytes, mode: int = 0o666) -> Value:
    """O_TMPFILE: a file that never gets a name."""
    descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY, mode)
    try:
        os.write(descriptor, content)
        return shown(os.fstat(descriptor))
    finally:
        os.close(descriptor)


# --- removing and renaming ---------------------------------------------------------------------------------


@_action
def unlink(path: bytes) -> Value:
    os.unlink(path)
    return None


@_action
def rmdir(path: bytes) -> Value:
    os.rmdir(path)
    return None


@_action
def remove_tree(path: bytes) -> Value:
    """What `rm -r` does: lists, removes what it finds, deepest first; stops at the first error."""
    return _remove_tree(path)


def _remove_tree(path: bytes) -> int:
    removed = 0
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return 1
    for name in sorted(os.listdir(path)):
        child = os.path.join(path, name)
        removed += _remove_tree(child)
    os.rmdir(path)
    return removed + 1


@_action
def rename(source: bytes, target: bytes, flags: int = 0) -> Value:
    """renameat2(2) with the flags RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT."""
    renameat2(source, target, flags)
    return None


# --- contents ----------------------------------------------------------------------------------------------


@_action
def write(path: bytes, offset: int, content: bytes) -> Value:
    """Writes into an existing file, leaving a hole when `offset` lies past its end."""
    with _opened(path, os.O_WRONLY) as descriptor:
        os.lseek(descriptor, offset, os.SEEK_SET)
        written = os.write(descriptor, content)
        return written, os.fstat(descriptor).st_size


@_action
def append(path: bytes, content: bytes) -> Value:
    with _opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        written = os.write(descriptor, content)
        return written, os.fstat(descriptor).st_size


@_action
def truncate(path: bytes, size: int) -> Value:
    os.truncate(path, size)
    return os.stat(path).st_size


@_action
def copy_up(path: bytes) -> Value:
    """Opens for writing and writes nothing: the smallest change that copies a lower file up."""
    with _opened(path, os.O_RDWR) as descriptor:
        return os.fstat(descriptor).st_size


@_action
def rewrite_whole(path: bytes, content: bytes) -> Value:
    """Reads, then replaces by a new file and a rename, as editors and dpkg do."""
    with _opened(path, os.O_RDONLY) as descriptor:
        mode = os.fstat(descriptor).st_mode
        before = os.read(descriptor, 1 << 20)
    fresh = path + b".new"
    with _opened(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IMODE(mode)) as descriptor:
        os.write(descriptor, content + before[:16])
        os.fsync(descriptor)
    os.rename(fresh, path)
    return len(before)


# --- attributes --------------------------------------------------------------------------------------------


@_action
def chmod(path: bytes, mode: int) -> Value:
    os.chmod(path, mode)
    return _shape(path)


@_action
def chown(path: bytes, uid: int, gid: int) -> Value:
    """lchown(2): -1 leaves an id as it is."""
    os.chown(path, uid, gid, follow_symlinks=False)
    found = os.lstat(path)
    return found.st_mode, found.st_uid, found.st_gid


@_action
def utimens(path: bytes, atime_ns: int, mtime_ns: int) -> Value:
    """utimensat(2) on the name itself; the times are in nanoseconds."""
    os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
    found = os.lstat(path)
    # The way to a symlink in the directory that it leads to follows it: that moves its atime.
    followed = stat.S_ISLNK(found.st_mode) and b"/" in path
    return None if followed else found.st_atime_ns, found.st_mtime_ns


@_action
def touch(path: bytes, atime: str | int, mtime: str | int) -> Value:
    """utimensat(2) through symlinks: each time is nanoseconds since the epoch, "now" or "omit"."""
    utimensat(path, atime, mtime)
    return shown(os.stat(path))


@_action
def touch_same(path: bytes) -> Value:
    """Sets the modification time that a name has: what it shows stays, and it is copied up."""
    found = os.lstat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
    return None


@_action
def setxattr(path: bytes, name: bytes, value: bytes, flags: int = 0) -> Value:
    os.setxattr(path, name, value, flags, follow_symlinks=False)
    return os.getxattr(path, name, follow_symlinks=False)


@_action
def removexattr(path: bytes, name: bytes) -> Value:
    os.removexattr(path, name, follow_symlinks=False)
    return sorted(os.listxattr(path, follow_symlinks=False))


# --- looking -----------------------------------------------------------------------------------------------


@_action
def status(path: bytes) -> Value:
    """lstat(2) without what differs between two mounts: device, inode number, times made by the clock."""
    return shown(os.lstat(path))


@_action
def status_of_target(path: bytes) -> Value:
    """stat(2): symlinks are followed."""
    return shown(os.stat(path))


def shown(found: os.stat_result, *, of_directories: bool = True) -> Value:
    """What two twins share: type, mode, links, owner, size, device, times that were set, a file's blocks.

    of_directories: whether with the size of a directory.
    """
    mtime = found.st_mtime_ns if found.st_mtime < RECENT_SECONDS else "recent"
    blocks = found.st_blocks if stat.S_ISREG(found.st_mode) else 0
    size = found.st_size if of_directories or not stat.S_ISDIR(found.st_mode) else 0
    owner = found.st_uid, found.st_gid
    atime = min(found.st_atime_ns, RECENT_SECONDS * 10**9)
    return found.st_mode, found.st_nlink, *owner, size, found.st_rdev, mtime, blocks, atime


@_action
def listing(path: bytes) -> Value:
    """The names of a directory with the types that readdir gives, sorted."""
    with os.scandir(path) as entries:
        return sorted((entry.name, entry_type(entry)) for entry in entries)


def entry_type(entry: os.DirEntry[bytes]) -> str:
    """The type that readdir gives, or stat in its place."""
    if entry.is_symlink():
        return "symlink"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "special"


@_action
def read(path: bytes, offset: int = 0, size: int = 1 << 20) -> Value:
    """Up to `size` bytes from `offset` on, as length and digest."""
    with _opened(path, os.O_RDONLY) as descriptor:
        data = os.pread(descriptor, size, offset)
        return len(data), hashlib.sha256(data).hexdigest()


@_action
def readlink(path: bytes) -> Value:
    return os.readlink(path)


@_action
def getxattr(path: bytes, name: bytes) -> Value:
    return os.getxattr(path, name, follow_symlinks=False)


@_action
def listxattr(path: bytes) -> Value:
    return sorted(os.listxattr(path, follow_symlinks=False))


@_action
def room(path: bytes) -> Value:
    """statvfs(3), but for what is free, which others change, and what names the mount."""
    found = os.statvfs(path)
    return found.f_bsize, found.f_frsize, found.f_blocks, found.f_files, found.f_namemax


@_action
def birth(path: bytes) -> Value:
    """statx(2): when it was made, or that this was after the mounting."""
    born, mounted = libc.birth_time(path), libc.birth_time(b".")
    return "since" if born is not None and mounted is not None and born >= mounted else born


@_action
def flags(path: bytes) -> Value:
    """FS_IOC_GETFLAGS, what lsattr asks for."""
    with _opened(path, os.O_RDONLY) as descriptor:
        return inode_flags(descriptor)


def inode_flags(descriptor: int) -> int:
    """The flags of chattr(1) that a file has."""
    return int.from_bytes(fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8))[:4], sys.byteorder)


@_action
def names_in_pieces(path: bytes, size: int) -> Value:
    """A listing by getdents64(2) with a small buffer: every name once, `.` and `..` among them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found: list[bytes] = []
        while entries := getdents(descriptor, size):
            found += [entry.name for entry in entries]
        return sorted(found)
    finally:
        os.close(descriptor)


@_action
def enter(path: bytes) -> Value:
    """chdir(2), then what lies in the current directory."""
    os.chdir(path)
    return sorted(os.listdir(b"."))


@_action
def access(path: bytes, mode: int) -> Value:
    """access(2) with the effective ids; whatever is wrong counts as EACCES."""
    if not os.access(path, mode, effective_ids=True):
        raise PermissionError(errno.EACCES, "no access")
    return None
