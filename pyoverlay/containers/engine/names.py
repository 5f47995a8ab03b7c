"""What may a container be called, and what is it called when nobody says? Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container
from typing import Final

from pyoverlay.containers.engine.record import ContainerError

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)
"""As docker's (daemon/names: RestrictedNameChars)."""
_LONGEST: Final = 200
"""Characters: less than a file name has, with what is put in front of it."""


def checked(name: str) -> str:
    """Return the name of a container, if it is one.

    Raises:
        ContainerError: it isn't.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ContainerError(
            f"{name!r} is no name for a container: write up to {_LONGEST} letters, digits, '_', '.' and '-', "
            "a letter or digit first"
        )
    return name


def after_image(image: str, taken: Container[str]) -> str:
    """Return a free name for a container of an image: ``redis-1``, then ``redis-2``.

    Args:
        image: what the image was called by; also the beginning of its ID.
        taken: the names that there are.
    """
    last = image.removeprefix("sha256:").rpartition("/")[2].partition(":")[0]
    stem = re.sub("[^a-zA-Z0-9_.-]", "-", last)[: _LONGEST - 10].lstrip("_.-") or "container"
    return next(name for number in itertools.count(1) if (name := f"{stem}-{number}") not in taken)
