"""Where do engines run that must see other mounts than this machine's, and leave none behind?

In a mount namespace that lives as long as a process that keeps it: with it go all mounts, and so all their
daemons, whatever happened.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LIMIT_SECONDS: Final = 120

# runc and crun take a hierarchy of cgroups v2 beside those of v1 for something to use, and can't.
_WITHOUT_UNIFIED_CGROUPS: Final = "umount /sys/fs/cgroup/unified 2>/dev/null || true"
_KEEP: Final = "echo ready; exec cat"


class PreparedNamespace:
    """A mount namespace without cgroups v2 beside v1, in a with block."""

    def __init__(self, *commands: str) -> None:
        """commands: lines for `sh -e` that prepare it further."""
        self._script = "\n".join(["set -e", _WITHOUT_UNIFIED_CGROUPS, *commands, _KEEP])
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation=slave", "sh", "-c", self._script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n", "the mount namespace couldn't be made"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The end of its input ends it when this process is killed; children of other tests may have it, too.
        self._process.kill()
        self._process.communicate(timeout=LIMIT_SECONDS)

    @property
    def entering(self) -> list[str]:
        """The words to put before a command that is to run in it, as root."""
        return ["nsenter", f"--target={self._process.pid}", "--mount", "--"]

    def run(
        self, words: Sequence[str | Path], variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in it to its end, in `/`; `variables` come on top of this process's environment."""
        return subprocess.run(
            [*self.entering, *words],
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )

    def outside(self, path: str | Path) -> Path:
        """Where this process reaches what the namespace has at `path`."""
        return Path(f"/proc/{self._process.pid}/root") / str(path).lstrip("/")

    def mounts(self) -> list[tuple[str, str]]:
        """The mount point and the file system type of each mount in it."""
        found = []
        for line in Path(f"/proc/{self._process.pid}/mountinfo").read_text(encoding="utf-8").splitlines():
            fields = line.split()
            found.append((fields[4], fields[fields.index("-") + 1]))
        return found

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self._keeper is not None
        return self._keeper
