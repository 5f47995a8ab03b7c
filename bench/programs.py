"""How is a program run, on the host or with a merged view as its root directory?

Whoever runs one learns from the error what it said.  Nothing that is mounted for a program is seen outside of
it, and all of it is gone when the program is: a trial may end at any time without leaving anything mounted.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import kernel
from bench.errors import BenchError

SHARED: Final = "/mnt"
"""Where a program in a `Chroot` sees the directory that it shares with the host."""

_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}
"""What any program finds: results may not depend on who measures."""

_SHOWN: Final = 100
_SAID: Final = 300
"""So many characters of a command, and of a failed program's last words, are shown."""


def run(
    *command: str | Path, directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run one of the host's programs in ``directory`` and return what it printed.

    Args:
        command: The program and its arguments.
        directory: Where it runs; here unless given.
        environment: Variables beside PATH, HOME and locale, which are always the same.

    Raises:
        BenchError: It isn't there or failed.
    """
    process = _start(command, directory=directory, environment=environment)
    return _output(process, command)


@dataclass(frozen=True)
class Chroot:
    """Programs that have a merged view as their root directory, with the host's /dev and /proc in it.

    Attributes:
        root: The merged view; needs the directories dev, proc and mnt.
        shared: A directory of the host that they see as `SHARED`.
    """

    root: Path
    shared: Path

    def run(self, *command: str) -> str:
        """Run a program and return what it printed; raises BenchError when it can't be run or failed."""
        return _output(self.start(*command), command)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program, with pipes to its output; raises BenchError when it can't be run."""
        return _start(command, root=self)

    def enter(self) -> None:
        """Make the view this process's root directory, in a mount namespace of its own."""
        kernel.enter_private_mount_namespace()
        kernel.bind_mount(Path("/dev"), self.root / "dev")
        kernel.mount_file_system("proc", self.root / "proc")
        kernel.bind_mount(self.shared, self.root / SHARED.lstrip("/"))
        os.chroot(self.root)
        os.chdir("/")


def _start(
    command: Sequence[str | Path],
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    root: Chroot | None = None,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            cwd=directory,
            env={**_ENVIRONMENT, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # The same few mounts for all systems.  No thread runs here that could hold a lock.
            preexec_fn=root.enter if root else None,  # noqa: PLW1509
        )
    except OSError as failure:
        raise BenchError(f"{command[0]} can't be run: {failure}; install it") from failure
    except subprocess.SubprocessError as failure:
        raise BenchError(
            f"no program can have {root and root.root} as its root directory: {failure}"
        ) from failure


def _output(process: subprocess.Popen[bytes], command: Sequence[str | Path]) -> str:
    output, errors = process.communicate()
    if process.returncode != 0:
        raise BenchError(failure_of(process.returncode, command, errors or output))
    return os.fsdecode(output)


def failure_of(status: int, command: Sequence[str | Path], said: bytes) -> str:
    """Return a sentence about a program that failed."""
    words = " ".join(os.fsdecode(said).split())[-_SAID:] or "without a word"
    line = " ".join(shlex.join(map(str, command)).split())
    return f"{line if len(line) <= _SHOWN else line[:_SHOWN] + ' ...'} ended with {status}: {words}"
