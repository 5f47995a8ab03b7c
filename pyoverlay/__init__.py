"""pyoverlay: a FUSE overlay file system.  Which names are public?

The names are loaded when they are first asked for: ``pyoverlay --version`` and a mount helper that an engine
starts for every layer must not wait for what they don't use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyoverlay.api import Change, ChangeKind, Overlay, changes, inspect, unmount
    from pyoverlay.options import OverlayError

__version__ = "0.1.0"

__all__ = ["Change", "ChangeKind", "Overlay", "OverlayError", "__version__", "changes", "inspect", "unmount"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pyoverlay.api  # noqa: PLC0415  # see the module's docstring

    return getattr(pyoverlay.api, name)


def __dir__() -> list[str]:
    return __all__
