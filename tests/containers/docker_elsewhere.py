"""What do others make of an image that docker saved: podman over the kernel's overlay, and umoci?

Both give the image as a directory, to be compared.  Neither knows anything of pyoverlay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.harness import Entry, snapshot

_LIMIT_SECONDS = 120
_NANOSECONDS = 10**9


@contextlib.contextmanager
def mounted_by_podman(archive: Path, base: Path) -> Iterator[Path]:
    """The tree of a saved image, as podman's store mounts it with the kernel's overlay.

    archive: what `docker save` wrote. base: an empty directory for podman's store.
    """
    store = [f"--root={base}/root", f"--runroot={base}/run", "--storage-driver=overlay"]
    podman = ["podman", *store, "--cgroup-manager=cgroupfs", "--events-backend=file"]
    # The store's mounts are in a namespace of their own, which lives as long as the process that waits here.
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--propagation=slave", "sh", "-c", "echo ready; exec sleep 600"],
        stdout=subprocess.PIPE,
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n"
        inside = ["nsenter", f"--target={keeper.pid}", "--mount", *podman]
        _run(*inside, "load", "--quiet", f"--input={archive}")
        (image,) = json.loads(_run(*inside, "images", "--format=json"))
        place = _run(*inside, "image", "mount", str(image["Id"])).strip()
        assert _file_system(keeper.pid, place) == "overlay"
        yield Path(f"/proc/{keeper.pid}/root{place}")
        _run(*inside, "image", "unmount", str(image["Id"]))
    finally:
        keeper.send_signal(signal.SIGKILL)
        keeper.communicate()


def unpacked_by_umoci(archive: Path, base: Path) -> Path:
    """The tree of a saved image, unpacked layer after layer into a directory below `base`."""
    _run(
        "skopeo", "--insecure-policy", "copy", "--quiet", f"docker-archive:{archive}", f"oci:{base}/oci:saved"
    )
    _run("umoci", "unpack", "--image", f"{base}/oci:saved", f"{base}/bundle")
    return base / "bundle" / "rootfs"


def tree(root: Path) -> dict[bytes, Entry]:
    """What an image can say of the tree at `root`.

    docker's archives have times in whole seconds, nothing of the top directory, and a hard link only between
    names of one layer.
    """
    found = snapshot(root, nlink=False)
    del found[b"."]
    return {
        path: dataclasses.replace(entry, mtime=(entry.mtime or 0) // _NANOSECONDS)
        for path, entry in found.items()
    }


def names(root: Path) -> list[str]:
    """The path of everything below `root` that isn't a directory, sorted."""
    return sorted(os.fsdecode(path) for path, entry in tree(root).items() if not stat.S_ISDIR(entry.kind))


def _file_system(pid: int, place: str) -> str:
    for line in Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[4] == place:
            return fields[fields.index("-") + 1]
    raise AssertionError(f"nothing is mounted at {place}")


def _run(*words: str) -> str:
    result = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    assert result.returncode == 0, f"{' '.join(words)}: {result.stderr}"
    return result.stdout
