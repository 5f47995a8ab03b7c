"""What is to be run in a sandbox, and how is its failure told?"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pyoverlay.options import OptionError, OverlayError

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of the command, as container engines set it."""

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
SIGNALLED: Final = 128
"""Exit statuses as a shell's, and container engines'; a signal's number is added to the last."""


class SandboxError(OverlayError):
    """The command couldn't be run; `status` is the exit status that says so."""

    def __init__(self, text: str, status: int = 1) -> None:
        """Keep the line for the person, and the status for the caller's program."""
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the host that the command sees.

    Attributes:
        source: its absolute path on the host.
        target: the absolute path under which the command sees it.
        read_only: whether the command can't write it, nor what is mounted below it.
    """

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Bind:
        """Read ``SRC:DST[:ro|:rw]``; raises OptionError."""
        source, colon, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not (source and colon and target.startswith("/")) or mode not in ("", "ro", "rw"):
            raise OptionError(f"--bind {text}: write SRC:DST or SRC:DST:ro, DST as an absolute path")
        path = posixpath.normpath("/" + target.lstrip("/"))
        if path == "/":
            raise OptionError(f"--bind {text}: the root is the merged view; bind below it")
        source = os.path.abspath(source)
        if not os.path.exists(source):
            raise OptionError(f"--bind {text}: {source} doesn't exist")
        return cls(source, path, mode == "ro")

    def is_directory(self) -> bool:
        """Whether a directory is bound, so that its mount point is one."""
        return os.path.isdir(self.source)


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what it finds around it.

    Attributes:
        words: the program and its arguments; a program without a slash is searched for in PATH.
        environment: variables beyond (or in place of) PATH, HOME and TERM.
        directory: where it starts.
        user: user and group id that it runs as; or ``USER[:GROUP]`` in names or numbers, which are looked up
            in the merged view's own passwd(5) and group(5), see `pyoverlay.sandbox.accounts`.
        binds: what it sees of the host.
        host_name: what uname(2) tells it; empty: the host's own name.
        make_directory: whether `directory` is made where it is missing.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: tuple[int, int] | str = (0, 0)
    binds: tuple[Bind, ...] = ()
    host_name: str = ""
    make_directory: bool = False
