"""How do images leave the store, in archives that others load?

As an OCI layout or as docker's archive, each in one tar file. A layer's tar is made again byte by byte, so
that its diffID, and the image's ID, are what they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final, Literal

import msgspec

from pyoverlay.images import documents, references
from pyoverlay.images.compression import Compression, compressed
from pyoverlay.images.digests import Digest, digest_of, hexadecimal
from pyoverlay.images.documents import Descriptor, Index, Manifest, Platform
from pyoverlay.images.errors import ImageError
from pyoverlay.images.inspecting import layers_of
from pyoverlay.images.record import RecordedTar
from pyoverlay.images.store import Store
from pyoverlay.images.writing import replacing

Form = Literal["oci-archive", "docker-archive"]

_SUFFIXES: Final[dict[Compression, str]] = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True)
class Wanted:
    """An image to be saved, and the full names that it is saved under."""

    image_id: Digest
    names: list[str]


def save(store: Store, images: Sequence[Wanted], target: str, form: Form, compression: Compression) -> None:
    """Write images into one archive.

    Args:
        store: has them.
        images: which.
        target: the file, replaced when the archive is whole; ``-`` for standard output.
        form: what kind of archive.
        compression: of the layers; docker's archives have plain ones, whatever is asked for.

    Raises:
        ImageError: an image isn't there, or was changed in the store; no file is left then.
    """
    # GNU's format has room for any size.
    with (
        store.reading(),
        replacing(target) as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as archive,
    ):
        writer = _OciArchive if form == "oci-archive" else _DockerArchive
        writer(store, archive, compression).write(images)


class _Archive:
    def __init__(self, store: Store, archive: tarfile.TarFile, compression: Compression) -> None:
        self._store = store
        self._archive = archive
        self._compression = compression
        self._written: set[str] = set()

    def _add(self, name: str, content: bytes) -> None:
        if name not in self._written:
            self._written.add(name)
            self._archive.addfile(_member(name, len(content)), io.BytesIO(content))

    def _add_plain_layer(self, name: str, diff_id: Digest) -> int:
        """Add a layer's tar, and return its size."""
        known = self._store.record_of(diff_id)
        if known is None:
            raise ImageError(f"layer {diff_id} isn't in the store: load the image again")
        if name not in self._written:
            self._written.add(name)
            with _tar_of(self._store, diff_id) as tar:
                reader = io.BufferedReader(tar, 1 << 20)
                self._archive.addfile(_member(name, known.tar_size), reader)
                if reader.read(1) or tar.digest() != diff_id:
                    raise _changed(diff_id)
        return known.tar_size


class _OciArchive(_Archive):
    def __init__(self, store: Store, archive: tarfile.TarFile, compression: Compression) -> None:
        super().__init__(store, archive, compression)
        self._layers: dict[Digest, Descriptor] = {}

    def write(self, images: Sequence[Wanted]) -> None:
        self._add(documents.OCI_LAYOUT, _LAYOUT)
        manifests = []
        for image in images:
            manifests += self._image(image)
        self._add(documents.OCI_INDEX, documents.encode(Index(2, manifests, documents.INDEX_TYPES[0])))

    def _image(self, image: Wanted) -> list[Descriptor]:
        layers = [self._layer(layer) for layer in layers_of(self._store, image.image_id)]
        config = self._blob(self._store.config_bytes(image.image_id), documents.CONFIG_TYPE)
        manifest = documents.encode(Manifest(2, config, layers, documents.MANIFEST_TYPE))
        descriptor = self._blob(manifest, documents.MANIFEST_TYPE)
        described = self._store.config(image.image_id)
        descriptor.platform = Platform(described.architecture, described.os, described.variant)
        named = []
        for name in image.names:
            annotations = {
                documents.CONTAINERD_NAME: name,
                documents.REF_NAME: references.split_tag(name)[1],
            }
            named.append(msgspec.structs.replace(descriptor, annotations=annotations))
        return named or [descriptor]

    def _blob(self, content: bytes, media_type: str) -> Descriptor:
        digest = digest_of(content)
        self._add(_blob_name(digest), content)
        return Descriptor(media_type, digest, len(content))

    def _layer(self, diff_id: Digest) -> Descriptor:
        if diff_id not in self._layers:
            media_type = documents.LAYER_TYPE + _SUFFIXES[self._compression]
            if self._compression == "none":
                size = self._add_plain_layer(_blob_name(diff_id), diff_id)
                self._layers[diff_id] = Descriptor(media_type, diff_id, size)
            else:
                digest, size = self._add_compressed(diff_id)
                self._layers[diff_id] = Descriptor(media_type, digest, size)
        return self._layers[diff_id]

    def _add_compressed(self, diff_id: Digest) -> tuple[Digest, int]:
        with tempfile.TemporaryFile(dir=self._store.root / "unfinished") as spool:
            with _tar_of(self._store, diff_id) as tar, compressed(spool, self._compression) as stream:
                while piece := tar.read(1 << 20):
                    stream.write(piece)
            if tar.digest() != diff_id:
                raise _changed(diff_id)
            size = spool.tell()
            spool.seek(0)
            digest = Digest(f"sha256:{hashlib.file_digest(spool, 'sha256').hexdigest()}")
            spool.seek(0)
            self._archive.addfile(_member(_blob_name(digest), size), spool)
        return digest, size


class _DockerArchive(_Archive):
    def write(self, images: Sequence[Wanted]) -> None:
        listed = []
        for image in images:
            config_name = f"{hexadecimal(image.image_id)}.json"
            self._add(config_name, self._store.config_bytes(image.image_id))
            layers = layers_of(self._store, image.image_id)
            for layer in layers:
                self._add_plain_layer(_layer_name(layer), layer)
            tags = [references.familiar(name) for name in image.names]
            listed.append(documents.ListedImage(config_name, [_layer_name(layer) for layer in layers], tags))
        self._add(documents.DOCKER_LIST, documents.encode(listed))


class _TarOfLayer(io.RawIOBase):
    """A layer's tar as a raw stream, which keeps its digest."""

    def __init__(self, tar: RecordedTar) -> None:
        self._tar = tar
        self._rest = memoryview(b"")
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        if not self._rest:
            piece = self._tar.read()
            self._hash.update(piece)
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def digest(self) -> Digest:
        return Digest(f"sha256:{self._hash.hexdigest()}")


@contextlib.contextmanager
def _tar_of(store: Store, diff_id: Digest) -> Iterator[_TarOfLayer]:
    directory = os.open(store.layer_directory(diff_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with store.open_record(diff_id) as record:
            yield _TarOfLayer(RecordedTar(record, directory))
    except ImageError as error:
        raise type(error)(f"layer {diff_id}: {error}") from error
    finally:
        os.close(directory)


def write_layer_tar(store: Store, diff_id: Digest, target: IO[bytes]) -> None:
    """Write a layer's tar, as it came in.

    Raises:
        ImageError: the layer was changed in the store.
    """
    with _tar_of(store, diff_id) as tar:
        while piece := tar.read(1 << 20):
            target.write(piece)
        if tar.digest() != diff_id:
            raise _changed(diff_id)


def _changed(diff_id: Digest) -> ImageError:
    return ImageError(f"layer {diff_id} was changed in the store: 'pyoverlay image check' tells where")


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    return info


def _blob_name(digest: Digest) -> str:
    return f"blobs/sha256/{hexadecimal(digest)}"


def _layer_name(diff_id: Digest) -> str:
    return f"{hexadecimal(diff_id)}.tar"
