"""Which images are in a file or directory, and where in it are their parts?

OCI layouts, as directories and in tar archives, and docker's archives, told apart by what is in them; plain
or compressed. Blobs are read as streams that check their digests and sizes on the way.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from pyoverlay.images import documents, platforms, references
from pyoverlay.images.archive_files import Archive, Directory, Files
from pyoverlay.images.compression import Decompressed
from pyoverlay.images.digests import Digest, digest_of, hexadecimal, parse_digest
from pyoverlay.images.documents import Descriptor, ImageConfig, Index, ListedImage, Manifest
from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.limits import MAX_DOCUMENT, Limits
from pyoverlay.images.verified_blob import VerifiedBlob

_MAX_NESTING: Final = 4
_PIECE: Final = 1 << 20
_DIR_VERSION: Final = "version"
"""A file that a directory has beside manifest.json when skopeo wrote it as ``dir:``."""


class Blob(Protocol):
    """A stream of stored bytes that is closed after use."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; raises ImageError at the end when they weren't what they should be."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


@dataclass(frozen=True)
class FoundLayer:
    """A layer as it lies in an archive.

    Attributes:
        diff_id: what its tar must be.
        size: stored bytes, compressed or not.
        open: opens the stored bytes.
    """

    diff_id: Digest
    size: int
    open: Callable[[], Blob]


@dataclass(frozen=True)
class FoundImage:
    """An image in an archive.

    Attributes:
        image_id: the digest of its configuration.
        config: the configuration's bytes.
        names: full names.
        layers: the lowest first.
    """

    image_id: Digest
    config: bytes
    names: list[str]
    layers: list[FoundLayer]


@contextlib.contextmanager
def open_images(source: str, scratch: Path, limits: Limits) -> Iterator[list[FoundImage]]:
    """Open the images in a file, a directory, or on standard input (``-``).

    Args:
        source: its path.
        scratch: a directory for what must be decompressed before it can be read.
        limits: what is refused.

    Raises:
        ImageError: there is no image in it, or one that is malformed.
    """
    try:
        with contextlib.ExitStack() as resources:
            files = _open_files(source, scratch, limits, resources)
            yield find_images(files, "image" if source == "-" else Path(source).name)
    except ImageError as error:
        raise type(error)(f"{source}: {error}") from error


def _open_files(source: str, scratch: Path, limits: Limits, resources: contextlib.ExitStack) -> Files:
    if source != "-" and os.path.isdir(source):
        return Directory(Path(source))
    if source == "-":
        file: IO[bytes] = sys.stdin.buffer
    else:
        try:
            file = resources.enter_context(open(source, "rb"))  # noqa: SIM115
        except OSError as error:
            raise ImageError(f"{error.strerror}") from error
    if file.seekable():
        compression = Decompressed(file).compression
        file.seek(0)
        if compression == "none":
            return Archive(file)
    stream = Decompressed(file)
    spool = resources.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115
    size = 0
    while piece := stream.read(_PIECE):
        size += len(piece)
        limits.check(size, stream.consumed)
        spool.write(piece)
    spool.flush()
    spool.seek(0)
    return Archive(spool)


def find_images(files: Files, source_name: str) -> list[FoundImage]:
    """Return the images for this machine in a layout or docker-archive.

    Args:
        files: what lies there.
        source_name: what a layout is called that knows its images by tags only.

    Raises:
        ImageError: there is none, or one is malformed.
    """
    # Docker writes both; its own list has the names, and nothing of other platforms.
    if files.size(_DIR_VERSION) is not None and files.size(documents.DOCKER_LIST) is not None:
        found = [_from_manifest(files)]
    elif files.size(documents.DOCKER_LIST) is not None:
        listed = documents.decode(
            _document(files, documents.DOCKER_LIST), list[ListedImage], documents.DOCKER_LIST
        )
        found = [_from_list(files, image) for image in listed]
    elif files.size(documents.OCI_INDEX) is not None:
        index = documents.decode(_document(files, documents.OCI_INDEX), Index, documents.OCI_INDEX)
        found = _from_index(files, index, source_name)
    else:
        raise ImageError(
            "there is no image in it: neither index.json, as in an OCI layout, nor docker's manifest.json"
        )
    if not found:
        raise ImageError("its list of images is empty")
    return found


# OCI layouts

PathOf = Callable[[str], str]
"""Where a blob lies, by its digest."""


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{hexadecimal(parse_digest(digest))}"


def _from_index(files: Files, index: Index, source_name: str) -> list[FoundImage]:
    found: dict[Digest, FoundImage] = {}
    other: _NoImageError | None = None
    for descriptor in platforms.choose(index.manifests, by_name=True):
        names = _names(descriptor, source_name)
        try:
            manifest = _manifest(files, descriptor, 0)
        except _NoImageError as error:
            # Signatures and the like lie beside the images that they are about.
            other = error
            continue
        image = _described(files, manifest, names)
        if image.image_id in found:
            found[image.image_id].names.extend(names)
        else:
            found[image.image_id] = image
    if other is not None and not found:
        raise other
    return list(found.values())


