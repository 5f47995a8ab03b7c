"""What is the life of a mount: start, ready, serve, end?

In the background the caller's process returns when the mount is live, and the daemon is another process in
a session of its own.  It ends when the mount is gone or a signal says so: then what is in flight is served,
the mount is detached, and the work directory is left clean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from pyoverlay.fuse import device, occupation
from pyoverlay.fuse.beginning import serve_until_imported
from pyoverlay.fuse.control import ControlSocket
from pyoverlay.fuse.device import Label, MountError
from pyoverlay.fuse.exchange import Exchange, Request
from pyoverlay.layers import syscalls
from pyoverlay.layers.stack import Stack
from pyoverlay.options import MountOptions, OverlayError
from pyoverlay.overlay.filesystem import OverlayFilesystem

logger = logging.getLogger(__name__)

_SYSTEM_LOG: Final = "/dev/log"
_READY: Final = b"\0ready"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def mount(
    options: MountOptions,
    target: str,
    *,
    foreground: bool = False,
    debug: bool = False,
    log: str | None = None,
    name: str = "pyoverlay",
    source: str | None = None,
) -> None:
    """Mount a stack at ``target``.

    In the background this returns when the mount is live.  In the ``foreground`` it returns when the mount
    has ended.  ``debug`` logs every request; the log goes to the file ``log``, else to stderr in the
    foreground and to syslog in the background.  The mount is shown as of type ``fuse.NAME``, from ``source``
    (default: ``name``).

    Raises OverlayError with nothing mounted and nothing created.
    """
    target = os.path.realpath(target)
    options = _with_absolute_paths(options)
    log_file = os.path.abspath(log) if log is not None else None
    label = Label(name, source or name)
    if foreground:
        _set_up_log(log_file, debug=debug, foreground=True)
        _Daemon(options, target, label).run(lambda: None)
    else:
        _mount_in_background(options, target, label, log_file, debug=debug)


def _with_absolute_paths(options: MountOptions) -> MountOptions:
    """The daemon's working directory is ``/``, and whoever inspects the mount has another."""
    return dataclasses.replace(
        options,
        lowerdir=tuple(os.path.abspath(path) for path in options.lowerdir),
        upperdir=None if options.upperdir is None else os.path.abspath(options.upperdir),
        workdir=None if options.workdir is None else os.path.abspath(options.workdir),
    )


def _mount_in_background(
    options: MountOptions, target: str, label: Label, log_file: str | None, *, debug: bool
) -> None:
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become_daemon(options, target, label, log_file, writing, debug=debug)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    if not said.startswith(_READY):
        raise MountError(said.decode(errors="replace") or f"the daemon for {target} ended without a word")


def _become_daemon(
    options: MountOptions, target: str, label: Label, log_file: str | None, pipe: int, *, debug: bool
) -> NoReturn:
    """Leave the caller's session and process, serve, and exit."""
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _close_inherited(pipe)
        _set_up_log(log_file, debug=debug, foreground=False)
        pipe_is_open = True

        def say(message: bytes) -> None:
            nonlocal pipe_is_open
            if pipe_is_open:
                os.write(pipe, message)
                os.close(pipe)
                pipe_is_open = False

        try:
            _Daemon(options, target, label).run(lambda: say(_READY))
            status = 0
        except OverlayError as failure:
            say(str(failure).encode(errors="surrogateescape"))
        except BaseException as failure:
            logger.exception("the daemon failed")
            say(f"the daemon for {target} failed: {failure!r}".encode(errors="surrogateescape"))
    finally:
        os._exit(status)


