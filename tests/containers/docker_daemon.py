"""How is dockerd run over pyoverlay, beside whatever else runs here, and how is all of it removed?

dockerd and the containerd that it starts live in a mount namespace of their own, with every directory of
theirs below one base.  pyoverlay is found there under the name of fuse-overlayfs, first in the PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.containers import docker_elsewhere
from tests.containers.mount_program import write_mount_program
from tests.harness import Entry
from tests.mount.command import REPOSITORY, processes_naming, wait_for

COMMAND_LIMIT_SECONDS = 120
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where Debian's docker, dockerd, containerd and runc are: no other docker of the machine's is meant."""

# dockerd tells a hierarchy of cgroups v1 by what is mounted; one of v2 beside it is nothing that runc uses.
_START = "umount /sys/fs/cgroup/unified 2>/dev/null; exec dockerd "


class Docker:
    """A running dockerd, in a with block; call it with the words after `docker`."""

    def __init__(self, base: Path) -> None:
        """Everything that it writes goes below `base`; the path must be short, as there are sockets in it."""
        self.base = base
        self._socket = base / "docker.sock"
        self._log = base / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it; raises AssertionError with the end of its log when it doesn't answer."""
        programs = self.base / "bin"
        programs.mkdir()
        write_mount_program(programs, "fuse-overlayfs")
        configuration = self.base / "daemon.json"
        configuration.write_text(configuration_in_readme())
        words = [
            f"--config-file={configuration}",
            *("--iptables=false", "--ip-forward=false", "--bridge=none"),
            *(f"--data-root={self.base}/data", f"--exec-root={self.base}/exec", f"--pidfile={self.base}/pid"),
            f"--host=unix://{self._socket}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation=slave", "sh", "-c", _START + " ".join(words)],
                env={**os.environ, "PATH": f"{programs}:{SYSTEM_PATH}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for(self._answers_or_has_ended)
            assert self._process.poll() is None, f"dockerd ended: {self.log()}"
        except BaseException:
            self._remove_by_force()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the containers, end dockerd, and see to it that nothing of it is left."""
        assert self._process is not None
        try:
            containers = self("ps", "--all", "--quiet").split()
            if containers:
                self("rm", "--force", "--volumes", *containers)
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=COMMAND_LIMIT_SECONDS)
            wait_for(lambda: not processes_naming(self.base))
        finally:
            self._remove_by_force()

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        """Run `docker WORDS` and return what it printed.

        Raises AssertionError with what it said when its exit status isn't `status`.
        """
        result = self._run(words)
        said = result.stderr.decode(errors="replace")
        assert result.returncode == status, f"docker {words}: {result.returncode}: {said}\n{self.log()}"
        return result.stdout.decode(errors="surrogateescape")

    def build(self, context: Path, tag: str) -> str:
        """Build the image `tag` from a directory with a Dockerfile, and return the image's id."""
        self("build", "--quiet", "--network=none", f"--tag={tag}", context)
        return str(self.inspect(tag)["Id"])

    def inspect(self, name: str) -> dict[str, Any]:
        """What `docker inspect` tells about one image or container."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    @contextlib.contextmanager
    def container(self, image: str, *options: str, command: str = "sleep 1000") -> Iterator[str]:
        """A running container, whose name is given; removed afterwards."""
        identity = self("run", "--detach", "--network=none", *options, image, *command.split()).strip()
        try:
            yield identity
        finally:
            self("rm", "--force", "--volumes", identity)

    def tree(self, container: str) -> dict[bytes, Entry]:
        """What a running container shows of its image and its changes, and docker hasn't put there."""
        own = self.own_names(container)
        found = docker_elsewhere.tree(self.outside(self._merged(container)))
        return {path: entry for path, entry in found.items() if path not in own}

    def own_names(self, container: str) -> set[bytes]:
        """The names that docker gives every container: what it mounts something on."""
        layer = self._merged(container).parent
        return set(docker_elsewhere.tree(layer.with_name(f"{layer.name}-init") / "diff"))

    def _merged(self, container: str) -> Path:
        return Path(self.inspect(container)["GraphDriver"]["Data"]["MergedDir"])

    def outside(self, path: str | Path) -> Path:
        """Where this process reaches what dockerd's mount namespace has at `path`."""
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/root") / str(path).lstrip("/")

    def run_beside(self, *words: str | Path) -> str:
        """Run a command in dockerd's mount namespace and return what it printed."""
        assert self._process is not None
        inside = ["nsenter", f"--target={self._process.pid}", "--mount"]
        return subprocess.run(
            [*inside, *words], capture_output=True, text=True, timeout=COMMAND_LIMIT_SECONDS, check=True
        ).stdout

    def mounts(self) -> list[str]:
        """The mount points below the directory of the layers, as dockerd's mount namespace has them."""
        assert self._process is not None
        table = Path(f"/proc/{self._process.pid}/mountinfo").read_text(encoding="utf-8")
        points = [line.split()[4] for line in table.splitlines()]
        return [point for point in points if point.startswith(f"{self.base}/data/fuse-overlayfs/")]

    def mount_daemons(self) -> list[int]:
        """The processes of pyoverlay that serve, or are about to serve, a mount of this dockerd's."""
        return processes_naming(f"{self.base}/bin/fuse-overlayfs")

    def log(self) -> str:
        """The end of dockerd's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def _run(self, words: tuple[str | Path, ...]) -> subprocess.CompletedProcess[bytes]:
        client = shutil.which("docker", path=SYSTEM_PATH)
        assert client is not None, "docker isn't installed (package docker.io)"
        return subprocess.run(
            [client, f"--host=unix://{self._socket}", *words],
            # Debian's docker has no buildx: the builder tested is the one whose layers are containers'.
            env={**os.environ, "DOCKER_BUILDKIT": "0", "DOCKER_CONFIG": f"{self.base}/client"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_LIMIT_SECONDS,
            check=False,
        )

    def _answers_or_has_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or self._run(("version",)).returncode == 0

    def _remove_by_force(self) -> None:
        assert self._process is not None
        end = time.monotonic() + COMMAND_LIMIT_SECONDS
        while left := processes_naming(self.base):
            assert time.monotonic() < end, f"{left} can't be killed"
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()


def configuration_in_readme() -> str:
    """The configuration of dockerd that the README tells people to use."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r'^```json\n(\{"storage-driver".*?)^```$', readme, flags=re.MULTILINE | re.DOTALL)
    return str(block)
