"""``pyoverlay image``: which of its commands was asked for?"""

from __future__ import annotations

from typing import Final

from pyoverlay.cli import family

_SUMMARY: Final = "Images: layers come in, stack, are looked at, and go out again."

COMMANDS: Final = {
    "load": ("loading", "load", "add the images in a file or directory to the store"),
    "pull": ("loading", "pull", "fetch an image with skopeo, from a registry or another store"),
    "list": ("listing", "list_images", "list the images"),
    "inspect": ("listing", "inspect", "show an image's configuration, layers and directories as JSON"),
    "history": ("listing", "history", "show how an image's layers came to be"),
    "lowers": ("listing", "lowers", "print an image's directories for the mount option lowerdir="),
    "tree": ("tree", "tree", "draw what each layer adds, changes and removes, and what is wasted"),
    "tag": ("keeping", "tag", "give an image one more name"),
    "save": ("keeping", "save", "write images to an archive that docker, podman and others load"),
    "check": ("keeping", "check", "compare every layer with what it was when it came in"),
    "remove": ("keeping", "remove", "remove images, and the layers that no other image has"),
    "prune": ("keeping", "prune", "remove images without a name, and what killed processes left"),
}
"""Name of each command -> (its module in `pyoverlay.cli.images`, its function, its summary)."""


def main(words: list[str]) -> int:
    """Run the command, and return its exit status.

    Raises OptionError when there is no such command, and what the command raises.
    """
    return family.run("image", "pyoverlay.cli.images", _SUMMARY, COMMANDS, words)
