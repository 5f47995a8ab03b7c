"""Which words do the commands about images have in common?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyoverlay.cli import arguments

if TYPE_CHECKING:
    from rich.console import Console

    from pyoverlay.images.limits import Limits
    from pyoverlay.images.store import Store

_NOBODYS_WIDTH = 1 << 14
COMPRESSIONS = ("none", "gzip", "zstd")


def parser(command: str, summary: str, epilog: str | None = None) -> arguments.ArgumentParser:
    """Make the parser of ``pyoverlay image COMMAND``."""
    return with_root(arguments.ArgumentParser(f"image {command}", summary, epilog))


def with_root(found: arguments.ArgumentParser) -> arguments.ArgumentParser:
    """Add ``--root``, the store's directory."""
    found.add_argument(
        "--root",
        metavar="DIR",
        help="the store's directory "
        "(default: /var/lib/pyoverlay for root, ~/.local/share/pyoverlay for others)",
    )
    return found


def with_limits(found: argparse.ArgumentParser) -> None:
    """Add what an archive may ask for."""
    found.add_argument(
        "--max-size",
        metavar="SIZE",
        help="what a layer may unpack to, in bytes or with K, M, G or T (default: 64G)",
    )


def limits(asked: argparse.Namespace) -> Limits:
    """Return the limits that were asked for."""
    from pyoverlay.images.limits import Limits, parse_size  # noqa: PLC0415  # --help must not wait for it

    return Limits() if asked.max_size is None else Limits(size=parse_size(asked.max_size))


def store(asked: argparse.Namespace) -> Store:
    """Return the store that was asked for."""
    from pyoverlay.images.store import Store, default_root  # noqa: PLC0415  # --help must not wait for it

    return Store(default_root() if asked.root is None else Path(asked.root))


def console() -> Console:
    """Return rich's console for standard output; plain where nobody looks at a terminal."""
    from rich.console import Console  # noqa: PLC0415  # --help must not wait for it

    if sys.stdout.isatty():
        return Console(highlight=False)
    # Whatever reads it wants all of a line.
    return Console(highlight=False, color_system=None, width=_NOBODYS_WIDTH)


def printable(text: str) -> str:
    """Return a text that says nothing to a terminal but itself, on one line: an image may hold any name."""
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in readable
    )


def size_text(size: int) -> str:
    """Return a size as docker writes it: in powers of 1000, with three digits."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 999.5 or unit == "PB":
            return f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError("unreachable")
