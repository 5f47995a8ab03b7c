"""Does podman keep owners and modes in attributes over pyoverlay, where no file on disk has them?

storage.conf's force_mask, for which podman mounts with xattr_permissions=2.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import docker_elsewhere
from tests.containers.podman_store import Podman
from tests.containers.prepared_namespace import PreparedNamespace
from tests.harness import Entry
from tests.harness.content import attribute, is_whiteout

RECORD = "user.containers.override_stat"
SCRIPT = (
    "mkdir -p /a/b; echo text > /a/b/file; chown 7:8 /a/b /a/b/file; chmod 4711 /a/b/file; chmod 2755 /a/b;"
    "mkfifo /a/fifo; chown 9:9 /a/fifo; ln -s file /a/b/link; ln /a/b/file /a/hard; rm /d/f; chmod 700 /e/h;"
    "touch -d '2001-02-03 04:05:06' /a/b/file /e"
)


@pytest.fixture(scope="module")
def masked(
    engines_base: Path, prepared_namespace: PreparedNamespace, mount_program: Path
) -> Iterator[Podman]:
    """Podman over pyoverlay, with a store whose files are all the daemon's."""
    base = engines_base / "masked"
    base.mkdir()
    with Podman(base, prepared_namespace, mount_program, force_mask="700") as running:
        yield running


def test_containers_and_images_show_owners_that_no_file_has(
    masked: Podman, podman: Podman, small: str, base: Path
) -> None:
    archive = base / "small.tar"
    podman("save", "--quiet", "--format=oci-archive", f"--output={archive}", small)
    loaded = masked("load", "--quiet", f"--input={archive}").split()[-1]
    with podman.mounted(small) as merged:
        expected = docker_elsewhere.tree(merged)
    with masked.mounted(loaded) as merged:
        assert _without_special_bits(docker_elsewhere.tree(merged)) == _without_special_bits(expected)
    with masked.container(loaded) as container:
        before = set(masked("diff", container).splitlines())
        masked.shell(container, SCRIPT)
        assert {"A /a", "A /a/fifo", "A /a/b/file", "D /d/f", "C /e/h"} <= (
            set(masked("diff", container).splitlines()) - before
        )
        upper = masked.namespace.outside(masked.inspect(container)["GraphDriver"]["Data"]["UpperDir"])
        _check_on_disk(upper)
        # Debian's podman (4.3) fails to unpack a fifo so: it sets the record on the fifo itself.
        masked.shell(container, "rm /a/fifo")
        masked("commit", "--quiet", container, "committed")
    with podman.container(small) as container:
        podman.shell(container, f"{SCRIPT}; rm /a/fifo")
        podman("commit", "--quiet", container, "committed-plainly")
    with podman.mounted("committed-plainly") as merged:
        expected = _without_special_bits(docker_elsewhere.tree(merged))
    with masked.mounted("committed") as merged:
        found = _without_special_bits(docker_elsewhere.tree(merged))
    assert found.keys() == expected.keys()
    for path in (b"a/b", b"a/b/file", b"a/hard", b"e/h"):
        assert dataclasses.replace(found[path], mtime=None) == dataclasses.replace(expected[path], mtime=None)


def _without_special_bits(tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Debian's podman (4.3) writes no suid, sgid and sticky into the records of an image's layers."""
    return {path: dataclasses.replace(entry, mode=entry.mode & 0o777) for path, entry in tree.items()}


def _check_on_disk(upper: Path) -> None:
    for directory, subdirectories, files in os.walk(upper):
        for name in (*subdirectories, *files):
            path = Path(directory, name)
            status = path.lstat()
            if is_whiteout(path) or path.is_symlink():
                continue
            assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o700), path
    assert attribute(upper / "a/b/file", RECORD) == b"7:8:4711:file"
    assert attribute(upper / "a/fifo", RECORD) == b"9:9:0644:pipe"
