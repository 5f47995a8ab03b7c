"""What does a command see as its root directory: the merged view, with which mounts over it?

As container engines set it up: its own /proc, a /dev with the harmless devices only, /sys read-only, what
was bound, everything else (/tmp too) as the merged view has it.  This file knows nothing of processes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from pyoverlay.layers import syscalls
from pyoverlay.sandbox import namespaces
from pyoverlay.sandbox.command import Bind, SandboxError

_KERNEL_DIRECTORIES: Final = ("/proc", "/dev", "/sys")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_NO_PROGRAMS: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_TTY_GROUP: Final = 5


@contextlib.contextmanager
def mount_points(merged: str, binds: Sequence[Bind]) -> Iterator[None]:
    """Have a mount point for everything that is going to be mounted over the merged view.

    What an image lacks is created, which a read-only view can't, and removed again afterwards if it is still
    empty: the upper then shows no change, but may keep directories that were copied up to hold a mount point.

    Args:
        merged: the merged view, as this mount namespace has it.
        binds: what will be bound over it.

    Raises:
        SandboxError: a mount point can't be created.
    """
    created: list[str] = []
    wanted = [(path, True) for path in _KERNEL_DIRECTORIES]
    wanted += [
        (bind.target, bind.is_directory()) for bind in binds if not _is_in_kernel_directory(bind.target)
    ]
    root = os.open(merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, is_directory in wanted:
            created += _create_mount_point(root, path, is_directory=is_directory)
        yield
    finally:
        for path in reversed(created):
            _remove_mount_point(root, path)
        os.close(root)


def enter_root(merged: str, binds: Sequence[Bind]) -> None:
    """Make the merged view, with the mounts over it, the root of this process and of all it starts.

    To be called as process 1 of a pid namespace, in a mount namespace of its own whose mounts are private.

    Raises:
        SandboxError: something can't be mounted.
    """
    root = os.open(merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with _opened(root, "/proc") as (_, path):
        _mount("proc", path, "proc", _NO_PROGRAMS, what="/proc")
    _mount_sys(root)
    _mount_dev(root)
    for bind in binds:
        _bind(root, bind)
    os.close(root)
    try:
        namespaces.change_root(merged)
    except OSError as error:
        raise SandboxError(f"can't make the merged view the root directory: {error.strerror}") from error


def _is_in_kernel_directory(path: str) -> bool:
    return path in _KERNEL_DIRECTORIES or path.startswith(tuple(f"{name}/" for name in _KERNEL_DIRECTORIES))


# Mount points


def _create_mount_point(root: int, path: str, *, is_directory: bool) -> list[str]:
    """Create what `path` lacks, and return what was created, parents first."""
    created: list[str] = []
    names = path.strip("/").split("/")
    try:
        for depth in range(1, len(names) + 1):
            partial = "/".join(names[:depth])
            if not _exists(root, partial):
                _create(root, partial, is_directory=is_directory or depth < len(names))
                created.append(partial)
    except OSError as error:
        for partial in reversed(created):
            _remove_mount_point(root, partial)
        reason = "the view is read-only" if error.errno == errno.EROFS else error.strerror
        raise SandboxError(f"{path} is missing in the merged view and can't be created: {reason}") from error
    return created


def _exists(root: int, path: str) -> bool:
    try:
        os.close(namespaces.open_in_root(root, path))
    except FileNotFoundError:
        return False
    return True


def _create(root: int, path: str, *, is_directory: bool) -> None:
    with _parent_keeping_times(root, path) as (parent, name):
        if is_directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))


def _remove_mount_point(root: int, path: str) -> None:
    # Whatever stands there now that isn't empty, or was replaced, is the command's.
    with contextlib.suppress(OSError), _parent_keeping_times(root, path) as (parent, name):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(name, dir_fd=parent)
        elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
            os.unlink(name, dir_fd=parent)


@contextlib.contextmanager
def _parent_keeping_times(root: int, path: str) -> Iterator[tuple[int, str]]:
    """Open a path's parent; its times are afterwards what they were."""
    head, _, name = path.rpartition("/")
    parent = namespaces.open_in_root(root, head or ".")
    try:
        status = os.fstat(parent)
        yield parent, name
        os.utime(_path(parent), ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(parent)


# Mounts


def _mount_sys(root: int) -> None:
    with _opened(root, "/sys") as (_, path):
        try:
            syscalls.mount(b"sysfs", path.encode(), b"sysfs", _NO_PROGRAMS | syscalls.MS_RDONLY, b"")
        except PermissionError:
            # In a user namespace that doesn't own the network namespace only the one there is can be shown.
            _mount("/sys", path, "", namespaces.MS_BIND | namespaces.MS_REC, what="/sys")
            _make_read_only(root, "/sys")


def _mount_dev(root: int) -> None:
    flags = syscalls.MS_NOSUID | namespaces.MS_STRICTATIME
    with _opened(root, "/dev") as (_, path):
        _mount("tmpfs", path, "tmpfs", flags, "mode=755,size=65536k", what="/dev")
    with _opened(root, "/dev") as (dev, path):
        for name in _DEVICES:
            _bind_device(dev, f"/dev/{name}", name)
        terminal = _terminal()
        if terminal is not None:
            # So that ttyname(3) finds it: the new devpts doesn't have it.
            _bind_device(dev, terminal, "console")
        for name, target in _LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        for name in ("pts", "shm"):
            os.mkdir(name, 0o755, dir_fd=dev)
        _mount_pts(f"{path}/pts")
        _mount("shm", f"{path}/shm", "tmpfs", _NO_PROGRAMS, "mode=1777,size=65536k", what="/dev/shm")


def _mount_pts(path: str) -> None:
    flags = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    options = "newinstance,ptmxmode=0666,mode=0620"
    try:
        syscalls.mount(b"devpts", path.encode(), b"devpts", flags, f"{options},gid={_TTY_GROUP}".encode())
    except OSError:
        # The group isn't mapped in every user namespace.
        _mount("devpts", path, "devpts", flags, options, what="/dev/pts")


def _terminal() -> str | None:
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            return os.ttyname(descriptor)
    return None


def _bind_device(dev: int, source: str, name: str) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=dev))
    _mount(source, f"{_path(dev)}/{name}", "", namespaces.MS_BIND, what=f"/dev/{name}")


