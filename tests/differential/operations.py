"""What can be done to a tree, as values: an operation, its arguments, and the outcome of performing it.

An `Operation` is plain data, so that one list of them can be performed on a kernel overlay and on pyoverlay,
printed when the two disagree, and drawn from a generator or from a hypothesis strategy. Knows nothing of
overlays: every operation is a call or two of POSIX on paths below a root. Symlinks are followed exactly where
the call follows them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.harness.libc import renameat2

Value = object
"""What an operation gives back: something that compares equal when the two file systems answered alike."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who performs an operation: ids that are taken on for the call and given back after it."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One call on a tree: the name of a function here and its arguments (paths relative to the root)."""

    name: str
    arguments: tuple[object, ...]
    caller: Caller | None = None
    umask: int = 0o022

    def __str__(self) -> str:
        words = ", ".join(_shown(argument) for argument in self.arguments)
        whose = f" as {self.caller.uid}:{self.caller.gid}" if self.caller else ""
        return f"{self.name}({words}){whose}"

    def by(self, uid: int, gid: int, *groups: int) -> Operation:
        """The same operation performed by another user."""
        return Operation(self.name, self.arguments, Caller(uid, gid, groups), self.umask)

    def with_umask(self, umask: int) -> Operation:
        """The same operation under another umask."""
        return Operation(self.name, self.arguments, self.caller, umask)


def _shown(argument: object) -> str:
    if isinstance(argument, bytes) and len(argument) > 48:
        return f"{argument[:24]!r}...({len(argument)} bytes)"
    return oct(argument) if isinstance(argument, int) and argument > 9 else repr(argument)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: the name of its errno, or None and the value that it gave back."""

    error: str | None
    value: Value = field(default=None)

    @property
    def succeeded(self) -> bool:
        return self.error is None

    def __str__(self) -> str:
        return self.error or f"ok {self.value!r}"


def perform(root: bytes, operation: Operation) -> Outcome:
    """Performs `operation` below the directory `root`.

    Not for several threads at once: umask, ids and the working directory belong to the process.

    Returns:
        the outcome; an OSError becomes the outcome's errno, any other exception is a fault of the test and is
        raised.
    """
    action = _ACTIONS[operation.name]
    with _standing_in(root), _umask(operation.umask), _acting_as(operation.caller):
        try:
            return Outcome(None, action(*operation.arguments))
        except OSError as error:
            return Outcome(errno.errorcode.get(error.errno or 0, str(error.errno)))


@contextlib.contextmanager
def _standing_in(directory: bytes) -> Iterator[None]:
    # Relative names: the directories above the root may be closed to the caller, and are no part of the test.
    back = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chdir(directory)
    try:
        yield
    finally:
        os.fchdir(back)
        os.close(back)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _acting_as(caller: Caller | None) -> Iterator[None]:
    if caller is None:
        yield
        return
    groups = os.getgroups()
    os.setgroups(caller.groups)
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


_ACTIONS: dict[str, Callable[..., Value]] = {}
_Action = Callable[..., Value]


def _action(function: _Action) -> Callable[..., Operation]:
    """Registers `function` under its name and returns the constructor of its operations."""
    _ACTIONS[function.__name__] = function
    name = function.__name__

    def operation(*arguments: object) -> Operation:
        return Operation(name, arguments)

    operation.__name__ = name
    operation.__doc__ = function.__doc__
    return operation


# Opening a fifo must not wait for a peer, and a device must not become a terminal.
_NEVER_WAIT = os.O_NONBLOCK | os.O_NOCTTY


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
    removed = 0
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return 1
    for name in sorted(os.listdir(path)):
        child = os.path.join(path, name)
        removed += int(str(_ACTIONS["remove_tree"](child)))
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
    return found.st_atime_ns, found.st_mtime_ns


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
    """lstat(2) without what differs between two mounts: device, inode number, times."""
    found = os.lstat(path)
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, size, found.st_rdev


@_action
def listing(path: bytes) -> Value:
    """The names of a directory with the types that readdir gives, sorted."""
    with os.scandir(path) as entries:
        return sorted((entry.name, _entry_type(entry)) for entry in entries)


def _entry_type(entry: os.DirEntry[bytes]) -> str:
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
def access(path: bytes, mode: int) -> Value:
    """access(2) with the effective ids."""
    return os.access(path, mode, effective_ids=True)
