"""``pyoverlay container``: which of its commands was asked for?"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, cast

from pyoverlay.cli import arguments
from pyoverlay.options import OptionError

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
    if words and words[0] in COMMANDS:
        module, name, _ = COMMANDS[words[0]]
        found = getattr(importlib.import_module(f"pyoverlay.cli.containers.{module}"), name)
        return cast("Callable[[list[str]], int]", found)(words[1:])
    lines = "\n".join(f"  {name:<10}{summary}" for name, (_, _, summary) in COMMANDS.items())
    parser = arguments.ArgumentParser(
        "container",
        "Containers: an image's layers with a writable one on top, and a command in them.",
        f"commands:\n{lines}\n\n'pyoverlay container COMMAND --help' tells more.",
    )
    parser.usage = "pyoverlay container COMMAND ..."
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those below")
    asked = parser.parse_args(words[:1])
    if asked.command is not None:
        raise OptionError(
            f"there is no command 'container {asked.command}'; see 'pyoverlay container --help'"
        )
    parser.print_help()
    return 0
