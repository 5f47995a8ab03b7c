"""How does a test make an image whose every file it knows?  An OCI archive, without an engine."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "echo", "find", "id", "ls", "mkdir", "mount", "mv", "rm", "sleep", "stat", "touch")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class File:
    """One entry of a layer; without content it is a directory, with a target a symlink."""

    content: bytes | None = None
    target: str | None = None
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)


Layer = Mapping[str, File]


def base_layer() -> dict[str, File]:
    """A layer with a shell and what one does with it."""
    layer = {"bin": File(), "bin/busybox": File(BUSYBOX.read_bytes())}
    return layer | {f"bin/{name}": File(target="busybox", mode=0o777) for name in APPLETS}


def write_image(
    archive: Path, name: str, layers: Sequence[Layer], command: Sequence[str] = ("/bin/sh",)
) -> None:
    """Write an OCI archive with one image, whose layers are given bottommost first."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    described = [blob("layer.v1.tar", _tar(layer)) for layer in layers]
    configuration = {
        "architecture": _MACHINES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in described]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(configuration).encode()),
        "layers": described,
    }
    named = blob("manifest.v1+json", json.dumps(manifest).encode())
    named["annotations"] = {"io.containerd.image.name": name}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [named]}).encode(),
        **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()},
    }
    archive.write_bytes(_tar({path: File(content, mode=0o644) for path, content in files.items()}))


def _tar(layer: Layer) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, file in layer.items():
            entry = tarfile.TarInfo(name)
            entry.mode = file.mode
            entry.uid, entry.gid = file.owner
            entry.mtime = 1_000_000_000
            if file.target is not None:
                entry.type, entry.linkname = tarfile.SYMTYPE, file.target
            elif file.content is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(file.content)
            tar.addfile(entry, io.BytesIO(file.content or b""))
    return stream.getvalue()
