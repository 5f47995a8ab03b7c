"""``pyoverlay container``: which of its commands was asked for?"""

from __future__ import annotations

from typing import Final

from pyoverlay.cli import family

_SUMMARY: Final = "Containers: an image's layers with a writable one on top, and a command in them."

COMMANDS: Final = {
    "run": ("running", "run", "run a command over an image, with a writable layer of its own"),
    "start": ("running", "start", "run a container's command again, over what it has changed"),
    "list": ("looking", "list_containers", "list the containers, and what they are doing"),
    "inspect": ("looking", "inspect", "show a container's directories, state and settings as JSON"),
    "diff": ("looking", "diff", "list what a container added, changed and deleted"),
    "commit": ("keeping", "commit", "make an image of a container's changes and what lies beneath them"),
    "remove": ("keeping", "remove", "remove containers, with all that they changed"),
}
"""Name of each command -> (its module in `pyoverlay.cli.containers`, its function, its summary)."""


def main(words: list[str]) -> int:
    """Run the command, and return its exit status.

    Raises OptionError when there is no such command, and what the command raises.
    """
    return family.run("container", "pyoverlay.cli.containers", _SUMMARY, COMMANDS, words)