def _close_inherited(pipe: int) -> None:
    """Point 0, 1 and 2 at /dev/null and close the rest: an engine waits for the end of its pipes."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, pipe)
    os.closerange(pipe + 1, most)


def _set_up_log(log_file: str | None, *, debug: bool, foreground: bool) -> None:
    if log_file is not None:
        try:
            handler: logging.Handler = logging.FileHandler(log_file)
        except OSError as failure:
            raise MountError(f"log file {log_file}: {failure.strerror}") from None
    elif foreground:
        handler = logging.StreamHandler()
    else:
        handler = _system_log()
    handler.setFormatter(logging.Formatter("pyoverlay[%(process)d]: %(levelname)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("pyoverlay").setLevel(logging.DEBUG if debug else logging.INFO)


def _system_log() -> logging.Handler:
    if not os.path.exists(_SYSTEM_LOG):
        return logging.NullHandler()
    from logging.handlers import SysLogHandler  # noqa: PLC0415 - imported where it is of use

    try:
        return SysLogHandler(_SYSTEM_LOG, SysLogHandler.LOG_DAEMON)
    except OSError:
        return logging.NullHandler()


class _Daemon:
    """One mount, from opening its layers to closing them."""

    def __init__(self, options: MountOptions, target: str, label: Label) -> None:
        self._options = options
        self._target = target
        self._label = label

    def run(self, on_ready: Callable[[], None]) -> None:
        """Mount, serve until the end, clean up.  Raises OverlayError before the mount is live."""
        device.refuse_missing_device()
        device.refuse_bad_target(self._target)
        _raise_limits()
        os.umask(0)
        self._wait_for_former_mount()
        stack = Stack(self._options)
        try:
            os.chdir("/")
            # Until somebody listens to them: a daemon that ends now leaves a mount that nobody serves.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            connection = device.connect(self._options, self._target, self._label)
            try:
                stack.prepare_work_directory()
                self._serve(stack, connection, on_ready)
            except BaseException:
                self._detach(connection)
                raise
            finally:
                with contextlib.suppress(OSError):
                    stack.clean_work_directory()
        finally:
            stack.close()

    def _wait_for_former_mount(self) -> None:
        """Give the daemon of a mount that has just gone the time to let go of the upper.

        What can't be opened, and what stays in use, the stack refuses.
        """
        if self._options.upperdir is not None and self._options.writable:
            with contextlib.suppress(OSError):
                occupation.is_upper_of_live_mount(self._options.upperdir)

    def _serve(self, stack: Stack, connection: device.Connection, on_ready: Callable[[], None]) -> None:
        filesystem = OverlayFilesystem(stack)

        def ready() -> None:
            device.raise_readahead(connection.device_number, self._options)
            on_ready()

        exchange = Exchange(connection.descriptor, filesystem, ready)
        control = _open_control_socket(connection)
        try:
            kept = self._begin(exchange, control)
            if kept is None:
                exchange.close()
                return
            from pyoverlay.fuse import service  # noqa: PLC0415

            options = dataclasses.asdict(self._options)
            service.Service(exchange, connection, control, options).run(kept, _SIGNALS)
        finally:
            if control is not None:
                control.close()
            filesystem.close()

    @staticmethod
    def _begin(exchange: Exchange, control: ControlSocket | None) -> list[Request] | None:
        """Serve until pyfuse3 is needed: by a request, a signal, or somebody who inspects the mount."""
        pending = syscalls.signal_descriptor(_SIGNALS)
        others = [pending] if control is None else [pending, control.fileno()]
        try:
            return serve_until_imported(exchange, "pyoverlay.fuse.service", others)
        finally:
            os.close(pending)

    @staticmethod
    def _detach(connection: device.Connection) -> None:
        """Unmount what couldn't be served, if it is still the mount that is there.

        After an orderly end our mount is gone, and its device number may be another's already.
        """
        if device.device_number(connection.target) == connection.device_number:
            try:
                device.unmount(connection.target, lazy=True)
            except MountError as failure:
                logger.warning("%s", failure)


def _open_control_socket(connection: device.Connection) -> ControlSocket | None:
    try:
        return ControlSocket(connection.device_number)
    except OSError as failure:
        logger.warning("no control socket: %s", failure)
        return None


def _raise_limits() -> None:
    """Leave behind the limits of whoever mounts, as far as we may: we work for others.

    How large a file may get is each caller's own limit, which the kernel above us knows.
    """
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE):
        _soft, hard = resource.getrlimit(limit)
        if limit != resource.RLIMIT_NOFILE:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                continue
        resource.setrlimit(limit, (hard, hard))
