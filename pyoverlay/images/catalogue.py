"""Which image does a person mean, and which have they got? Names, IDs, removal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyoverlay.images import references
from pyoverlay.images.digests import Digest, chain_ids, hexadecimal, parse_digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.removing import remove_tree
from pyoverlay.images.store import ImageRecord, Store


def find_image(store: Store, text: str) -> Digest:
    """Return the ID of the image that a name or the beginning of an ID stands for.

    A name is tried as docker reads it (``redis`` is ``docker.io/library/redis:latest``), then as the end of a
    full name, if only one image has such a one (``redis`` is ``localhost/redis:latest``).

    Raises:
        ImageError: there is none, or several.
    """
    images = store.images()
    found = _by_name(images, text) or _by_id(images, text)
    if not found:
        known = ", ".join(
            sorted(references.familiar(name) for record in images.values() for name in record.names)
        )
        raise ImageError(f"there is no image {text!r} in {store.root}; there are: {known or 'none'}")
    if len(found) > 1:
        raise ImageError(f"{text!r} stands for {len(found)} images: write more of its name or ID")
    return found.pop()


def _by_name(images: dict[Digest, ImageRecord], text: str) -> set[Digest]:
    found = {image_id: references.meant(record.names, text) for image_id, record in images.items()}
    named = {image_id for image_id, names in found.items() if names}
    exact = {image_id for image_id in named if references.normalize(text) in found[image_id]}
    return exact or named


def _by_id(images: Iterable[Digest], text: str) -> set[Digest]:
    digits = text.removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{4,64}", digits):
        return set()
    return {image_id for image_id in images if hexadecimal(image_id).startswith(digits)}


def tag(store: Store, image_id: Digest, name: str) -> None:
    """Give an image one more full name, which another image loses if it had it."""
    with store.adding():
        record = store.images().get(image_id)
        if record is None:
            raise ImageError(f"image {image_id} was removed meanwhile")
        layers = [parse_digest(layer) for layer in record.layers]
        store.add_image(image_id, store.config_bytes(image_id), layers, [name])


@dataclass
class Removed:
    """What a removal took away.

    Attributes:
        names: full names that images lost.
        images: images that are gone.
        layers: layers that are gone, as no image has them any more.
        size: bytes of their files.
        leftovers: unfinished layers of killed processes.
    """

    names: list[str] = field(default_factory=list)
    images: list[Digest] = field(default_factory=list)
    layers: list[Digest] = field(default_factory=list)
    size: int = 0
    leftovers: int = 0


def remove(store: Store, texts: Iterable[str]) -> Removed:
    """Remove names, and the images that have none left, with the layers that nobody else has.

    A name of an image with several takes only that name; an ID takes all of them.

    Args:
        store: where.
        texts: names or IDs.

    Raises:
        ImageError: there is no such image; nothing is removed then.
    """
    removed = Removed()
    with store.removing():
        wanted = [(text, find_image(store, text)) for text in texts]
        with store.changing_images() as images:
            for text, image_id in wanted:
                record = images.get(image_id)
                if record is None:
                    continue
                gone = references.meant(record.names, text) or list(record.names)
                removed.names += gone
                kept = [name for name in record.names if name not in gone]
                if kept:
                    images[image_id] = ImageRecord(kept, record.layers, record.added)
                else:
                    del images[image_id]
                    removed.images.append(image_id)
        _collect(store, removed)
    return removed


def prune(store: Store, *, every: bool = False) -> Removed:
    """Remove images without a name, layers without an image, and what killed processes left.

    Args:
        store: where.
        every: remove the images that have names, too.
    """
    removed = Removed()
    with store.removing():
        with store.changing_images() as images:
            for image_id, record in list(images.items()):
                if every or not record.names:
                    removed.names += record.names
                    removed.images.append(image_id)
                    del images[image_id]
        _collect(store, removed)
    return removed


def _collect(store: Store, removed: Removed) -> None:
    """Remove what no image needs; nobody adds meanwhile."""
    needed: set[str] = set()
    chains: set[str] = set()
    images = store.images()
    for layers in [*(record.layers for record in images.values()), *store.pins().values()]:
        needed.update(layers)
        chains.update(chain_ids([parse_digest(layer) for layer in layers]))
    for diff_id in store.layers():
        if diff_id not in needed:
            known = store.record_of(diff_id)
            removed.size += known.size if known else 0
            store.remove_layer(diff_id)
            removed.layers.append(diff_id)
    for path in store.adjusted.iterdir():
        if f"sha256:{path.name}" not in chains:
            remove_tree(path)
    # Killed processes leave some, too.
    for image_id in store.configs():
        if image_id not in images:
            store.remove_config(image_id)
    removed.leftovers = store.remove_leftovers()