def _described(
    files: Files, manifest: Manifest, names: list[str], path_of: PathOf = _blob_path
) -> FoundImage:
    config = _blob_document(files, manifest.config, path_of)
    descriptors = manifest.layers or []
    diff_ids = diff_ids_of(config, len(descriptors))
    layers = [
        FoundLayer(diff_id, layer.size, _blob_opener(files, layer, path_of))
        for diff_id, layer in zip(diff_ids, descriptors, strict=True)
    ]
    return FoundImage(parse_digest(manifest.config.digest), config, names, layers)


def _names(descriptor: Descriptor, source_name: str) -> list[str]:
    annotations = descriptor.annotations or {}
    full = annotations.get(documents.CONTAINERD_NAME)
    if full:
        return _usable([full])
    name = annotations.get(documents.REF_NAME)
    if not name:
        return []
    if "/" in name or ":" in name:
        return _usable([name])
    with contextlib.suppress(ImageError):
        return [references.from_file(source_name, name)]
    return []


def _usable(names: Sequence[str]) -> list[str]:
    """Return full names; what is none, as a name with a digest, is left out: the image has its ID."""
    found = []
    for name in names:
        with contextlib.suppress(ImageError):
            found.append(references.normalize(name))
    return found


class _NoImageError(ImageError):
    """What a layout has besides images."""


def _manifest(files: Files, descriptor: Descriptor, depth: int) -> Manifest:
    if descriptor.media_type in documents.INDEX_TYPES:
        if depth == _MAX_NESTING:
            raise ImageError("its indexes are nested too deeply")
        index = documents.decode(_blob_document(files, descriptor), Index, f"index {descriptor.digest}")
        chosen = platforms.choose(index.manifests, by_name=False)
        if not chosen:
            raise ImageError(f"it has no image for {platforms.this_machine()}")
        return _manifest(files, chosen[0], depth + 1)
    if descriptor.media_type not in documents.MANIFEST_TYPES:
        raise _NoImageError(f"{shown(descriptor.media_type.encode())} is no kind of manifest that is known")
    what = f"manifest {descriptor.digest}"
    manifest = documents.decode(_blob_document(files, descriptor), Manifest, what)
    config_type = manifest.config.media_type
    if config_type not in documents.CONFIG_TYPES:
        raise _NoImageError(f"{what} is no image's: its configuration is {shown(config_type.encode())}")
    return manifest


def _blob_document(files: Files, descriptor: Descriptor, path_of: PathOf = _blob_path) -> bytes:
    data = _document(files, path_of(descriptor.digest))
    if len(data) != descriptor.size or digest_of(data) != descriptor.digest:
        raise ImageError(f"blob {descriptor.digest} isn't what its digest and size say: it is damaged")
    return data


def _blob_opener(files: Files, descriptor: Descriptor, path_of: PathOf) -> Callable[[], Blob]:
    digest = parse_digest(descriptor.digest)
    path = path_of(digest)

    def open_blob() -> Blob:
        size = files.size(path)
        if size is None:
            raise ImageError(f"blob {digest} is missing")
        if size != descriptor.size:
            raise ImageError(f"blob {digest} has {size} bytes and not {descriptor.size}: it is damaged")
        return VerifiedBlob(files.open(path), size, digest)

    return open_blob


# skopeo's directories: a manifest as it came, and blobs named by their digests


def _from_manifest(files: Files) -> FoundImage:
    data = _document(files, documents.DOCKER_LIST)
    manifest = documents.decode(data, Manifest, documents.DOCKER_LIST)
    return _described(files, manifest, [], lambda digest: hexadecimal(parse_digest(digest)))


# Docker's archives


def _from_list(files: Files, listed: ListedImage) -> FoundImage:
    config = _document(files, listed.config)
    paths = listed.layers or []
    diff_ids = diff_ids_of(config, len(paths))
    layers = []
    for diff_id, path in zip(diff_ids, paths, strict=True):
        size = files.size(path)
        layers.append(FoundLayer(diff_id, size or 0, _plain_opener(files, path)))
    return FoundImage(digest_of(config), config, _usable(listed.repo_tags or ()), layers)


def _plain_opener(files: Files, path: str) -> Callable[[], Blob]:
    def open_blob() -> Blob:
        size = files.size(path)
        if size is None:
            raise ImageError(f"{shown(path.encode())} is missing in the archive")
        # The tar's own digest is checked, and that is all that docker's archives promise.
        return VerifiedBlob(files.open(path), size, None)

    return open_blob


# Parts of both


def _document(files: Files, path: str) -> bytes:
    size = files.size(path)
    if size is None:
        raise ImageError(f"{shown(path.encode())} is missing")
    if size > MAX_DOCUMENT:
        raise ImageError(f"{shown(path.encode())} has {size} bytes; {MAX_DOCUMENT} is the most")
    with files.open(path) as file:
        data = file.read(size)
    if len(data) != size:
        raise ImageError(f"{shown(path.encode())}: the archive is cut short")
    return data


def diff_ids_of(config: bytes, layers: int) -> list[Digest]:
    """Return the diffIDs that a configuration speaks of, which must be as many as there are layers."""
    parsed = documents.decode(config, ImageConfig, "the image's configuration")
    diff_ids = [parse_digest(diff_id) for diff_id in parsed.rootfs.diff_ids or ()]
    if len(diff_ids) != layers:
        raise ImageError(f"the image has {layers} layers, and its configuration speaks of {len(diff_ids)}")
    return diff_ids
