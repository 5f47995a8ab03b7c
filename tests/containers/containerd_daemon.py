"""How is a containerd run with our snapshotter, beside others, and removed without a trace?"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.containers.containerd_client import Client, Process
from tests.mount.command import kill_all_naming, mounts_below, processes_naming, wait_for

COMMAND_LIMIT_SECONDS = 120
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where Debian's containerd, ctr and runc are: no other containerd of the machine's is meant."""

_CONFIGURATION = """
version = 2
root = "{base}/root"
state = "{base}/state"
{more}
[grpc]
  address = "{containerd}"
[proxy_plugins.pyoverlay]
  type = "snapshot"
  address = "{snapshotter}"
"""
WITHOUT_CRI = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'

_NOT_THERE = re.compile("unavailable|connection refused|connection error|transport|EOF", re.IGNORECASE)
_STATUS_LOST = "failed with ECHILD"
"""What containerd says of a mount program whose exit status its own reaper took away, ten times in a row."""
_BEGINNINGS = 3
_numbers = itertools.count()


class CommandError(AssertionError):
    """A command of ctr's failed."""


class Containerd:
    """A running containerd and its snapshotter, in a with block; call it with the words after `ctr`.

    All processes that it starts have its base directory in their command lines.
    """

    def __init__(self, base: Path, configuration: str = WITHOUT_CRI, root: Path | None = None) -> None:
        """Everything that it writes goes below `base`; the path must be short, as there are sockets in it.

        configuration: more of containerd's; root: the snapshotter's, else one of its own.
        """
        self.base = base
        self.address = base / "containerd.sock"
        self.snapshotter = Process(base, root)
        self._configuration = configuration
        self._log = base / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start both; raises AssertionError with the end of the log when containerd doesn't answer."""
        try:
            self.snapshotter.start()
            configuration = self.base / "config.toml"
            configuration.write_text(
                _CONFIGURATION.format(
                    base=self.base,
                    more=self._configuration,
                    containerd=self.address,
                    snapshotter=self.snapshotter.address,
                )
            )
            with self._log.open("wb") as log:
                self._process = process = subprocess.Popen(
                    ["containerd", f"--config={configuration}"],
                    env={**os.environ, "PATH": SYSTEM_PATH},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            wait_for(lambda: process.poll() is not None or self.run("version").returncode == 0)
            assert process.poll() is None, f"containerd ended: {self.log()}"
        except BaseException:
            self._remove_by_force()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both, and see to it that nothing is left."""
        try:
            assert self._process is not None
            if error is None:
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(timeout=COMMAND_LIMIT_SECONDS)
                assert self.snapshotter.end() == 0
                wait_for(lambda: not processes_naming(self.base))
                assert mounts_below(self.base) == []
        finally:
            self._remove_by_force()

    def __call__(self, *words: str | Path) -> str:
        """Run `ctr WORDS` and return what it printed.  Raises CommandError with what it said."""
        result = self.run(*words)
        said = result.stderr.decode(errors="replace") + result.stdout.decode(errors="replace")
        if result.returncode != 0:
            raise CommandError(f"ctr {' '.join(map(str, words))}: {said}\n{self.log()}")
        return result.stdout.decode(errors="surrogateescape")

    def insist(self, *words: str | Path, between: Callable[[], object] = lambda: None) -> str:
        """Run `ctr WORDS` again as long as it fails because containerd finds no snapshotter.

        It says so for some seconds after one was started, too. `between` is called after each failure.
        """
        end = time.monotonic() + COMMAND_LIMIT_SECONDS
        while True:
            try:
                return self(*words)
            except CommandError as failure:
                if not _NOT_THERE.search(str(failure).partition("\n")[0]) or time.monotonic() > end:
                    raise
            between()
            time.sleep(0.1)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        """Run `ctr WORDS` to its end."""
        client = shutil.which("ctr", path=SYSTEM_PATH)
        assert client is not None, "ctr isn't installed (package containerd)"
        return subprocess.run(
            [client, f"--address={self.address}", *words],
            env={**os.environ, "PATH": SYSTEM_PATH, "CONTAINERD_SNAPSHOTTER": "pyoverlay"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_LIMIT_SECONDS,
            check=False,
        )

    def new_name(self) -> str:
        """A container's name that no other test's container has: runc keeps all in one directory."""
        return f"test-{os.getpid()}-{next(_numbers)}"

    def run_in(self, image: str, script: str, *options: str) -> str:
        """What a shell script prints in a container of its own, which is removed then.

        One that couldn't begin because of `_STATUS_LOST` is begun again, as the kubelet does: nothing of it
        has run.
        """
        for _ in range(_BEGINNINGS - 1):
            try:
                return self._run_in(image, script, *options)
            except CommandError as failure:
                if _STATUS_LOST not in str(failure):
                    raise
        return self._run_in(image, script, *options)

    def _run_in(self, image: str, script: str, *options: str) -> str:
        return self("run", "--rm", *options, image, self.new_name(), "/bin/sh", "-ec", script)

    @contextlib.contextmanager
    def container(self, image: str, script: str = "sleep 1000", *options: str) -> Iterator[str]:
        """A container that runs a shell script, whose name is given; removed afterwards."""
        name = self.new_name()
        self("run", "--detach", *options, image, name, "/bin/sh", "-ec", script)
        try:
            yield name
        finally:
            self("tasks", "rm", "--force", name)
            self("containers", "rm", name)

    def execute(self, container: str, script: str) -> str:
        """What a shell script prints in a running container."""
        return self("tasks", "exec", f"--exec-id={self.new_name()}", container, "/bin/sh", "-ec", script)

    @contextlib.contextmanager
    def shown(self, image: str) -> Iterator[Path]:
        """An image's files, mounted read-only."""
        target = self.base / "shown"
        target.mkdir()
        self("images", "mount", image, target)
        try:
            yield target
        finally:
            self("images", "unmount", "--rm", target)
            target.rmdir()

    def snapshots(self) -> dict[str, tuple[str, str]]:
        """The snapshots that containerd knows: name -> (parent, kind)."""
        found = {}
        for line in self("snapshots", "ls").splitlines()[1:]:
            name, *parent, kind = line.split()
            found[name] = ("".join(parent), kind)
        return found

    def collect_garbage(self) -> None:
        """Have containerd remove what nothing refers to, and wait for that.

        It looks at a snapshotter when one of its snapshots was removed, and doesn't try again by itself when
        that failed (metadata/db.go: DB.GarbageCollect).
        """
        self.insist("snapshots", "prepare", "garbage")
        self("snapshots", "rm", "garbage")
        lease = self("leases", "create").strip()
        self("leases", "rm", "--sync", lease)

    def kept(self) -> list[str]:
        """The names of the snapshots that the snapshotter has, as containerd gave them, without numbers."""
        client = Client(self.snapshotter.address)
        try:
            # NAMESPACE/NUMBER/NAME
            return sorted(re.sub(r"^[^/]*/[0-9]+/", "", name) for name in client.names())
        finally:
            client.close()

    def directories(self) -> int:
        """How many directories of snapshots there are."""
        return len(os.listdir(self.snapshotter.root / "snapshots"))

    def mount_daemons(self) -> list[int]:
        """The processes of pyoverlay that serve, or are about to serve, a mount of this containerd's."""
        return processes_naming(f"{self.snapshotter.program} overlay")

    def log(self) -> str:
        """The end of containerd's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-10:])

    def _remove_by_force(self) -> None:
        kill_all_naming(self.base)
        for line in reversed(mounts_below(self.base)):
            subprocess.run(["umount", "--lazy", line.split()[4]], check=False)
        self.snapshotter.remove()
        if self._process is not None:
            self._process.wait()
