"""``pyoverlay changes``: how are the changes of an upper printed?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyoverlay.cli import arguments

if TYPE_CHECKING:
    from pyoverlay.layers.changes import Change

_EPILOG: Final = """
Each line is A (added), C (changed) or D (deleted) and a path from the root of the merged view, as docker
diff prints them.  Of an upper whose lowers aren't known, neither by --lower nor by a live mount that uses it,
only its marks can tell: then a file that was moved counts as changed, one that was created anew in place of
a deleted one as added, a directory that was only copied up as changed, and what a replaced directory held
isn't listed.

--json prints [{"kind": "A", "path": "/..."}, ...].  Bytes that aren't UTF-8 are lone surrogates there, as
Python's os.fsencode takes them; without --json names are printed as they are.
"""


def main(words: list[str]) -> int:
    """Print the changes, and return 0.

    Raises OverlayError when a layer can't be read.
    """
    parser = arguments.ArgumentParser(
        "changes", "List what was added, changed and deleted in a mount, or in an upper directory.", _EPILOG
    )
    parser.add_argument(
        "path", metavar="UPPER|TARGET", help="an upper directory, or the directory that is mounted on"
    )
    parser.add_argument(
        "--lower",
        action="append",
        metavar="DIR",
        help="a lower directory of UPPER; repeat it for more, the topmost first "
        "(default: those of the mount that uses it)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args(words)
    from pyoverlay import api  # noqa: PLC0415  # --help must not wait for it

    print_changes(api.changes(asked.path, asked.lower), as_json=asked.json)
    return 0


def print_changes(found: Sequence[Change], *, as_json: bool) -> None:
    """Print changes, a line each or as JSON."""
    if as_json:
        print(json.dumps([{"kind": change.kind, "path": change.path} for change in found], indent=2))
        return
    # Names are bytes, and are printed as they are.
    sys.stdout.flush()
    sys.stdout.buffer.writelines(os.fsencode(f"{change}\n") for change in found)
    sys.stdout.buffer.flush()
