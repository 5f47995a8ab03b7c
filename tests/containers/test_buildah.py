"""Does buildah run unchanged over pyoverlay: from, run, copy, mount, commit, and builds of its own?"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.containers.podman_store import Podman
from tests.mount.command import wait_for


def test_a_container_by_hand(podman: Podman, small: str, base: Path) -> None:
    """The steps of a build one by one: each mounts the container anew, and sees what those before did."""

    def buildah(*words: str | Path) -> str:
        return podman.run("buildah", *words)

    (base / "copied").write_text("from outside\n")
    container = buildah("from", "--network=none", small).strip()
    buildah("run", container, "--", "sh", "-c", "rm -r /d && mkdir /d && echo new > /d/g")
    buildah("copy", container, base / "copied", "/d/copied")
    buildah("run", container, "--", "sh", "-c", "test -f /d/copied && mv /d/copied /d/moved")
    merged = buildah("mount", container).strip()
    (podman.namespace.outside(merged) / "d/outside").write_text("through the mount\n")
    assert sorted(os.listdir(podman.namespace.outside(merged) / "d")) == ["g", "moved", "outside"]
    buildah("umount", container)
    buildah("config", "--label=made=by-hand", container)
    buildah("commit", "--quiet", container, "by-hand")
    buildah("rm", container)
    assert json.loads(buildah("inspect", "by-hand"))["OCIv1"]["config"]["Labels"]["made"] == "by-hand"
    told = podman("run", "--rm", "by-hand", "sh", "-c", "ls /d; cat /d/g /d/moved /d/outside")
    assert told == "g\nmoved\noutside\nnew\nfrom outside\nthrough the mount\n"
    wait_for(lambda: not podman.mount_daemons())
    assert podman.mounts() == []


def test_a_build_of_stages_with_mounts(podman: Podman, small: str, base: Path) -> None:
    """One stage's files copied into another, a bind mount of the context, and a cache between builds."""
    context = base / "context"
    context.mkdir()
    (context / "given").write_text("given\n")
    (context / "Dockerfile").write_text(
        f"FROM {small} AS first\n"
        "RUN --mount=type=bind,target=/context cat /context/given > /d/given\n"
        "RUN mkdir /out && mv /d/given /d/f /out && chown -R 7:8 /out && ln -s given /out/link\n"
        f"FROM {small}\n"
        "RUN rm -rf /d\n"
        "COPY --from=first /out /d\n"
        "USER 7:8\n"
    )
    for _ in range(2):
        podman.run("buildah", "build", "--quiet", "--layers", "--network=none", "--tag=stages", context)
        told = podman("run", "--rm", "stages", "sh", "-c", "ls /d; cat /d/link; stat -c %u:%g /d/f")
        assert told == "f\ngiven\nlink\ngiven\n7:8\n"