def _bind(root: int, bind: Bind) -> None:
    if bind.target.startswith("/dev/"):
        _create_mount_point(root, bind.target, is_directory=bind.is_directory())
    with _opened(root, bind.target) as (_, path):
        flags = namespaces.MS_BIND | namespaces.MS_REC
        _mount(bind.source, path, "", flags, what=f"{bind.source} on {bind.target}")
    if bind.read_only:
        _make_read_only(root, bind.target)


def _make_read_only(root: int, target: str) -> None:
    with _opened(root, target) as (_, path):
        try:
            namespaces.make_mounts_read_only(path)
        except OSError as error:
            raise SandboxError(f"can't make {target} read-only: {error.strerror}") from error


def _mount(source: str, path: str, kind: str, flags: int, data: str = "", *, what: str) -> None:
    try:
        syscalls.mount(os.fsencode(source), path.encode(), kind.encode(), flags, data.encode())
    except OSError as error:
        raise SandboxError(f"can't mount {what}: {error.strerror}") from error


@contextlib.contextmanager
def _opened(root: int, target: str) -> Iterator[tuple[int, str]]:
    """Open what the merged view shows at `target`; gives the descriptor and a path that reaches it."""
    try:
        descriptor = namespaces.open_in_root(root, target)
    except OSError as error:
        raise SandboxError(f"can't mount on {target} in the merged view: {error.strerror}") from error
    try:
        yield descriptor, _path(descriptor)
    finally:
        os.close(descriptor)


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
