"""``pyoverlay diff``: how is an upper directory written as a layer's tar?"""

from __future__ import annotations

import sys
from typing import Final

from pyoverlay.cli import arguments
from pyoverlay.cli.images.arguments import COMPRESSIONS
from pyoverlay.options import OptionError

_EPILOG: Final = """
The tar is a layer as in OCI images: what was deleted is a file .wh.NAME, a replaced directory holds
.wh..wh..opq. 'pyoverlay apply' makes a directory of it again. 'pyoverlay changes' lists what is in it. The
same upper gives the same bytes; with SOURCE_DATE_EPOCH set, later times are written as that one.

Directories that were only copied up for what lies below them are in the tar, too, as in docker's. With
--lower, the lowers are looked at, and what doesn't differ from them is left out, like whiteouts of names that
they don't have.
"""


def main(words: list[str]) -> int:
    """Write the tar, and return 0.

    Raises OverlayError when the upper can't be packed; no file is left then.
    """
    parser = arguments.ArgumentParser("diff", "Write an upper directory as a layer's tar.", _EPILOG)
    parser.add_argument("upper", metavar="UPPER", help="the upper directory")
    parser.add_argument("file", metavar="LAYER.tar", help="where to; - for standard output")
    parser.add_argument(
        "--lower",
        action="append",
        metavar="DIR",
        help="a lower directory of UPPER; repeat it for more, the topmost first",
    )
    parser.add_argument(
        "--compress", choices=COMPRESSIONS, default="none", help="how the tar is compressed (default: none)"
    )
    asked = parser.parse_args(words)
    if asked.file == "-" and sys.stdout.isatty():
        raise OptionError("a tar isn't written to a terminal; name a file")
    from pyoverlay.images import committing, writing  # noqa: PLC0415  # --help must not wait for it

    writing.write_diff(
        asked.upper, asked.file, asked.compress, lowers=asked.lower, epoch=committing.source_date_epoch()
    )
    return 0
