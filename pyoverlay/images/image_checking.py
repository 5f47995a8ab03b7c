"""Is an image in the store still what it was: its configuration, and the set of its layers?"""

from __future__ import annotations

from collections.abc import Sequence

from pyoverlay.images import implied
from pyoverlay.images.catalogue import find_image
from pyoverlay.images.digests import Digest, digest_of
from pyoverlay.images.errors import ImageError
from pyoverlay.images.inspecting import layers_of
from pyoverlay.images.store import Store


def images_to_check(store: Store, texts: Sequence[str]) -> list[Digest]:
    """Return the images that these names or IDs stand for; all when there are none."""
    return [find_image(store, text) for text in texts] if texts else sorted(store.images())


def layers_to_check(store: Store, texts: Sequence[str]) -> list[Digest]:
    """Return the layers of these images, each once; all that the store has when there are none."""
    if not texts:
        return store.layers()
    return sorted(
        {layer for image_id in images_to_check(store, texts) for layer in layers_of(store, image_id)}
    )


def check_image(store: Store, image_id: Digest) -> list[str]:
    """Compare an image with its ID; of its layers, only see whether they are there."""
    try:
        config = store.config_bytes(image_id)
        layers = layers_of(store, image_id)
    except ImageError as error:
        return [str(error)]
    if digest_of(config) != image_id:
        return ["its configuration was changed"]
    problems = [f"layer {layer} is missing" for layer in layers if store.record_of(layer) is None]
    if (store.config(image_id).rootfs.diff_ids or []) != layers:
        problems.append("its configuration speaks of other layers")
    if problems:
        return problems
    try:
        if not implied.is_adjusted(store, layers):
            return ["the attributes that its layers take from those beneath them were changed"]
    except ImageError as error:
        # A layer was hurt by a crash of the machine.
        return [str(error)]
    return []
