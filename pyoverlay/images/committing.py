"""How does an upper directory become an image, with the layers that it stands on?"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from pyoverlay.images import checking, documents, implied, packing, platforms
from pyoverlay.images.digests import Digest, digest_of
from pyoverlay.images.documents import ImageConfig
from pyoverlay.images.errors import ImageError
from pyoverlay.images.inspecting import layers_of
from pyoverlay.images.limits import Limits
from pyoverlay.images.store import Store

_NO_LIMITS: Final = Limits(size=1 << 62, ratio=1 << 62)
"""For what we packed ourselves."""


@dataclass(frozen=True)
class Beneath:
    """What an upper stands on: an image's configuration, and its layers, the lowest first."""

    config: bytes
    layers: Sequence[Digest]


@dataclass(frozen=True)
class Commit:
    """What an image is made of.

    Attributes:
        upper: the directory that becomes the topmost layer.
        base: the image beneath it, or what is known of one that may be gone; None: the upper is all there is.
        names: full names of the new image.
        author: who made it; empty when nobody says.
        message: what the history says about it.
        created_by: what the history says that made it.
        changes: members of the configuration's ``config`` to set, in its own words (``{"Cmd": ["sh"]}``).
        epoch: SOURCE_DATE_EPOCH in seconds, for the same bytes each time; None: now.
    """

    upper: str
    base: Digest | Beneath | None = None
    names: Sequence[str] = ()
    author: str = ""
    message: str = ""
    created_by: str = ""
    changes: dict[str, Any] | None = None
    epoch: int | None = None


def source_date_epoch() -> int | None:
    """Return what SOURCE_DATE_EPOCH says; None when it isn't set.

    Raises:
        ImageError: it isn't a number.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ImageError(f"SOURCE_DATE_EPOCH={text}: it must be seconds since 1970, in digits")
    return int(text)


def commit(store: Store, wanted: Commit) -> Digest:
    """Add an image to the store, and return its ID.

    The upper mustn't change meanwhile; a mount over it may be live.

    Raises:
        ImageError: the upper can't be packed, or the base isn't there; nothing is added then.
    """
    with store.adding(), tempfile.TemporaryFile(dir=store.root / "unfinished") as spool:
        beneath = _beneath(store, wanted.base)
        # What is wrong with the configuration is found before there is a layer.
        _config(beneath, wanted, [*beneath.layers, digest_of(b"")])
        writer = _Hashing(spool)
        packing.pack(wanted.upper, writer, epoch=wanted.epoch)  # type: ignore[arg-type]
        diff_id = Digest(f"sha256:{writer.hash.hexdigest()}")
        spool.seek(0)
        with store.lock_layer(diff_id):
            if not checking.is_sound(store, diff_id):
                store.add_layer(diff_id, spool, _NO_LIMITS)
        layers = [*beneath.layers, diff_id]
        implied.adjust(store, layers)
        config = _config(beneath, wanted, layers)
        image_id = digest_of(config)
        store.add_image(image_id, config, layers, list(wanted.names))
    return image_id


class _Hashing:
    """Writes, and keeps the digest of what was written."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.hash = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self.hash.update(data)
        return self._target.write(data)


def _beneath(store: Store, base: Digest | Beneath | None) -> Beneath:
    if isinstance(base, Beneath):
        return base
    if base is not None:
        return Beneath(store.config_bytes(base), layers_of(store, base))
    config = {"architecture": platforms.this_machine(), "os": "linux", "config": {}}
    return Beneath(json.dumps(config).encode(), [])


def _config(beneath: Beneath, wanted: Commit, layers: Sequence[Digest]) -> bytes:
    """Write the new image's configuration: the base's, with what is new."""
    for text in (wanted.author, wanted.message, wanted.created_by):
        if not _is_text(text):
            raise ImageError(f"{text!r} can't be written into an image: it must be UTF-8")
    config = json.loads(beneath.config)
    created = _time(wanted.epoch)
    config["created"] = created
    if wanted.author:
        config["author"] = wanted.author
    if wanted.changes:
        config["config"] = {**(config.get("config") or {}), **wanted.changes}
    config["rootfs"] = {"type": "layers", "diff_ids": list(layers)}
    entry = {"created": created}
    for key, text in (
        ("created_by", wanted.created_by),
        ("author", wanted.author),
        ("comment", wanted.message),
    ):
        if text:
            entry[key] = text
    history = config.get("history") or []
    # Steps without a word stand for the layers that the base tells nothing about, or ours would.
    told = sum(not step.get("empty_layer") for step in history)
    history += [{} for _ in range(len(layers) - 1 - told)]
    config["history"] = [*history, entry]
    # What docker noted about the build of the base isn't true of this one.
    for stale in ("container", "container_config", "id", "parent"):
        config.pop(stale, None)
    data = json.dumps(config, separators=(",", ":"), sort_keys=True).encode()
    documents.decode(data, ImageConfig, "the new configuration")
    return data


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _time(epoch: int | None) -> str:
    if epoch is None:
        now = dt.datetime.now(dt.UTC)
    else:
        try:
            now = dt.datetime.fromtimestamp(epoch, dt.UTC)
        except (OverflowError, ValueError) as error:
            raise ImageError(f"SOURCE_DATE_EPOCH={epoch} is no time") from error
    return now.isoformat().replace("+00:00", "Z")
