"""How does a test make layers and images by hand, whatever they hold?"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyoverlay.images.zstandard import zstd

WHEN = 1_600_000_000


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class LayerTar:
    """A changeset tar in the making; nothing is too wrong to be written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(
        self,
        name: str,
        content: bytes = b"",
        *,
        kind: bytes = tarfile.REGTYPE,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        target: str = "",
        device: tuple[int, int] = (0, 0),
        mtime: int = WHEN,
        pax: Mapping[str, str] | None = None,
        size: int | None = None,
    ) -> LayerTar:
        """Add an entry; `size`: what the header says, if it isn't the truth."""
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.mtime = kind, mode, target, mtime
        info.uid, info.gid = owner
        info.devmajor, info.devminor = device
        info.size = len(content) if size is None else size
        info.pax_headers = dict(pax or {})
        self._parts.append(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        return self.raw(content + bytes(-len(content) % 512))

    def directory(self, name: str, mode: int = 0o755, **more: Any) -> LayerTar:  # noqa: ANN401
        return self.add(name, kind=tarfile.DIRTYPE, mode=mode, **more)

    def symlink(self, name: str, target: str, **more: Any) -> LayerTar:  # noqa: ANN401
        return self.add(name, kind=tarfile.SYMTYPE, target=target, mode=0o777, **more)

    def link(self, name: str, target: str, **more: Any) -> LayerTar:  # noqa: ANN401
        return self.add(name, kind=tarfile.LNKTYPE, target=target, **more)

    def raw(self, data: bytes) -> LayerTar:
        self._parts.append(data)
        return self

    def unfinished(self) -> bytes:
        return b"".join(self._parts)

    def bytes(self) -> bytes:
        return self.unfinished() + bytes(1024)


def pax_header(records: bytes) -> bytes:
    """A PAX header with these very records."""
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def pax_record(keyword: bytes, value: bytes) -> bytes:
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest)
    while len(str(length).encode() + rest) != length:
        length = len(str(length).encode() + rest)
    return str(length).encode() + rest


@dataclass
class Image:
    """An image of layers, the lowest first."""

    layers: Sequence[bytes]
    name: str = "localhost/made:1"
    config: dict[str, Any] = field(default_factory=dict)

    def config_bytes(self) -> bytes:
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                os.uname().machine, os.uname().machine
            ),
            "os": "linux",
            "created": "2020-09-13T12:26:40Z",
            "config": {"Cmd": ["sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in self.layers]},
            **self.config,
        }
        return json.dumps(config).encode()

    @property
    def image_id(self) -> str:
        return sha256(self.config_bytes())

    @property
    def diff_ids(self) -> list[str]:
        return [sha256(layer) for layer in self.layers]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, mtime=0),
    "+zstd": zstd.compress,
}


def write_layout(directory: Path, *images: Image, compression: str = "+gzip") -> Path:
    """Write images as an OCI layout; compression: "", "+gzip" or "+zstd"."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = sha256(data)
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    manifests = []
    for image in images:
        layer_type = f"application/vnd.oci.image.layer.v1.tar{compression}"
        manifest = {
            "schemaVersion": 2,
            "config": blob(image.config_bytes(), "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(COMPRESS[compression](layer), layer_type) for layer in image.layers],
        }
        described = blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
        described["annotations"] = {"org.opencontainers.image.ref.name": image.name}
        manifests.append(described)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return directory


def archive_of(directory: Path, target: Path) -> Path:
    """Put a layout into a tar."""
    with tarfile.open(target, "w") as archive:
        for path in sorted(directory.rglob("*")):
            archive.add(path, path.relative_to(directory), recursive=False)
    return target


def write_docker_archive(target: Path, *images: Image, compression: str = "") -> Path:
    """Write images as docker save once did: a directory a layer, one that is there already by a symlink."""
    written: dict[str, str] = {}
    with tarfile.open(target, "w") as archive:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        listed = []
        for number, image in enumerate(images):
            config = f"{image.image_id.partition(':')[2]}.json"
            add(config, image.config_bytes())
            paths = []
            for position, layer in enumerate(image.layers):
                path = f"{number}-{position}/layer.tar"
                paths.append(path)
                if sha256(layer) in written:
                    info = tarfile.TarInfo(path)
                    info.type, info.linkname = tarfile.SYMTYPE, f"../{written[sha256(layer)]}"
                    archive.addfile(info)
                else:
                    written[sha256(layer)] = path
                    add(path, COMPRESS[compression](layer))
            listed.append({"Config": config, "RepoTags": [image.name], "Layers": paths})
        add("manifest.json", json.dumps(listed).encode())
    return target


def simple_layer(*names: str, content: bytes = b"content\n") -> bytes:
    layer = LayerTar()
    for name in names:
        layer.add(name, content)
    return layer.bytes()
