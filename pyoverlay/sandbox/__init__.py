"""How is a command run with a merged view as its root directory, and how is everything taken away again?

Who is who: the *caller* takes a mount namespace of its own, so that no one else ever sees the mount, and rids
it of what isn't the sandbox's; the *daemon* that serves the mount lives there, outside of the command's pid
namespace; *process 1* gets new pid, uts, ipc and mount namespaces, makes the merged view its root, starts the
command and reaps.  When the caller ends, by SIGKILL even, the kernel ends the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pyoverlay.layers import syscalls
from pyoverlay.layers.layer import DescriptorCache, Layer
from pyoverlay.options import MountOptions
from pyoverlay.sandbox import namespaces
from pyoverlay.sandbox.command import SIGNALLED, Bind, Command, SandboxError
from pyoverlay.sandbox.foreign_mounts import detach_foreign_mounts
from pyoverlay.sandbox.processes import (
    Child,
    execute,
    pending_end,
    signals_held_back,
    wait_and_pass_signals,
)
from pyoverlay.sandbox.root import enter_root, mount_points

__all__ = ["Bind", "Command", "SandboxError", "run"]

_UMASK: Final = 0o022
_POLL_SECONDS: Final = 0.1
_DAEMON_END_SECONDS: Final = 30

_log: Final = logging.getLogger(__name__)


Started = Callable[[int], None]
"""Told the number of process 1 of the sandbox."""


def run(
    options: MountOptions, command: Command, *, merged: str | None = None, started: Started | None = None
) -> int:
    """Mount an overlay, run a command in it, and unmount, whatever happens.

    Forks, and leaves the calling process in a private mount namespace, unable to fork again: it should be a
    process of its own with one thread, and with nothing left to do but exit.

    Args:
        options: the mount.  Without upperdir (and ``ro``) the changes go to a temporary upper in TMPDIR,
            which is thrown away.
        command: what to run.
        merged: an empty directory to mount on, which stays; None makes a temporary one.
        started: called once the command is about to start.

    Returns:
        The command's exit status; 128 and a signal's number when that ended it.

    Raises:
        SandboxError: it couldn't be run; nothing is left mounted.
    """
    umask = os.umask(_UMASK)
    try:
        with signals_held_back() as mask, _directories(options, merged) as (target, complete):
            _take_mount_namespace()
            with _mounted(complete, target), mount_points(target, command.binds):
                return _run_process_1(target, command, mask, started)
    finally:
        os.umask(umask)


@contextlib.contextmanager
def _directories(options: MountOptions, target: str | None) -> Iterator[tuple[str, MountOptions]]:
    """Make the directories that are missing: the mount point, and upper and work; removed afterwards."""
    has_upper = options.upperdir is not None or options.read_only
    if target is not None and has_upper:
        yield target, options
        return
    base = tempfile.mkdtemp(prefix="pyoverlay-run-")
    try:
        merged = Path(base, "merged")
        merged.mkdir()
        if not has_upper:
            options = _with_temporary_upper(options, Path(base))
        yield target or str(merged), options
    finally:
        _remove_directories(base)


def _with_temporary_upper(options: MountOptions, base: Path) -> MountOptions:
    upper, work = base / "upper", base / "work"
    for directory in (upper, work):
        directory.mkdir()
    # The merged root shows the upper's attributes, which should be the image's.
    with contextlib.suppress(OSError):  # A lower that is missing is the mount's to report.
        status = os.stat(options.lowerdir[0])
        os.chown(upper, status.st_uid, status.st_gid)
        upper.chmod(stat.S_IMODE(status.st_mode))
        os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))
    return dataclasses.replace(options, upperdir=str(upper), workdir=str(work), fsync="volatile")


def _remove_directories(base: str) -> None:
    """Remove the temporary directories; a command may have left a tree of any depth in them."""
    try:
        os.rmdir(os.path.join(base, "merged"))
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        layer = Layer(base, os.open(base, flags), DescriptorCache(16), writable=True)
        try:
            for name, _kind in layer.root.list_entries():
                layer.root.remove_tree(name)
        finally:
            layer.cache.close()
            layer.close()
        os.rmdir(base)
    except OSError as error:
        _log.warning("pyoverlay run: can't remove %s: %s; remove it by hand", base, error.strerror)


def _take_mount_namespace() -> None:
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        namespaces.make_mounts_follow()
    except PermissionError:
        raise SandboxError(
            "running a command in an overlay needs root: CAP_SYS_ADMIN, for namespaces"
        ) from None


# The mount


@contextlib.contextmanager
def _mounted(options: MountOptions, merged: str) -> Iterator[None]:
    # An end asked for by SIGTERM lets the daemon finish what is in flight.
    daemon = Child(lambda: _serve(options, merged), signal_at_parents_end=signal.SIGTERM)
    try:
        _wait_until_live(daemon, merged)
        yield
    finally:
        _unmount(merged)
        _end(daemon)


def _serve(options: MountOptions, merged: str) -> int:
    # A session of its own: a terminal's Ctrl-C is for the command, which needs the mount to the end.
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Its log goes to the command's stderr, where only what is wrong should be seen.
    logging.disable(logging.INFO)
    from pyoverlay.fuse import session  # noqa: PLC0415  # the daemon's libraries belong to the daemon only

    session.mount(options, merged, foreground=True)
    return 0


def _wait_until_live(daemon: Child, merged: str) -> None:
    with open("/proc/self/mountinfo", "rb") as mounts:
        # poll(2) on it tells of every mount made since it was opened.  ismount() is answered by the daemon.
        while not os.path.ismount(merged):
            if daemon.wait_for_failure(_POLL_SECONDS, mounts.fileno()):
                raise daemon.error() or SandboxError("the daemon ended before its mount was live")
            number = pending_end()
            if number is not None:
                raise SandboxError(f"ended by {signal.Signals(number).name}", SIGNALLED + number)


def _unmount(merged: str) -> None:
    path = os.fsencode(merged)
    for flags in (0, syscalls.MNT_DETACH):
        try:
            syscalls.unmount(path, flags)
        except OSError:
            continue  # In use, which nobody should be any more; or not mounted, as the daemon has failed.
        return


def _end(daemon: Child) -> None:
    """Wait for the daemon, which ends when its mount has gone; hurry it when something still holds that."""
    for hurry in (signal.SIGTERM, signal.SIGKILL):
        if daemon.wait_for_end(_DAEMON_END_SECONDS):
            break
        daemon.kill(hurry)
    daemon.close()


# The command


def _run_process_1(merged: str, command: Command, mask: set[signal.Signals], started: Started | None) -> int:
    namespaces.unshare(namespaces.CLONE_NEWPID)
    waiting, copied = os.pipe()
    # Process 1 takes all others of its pid namespace with it.
    child = Child(lambda: _be_process_1(merged, command, mask, copied), signal_at_parents_end=signal.SIGKILL)
    os.close(copied)
    try:
        # What is bound must be here until process 1 has its own mounts; the layers are open.
        os.read(waiting, 1)
        os.close(waiting)
        if started is not None:
            started(child.pid)
        detach_foreign_mounts(os.path.dirname(merged), os.environ.get("XDG_RUNTIME_DIR", "/run"))
        status = wait_and_pass_signals(child.pid, reap_all=False)
        error = child.error()
    finally:
        child.kill(signal.SIGKILL)
        child.close()
    if error is not None:
        raise error
    return status


def _be_process_1(merged: str, command: Command, mask: set[signal.Signals], copied: int) -> int:
    namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWIPC)
    os.close(copied)
    if command.host_name:
        socket.sethostname(command.host_name)
    # What the host mounts later isn't what was bound: read-only, say.
    namespaces.make_mounts_private()
    enter_root(merged, command.binds)
    pid = os.fork()
    if pid == 0:
        execute(command, mask)
    return wait_and_pass_signals(pid, reap_all=True)
