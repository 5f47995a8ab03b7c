"""``pyoverlay commit``: how does an upper directory become an image?"""

from __future__ import annotations

from typing import Final

from pyoverlay.cli import arguments
from pyoverlay.cli.images import arguments as image_arguments

_EPILOG: Final = """
The upper becomes the topmost layer, above those of --base; without it, it is the only one. The upper itself
stays as it is. With SOURCE_DATE_EPOCH set, the same upper gives the same image, byte by byte.
"""


def main(words: list[str]) -> int:
    """Make the image, print its ID, and return 0.

    Raises OverlayError when the upper can't be packed, or there is no such base; nothing is added then.
    """
    parser = arguments.ArgumentParser("commit", "Make an image of an upper directory.", _EPILOG)
    parser.add_argument("upper", metavar="UPPER", help="the upper directory")
    parser.add_argument("name", metavar="NAME", help="the image's name: [REGISTRY/]NAME[:TAG]")
    parser.add_argument(
        "--base", metavar="IMAGE", help="the image that it stands on: a name, or an ID's beginning"
    )
    parser.add_argument("--message", default="", metavar="TEXT", help="a comment for the history")
    parser.add_argument("--author", default="", metavar="NAME", help="who made it")
    image_arguments.with_root(parser)
    asked = parser.parse_args(words)
    from pyoverlay.images import catalogue, committing, references  # noqa: PLC0415  # --help must not wait

    store = image_arguments.store(asked)
    base = None if asked.base is None else catalogue.find_image(store, asked.base)
    wanted = committing.Commit(
        upper=asked.upper,
        base=base,
        names=[references.normalize(asked.name)],
        author=asked.author,
        message=asked.message,
        created_by="pyoverlay commit",
        epoch=committing.source_date_epoch(),
    )
    print(committing.commit(store, wanted))
    return 0
