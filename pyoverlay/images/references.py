"""What are images called?  ``[REGISTRY/]NAME[:TAG]``, as docker reads and shows it. Pure."""

from __future__ import annotations

import re
from typing import Final

from pyoverlay.images.errors import ImageError

_REGISTRY: Final = "docker.io/"
_LIBRARY: Final = "docker.io/library/"
_DEFAULT_TAG: Final = "latest"

# distribution/reference, regexp.go
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN: Final = r"(?:[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG: Final = r"[\w][\w.-]{0,127}"
_REFERENCE: Final = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?", re.ASCII
)
_MAX_NAME: Final = 255


def normalize(text: str) -> str:
    """Return the full name that a text stands for: ``redis`` is ``docker.io/library/redis:latest``.

    Raises:
        ImageError: it is no name.
    """
    head, slash, rest = text.partition("/")
    if not slash or not (head == "localhost" or set(".:") & set(head) or head.lower() != head):
        text = _REGISTRY + text if slash else _LIBRARY + text
    elif head == "docker.io" and "/" not in rest:
        text = _LIBRARY + rest
    match = _REFERENCE.fullmatch(text)
    if match is None or len(text) > _MAX_NAME:
        raise ImageError(f"{text!r} is no image name: write [REGISTRY/]NAME[:TAG], in lower case")
    return f"{match['domain']}/{match['path']}:{match['tag'] or _DEFAULT_TAG}"


def familiar(name: str) -> str:
    """Return a full name as docker shows it, without what goes without saying."""
    for prefix in (_LIBRARY, _REGISTRY):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def split_tag(name: str) -> tuple[str, str]:
    """Return a full or familiar name's repository and tag."""
    repository, _, tag = name.rpartition(":")
    return repository, tag


def meant(names: list[str], text: str) -> list[str]:
    """Return those of an image's full names that a text stands for: the name itself, or names that end so."""
    try:
        full = normalize(text)
    except ImageError:
        return []
    if full in names:
        return [full]
    end = "/" + familiar(full)
    return [name for name in names if name.endswith(end)]


def from_file(file_name: str, tag: str) -> str:
    """Name an image for the file that it came in, where a layout knows it by a tag only."""
    stem = re.sub(r"\.(tar|tgz|oci|gz|zst)\b", "", file_name.lower())
    cleaned = re.sub(r"[^a-z0-9]+", "-", stem).strip("-") or "image"
    return normalize(f"{cleaned}:{tag}")
