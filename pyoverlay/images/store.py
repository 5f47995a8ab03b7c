"""Where do layers and images lie, and how do they get there whole or not at all?

::

    layers/sha256/DIFFID/     one layer, whatever lies beneath it and whichever images have it
        diff/                 its files, as an overlay's lower directory
        record                what its tar held besides (see `record`)
        layer.json            a `LayerRecord`
        unsynced              it may not be on the disk yet, should the machine have crashed
    adjusted/sha256/CHAINID/  attributes that a layer takes from those beneath it (see `implied`)
    configs/sha256/ID         images' configurations
    pinned/NAME               layers that stay whether an image has them or not: those under a container
    images.json               every image and its names: the one place that says what there is
    unfinished/DIFFID/        a layer that is being unpacked
    locks/                    `DIFFID` is held while a layer is being made, `images` for images.json,
                              `store` shared by who adds and exclusively by who removes

A layer appears by one rename, an image by one more. What a killed process leaves lies in ``unfinished``, and
is removed by whoever gets its lock next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from pyoverlay import privileges
from pyoverlay.images import documents, locks
from pyoverlay.images.compression import Decompressed, Readable
from pyoverlay.images.digests import Digest, hexadecimal, parse_digest
from pyoverlay.images.documents import ImageConfig
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.removing import remove_tree
from pyoverlay.images.unpacked_layer import Advanced, LayerRecord, unpack

_ROOT_STORE: Final = "/var/lib/pyoverlay"
_USER_STORE: Final = ".local/share"
_TEMPORARY: Final = ".new-"
"""In front of the name of a file that isn't whole yet."""
_STORE_LOCKS: Final = ("store", "images")
_OWN: Final = 0o700
"""The mode of the store's own directories: nobody else may run the set-user-id programs of an image."""
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What a change fails with for who may only read the store."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class ImageRecord(msgspec.Struct, frozen=True):
    """An image in the store.

    Attributes:
        names: its full names.
        layers: the diffIDs, the lowest first.
        added: when it was, in nanoseconds since the epoch.
    """

    names: list[str]
    layers: list[str]
    added: int = 0


class ImageTable(msgspec.Struct):
    """All images by their IDs."""

    images: dict[Digest, ImageRecord] = {}


def default_root() -> Path:
    """Return where a store is unless it is said: root's, or the user's own."""
    if os.geteuid() == 0 and privileges.is_administrator():
        return Path(_ROOT_STORE)
    home = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), _USER_STORE)
    return Path(home) / "pyoverlay"


