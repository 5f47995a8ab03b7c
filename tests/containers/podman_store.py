"""How are podman and buildah run on a store of their own, with pyoverlay or without, as root or as a user?

Everything that they write goes below one directory; their mounts are in the mount namespace that is given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.containers.prepared_namespace import PreparedNamespace
from tests.mount.command import REPOSITORY, processes_naming, wait_for

SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where Debian's engines are: no others of the machine's are meant."""

_PLACES_IN_README: Final = {
    'graphroot = "/var/lib/containers/storage"': (
        'graphroot = "{base}/graph"\nrootless_storage_path = "{base}/graph"'
    ),
    'runroot = "/run/containers/storage"': 'runroot = "{base}/run"',
    'mount_program = "/usr/local/bin/pyoverlay"': "{mount_program}",
}
"""Lines of the configuration in the README, and what they are in a store of the tests."""

# As little of the machine as can be: its cgroups, its network, and locks that all of its stores share.
_ENGINE: Final = """\
[containers]
cgroups = "disabled"
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "crun"
tmp_dir = "{base}/tmp"
"""


class Podman:
    """podman and buildah on one store, in a with block; call it with the words after `podman`."""

    def __init__(
        self,
        base: Path,
        namespace: PreparedNamespace,
        mount_program: Path | str | None,
        *,
        before: Sequence[str] = (),
        variables: dict[str, str] | None = None,
        mount_options: str = "",
        force_mask: str = "",
    ) -> None:
        """Configure a store.

        base: an empty directory with a short path. mount_program: None is the kernel's overlay. before: words
        that make another user of whoever runs the words after them; base is that user's then. variables: more
        for the environment. mount_options: what `mountopt` of storage.conf says. force_mask: the mode of all
        files on disk, octal; owners and modes are kept in attributes then.
        """
        self.base = base
        self.namespace = namespace
        program = "" if mount_program is None else f'mount_program = "{mount_program}"'
        storage = configuration_in_readme()
        for line, own in _PLACES_IN_README.items():
            storage = storage.replace(line, own.format(base=base, mount_program=program))
        storage += f'mountopt = "{mount_options}"\n' if mount_options else ""
        storage += f'force_mask = "{force_mask}"\n' if force_mask else ""
        (base / "storage.conf").write_text(storage)
        (base / "containers.conf").write_text(_ENGINE.format(base=base))
        self.program = mount_program
        self._before = list(before)
        self._variables = {
            "PATH": SYSTEM_PATH,
            "CONTAINERS_STORAGE_CONF": f"{base}/storage.conf",
            "CONTAINERS_CONF": f"{base}/containers.conf",
            "BUILDAH_ISOLATION": "oci",
            "TMPDIR": f"{base}",
            **(variables or {}),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the containers; nothing may be left of them, no process and no mount."""
        self("rm", "--all", "--force", "--time=0", "--volumes")
        self.run("buildah", "rm", "--all")
        if self._before:
            # Ends the process that keeps a user's namespaces, which every other command leaves behind.
            self("system", "migrate")
        wait_for(lambda: not self._processes())
        assert self.mounts() == []

    def _processes(self) -> list[int]:
        """The processes that have to do with the store, by their command line or their environment."""
        found = processes_naming(self.base)
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"CONTAINERS_CONF={self.base}/".encode() in (directory / "environ").read_bytes():
                    found.append(int(directory.name))
        return found

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        """Run `podman WORDS` and return what it printed.

        Raises AssertionError with what it said when its exit status isn't `status`.
        """
        return self.run("podman", *words, status=status)

    def run(self, *words: str | Path, status: int = 0) -> str:
        """Run a program on this store, in the namespace and as the user of the store."""
        result = self.result(*words)
        said = result.stderr.decode(errors="replace")
        assert result.returncode == status, f"{' '.join(map(str, words))}: {result.returncode}: {said}"
        return result.stdout.decode(errors="surrogateescape")

    def result(self, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        """Run a program as `run` does, and return whatever became of it."""
        program = shutil.which(str(words[0]), path=SYSTEM_PATH)
        assert program is not None, f"{words[0]} isn't installed"
        return self.namespace.run([*self._before, program, *words[1:]], self._variables)

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start `podman WORDS`, with pipes at its standard input, output and error."""
        return subprocess.Popen(
            [*self.namespace.entering, *self._before, "/usr/bin/podman", *words],
            env={**os.environ, **self._variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def build(self, context: Path, tag: str, *options: str) -> None:
        """Build the image `tag` from a directory with a Containerfile."""
        self("build", "--quiet", "--network=none", f"--tag={tag}", *options, context)

    def inspect(self, name: str) -> dict[str, Any]:
        """What `podman inspect` tells about one image or container."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    @contextlib.contextmanager
    def container(self, image: str, *options: str, command: str = "sleep 1000") -> Iterator[str]:
        """A running container, whose id is given; removed afterwards."""
        identity = self("run", "--detach", *options, image, *command.split()).strip()
        try:
            yield identity
        finally:
            wait_for(lambda: self._has_removed(identity))

    def _has_removed(self, container: str) -> bool:
        """Remove a container; False when podman's own clean-up of the ended one is still at its mounts."""
        words = ("podman", "rm", "--force", "--ignore", "--time=0", "--volumes", container)
        result = self.result(*words)
        assert result.returncode == 0 or b"resource busy" in result.stderr, result.stderr
        return result.returncode == 0

    def shell(self, container: str, script: str) -> str:
        """Run a script in a running container and return what it printed."""
        return self("exec", container, "sh", "-ec", script)

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The tree of an image, mounted by the store's own driver."""
        place = self("image", "mount", image).strip()
        try:
            yield self.namespace.outside(place)
        finally:
            self("image", "unmount", "--force", image)

    def mounts(self) -> list[str]:
        """The mount points below the directory of the layers, but for that directory itself."""
        layers = f"{self.base}/graph/overlay/"
        return [point for point, _ in self.namespace.mounts() if point.startswith(layers)]

    def mount_types(self) -> set[str]:
        """The types of the file systems that are mounted there."""
        layers = f"{self.base}/graph/overlay/"
        return {kind for point, kind in self.namespace.mounts() if point.startswith(layers)}

    def mount_daemons(self) -> list[int]:
        """The processes of the mount program that serve, or are about to serve, a mount of this store's."""
        return [
            pid for pid in processes_naming(f"{self.base}/") if os.fsencode(self.program or "") in _words(pid)
        ]


def _words(pid: int) -> list[bytes]:
    """A process's command line; others than the mount program name it within a word."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def configuration_in_readme() -> str:
    """The storage.conf that the README tells people to use."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(\[storage\].*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    assert all(f"{line}\n" in block for line in _PLACES_IN_README)
    return str(block)
