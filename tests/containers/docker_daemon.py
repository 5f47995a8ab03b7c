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
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.containers import docker_elsewhere
from tests.containers.mount_program import write_mount_program
from tests.containers.prepared_namespace import PreparedNamespace
from tests.harness import Entry
from tests.mount.command import REPOSITORY, is_running, kill_all_naming, processes_naming, wait_for

COMMAND_LIMIT_SECONDS = 120
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where Debian's docker, dockerd, containerd and runc are: no other docker of the machine's is meant."""


class Docker:
    """A running dockerd, in a with block; call it with the words after `docker`."""

    def __init__(self, base: Path) -> None:
        """Everything that it writes goes below `base`; the path must be short, as there are sockets in it."""
        self.base = base
        self._socket = base / "docker.sock"
        self._log = base / "log"
        self._namespace = PreparedNamespace()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it; raises AssertionError with the end of its log when it doesn't answer."""
        programs = self.base / "bin"
        programs.mkdir()
        write_mount_program(programs, "fuse-overlayfs")
        (self.base / "daemon.json").write_text(configuration_in_readme())
        with contextlib.ExitStack() as whatever_happens:
            whatever_happens.enter_context(self._namespace)
            self._start()
            whatever_happens.pop_all()
        return self

    def kill_and_start_again(self) -> None:
        """End dockerd and its containerd with SIGKILL, and have a new dockerd find what they left."""
        pid_file = self.base / "exec/containerd/containerd.pid"
        containerd = int(pid_file.read_text(encoding="ascii"))
        for pid in (self._daemon.pid, containerd):
            os.kill(pid, signal.SIGKILL)
        self._daemon.wait()
        wait_for(lambda: not is_running(containerd))
        # A number that is somebody else's by now would be waited for.
        pid_file.unlink()
        self._start()

    def _start(self) -> None:
        words = [
            f"--config-file={self.base}/daemon.json",
            *("--iptables=false", "--ip-forward=false", "--bridge=none"),
            *(f"--data-root={self.base}/data", f"--exec-root={self.base}/exec", f"--pidfile={self.base}/pid"),
            f"--host=unix://{self._socket}",
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._namespace.entering, "dockerd", *words],
                env={**os.environ, "PATH": f"{self.base}/bin:{SYSTEM_PATH}"},
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the containers, end dockerd, and see to it that nothing of it is left."""
        with contextlib.ExitStack() as at_the_end:
            at_the_end.push(self._namespace)
            try:
                containers = self("ps", "--all", "--quiet").split()
                if containers:
                    self("rm", "--force", "--volumes", *containers)
                self._daemon.send_signal(signal.SIGTERM)
                self._daemon.wait(timeout=COMMAND_LIMIT_SECONDS)
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
        return self._namespace.outside(path)

    def run_beside(self, *words: str | Path) -> str:
        """Run a command in dockerd's mount namespace and return what it printed."""
        result = self._namespace.run(words)
        assert result.returncode == 0, result.stderr.decode(errors="replace")
        return result.stdout.decode(errors="surrogateescape")

    def mounts(self) -> list[str]:
        """The mount points below the directory of the layers, as dockerd's mount namespace has them."""
        points = (point for point, _kind in self._namespace.mounts())
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
        return self._daemon.poll() is not None or self._run(("version",)).returncode == 0

    @property
    def _daemon(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _remove_by_force(self) -> None:
        kill_all_naming(self.base)
        self._daemon.kill()
        self._daemon.wait()


def configuration_in_readme() -> str:
    """The configuration of dockerd that the README tells people to use."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r'^```json\n(\{"storage-driver".*?)^```$', readme, flags=re.MULTILINE | re.DOTALL)
    return str(block)
