"""Which processes does a sandbox have, and how do errors, signals and exit statuses pass between them?

The caller starts the daemon and process 1 of the sandbox, process 1 starts the command.  Signals that some
process sends to the caller are passed down; those of a terminal have reached all three already, as they share
a process group.  The exit status is passed up.  This file knows nothing of mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import traceback
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

from pyoverlay.options import OverlayError
from pyoverlay.sandbox import namespaces
from pyoverlay.sandbox.accounts import Account, find_account
from pyoverlay.sandbox.command import (
    DEFAULT_PATH,
    NOT_EXECUTABLE,
    NOT_FOUND,
    SIGNALLED,
    Command,
    SandboxError,
)

ENDING_SIGNALS: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_PASSED_DOWN: Final = ENDING_SIGNALS | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH}
_WAITED_FOR: Final = _PASSED_DOWN | {signal.SIGCHLD}
_LARGEST_ACCOUNT_FILE: Final = 1 << 24
"""Bytes that are read of passwd(5) and group(5)."""
# Python ignores these; a program expects them as they were at the system's start.
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class Child:
    """A forked process that tells through a pipe why it failed."""

    def __init__(self, work: Callable[[], int], *, signal_at_parents_end: signal.Signals) -> None:
        """Fork, and have the child do `work` and exit with what that returns.

        Args:
            work: must not return to the caller's other work; an exception is told, and exits with 1.
            signal_at_parents_end: sent to the child when this process ends, however it does.
        """
        self._errors, writing = os.pipe()
        parent = os.pidfd_open(os.getpid())
        self.pid: Final = os.fork()
        if self.pid == 0:
            _be_child(work, writing, parent, signal_at_parents_end)
        os.close(writing)
        os.close(parent)
        self._pidfd: Final = os.pidfd_open(self.pid)

    def wait_for_failure(self, seconds: float, *others: int) -> bool:
        """Wait until it has failed, one of other descriptors has an event, or the time is up.

        Returns whether it failed, or ended.
        """
        poll = select.poll()
        poll.register(self._errors, select.POLLIN)
        for descriptor in others:
            poll.register(descriptor, select.POLLPRI)
        return any(descriptor == self._errors for descriptor, _ in poll.poll(seconds * 1000))

    def wait_for_end(self, seconds: float) -> bool:
        """Wait until it has ended, and return whether it has."""
        return bool(select.select([self._pidfd], [], [], seconds)[0])

    def kill(self, signal_number: int) -> None:
        """Send it a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal_number)

    def error(self) -> SandboxError | None:
        """Return what it told before it ended (waits for that), None when it had nothing to tell."""
        told = b""
        while block := os.read(self._errors, 4096):
            told += block
        if not told:
            return None
        status, _, text = told.decode(errors="surrogateescape").partition(" ")
        return SandboxError(text, int(status))

    def close(self) -> None:
        """Reap it (waits for its end), and close what held it."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self._errors)
        os.close(self._pidfd)


def _be_child(work: Callable[[], int], errors: int, parent: int, at_parents_end: signal.Signals) -> NoReturn:
    status = 1
    try:
        namespaces.die_with_parent(at_parents_end)
        if not select.select([parent], [], [], 0)[0]:  # it may have ended just before
            status = work()
    except SandboxError as error:
        status = error.status
        _tell(errors, status, str(error))
    except (OverlayError, OSError) as error:
        _tell(errors, status, str(error))
    except BaseException:  # noqa: BLE001  # the child must never return into its parent's work
        _tell(errors, status, traceback.format_exc())
    finally:
        os._exit(status)


def _tell(pipe: int, status: int, text: str) -> None:
    os.write(pipe, f"{status} {text}".encode(errors="surrogateescape"))


# Signals


@contextlib.contextmanager
def signals_held_back() -> Iterator[set[signal.Signals]]:
    """Keep signals for `wait_and_pass_signals`; gives the mask that programs are to start with."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    mask = {signal.Signals(number) for number in before}
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def pending_end() -> int | None:
    """Return a signal that asks this process to end and is held back; None when there is none."""
    pending = signal.sigpending() & ENDING_SIGNALS
    return min(pending) if pending else None


