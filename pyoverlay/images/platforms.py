"""Which of several manifests is for this machine?"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from pyoverlay.images.documents import REF_NAME, Descriptor

_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
    "loongarch64": "loong64",
}
"""What uname(2) calls a machine -> what Go does, if it is another word."""


def this_machine() -> str:
    """Return this machine's architecture, as images name it."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def choose(manifests: Iterable[Descriptor], *, by_name: bool) -> list[Descriptor]:
    """Return the manifests that are for this machine, or don't say for which.

    Args:
        manifests: as in an index.
        by_name: whether each name is an image, as in a layout; else all are one image for several machines,
            and the best comes first.
    """
    for_this = [descriptor for descriptor in manifests if _suits(descriptor)]
    if by_name:
        named = [descriptor for descriptor in for_this if REF_NAME in (descriptor.annotations or {})]
        return named or for_this
    return sorted(for_this, key=lambda descriptor: descriptor.platform is None)


def _suits(descriptor: Descriptor) -> bool:
    platform = descriptor.platform
    if platform is None:
        return True
    return platform.os in ("linux", "") and platform.architecture in (this_machine(), "")
