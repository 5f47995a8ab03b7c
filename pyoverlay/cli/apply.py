"""``pyoverlay apply``: how does a layer's tar become a directory?"""

from __future__ import annotations

import contextlib
import sys
from typing import Final

from pyoverlay.cli import arguments
from pyoverlay.cli.images import arguments as image_arguments

_EPILOG: Final = """
DIR is made, or is an empty directory. What the layer removes lies in it as the kernel's overlay has it:
character devices 0/0, and the attribute trusted.overlay.opaque (user.overlay.opaque for others than root); so
DIR is a lower directory for pyoverlay mount and mount -t overlay alike. It isn't DIR's earlier content that
is
changed: stack the two. A parent directory that the tar leaves out is root's, with mode 0755.
"""


def main(words: list[str]) -> int:
    """Unpack a layer, and return 0.

    Raises OverlayError when the tar is damaged or hostile; nothing is left of it then.
    """
    parser = arguments.ArgumentParser("apply", "Unpack a layer's tar into a directory of its own.", _EPILOG)
    parser.add_argument("layer", metavar="LAYER.tar", help="plain, gzip or zstd; - for standard input")
    parser.add_argument("directory", metavar="DIR", help="where to; empty, or not there yet")
    parser.add_argument("--digest", metavar="sha256:...", help="what the uncompressed tar's digest must be")
    image_arguments.with_limits(parser)
    asked = parser.parse_args(words)
    from pyoverlay.images import applying  # noqa: PLC0415  # --help must not wait for it

    limits = image_arguments.limits(asked)
    with contextlib.ExitStack() as resources:
        standard = asked.layer == "-"
        source = sys.stdin.buffer if standard else resources.enter_context(open(asked.layer, "rb"))
        name = "standard input" if standard else asked.layer
        for warning in applying.apply(source, name, asked.directory, limits, asked.digest):
            print(f"pyoverlay: {name}: {warning}", file=sys.stderr)
    return 0
