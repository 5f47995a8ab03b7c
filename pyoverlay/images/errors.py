"""What can go wrong with an image, as errors that speak to a person?"""

from __future__ import annotations

import os
from typing import Final

from pyoverlay.options import OverlayError

_SHOWN_NAME: Final = 200
"""Characters of a name in a message: an archive may have made it megabytes long."""


class ImageError(OverlayError):
    """An image, layer or archive that can't be used, worded for a person."""


class CancelledError(ImageError):
    """Another layer of the same image failed; nobody needs to hear of this one."""


def shown(name: bytes) -> str:
    """Return a name from an archive for a message: printable, on one line, and not endless."""
    text = os.fsdecode(name).encode("unicode_escape", "surrogatepass").decode("ascii")
    return text if len(text) <= _SHOWN_NAME else f"{text[:_SHOWN_NAME]}..."
