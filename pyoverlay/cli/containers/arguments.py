"""Which words do the commands about containers have in common?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pyoverlay.cli import arguments
from pyoverlay.cli.images import arguments as image_arguments

if TYPE_CHECKING:
    from pyoverlay.containers.engine.keeping import Containers


def parser(command: str, summary: str, epilog: str | None = None) -> arguments.ArgumentParser:
    """Make the parser of ``pyoverlay container COMMAND``."""
    return image_arguments.with_root(arguments.ArgumentParser(f"container {command}", summary, epilog))


def containers(asked: argparse.Namespace) -> Containers:
    """Return the containers of the store that was asked for."""
    from pyoverlay.containers.engine.keeping import Containers  # noqa: PLC0415  # --help must not wait for it

    return Containers(image_arguments.store(asked))