def wait_and_pass_signals(pid: int, *, reap_all: bool) -> int:
    """Wait for a child, and pass on to it what signals this process gets; they must be held back.

    Args:
        pid: the child.
        reap_all: as process 1, which inherits orphans, reap every child that ends.

    Returns:
        Its exit status as a shell shows it: 128 and the signal's number when a signal ended it.
    """
    while True:
        status = _reap(pid, reap_all=reap_all)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else SIGNALLED - code
        info = signal.sigwaitinfo(_WAITED_FOR)
        # Positive codes are the kernel's: a terminal's signals have gone to the whole process group.
        if info.si_signo != signal.SIGCHLD and info.si_code <= 0:
            os.kill(pid, info.si_signo)


def _reap(pid: int, *, reap_all: bool) -> int | None:
    while True:
        try:
            ended, status = os.waitpid(-1 if reap_all else pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if ended == pid:
            return status
        if ended == 0:
            return None


# The command


def execute(command: Command, signal_mask: set[signal.Signals]) -> NoReturn:
    """Become the command; its root directory is in place.

    Raises:
        SandboxError: it can't be started, with the status that engines and shells exit with.
    """
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        if command.make_directory:
            os.makedirs(command.directory, exist_ok=True)
    except OSError as error:
        raise SandboxError(f"can't make {command.directory} in the merged view: {error.strerror}") from error
    account = _account(command.user)
    environment = _environment(command, account.user)
    _become(account)
    try:
        os.chdir(command.directory)
    except OSError as error:
        raise SandboxError(
            f"can't start in {command.directory} of the merged view: {error.strerror}"
        ) from error
    _close_on_exec()
    signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
    try:
        os.execvpe(command.words[0], command.words, environment)
    except OSError as error:
        raise _not_started(command.words[0], environment["PATH"], error) from error


def _account(user: tuple[int, int] | str) -> Account:
    if isinstance(user, str):
        return find_account(user, _lines("/etc/passwd"), _lines("/etc/group"))
    return Account(*user)


def _lines(path: str) -> list[str]:
    """Return the lines of a file of the merged view, which may be hostile; none when it has no such file."""
    try:
        # A FIFO would be waited for, and /dev/zero has no end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with open(descriptor, "rb", closefd=True) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return []
        return os.fsdecode(file.read(_LARGEST_ACCOUNT_FILE)).splitlines()


def _become(account: Account) -> None:
    user, group = account.user, account.group
    try:
        # In a user namespace of an unprivileged user, groups can't be given up: setgroups(2) is denied there.
        with contextlib.suppress(PermissionError):
            os.setgroups(account.groups)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    except OSError as error:
        unmapped = "this user namespace doesn't map these numbers"
        reason = unmapped if error.errno == errno.EINVAL else error.strerror
        raise SandboxError(f"can't run as {user}:{group}: {reason}") from error


def _not_started(program: str, path: str, error: OSError) -> SandboxError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if "/" not in program:
            return SandboxError(f"{program}: command not found in the merged view (PATH={path})", NOT_FOUND)
        if os.path.lexists(program):
            reason = "its interpreter or loader, or the target of a link, is missing in the merged view"
            return SandboxError(f"{program}: {reason}", NOT_FOUND)
        return SandboxError(f"{program}: no such file in the merged view", NOT_FOUND)
    return SandboxError(f"{program}: can't be executed: {error.strerror}", NOT_EXECUTABLE)


def _environment(command: Command, user: int) -> dict[str, str]:
    bare = {
        "PATH": DEFAULT_PATH,
        "HOME": _home(user),
        "TERM": os.environ.get("TERM", "xterm"),
    }
    return bare | dict(command.environment)


def _home(user: int) -> str:
    """Return the home directory that the merged view's passwd(5) names, as engines do."""
    for line in _lines("/etc/passwd"):
        fields = line.rstrip("\n").split(":")
        if len(fields) > 5 and fields[2] == str(user):
            return fields[5] or "/"
    return "/root" if user == 0 else "/"


def _close_on_exec() -> None:
    """Let the command inherit standard input, output and error only: a directory of the host is a way out."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