class Store:
    """Layers and images in one directory."""

    def __init__(self, root: Path) -> None:
        """Name a store; it is made by the first that adds to it."""
        self.root: Final = root.absolute()
        self._layers: Final = self.root / "layers/sha256"
        self._configs: Final = self.root / "configs/sha256"
        self._pinned: Final = self.root / "pinned"
        self._unfinished: Final = self.root / "unfinished"
        self._locks: Final = self.root / "locks"
        self._table: Final = self.root / "images.json"
        self.adjusted: Final = self.root / "adjusted/sha256"

    def prepare(self) -> None:
        """Make the store's directories.

        Raises:
            ImageError: it can't be written here.
        """
        try:
            self.root.mkdir(mode=_OWN, parents=True, exist_ok=True)
            for directory in (
                self._layers,
                self._configs,
                self._pinned,
                self._unfinished,
                self._locks,
                self.adjusted,
            ):
                # The root may be anybody's directory that was there before.
                directory.parent.mkdir(mode=_OWN, exist_ok=True)
                directory.mkdir(mode=_OWN, exist_ok=True)
        except OSError as error:
            raise ImageError(
                f"{self.root}: the store can't be made here: {error.strerror}; name another with --root"
            ) from error

    # Layers

    def layer_directory(self, diff_id: Digest) -> Path:
        """Return the directory with a layer's files."""
        return self._layers / hexadecimal(diff_id) / "diff"

    def record_of(self, diff_id: Digest) -> LayerRecord | None:
        """Return what is known of a layer; None when there is no such, or a crash of the machine has hurt it.

        What isn't on the disk when the machine crashes is an empty or shorter file afterwards.
        """
        path = self._layers / hexadecimal(diff_id) / "layer.json"
        try:
            return documents.decode(path.read_bytes(), LayerRecord, str(path))
        except (FileNotFoundError, ImageError):
            return None

    def is_doubtful(self, diff_id: Digest) -> bool:
        """Whether the machine was started anew since a layer was unpacked or last looked at."""
        try:
            return self._boot_mark(diff_id).read_bytes() != _boot_id()
        except FileNotFoundError:
            return False

    def settle(self, diff_id: Digest) -> None:
        """Take note that a doubtful layer is sound."""
        try:
            self._boot_mark(diff_id).unlink(missing_ok=True)
        except OSError as error:
            # Who may only read a store looks anew each time.
            if not _is_read_only(error):
                raise

    def _boot_mark(self, diff_id: Digest) -> Path:
        return self._layers / hexadecimal(diff_id) / "boot"

    def layers(self) -> list[Digest]:
        """Return the diffIDs of all layers."""
        if not self._layers.is_dir():
            return []
        return sorted(parse_digest(f"sha256:{path.name}") for path in self._layers.iterdir())

    def open_record(self, diff_id: Digest) -> IO[bytes]:
        """Open what makes a layer's tar again, together with its directory."""
        try:
            return (self._layers / hexadecimal(diff_id) / "record").open("rb")
        except OSError as error:
            raise ImageError(f"layer {diff_id}: its record can't be read: {error.strerror}") from error

    @contextlib.contextmanager
    def lock_layer(self, diff_id: Digest, wait: locks.Wait | None = None) -> Iterator[None]:
        """Keep other processes from making this layer."""
        with locks.locked(self._locks / hexadecimal(diff_id), wait=wait):
            yield

    @contextlib.contextmanager
    def adding(self) -> Iterator[None]:
        """Keep others from removing layers that no image has yet."""
        self.prepare()
        with locks.locked(self._locks / "store", shared=True):
            yield

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keep others from removing what is read; a store that can't be written is safe from that."""
        if not self.root.is_dir():
            yield
            return
        with contextlib.ExitStack() as resources:
            try:
                resources.enter_context(self.adding())
            except ImageError as error:
                if not _is_read_only(error.__cause__):
                    raise
            except OSError as error:
                if not _is_read_only(error):
                    raise
            yield

    @contextlib.contextmanager
    def removing(self) -> Iterator[None]:
        """Wait until nobody adds, and keep others from it."""
        self.prepare()
        with locks.locked(self._locks / "store"):
            yield

    def add_layer(
        self, diff_id: Digest, source: Readable, limits: Limits, advanced: Advanced | None = None
    ) -> tuple[LayerRecord, list[str]]:
        """Unpack a layer; its lock is held, and the store hasn't got it.

        Args:
            diff_id: what its tar's digest must be.
            source: the tar, plain or compressed.
            limits: what is refused.
            advanced: see `Advanced`.

        Returns:
            What is known of it now, and what a person should be told.

        Raises:
            ImageError: the tar is damaged, hostile or another than it should be; nothing is left of it.
        """
        unfinished = self._unfinished / hexadecimal(diff_id)
        remove_tree(unfinished)
        try:
            directory = unfinished / "diff"
            directory.mkdir(parents=True)
            stream = Decompressed(source)
            with open(unfinished / "record", "xb") as record:
                result, warnings = unpack(directory, stream, limits, record=record, advanced=advanced)
            if result.diff_id != diff_id:
                raise ImageError(
                    f"its content is {result.diff_id}: it was damaged or exchanged on its way here"
                )
            (unfinished / "layer.json").write_bytes(documents.encode(result))
            (unfinished / "boot").write_bytes(_boot_id())
            self._publish(diff_id, unfinished)
        except ImageError as error:
            remove_tree(unfinished)
            raise type(error)(f"layer {diff_id}: {error}") from error
        except BaseException:
            remove_tree(unfinished)
            raise
        return result, warnings

    def _publish(self, diff_id: Digest, unfinished: Path) -> None:
        place = self._layers / hexadecimal(diff_id)
        if place.exists():
            # Hurt by a crash of the machine.
            remove_tree(place)
        unfinished.rename(place)

    def remove_layer(self, diff_id: Digest) -> None:
        """Remove a layer that no image has; `removing` is held."""
        leaving = self._unfinished / hexadecimal(diff_id)
        remove_tree(leaving)
        (self._layers / hexadecimal(diff_id)).rename(leaving)
        remove_tree(leaving)

    def remove_leftovers(self) -> int:
        """Remove what killed processes left unfinished; return how many layers that were.

        `removing` is held: nobody is writing any of it, nor waiting for a layer's lock.
        """
        removed = 0
        for path in self._unfinished.iterdir() if self._unfinished.is_dir() else ():
            descriptor = locks.try_lock(self._locks / path.name)
            if descriptor is not None:
                remove_tree(path)
                os.close(descriptor)
                removed += 1
        for directory in (self.root, self._configs, self._pinned):
            for path in directory.glob(f"{_TEMPORARY}*"):
                path.unlink()
        for path in self._locks.iterdir():
            if path.name not in _STORE_LOCKS:
                path.unlink()
        return removed

    # Pins

    def pin(self, name: str, layers: Sequence[Digest]) -> None:
        """Keep these layers, the lowest first, whatever becomes of their image; `adding` is held.

        Args:
            name: whose they are; a file name.
            layers: their diffIDs.
        """
        write_atomically(self._pinned / name, documents.encode(list(layers)))

    def unpin(self, name: str) -> None:
        """Give up what `pin` kept."""
        (self._pinned / name).unlink(missing_ok=True)

    def pins(self) -> dict[str, list[str]]:
        """Return the pinned layers by the names of their pins."""
        if not self._pinned.is_dir():
            return {}
        paths = [path for path in self._pinned.iterdir() if not path.name.startswith(".")]
        return {path.name: documents.decode(path.read_bytes(), list[str], str(path)) for path in paths}

    # Images

    def images(self) -> dict[Digest, ImageRecord]:
        """Return all images by ID."""
        try:
            data = self._table.read_bytes()
        except FileNotFoundError:
            return {}
        table = documents.decode(data, ImageTable, str(self._table))
        return {parse_digest(image_id): record for image_id, record in table.images.items()}

    @contextlib.contextmanager
    def changing_images(self) -> Iterator[dict[Digest, ImageRecord]]:
        """Change the images: what the dictionary holds at the block's end is what there is then."""
        with locks.locked(self._locks / "images"):
            images = self.images()
            yield images
            table = ImageTable(dict(images))
            write_atomically(self._table, msgspec.json.format(documents.encode(table), indent=2))

    def add_image(self, image_id: Digest, config: bytes, layers: list[Digest], names: list[str]) -> None:
        """Add an image whose layers are all there, or give one more names; others lose these names."""
        write_atomically(self._configs / hexadecimal(image_id), config)
        with self.changing_images() as images:
            for other, record in images.items():
                kept = [name for name in record.names if name not in names]
                images[other] = msgspec.structs.replace(record, names=kept)
            old = images.get(image_id)
            all_names = sorted({*names, *(old.names if old else ())})
            images[image_id] = ImageRecord(all_names, list(layers), time.time_ns())

    def config_bytes(self, image_id: Digest) -> bytes:
        """Return an image's configuration as it came."""
        try:
            return (self._configs / hexadecimal(image_id)).read_bytes()
        except OSError as error:
            raise ImageError(
                f"image {image_id}: its configuration can't be read: {error.strerror}"
            ) from error

    def config(self, image_id: Digest) -> ImageConfig:
        """Return an image's configuration."""
        return documents.decode(self.config_bytes(image_id), ImageConfig, f"image {image_id}")

    def configs(self) -> list[Digest]:
        """Return the IDs of the images that there are configurations of."""
        return [
            parse_digest(f"sha256:{path.name}")
            for path in self._configs.iterdir()
            if not path.name.startswith(_TEMPORARY)
        ]

    def remove_config(self, image_id: Digest) -> None:
        """Remove the configuration of an image that is gone."""
        (self._configs / hexadecimal(image_id)).unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Have a file hold this content, on the disk, or what it held before.

    Args:
        path: the file.
        content: what it holds then.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _is_read_only(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _READ_ONLY


def _boot_id() -> bytes:
    return _BOOT_ID.read_bytes().strip()
