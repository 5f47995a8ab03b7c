"""How do tests run our own containers?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from pyoverlay.containers.engine.keeping import Containers
from pyoverlay.images.digests import Digest
from pyoverlay.images.store import Store
from tests.mount.command import PYOVERLAY, environment, fail, pyoverlay


class Engine:
    """`pyoverlay container` on one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.containers = Containers(Store(root))

    def __call__(
        self, command: str, *words: str | Path, status: int = 0, variables: dict[str, str] | None = None
    ) -> str:
        """Run `pyoverlay container COMMAND`, which exits with `status`, and return what it printed."""
        result = self.result(command, *words, variables=variables)
        assert (result.returncode, result.stderr.decode()) == (status, "")
        return result.stdout.decode()

    def result(
        self, command: str, *words: str | Path, variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return pyoverlay("container", command, "--root", self.root, *words, variables=variables)

    def refused(self, command: str, *words: str | Path) -> str:
        return fail(self.result(command, *words))

    def run(self, script: str, *options: str, image: str = "localhost/small:1", status: int = 0) -> str:
        return self("run", *options, image, "--", "sh", "-c", script, status=status)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `pyoverlay container WORDS` in a process group of its own."""
        return subprocess.Popen(
            [*PYOVERLAY, "container", words[0], f"--root={self.root}", *words[1:]],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def states(self) -> dict[str, str]:
        return {row["Name"]: row["Status"] for row in json.loads(self("list", "--json"))}

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    def commit(self, name: str, image: str, *options: str, **variables: str) -> Digest:
        return Digest(self("commit", *options, name, image, variables=variables).strip())

    def config(self, image_id: Digest) -> dict[str, Any]:
        config = json.loads(self.containers.store.config_bytes(image_id))
        assert isinstance(config, dict)
        return config
