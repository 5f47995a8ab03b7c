"""What is to be said about an image? In docker's shapes: inspect, history, list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyoverlay.images import references
from pyoverlay.images.digests import Digest, chain_ids, parse_digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.stacking import lower_directories
from pyoverlay.images.store import Store


@dataclass(frozen=True)
class Step:
    """One step of an image's history.

    Attributes:
        layer: the layer that it made; None when it made none.
        created: when, as the configuration says it (RFC 3339); empty when unknown.
        created_by: the command.
        comment: what its author says.
        size: bytes of the layer's files.
    """

    layer: Digest | None
    created: str
    created_by: str
    comment: str
    size: int


def layers_of(store: Store, image_id: Digest) -> list[Digest]:
    """Return an image's layers, the lowest first."""
    record = store.images().get(image_id)
    if record is None:
        raise ImageError(f"there is no image {image_id} in {store.root}")
    return [parse_digest(layer) for layer in record.layers]


def layer_size(store: Store, diff_id: Digest) -> int:
    """Return the bytes of a layer's files; 0 when the store has lost it."""
    known = store.record_of(diff_id)
    return known.size if known else 0


def image_size(store: Store, layers: Sequence[Digest]) -> int:
    """Return the bytes of all files of an image's layers, as docker counts them."""
    return sum(layer_size(store, layer) for layer in layers)


def inspect(store: Store, image_id: Digest) -> dict[str, Any]:
    """Return what ``docker image inspect`` shows of an image, and its layers one by one.

    GraphDriver.Data has LowerDir and UpperDir as docker gives them: the topmost layer, and those beneath it,
    topmost first. Where a layer takes attributes from beneath, LowerDir has a directory more (see `implied`).

    Raises:
        ImageError: there is no such image, or a layer is missing.
    """
    layers = layers_of(store, image_id)
    record = store.images()[image_id]
    config = store.config(image_id)
    raw = json.loads(store.config_bytes(image_id))
    described = {
        "Id": image_id,
        "RepoTags": [references.familiar(name) for name in record.names],
        "RepoDigests": [],
        "Parent": "",
        "Comment": (config.history or [])[-1].comment or "" if config.history else "",
        "Created": config.created or "",
        "Author": config.author or "",
        "Config": raw.get("config"),
        "Architecture": config.architecture,
        **({"Variant": config.variant} if config.variant else {}),
        "Os": config.os,
        "Size": image_size(store, layers),
        "GraphDriver": graph_driver(store, layers),
        "RootFS": {"Type": "layers", "Layers": layers},
    }
    described["Layers"] = [
        {
            "DiffId": diff_id,
            "ChainId": chain_id,
            "Size": layer_size(store, diff_id),
            "Directory": str(store.layer_directory(diff_id)),
        }
        for diff_id, chain_id in zip(layers, chain_ids(layers), strict=True)
    ]
    return described


def graph_driver(store: Store, layers: Sequence[Digest]) -> dict[str, Any]:
    """Return docker's GraphDriver of an image: the directories that its layers lie in."""
    directories = [str(path) for path in lower_directories(store, layers)]
    data = {}
    if directories[1:]:
        data["LowerDir"] = ":".join(directories[1:])
    if directories:
        data["UpperDir"] = directories[0]
    return {"Name": "pyoverlay", "Data": data}


def history(store: Store, image_id: Digest) -> list[Step]:
    """Return how an image came to be, the last step first.

    Raises:
        ImageError: there is no such image.
    """
    layers = layers_of(store, image_id)
    config = store.config(image_id)
    steps: list[Step] = []
    remaining = list(layers)
    for entry in config.history or ():
        layer = remaining.pop(0) if remaining and not entry.empty_layer else None
        size = layer_size(store, layer) if layer else 0
        steps.append(Step(layer, entry.created or "", entry.created_by or "", entry.comment or "", size))
    # A configuration need not say how its layers came to be.
    steps += [Step(layer, "", "", "", layer_size(store, layer)) for layer in remaining]
    return steps[::-1]
