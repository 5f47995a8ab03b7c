"""How is an overlay of either kind mounted, and how is it removed whatever happened?

It knows pyoverlay only from outside: its command line, and the daemon's answer to inspect.
"""

import atexit
import contextlib
import enum
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from tests.harness import libc
from tests.harness.launcher import Launcher
from tests.harness.stack import Stack

LAUNCHER = Launcher()
atexit.register(LAUNCHER.stop)

# No mount of a test lives longer than this: a hanging daemon is killed, its callers get an error.
LIMIT_SECONDS = 300

_FLAGS = {
    "ro": libc.MS_RDONLY,
    "nosuid": libc.MS_NOSUID,
    "nodev": libc.MS_NODEV,
    "noexec": libc.MS_NOEXEC,
    "noatime": libc.MS_NOATIME,
}


class Kind(enum.Enum):
    """Whose overlay is it?"""

    KERNEL = "kernel"
    PYOVERLAY = "pyoverlay"
    SLOW_PATH = "pyoverlay-slow-path"
    """pyoverlay with `fast_path=off`: pyfuse3 answers everything."""


# For what the kernel can't do by nature: marks of other tools' layers, one lower without an upper.
_OURS = [Kind.PYOVERLAY, Kind.SLOW_PATH]
pyoverlay_only = pytest.mark.parametrize("kind", _OURS, ids=[kind.value for kind in _OURS])


class MountRefusedError(Exception):
    """The mount failed. `number` is the errno (kernel only), the text is what the program said."""

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.number = number


class Mount:
    """One overlay mount of `stack`, not mounted yet: call mount(), or use it in a with block.

    options: further mount options, one each; `lowerdir=`, `upperdir=`, `workdir=` replace the stack's.
    read_only: mount without upper and work directory. cwd: where relative paths in options start.
    log: where the daemon writes its log (default: syslog).
    """

    def __init__(
        self,
        kind: Kind,
        stack: Stack,
        *options: str,
        read_only: bool = False,
        cwd: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self.kind = kind
        self.stack = stack
        self.options = options
        self.read_only = read_only
        self.cwd = cwd
        self.log = log
        self.path = stack.merged
        self.pid: int | None = None
        self._pidfd: int | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def mount(self) -> None:
        """Mount it. Raises MountRefusedError with nothing mounted."""
        if self.kind is Kind.KERNEL:
            self._mount_kernel()
        else:
            self._mount_pyoverlay()

    def unmount(self) -> None:
        """Unmount it as umount(8) does and wait until the daemon has gone. Raises OSError (EBUSY, EINVAL)."""
        libc.umount(self.path)
        self._wait_for_daemon()

    def remount(self) -> None:
        """Unmount and mount afresh: what is seen from now on comes from the layers on disk."""
        self.unmount()
        self.mount()

    def remove(self) -> None:
        """Leave nothing mounted, whatever state the mount and its daemon are in."""
        try:
            self.unmount()
        except OSError:
            self._remove_by_force()
        finally:
            self._forget_daemon()

    def inspect(self) -> dict[str, Any]:
        """The daemon's own account of this mount (pyoverlay only): options, pid, requests by operation."""
        from pyoverlay.fuse import control  # noqa: PLC0415 - runs on the kernel alone need no pyoverlay

        return dict(control.inspect(str(self.path)))

    def requests(self) -> dict[str, int]:
        """How many requests of each operation the daemon has served (pyoverlay only)."""
        return dict(self.inspect()["requests"])

    def option_list(self) -> list[str]:
        """All options of this mount in the order in which they are given."""
        given = {option.split("=", 1)[0] for option in self.options}
        layers = {"lowerdir": ":".join(_escape(lower) for lower in self.stack.lowers)}
        if not self.read_only:
            layers |= {
                "upperdir": _escape(self.stack.upper),
                "workdir": _escape(self.stack.work),
            }
        return [f"{name}={path}" for name, path in layers.items() if name not in given] + list(self.options)

    def _mount_kernel(self) -> None:
        options = self.option_list()
        given = {option.split("=", 1)[0] for option in options}
        # The oracle has fixed settings, whatever defaults this kernel was built with.
        defaults = {"index": "index=off", "metacopy": "metacopy=off"}
        if "userxattr" not in given:
            defaults["redirect_dir"] = "redirect_dir=follow"
        flags = 0
        for option in options:
            flags |= _FLAGS.get(option, 0)
        data = [option for option in options if option not in _FLAGS]
        data += [option for name, option in defaults.items() if name not in given]
        here = os.getcwd()
        try:
            if self.cwd is not None:
                os.chdir(self.cwd)
            libc.mount("overlay", self.path, "overlay", flags, ",".join(data))
        except OSError as error:
            raise MountRefusedError(str(error), error.errno) from error
        finally:
            os.chdir(here)

    def _mount_pyoverlay(self) -> None:
        options = self.option_list()
        if self.kind is Kind.SLOW_PATH:
            options.append("fast_path=off")
        words = ["mount", "-o", ",".join(options), str(self.path)]
        if self.log is not None:
            words += ["--log", str(self.log)]
        try:
            status, said = LAUNCHER.run(words, self.cwd)
        except TimeoutError as error:
            self._remove_by_force()
            raise MountRefusedError(str(error)) from error
        if status != 0:
            raise MountRefusedError(said.strip() or f"exit status {status}")
        try:
            pid = int(self.inspect()["pid"])
        except BaseException:
            self._remove_by_force()
            raise
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", f"sleep {LIMIT_SECONDS} && kill -KILL {pid}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_for_daemon(self, seconds: float = 30) -> None:
        if self._pidfd is None:
            return
        ended, _, _ = select.select([self._pidfd], [], [], seconds)
        pid = self.pid
        holders = "" if ended else _who_has_mounted(self.path)
        if not ended:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._forget_daemon()
        assert ended, f"the daemon (pid {pid}) still ran {seconds:.0f} s after its mount was gone{holders}"

    def _remove_by_force(self) -> None:
        for connection in _connections(self.path):
            # No such connection any more, or no fusectl mounted: the daemon's end aborts it as well.
            with contextlib.suppress(OSError):
                connection.joinpath("abort").write_text("1")
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        while _connections(self.path) or os.path.ismount(self.path):
            libc.umount(self.path, libc.MNT_DETACH)

    def _forget_daemon(self) -> None:
        if self._watchdog is not None:
            os.killpg(self._watchdog.pid, signal.SIGKILL)
            self._watchdog.wait()
            self._watchdog = None
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self.pid = None


# What the fixture mount_overlay is: (*options, stack=, kind=, read_only=, cwd=) -> a live Mount.
MountFactory = Callable[..., Mount]


def _escape(path: Path) -> str:
    """A path as the kernel's option grammar wants it: backslash, colon and comma escaped."""
    text = str(path)
    for character in ("\\", ":", ","):
        text = text.replace(character, "\\" + character)
    return text


def _who_has_mounted(path: Path) -> str:
    """Which processes' mount namespaces still have a mount at `path`: a copy that keeps its daemon alive."""
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f" {path} " in process.joinpath("mountinfo").read_text(errors="surrogateescape"):
                holders.append(f"{process.name} {process.joinpath('comm').read_text().strip()}")
    return f", but in the mount namespace of {', '.join(holders)}" if holders else ""


def _connections(path: Path) -> list[Path]:
    """The /sys/fs/fuse/connections directory of every FUSE mount at `path`, without touching the mount."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            if fields[4] == str(path) and fields[fields.index("-") + 1].startswith("fuse"):
                found.append(Path("/sys/fs/fuse/connections") / fields[2].split(":")[1])
    return found
