"""What do the JSON documents of images say?  Indexes, manifests, configurations, docker's list of images.

Only what is used is named; what else they hold stays in the documents' own bytes, which are never written
anew. Programs in Go write an empty list as null.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from pyoverlay.images.errors import ImageError

OCI_LAYOUT: Final = "oci-layout"
OCI_INDEX: Final = "index.json"
DOCKER_LIST: Final = "manifest.json"

REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"

INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MANIFEST_TYPE: Final = MANIFEST_TYPES[0]
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
CONFIG_TYPES: Final = (
    CONFIG_TYPE,
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
)
"""What an image's configuration calls itself; the last as docker's did long ago. Signatures and the like are
manifests as well, with others."""
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"


class Platform(msgspec.Struct, omit_defaults=True):
    """For which machines an image is."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    """A reference to a blob: descriptor.md."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class Index(msgspec.Struct, rename="camel", omit_defaults=True):
    """A list of manifests: image-index.md."""

    schema_version: int
    manifests: list[Descriptor]
    media_type: str | None = None


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True):
    """An image's configuration and layers, the lowest first: manifest.md."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor] | None
    media_type: str | None = None


class ListedImage(msgspec.Struct, rename="pascal"):
    """An image in a docker-archive's manifest.json."""

    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


class RootFS(msgspec.Struct):
    """The diffIDs of an image's layers, the lowest first."""

    type: str = "layers"
    diff_ids: list[str] | None = None


class History(msgspec.Struct, omit_defaults=True):
    """How a layer came to be; `empty_layer` says that none did."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class RuntimeConfig(msgspec.Struct, rename="pascal", omit_defaults=True):
    """How a container of the image runs: config.md."""

    user: str | None = None
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None


class ImageConfig(msgspec.Struct):
    """An image's configuration; its digest is the image's ID."""

    rootfs: RootFS
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: RuntimeConfig | None = None
    history: list[History] | None = None


Document = TypeVar("Document")


def decode(data: bytes, kind: type[Document], what: str) -> Document:
    """Read a JSON document.

    Raises:
        ImageError: it isn't JSON, or not of this kind; `what` names it.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ImageError(f"{what} can't be read: {error}") from error


def encode(document: object) -> bytes:
    """Write a document: the same bytes for the same content."""
    return msgspec.json.encode(document)
